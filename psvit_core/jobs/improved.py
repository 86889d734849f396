"""What became of pruned models since: recovered and fine-tuned ones, measured into the archive.

Torch is imported inside, as in ``tasks``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit_core.jobs.engine import Engine, RecoverySettings, Tick
from psvit_core.jobs.tasks import pruned
from psvit_core.pareto import Made, add_point
from psvit_core.records import FinetuneReport, Measurement, PrunePlan, RecoveryReport
from psvit_core.store import ENGINE_VERSION, digest

if TYPE_CHECKING:
    from psvit_core.zoo.base import SpikingModel


def measure_recovered(
    engine: Engine,
    plan: PrunePlan,
    recovery: RecoverySettings,
    made: Made,
    plain: Measurement,
    tick: Tick = lambda: None,
) -> Measurement:
    """Measure what a recovery makes of a pruned model, into the archive; kept in the store.

    Args:
        engine: The model and its images.
        plan: The plan.
        recovery: How to recover.
        made: How the plan came to be.
        plain: The plan's measurement without recovery: run-time memory and latency are the same.
        tick: Called before each batch; may raise to stop.
    """
    from psvit_core.evaluate import measure

    calib = engine.calib(recovery.n_images, recovery.seed)
    parts = [
        ENGINE_VERSION, engine.description.weights_hash, plan.to_dict()["kept"],
        plain.conditions.to_dict(), list(engine.data.ids), recovery.to_dict(), calib.transform,
        list(calib.ids),
    ]  # fmt: skip
    key = f"recovered/{digest(parts)}"
    known = engine.store.get(key)
    if known is None:
        small, _ = pruned(engine, plan, recovery, tick)
        found = measure(
            engine.model, engine.data, plan, result=small, run=engine.run, store=engine.store,
            summary=engine.description, tick=tick,
        )  # fmt: skip
        known = {"measurement": found.to_dict(), "since": since_pruning(small)}
        engine.store.put(key, known)
    measured = dataclasses.replace(
        Measurement.from_dict(known["measurement"]), plan=plan, profile=plain.profile
    )
    made = dataclasses.replace(made, **known["since"])
    add_point(engine.store, measured, made, batch_coupled=engine.model.batch_coupled)
    return measured


def measure_trained(
    engine: Engine,
    trained: SpikingModel,
    base: SpikingModel | None,
    plan: PrunePlan | None,
    tick: Tick = lambda: None,
) -> Measurement:
    """Measure a fine-tuned model on the engine's images, into the archive of the unpruned one.

    Args:
        engine: The model that was trained, or that ``plan`` is for, and its images.
        trained: The result, with its provenance.
        base: The unpruned model, to compare with, if it is here; another one is left aside.
        plan: What pruned ``base``; what the provenance tells when None.
        tick: Called before each batch; may raise to stop.
    """
    from psvit_core.evaluate import measure
    from psvit_core.zoo.checkpoint import weights_hash

    plan = plan or _whole_plan(trained)
    data, run, store = engine.data, engine.run, engine.store
    if base is not None and weights_hash(base) == plan.weights_hash:
        measured = measure(base, data, plan, result=trained, run=run, store=store, tick=tick)
    else:
        alone = measure(trained, data, run=run, store=store, tick=tick)
        measured = dataclasses.replace(alone, model=plan.model, plan=plan)
    made = Made(policy=plan.policy, criterion=plan.criterion, **since_pruning(trained))
    add_point(
        store, measured, made, batch_coupled=trained.batch_coupled, weights_hash=plan.weights_hash
    )
    return measured


def measure_file(
    engine: Engine, plan: PrunePlan, path: Path, tick: Tick = lambda: None
) -> Measurement:
    """Measure a file that was just written by a plan beside the engine's unpruned model."""
    from psvit_core.zoo.checkpoint import load_model

    small = load_model(path)  # the file says itself what led to its weights
    if "T" in small.arguments:
        small.set_time_steps(engine.model.T)
    return measure_trained(engine, small, engine.model, plan, tick)


def since_pruning(model: SpikingModel) -> dict[str, Any]:
    """What a pruned model's provenance tells of recoveries and training, as fields of ``Made``."""
    from psvit_core.zoo.checkpoint import weights_hash

    recoveries = [RecoveryReport.from_dict(r) for r in model.provenance.get("recoveries", [])]
    trainings = [FinetuneReport.from_dict(r) for r in model.provenance.get("finetunes", [])]
    changed = any(r.used != "none" for r in recoveries) or any(t.best_epoch for t in trainings)
    return {
        "recovery": ", then ".join(_in_words(r) for r in recoveries) or "none",
        "finetuning": ", then ".join(_trained_in_words(t) for t in trainings),
        "epochs": sum(t.best_epoch for t in trainings),
        "weights": weights_hash(model) if changed else "",
    }


def _in_words(report: RecoveryReport) -> str:
    used = report.used if report.used == report.method else f"{report.method} ({report.used})"
    return f"{used}, seed {report.seed}" if report.seed else used


def _trained_in_words(report: FinetuneReport) -> str:
    s = report.settings
    best = f", best after {report.best_epoch:g}" if report.best_epoch != s.epochs else ""
    teacher = f", distilled from {report.teacher}" if report.teacher else ""
    epochs = "1 epoch" if s.epochs == 1 else f"{s.epochs:g} epochs"
    return f"{epochs}{best}, lr {s.lr:g}{teacher}"


def _whole_plan(small: SpikingModel) -> PrunePlan:
    """From the first ancestor's units to a pruned model's, as its provenance tells."""
    origin, last = small.provenance, PrunePlan.from_dict(small.provenance["plans"][-1])
    return PrunePlan(
        model=origin["origin"], weights_hash=origin["origin_weights_hash"],
        criterion=last.criterion, policy=last.policy, note=last.note,
        kept={group: tuple(units) for group, units in origin["kept"].items()},
    )  # fmt: skip
