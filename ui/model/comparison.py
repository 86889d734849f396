"""Plans side by side: sizes, drops, differences by channel group, changes by class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import (
    FinetuneReport,
    Interval,
    Measurement,
    ModelSummary,
    PrunePlan,
    RecoveryReport,
    class_change,
)
from psvit_core.records.jobs import ExportResult, FinetuneResult, WrittenModel
from psvit_core.storage.predictions import TOP5_CLASSES
from psvit_core.storage.store import Store
from ui.model import formats, recovery
from ui.model.foreign import in_markdown
from ui.model.formats import POLICY_NAMES
from ui.model.predictor import Predictor

PerClass = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """A pruned network after recovery or training."""

    accuracy: Interval  # a fraction
    drop: Interval | None = None  # percentage points, paired; None in results of older versions
    gained: bool = True  # False if no epoch was better than the network before training

    @property
    def text(self) -> str:
        """Its drop, or its accuracy where the drop is unknown."""
        known = formats.drop(self.drop) if self.drop else f"top-1 {formats.accuracy(self.accuracy)}"
        return known if self.gained else f"no gain: {known}"


@dataclass(frozen=True, kw_only=True)
class ComparedPlan:
    """A plan with all its known results."""

    name: str
    plan: PrunePlan
    predicted: Interval | None = None  # drop, percentage points; before it was measured
    # Drop predicted now, with all measured plans; None if it is measured or nothing has changed.
    recalibrated: Interval | None = None
    measured: Measurement | None = None  # under the chosen recovery
    pruned: Measurement | None = None  # without recovery
    recovered: Improvement | None = None  # by recovery without training
    tuned: Improvement | None = None  # by fine-tuning: the best epoch
    prediction_note: str = ""  # what the range of the prediction is

    @property
    def per_class(self) -> PerClass | None:
        """Results by class of its measurement; None if it was not measured."""
        return self.measured.per_class if self.measured else None


def compared_plan(
    name: str,
    plan: PrunePlan,
    predictor: Predictor | None,
    measured: Sequence[Measurement],
    jobs: Sequence[Job],
    others: Sequence[Measurement] = (),
) -> ComparedPlan:
    """Collect the known results of a plan.

    Args:
        name: The plan's name.
        plan: The plan.
        predictor: The model's predictor; None without a sweep.
        measured: Measurements of this model under the chosen recovery, preferred ones first.
        jobs: Finished exports and fine-tunings, newest first.
        others: Measurements with recovery if ``measured`` are without, else without.
    """
    own = [job for job in jobs if job.plan and job.plan.kept == plan.kept]
    found, other = _measurement(measured, plan), _measurement(others, plan)
    is_recovered = recovery.used() != "none"
    recovered = found if is_recovered else other
    changed = predictor is not None and predictor.is_recalibrated and found is None
    return ComparedPlan(
        name=name,
        plan=plan,
        predicted=predictor.from_sweep(plan, found) if predictor else None,
        recalibrated=predictor.drop(plan) if predictor and changed else None,
        measured=found,
        pruned=found.plain if found else other if is_recovered else None,
        recovered=Improvement(accuracy=recovered.accuracy, drop=recovered.drop)
        if recovered
        else _recovered(own),
        tuned=_tuned(own),
        prediction_note=predictor.note if predictor else "",
    )


def prediction_note(entries: Iterable[ComparedPlan]) -> str:
    """Return what the ranges of the predicted drops are, in a sentence; empty without any."""
    note = next((e.prediction_note for e in entries if e.prediction_note), "")
    return f"Predicted drops: {note}." if note else ""


def _measurement(measured: Sequence[Measurement], plan: PrunePlan) -> Measurement | None:
    return next((m for m in measured if m.plan and m.plan.kept == plan.kept), None)


def finished_jobs(store: Store, summary: ModelSummary) -> list[Job]:
    """Return finished exports and fine-tunings of plans for these weights, newest first."""
    return [
        job
        for job in client.list_jobs(store)
        if job.state == "done"
        and job.task in ("export", "finetune")
        and job.plan is not None
        and job.plan.weights_hash == summary.weights_hash
    ]


def finetune_report(job: Job) -> FinetuneReport | None:
    """Return the report of a finished fine-tuning; None if this version cannot read it."""
    return job.outcome.report if isinstance(job.outcome, FinetuneResult) else None


def recovery_report(job: Job) -> RecoveryReport | None:
    """Return the recovery report of a finished job; None without a recovery."""
    return job.outcome.recovery if isinstance(job.outcome, WrittenModel) else None


def job_measurement(job: Job, step: str) -> Measurement | None:
    """Return a finished job's measurement of one step; None if it has none that can be read.

    Args:
        job: An export or a fine-tuning.
        step: ``pruned`` (the plan alone), ``recovered`` (before training) or ``file`` (the result).
    """
    return getattr(job.outcome, f"{step}_measurement", None)


def gain_text(job: Job) -> str:
    """Describe what the recovery of a finished export gained, or why it was not measured."""
    if isinstance(job.outcome, ExportResult) and job.outcome.warnings:
        return " ".join(job.outcome.warnings)
    plain, result = (job_measurement(job, step) for step in ("pruned", "file"))
    recovery = recovery_report(job)
    if plain is None or result is None or not plain.drop or not result.drop:
        return ""
    line = formats.conditions_line(result.conditions)
    if recovery is None:
        return f"Drop {formats.drop(plain.drop)}, without recovery. Measured on {line}."
    if recovery.used == "none":
        return (
            f"Drop {formats.drop(plain.drop)}. No recovery brought the outputs closer to the "
            f"unpruned model's, so the weights are those of the plan alone. Measured on {line}."
        )
    return (
        f"Drop {formats.drop(result.drop)} after recovery without training "
        f"({formats.RECOVERY_STEPS[recovery.used]}, "
        f"{recovery.conditions.n_images} calibration images); {formats.drop(plain.drop)} before "
        f"it. Measured on {line}."
    )


def _recovered(jobs: Sequence[Job]) -> Improvement | None:
    for job in jobs:
        recovery = recovery_report(job)
        if recovery is None or recovery.used == "none":
            continue
        report = finetune_report(job) if job.task == "finetune" else None
        found = job_measurement(job, "recovered" if report else "file")
        accuracy = found.accuracy if found else report.epochs[0].val_accuracy if report else None
        if accuracy is not None:
            return Improvement(accuracy=accuracy, drop=found.drop if found else None)
    return None


def _tuned(jobs: Sequence[Job]) -> Improvement | None:
    tuned = []
    for job in jobs:
        report = finetune_report(job) if job.task == "finetune" else None
        if report is not None:
            found, gained = job_measurement(job, "file"), report.best_epoch > 0
            drop = found.drop if found else None
            tuned.append(Improvement(accuracy=report.best_accuracy, drop=drop, gained=gained))
    return max(tuned, key=lambda improved: improved.accuracy.value, default=None)


# ---- tables --------------------------------------------------------------------------------------


def plan_rows(summary: ModelSummary, entries: Sequence[ComparedPlan]) -> pd.DataFrame:
    """Return one row per plan: sizes as numbers, drops with their intervals as text."""
    base = plan_size(summary, None)
    rows = []
    for e in entries:
        size = plan_size(summary, e.plan)
        drop = e.pruned.drop if e.pruned else None
        worst = worst_class(e.per_class)
        rows.append(
            {
                "plan": e.name,
                "ratios": [100 * r for r in reached_ratios(summary, e.plan).values()],
                "megabytes": size.bytes / 1e6,
                "saves": 100 * (1 - size.bytes / base.bytes),
                "macs": size.macs / 1e6,
                "sops": e.measured.sops / 1e6 if e.measured else math.nan,
                "energy": e.measured.energy_pj / 1e6 if e.measured else math.nan,
                "predicted": formats.drop(e.predicted) if e.predicted else "no sweep",
                "recalibrated": formats.drop(e.recalibrated) if e.recalibrated else "",
                "measured": formats.drop(drop) if drop else "not yet",
                **({"top5": _top5(e.measured)} if summary.num_classes >= TOP5_CLASSES else {}),
                "recovered": e.recovered.text if e.recovered else "not yet",
                "tuned": e.tuned.text if e.tuned else "not yet",
                "worst": f"{worst[0]}: {formats.points(worst[1], 1)}" if worst else "",
                "policy": POLICY_NAMES.get(e.plan.policy, e.plan.policy),
            }
        )
    return pd.DataFrame(rows)


def _top5(measured: Measurement | None) -> str:
    """Return the top-5 accuracy and its change; "not yet" where it is unknown."""
    if measured is None or measured.top5 is None:
        return "not yet"
    before = measured.baseline_top5
    change = f", {formats.points(100 * (measured.top5.value - before.value))}" if before else ""
    return formats.percent(measured.top5.value, 2) + change


def worst_class(per_class: PerClass | None) -> tuple[str, float] | None:
    """Return the class with the largest loss and its change; None if no class is known to lose."""
    if not per_class:
        return None
    name = min(per_class, key=lambda c: class_change(per_class[c]))
    change = class_change(per_class[name])
    return (name, change) if change < 0 else None


def difference_rows(summary: ModelSummary, a: ComparedPlan, b: ComparedPlan) -> pd.DataFrame:
    """Return one row per group: percent removed by each plan, and their difference in pp."""
    first, second = reached_ratios(summary, a.plan), reached_ratios(summary, b.plan)
    return pd.DataFrame(
        {
            "block": [g.place for g in summary.groups],
            "group": [g.title for g in summary.groups],
            "units": [g.n_units for g in summary.groups],
            "a": [100 * first[g.group_id] for g in summary.groups],
            "b": [100 * second[g.group_id] for g in summary.groups],
            "difference": [100 * (first[g.group_id] - second[g.group_id]) for g in summary.groups],
        }
    )


def difference_line(summary: ModelSummary, a: ComparedPlan, b: ComparedPlan) -> str:
    """Describe how two plans differ, as markdown."""
    rows = difference_rows(summary, a, b)
    more, less = int((rows["difference"] > 0).sum()), int((rows["difference"] < 0).sum())
    if not more and not less:
        units = "the same units" if a.plan.kept == b.plan.kept else "though not the same units"
        return f"Both plans remove the same number of units from every channel group, {units}."
    size_a, size_b = plan_size(summary, a.plan), plan_size(summary, b.plan)
    difference = formats.kilobytes(abs(size_a.bytes - size_b.bytes))
    side = "smaller" if size_a.bytes < size_b.bytes else "larger"
    return (
        f"**{in_markdown(a.name)}** removes more from **{more}** and less from **{less}** of "
        f"{len(summary.groups)} channel groups than **{in_markdown(b.name)}**, and is "
        f"{difference} {side}."
    )


def classes_line(entries: Sequence[ComparedPlan]) -> str:
    """Describe which classes lose accuracy under each plan, as markdown."""
    lines = []
    for e in entries:
        if not e.per_class:
            continue
        losing = sorted(
            (change, name)
            for name, counts in e.per_class.items()
            if (change := class_change(counts)) < 0
        )
        worst = ", ".join(f"{in_markdown(n)} ({formats.points(c, 1)})" for c, n in losing[:3])
        summary = (
            f"{len(losing)} of {len(e.per_class)} classes lost accuracy, most of all {worst}."
            if losing
            else "No class lost accuracy."
        )
        lines.append(f"**{in_markdown(e.name)}**: {summary}")
    return "  \n".join(lines)


def change_column(at: int) -> str:
    """Return the column of ``class_rows`` that has the changes under the plan with this index."""
    return f"change {at}"


def class_rows(entries: Sequence[ComparedPlan]) -> pd.DataFrame:
    """Return one row per class: images, baseline accuracy (percent), each plan's change (pp).

    Args:
        entries: Plans with results by class; images and baseline are those of the first plan.
    """
    rows = []
    for name, (images, _, before) in ((entries[0].per_class or {}) if entries else {}).items():
        row = {"class": name, "images": images, "baseline": 100 * before / images}
        for at, e in enumerate(entries):
            counts = (e.per_class or {}).get(name)
            row[change_column(at)] = class_change(counts) if counts else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


# ---- confusions, firing rates --------------------------------------------------------------------

MOST_CHANGED = 15  # confusions that are shown


def confusion_rows(entry: ComparedPlan) -> pd.DataFrame | None:
    """Return the confusions whose number changes most under a plan, one per row.

    Returns:
        Columns class, predicted, before, after and change (images); None where they are unknown.
    """
    known = entry.measured.confusions if entry.measured else None
    if known is None:
        return None
    rows = [
        {"class": name, "predicted": as_, "before": before, "after": now, "change": now - before}
        for name, as_, now, before in known
        if now != before
    ]
    columns = ["class", "predicted", "before", "after", "change"]
    return pd.DataFrame(rows[:MOST_CHANGED], columns=columns)


def firing_rows(entries: Sequence[ComparedPlan], unpruned: Measurement | None) -> pd.DataFrame:
    """Return one row per neuron layer, in network order: its firing rate in each network.

    Args:
        entries: Measured plans; others have no rates.
        unpruned: The measured unpruned model, if there is one.
    """
    named = [("Unpruned", unpruned), *((e.name, e.measured) for e in entries)]
    known = [(name, m.firing) for name, m in named if m is not None and m.firing]
    layers = list(dict.fromkeys(layer for _, firing in known for layer in firing))
    rates = {name: [firing.get(layer, math.nan) for layer in layers] for name, firing in known}
    return pd.DataFrame({"layer": layers, **rates})
