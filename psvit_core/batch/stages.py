"""The stages of a run: what each does with the tasks of the other commands, and what it leaves.

Torch is imported inside functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from psvit_core.batch.folder import RunFolder
from psvit_core.batch.schema import RunConfig
from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import Measurement, PrunePlan, SensitivityTable
from psvit_core.storage.store import ENGINE_VERSION, digest
from psvit_core.tasks import evaluate as evaluation
from psvit_core.tasks.finetune import FinetuneCallbacks, FinetuneTask, run_finetune
from psvit_core.tasks.graph import images_to_check
from psvit_core.tasks.plan import counting_note, latency_timer, run_plan
from psvit_core.tasks.prune import write_pruned
from psvit_core.tasks.recover import load_written, measure_file
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.tasks.written import measure_written

SWEEP, PLAN, PRUNED, TUNED = "sweep.json", "plan.json", "pruned.safetensors", "tuned.safetensors"
_TUNED_LAST, REPORT = "tuned.last.safetensors", "report.html"
_EXPORTED = {
    "torch": ("network.py", "network.safetensors"),
    "onnx": ("network.onnx",),
    "pt2": ("network.pt2",),
    "nir": ("network.nir",),
}

#: Stages that others build on by their files. If one of these was lost and the new one is another,
#: as a plan by latency may be, all later stages run again.
CHOICES = ("sweep", "plan")

Result = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What all stages work with.

    Args:
        config: The configuration.
        session: The model and its images under the configuration's recovery.
        folder: The folder of the run.
        progress: Called within a stage.
        tick: Called before each batch; may raise to stop.
    """

    config: RunConfig
    session: Session
    folder: RunFolder
    progress: Progress = field(default=ignore_progress, repr=False)
    tick: Tick = field(default=keep_going, repr=False)

    @property
    def plan(self) -> PrunePlan:
        """The chosen plan."""
        return PrunePlan.load(self.folder.place / PLAN)

    @property
    def final(self) -> Path:
        """The file of the run's network."""
        return self.folder.place / (TUNED if self.config.finetune else PRUNED)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run, whose result is kept."""

    name: str
    key: str  # hash of all that decides its result
    files: tuple[str, ...] = ()
    run: Callable[[Work], Result] = field(repr=False)
    derived: bool = False  # only shows what other stages found: written anew when that changes


def make_stages(config: RunConfig, session: Session) -> list[Stage]:
    """Return the stages of a configuration in their order.

    A stage's key contains that of the stage before, so that a change concerns what follows from it.
    """
    found: list[Stage] = []

    def add(
        name: str,
        run: Callable[[Work], Result],
        files: tuple[str, ...],
        *decisive: Any,
        derived: bool = False,
    ) -> str:
        key = digest([name, *decisive])
        found.append(Stage(name=name, key=key, files=files, run=run, derived=derived))
        return key

    data = config.model_dump(mode="json")
    base = _base_key(session)
    add("baseline", _baseline, (), base)
    swept = add("sweep", _sweep, (SWEEP,), base, _recovery_key(session), data["sweep"])
    planned = add("plan", _plan, (PLAN,), swept, data["targets"], data["plan"])
    final = add("pruned", _prune, (PRUNED,), planned)
    if "latency" in config.plan_settings().target.all_savings:
        add("latency", _latency, (), planned)
    if config.finetune:
        tried = [data["trials"]] if config.trial_settings() else []
        final = add("tuned", _finetune, (TUNED, _TUNED_LAST), final, data["finetune"], *tried)
    for kind in dict.fromkeys(config.exports):
        add(kind, partial(_export, kind=kind), _EXPORTED[kind], final)
    tested = add("test", _test, (), final) if config.test else ""
    if config.report:
        add("report", _report, (REPORT,), final, tested, derived=True)
    return found


def file_names(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the files that a configuration leaves, without the result."""
    exported = [name for kind in config.exports for name in _EXPORTED[kind]]
    tuned = (TUNED, _TUNED_LAST) if config.finetune else ()
    report = (REPORT,) if config.report else ()
    return (SWEEP, PLAN, PRUNED, *tuned, *exported, *report)


