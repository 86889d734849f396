"""What to type to reproduce a run, from the settings that its results carry."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

from psvit_core.pareto import PlanOrigin
from psvit_core.records import POLICIES, FinetuneSettings, Subject
from psvit_core.report.sources import RunReport
from psvit_core.report.words import one_line


def short_path(text: str) -> str:
    """Return a path, or a data specification, without the folders of the machine."""
    kind, colon, place = text.partition(":")
    if colon and place and not Path(text).exists():
        return f"{kind}:{Path(place).name}"
    return Path(text).name or text


def commands(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield pairs of a comment and a command line, in the order in which they run."""
    subject, table, plan = report.subject, report.table, report.plan
    recover = ["--recover", subject.recovery]
    if table is not None:
        ratios = ",".join(f"{r:g}" for r in table.ratios)
        asked = ["--criterion", table.criterion, "--ratios", ratios, "--mode", table.mode]
        asked += ["--seed", str(table.seed)] if table.seed else []
        out = ["--out", "sweep.json"]
        yield "the sweep", _line("sweep", subject, [*asked, *_images(report), *recover, *out])
    yield from _front(report)
    if plan is None:
        return
    yield from _planning(report)
    on_plan = ["--plan", "plan.json"]
    measured = [*on_plan, *_images(report), *recover]
    yield "the plan, measured", _line("evaluate", subject, measured)
    if report.test:
        judged = [*on_plan, "--split", "test", *recover]
        yield "on the test split", _line("evaluate", subject, judged)
    pruned = [*on_plan, *recover, "--measure", "--out", "pruned.safetensors"]
    yield "the checkpoint", _line("prune", subject, pruned)
    trained = next((w.finetuning for w in report.written if w.finetuning), None)
    if trained is not None:
        options = [*on_plan, *recover, *_changed(trained.settings), "--out", "tuned.safetensors"]
        yield "the training", _line("finetune", subject, options)
    again = [*on_plan, *recover, "--out", "report.html"]
    yield "this report", _line("report", subject, again)


def _front(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield how the measured plans of the front's planners are made."""
    points = report.archive.points if report.archive is not None else ()
    made = [o for p in points for o in p.made if not o.tried and _limits(o)]
    policies = [name for name in POLICIES if any(o.policy == name for o in made)]
    savings = sorted({o.memory_saving for o in made if o.memory_saving is not None})
    drops = sorted({o.max_drop for o in made if o.max_drop is not None and o.resource == "memory"})
    if not (policies and savings) or report.table is None:
        return
    options = ["--sweep", "sweep.json", "--policies", ",".join(policies)]
    options += ["--savings", ",".join(f"{s:g}" for s in savings)]
    options += ["--max-drops", ",".join(f"{d:g}" for d in drops)] if drops else []
    options += [*_images(report), "--recover", report.subject.recovery, "--out", "front.json"]
    yield "the measured plans", _line("pareto", report.subject, options)


def _planning(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield how a plan for the same target is made, if the plan's origin is known."""
    made = report.origin.made[0] if report.origin else None
    limits = _limits(made) if made is not None and report.table is not None else []
    if made is not None and limits:
        options = ["--sweep", "sweep.json", "--policy", made.policy, *limits, "--scope", made.scope]
        options += ["--round-to", str(made.round_to)] if made.round_to > 1 else []
        options += ["--recover", report.subject.recovery, "--out", "plan.json"]
        yield "a plan for the same target by the same policy", _line("plan", None, options)


def _limits(made: PlanOrigin) -> list[str]:
    options: list[str] = []
    if made.memory_saving is not None:
        options += ["--memory-saving", f"{made.memory_saving:g}"]
    if made.saving is not None:
        options += ["--saving", f"{made.resource}={made.saving:g}"]
    for resource, saving in made.savings.items():
        options += ["--saving", f"{resource}={saving:g}"]
    if made.max_drop is not None:
        options += ["--max-drop", f"{made.max_drop:g}"]
    if not options:
        return []
    for group, ratio in made.locked.items():
        options += ["--lock", f"{group}={ratio:g}"]
    for group, (low, high) in made.bounds.items():
        options += ["--bound", f"{group}={low:g}:{high:g}"]
    return options


def _images(report: RunReport) -> list[str]:
    subject = report.subject
    return ["--limit", str(subject.limit)] if subject.limit is not None else []


def _changed(settings: FinetuneSettings) -> list[str]:
    """Return the options of a training that differ from their defaults."""
    default, options = FinetuneSettings(), list[str]()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != getattr(default, field.name) and field.name in _TRAINING:
            options += [f"--{_TRAINING[field.name]}", short_path(str(value))]
    return options


#: Fields of ``FinetuneSettings`` that the command line has, and their options.
_TRAINING = {
    name: name.replace("_", "-")
    for name in (
        *("epochs", "lr", "batch", "accumulate", "weight_decay", "warmup", "clip"),
        *("label_smoothing", "augment", "mixup", "erase", "alpha", "temperature"),
        *("patience", "train_images", "seed"),
    )
} | {"teacher": "distil-from", "teacher_checkpoint": "distil-checkpoint"}


def _line(command: str, subject: Subject | None, options: list[str]) -> str:
    words = ["psvit", command]
    if subject is not None:
        words += [short_path(subject.model), *_model(subject)]
    return one_line(shlex.join([*words, *options]), 4000)


def _model(subject: Subject) -> list[str]:
    """Return the options about the model and its images that differ from their defaults."""
    options: list[str] = []
    for name, value in (("plugin", subject.plugin), ("checkpoint", subject.checkpoint)):
        options += [f"--{name}", short_path(value)] if value else []
    options += ["--ema"] if subject.ema else []
    options += ["--entry", subject.entry] if subject.entry else []
    given = {
        "num-heads": subject.num_heads,
        "image-size": subject.image_size,
        "time-steps": subject.time_steps,
        **{name.replace("_", "-"): value for name, value in subject.arguments.items()},
    }
    for name, value in given.items():
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            options += [f"--{name}", str(value)]
    return options + (["--data", short_path(subject.data)] if subject.data else [])