def _base_key(session: Session) -> str:
    """Return the hash of weights, images, conditions and versions."""
    from psvit_core.evaluate import conditions_of
    from psvit_core.recover import VERSION

    weights = session.description.weights_hash
    conditions = conditions_of(session.model, session.data, session.run)
    return digest([ENGINE_VERSION, VERSION, weights, conditions.to_dict()])


def _recovery_key(session: Session) -> str:
    """Return the hash of the recovery that is possible here, and of its images."""
    recovery = session.recovery
    images = (
        [] if recovery.method == "none" else session.calib(recovery.n_images, recovery.seed).ids
    )
    return digest([recovery.to_dict(), list(images)])


def check_possible(work: Work, pending: set[str]) -> None:
    """Check what later stages need, before the first one takes its time.

    Args:
        work: The run.
        pending: Names of the stages that will run.

    Raises:
        PsvitError: If images, packages or the model do not allow a stage.
    """
    session = work.session
    settings = work.config.finetune_settings()
    if settings and "tuned" in pending:
        from psvit_core.finetune import check_images

        train = session.load_images("train", settings.train_images)
        check_images(session.model, train, session.data, settings)
    if "torch" in pending:
        from psvit_core.export import refuse_own_code

        refuse_own_code(session.model)
    if "onnx" in pending:
        from psvit_core.export.onnx_file import check_onnx_packages

        check_onnx_packages()
    if {"onnx", "pt2"} & pending:
        from psvit_core.export.traced import plain_network

        plain_network(session.model)
    if "nir" in pending:
        from psvit_core.export.nir_file import check_expressible

        check_expressible(session.model)
    if "test" in pending:
        session.load_images("test", None)


# ---- the stages ----------------------------------------------------------------------------------


def _baseline(work: Work) -> Result:
    session = work.session
    found = evaluation.evaluate(session.without_recovery(), tick=work.tick)
    published = evaluation.compare_published(session.card, found)
    return {
        "measurement": _short(found),
        "published": published and {"text": published[0], "inside_interval": published[1]},
    }


def _sweep(work: Work) -> Result:
    table = run_sweep(
        work.session, work.config.sweep_settings(), progress=work.progress, tick=work.tick
    )
    table.save(work.folder.place / SWEEP)
    return {
        "file": SWEEP,
        "criterion": table.criterion,
        "cells": len(table.rows),
        "conditions": table.conditions.to_dict(),
        "baseline_accuracy": table.baseline_accuracy.to_dict(),
    }


def _plan(work: Work) -> Result:
    from psvit_core import planners

    table = SensitivityTable.load(work.folder.place / SWEEP)
    settings = work.config.plan_settings()
    plan, measured = run_plan(work.session, table, settings, work.progress, work.tick)
    plan.save(work.folder.place / PLAN)
    summary = table.summary
    shown = planners.for_recovery(table, work.session.recovery.method)
    predicted = planners.predict_drop_interval(shown, reached_ratios(summary, plan))
    assert measured is not None
    return {
        "file": PLAN,
        "policy": plan.policy,
        "criterion": plan.criterion,
        "limits": settings.target.text,
        "note": " ".join(filter(None, [plan.note, counting_note(table)])),
        "memory_saving": memory_saving(summary, plan),
        "size": plan_size(summary, plan).to_dict(),
        "baseline_size": plan_size(summary, None).to_dict(),
        "predicted_drop": predicted.to_dict(),
        "prediction": planners.prediction_note(shown),
        "measurement": _short(measured),
    }


def _prune(work: Work) -> Result:
    session, plan = work.session, work.plan
    path = work.folder.place / PRUNED
    _, report = write_pruned(session, plan, path, session.recovery, work.tick)
    plain, found = measure_written(session, plan, path, work.tick)
    return {
        "file": PRUNED,
        "recovery": report.to_dict() if report else None,
        "without_recovery": _short(plain),
        "measurement": _short(found),
    }


def _latency(work: Work) -> Result:
    from psvit_core.metrics.profile import machine

    session = work.session
    ratio = latency_timer(session, work.tick)(work.plan)
    return {"saving": 1 - ratio, "batch": 1, "machine": machine(session.run.device).to_dict()}


def _finetune(work: Work) -> Result:
    place = work.folder.place
    settings = work.config.finetune_settings()
    assert settings is not None
    task = FinetuneTask(
        settings=settings,
        out=place / TUNED,
        plan=work.plan,
        pruned=place / PRUNED,
        trials=work.config.trial_settings(),
    )
    done = run_finetune(
        work.session, task, FinetuneCallbacks(progress=work.progress, tick=work.tick)
    )
    return {
        "file": TUNED,
        "last": _TUNED_LAST,
        "training": done.report.to_dict(),
        "trials": [report.to_dict() for report in done.trials],
        "measurement": _short(done.measurement),
    }


def _export_torch(work: Work) -> Result:
    from psvit_core.export import export_torch

    code, weights = _EXPORTED["torch"]
    export_torch(load_written(work.session, work.final), work.folder.place / code)
    return {"format": "torch", "file": code, "weights": weights, "needs": ["torch", "safetensors"]}


def _export_checked(work: Work, kind: str) -> Result:
    from psvit_core.export import export_nir, export_onnx, export_pt2
    from psvit_core.export.checked import as_result

    (name,) = _EXPORTED[kind]
    model, (images, what) = load_written(work.session, work.final), images_to_check(work.session)
    write = {"onnx": export_onnx, "pt2": export_pt2, "nir": export_nir}[kind]
    found = as_result(write(model, work.folder.place / name, images, what=what))
    return {"format": kind, "file": name, **{k: v for k, v in found.items() if k != "out"}}


def _export(work: Work, kind: str) -> Result:
    return _export_torch(work) if kind == "torch" else _export_checked(work, kind)


def _report(work: Work) -> Result:
    """Write what the store has of the run as one page."""
    from psvit_core.report import collect, write_page

    session, recovery = work.session, work.config.recovery
    found = collect(
        session.store,
        session.subject,
        session.description,
        plan=work.plan,
        pruned=work.final,
        recovery=None if recovery == "auto" else recovery,  # auto: what was possible
    )
    write_page(found, work.folder.place / REPORT)
    return {"file": REPORT, "missing": list(found.missing)}


def _test(work: Work) -> Result:
    """Judge the final network on all images of the test split, and count how often that was done.

    A result that was looked at and then improved on is no longer independent.
    """
    before = work.folder.find("test")
    judged_before = before.result["judged_before"] + 1 if before else 0
    session = _on_test(work.session)
    if judged_before:
        work.session.caution(
            f"The test split was used {judged_before} times before in {work.config.out}, with "
            "other settings. If these were chosen by its results, it is no longer independent."
        )
    base = evaluation.evaluate(session, tick=work.tick)
    final = measure_file(session, work.plan, work.final, work.tick)
    return {
        "judged_before": judged_before,
        "baseline": _short(base),
        "measurement": _short(final),
    }


def _on_test(session: Session) -> Session:
    """Return the session on the whole test split, for numbers that nothing is chosen by."""
    subject = dataclasses.replace(session.subject, split="test", limit=None)
    return dataclasses.replace(session.without_recovery(), subject=subject, _data=None)


def _short(measured: Measurement) -> Result:
    """Return a measurement without plan, profile, firing rates and classes."""
    from psvit_core.zoo.recorded import without_details

    return without_details(measured).to_dict()


def leftovers(folder: RunFolder, stages: list[Stage]) -> Iterator[str]:
    """Yield files of stages that the configuration no longer has; they stay."""
    names = {stage.name for stage in stages}
    for name in {"tuned", "report", *_EXPORTED} - names:
        if record := folder.find(name):
            yield from (file for file in record.files if (folder.place / file).is_file())
