"""What is known of each plan, side by side: rows, differences, classes; no streamlit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from psvit_core.errors import RecordError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plans import reached_ratios
from psvit_core.records import (
    FinetuneReport,
    Interval,
    Measurement,
    ModelSummary,
    PrunePlan,
    RecoveryReport,
)
from psvit_core.size import plan_size
from psvit_core.store import Store
from ui import words
from ui.predict import POLICY_NAMES, Predictor

PerClass = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Improved:
    """What recovery or training made of a pruned network."""

    accuracy: Interval  # a fraction
    drop: Interval | None = None  # percentage points, paired; None where jobs did not keep it yet
    gained: bool = True  # whether it is another network than the one that it began with

    @property
    def text(self) -> str:
        """Its drop in words."""
        known = words.drop(self.drop) if self.drop else f"top-1 {words.accuracy(self.accuracy)}"
        return known if self.gained else f"no gain: {known}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A plan with all that was found out about it."""

    name: str
    plan: PrunePlan
    predicted: Interval | None = None  # drop, percentage points
    measured: Measurement | None = None
    recovered: Improved | None = None  # by recovery without training
    tuned: Improved | None = None  # by fine-tuning: the best epoch

    @property
    def per_class(self) -> PerClass | None:
        """Results by class of its measurement."""
        return self.measured.per_class if self.measured else None


def entry(
    name: str,
    plan: PrunePlan,
    predictor: Predictor | None,
    measured: Sequence[Measurement],
    jobs: Sequence[Job],
) -> Entry:
    """A plan with what is known of it.

    Args:
        name: The plan's name.
        plan: The plan.
        predictor: Of this model, if there is a sweep.
        measured: Measurements of this model, the preferred ones first.
        jobs: Finished exports and fine-tunings, newest first.
    """
    own = [job for job in jobs if _kept(job) == plan.kept]
    return Entry(
        name=name,
        plan=plan,
        predicted=predictor.drop(plan) if predictor else None,
        measured=next((m for m in measured if m.plan and m.plan.kept == plan.kept), None),
        recovered=_recovered(own),
        tuned=_tuned(own),
    )


def finished_jobs(store: Store, summary: ModelSummary) -> list[Job]:
    """Finished exports and fine-tunings of plans for these weights, newest first."""
    return [
        job
        for job in client.list_jobs(store)
        if job.task in ("export", "finetune")
        and job.state == "done"
        and (job.params.get("plan") or {}).get("weights_hash") == summary.weights_hash
    ]


def _kept(job: Job) -> dict[str, tuple[int, ...]]:
    return {group: tuple(units) for group, units in job.params["plan"]["kept"].items()}


def report_of(job: Job) -> FinetuneReport | None:
    """What a finished fine-tuning did, if this version can read it."""
    try:
        return FinetuneReport.from_dict(job.result["report"])
    except (KeyError, RecordError):
        return None


def recovery_of(job: Job) -> RecoveryReport | None:
    """What a finished job's recovery gained; None without one."""
    try:
        return RecoveryReport.from_dict(job.result["recovery"])
    except (KeyError, RecordError):
        return None


def best_accuracy(report: FinetuneReport) -> Interval:
    """Validation accuracy of the epoch that was kept, a fraction."""
    found = next(r for r in report.epochs if r.epoch == report.best_epoch).val_accuracy
    assert found is not None
    return found


def measured_by(job: Job, step: str) -> Measurement | None:
    """What a finished job measured of a step; None if it did not, or not in this version's form.

    Args:
        job: An export or a fine-tuning.
        step: ``pruned`` (the plan alone), ``recovered`` (before training) or ``file`` (the end).
    """
    try:
        return Measurement.from_dict(job.result[f"{step}_measurement"])
    except (KeyError, RecordError):
        return None


def _recovered(jobs: Sequence[Job]) -> Improved | None:
    for job in jobs:
        recovery = recovery_of(job)
        if recovery is None or recovery.used == "none":
            continue
        report = report_of(job) if job.task == "finetune" else None
        found = measured_by(job, "recovered" if report else "file")
        accuracy = found.accuracy if found else report.epochs[0].val_accuracy if report else None
        if accuracy is not None:
            return Improved(accuracy=accuracy, drop=found.drop if found else None)
    return None


def _tuned(jobs: Sequence[Job]) -> Improved | None:
    tuned = []
    for job in jobs:
        report = report_of(job) if job.task == "finetune" else None
        if report is not None:
            found, gained = measured_by(job, "file"), report.best_epoch > 0
            drop = found.drop if found else None
            tuned.append(Improved(accuracy=best_accuracy(report), drop=drop, gained=gained))
    return max(tuned, key=lambda improved: improved.accuracy.value, default=None)


# ---- rows ------------------------------------------------------------------------------------


def plan_rows(summary: ModelSummary, entries: Sequence[Entry]) -> pd.DataFrame:
    """One row a plan: sizes as numbers, measured values with their intervals in words."""
    base = plan_size(summary, None)
    rows = []
    for e in entries:
        size = plan_size(summary, e.plan)
        drop = e.measured.drop if e.measured else None
        worst = worst_class(e.per_class)
        rows.append(
            {
                "plan": e.name,
                "ratios": [100 * r for r in reached_ratios(summary, e.plan).values()],
                "megabytes": size.bytes / 1e6,
                "saves": 100 * (1 - size.bytes / base.bytes),
                "predicted": words.drop(e.predicted) if e.predicted else "no sweep",
                "measured": words.drop(drop) if drop else "not yet",
                "recovered": e.recovered.text if e.recovered else "not yet",
                "tuned": e.tuned.text if e.tuned else "not yet",
                "worst": f"{worst[0]}: {words.points(worst[1], 1)}" if worst else "",
                "policy": POLICY_NAMES.get(e.plan.policy, e.plan.policy),
            }
        )
    return pd.DataFrame(rows)


def class_change(counts: tuple[int, int, int]) -> float:
    """How a class's accuracy changes against the baseline, percentage points; negative: loses."""
    images, correct, before = counts
    return 100 * (correct - before) / images


def worst_class(per_class: PerClass | None) -> tuple[str, float] | None:
    """The class that loses most, with its change; None if none loses or nothing is known."""
    if not per_class:
        return None
    name = min(per_class, key=lambda c: class_change(per_class[c]))
    change = class_change(per_class[name])
    return (name, change) if change < 0 else None


def difference_rows(summary: ModelSummary, a: Entry, b: Entry) -> pd.DataFrame:
    """One row a group: what each plan removes, percent, and the difference, percentage points."""
    first, second = reached_ratios(summary, a.plan), reached_ratios(summary, b.plan)
    return pd.DataFrame(
        {
            "block": [g.block for g in summary.groups],
            "group": [g.title for g in summary.groups],
            "units": [g.n_units for g in summary.groups],
            "a": [100 * first[g.group_id] for g in summary.groups],
            "b": [100 * second[g.group_id] for g in summary.groups],
            "difference": [100 * (first[g.group_id] - second[g.group_id]) for g in summary.groups],
        }
    )


def difference_line(summary: ModelSummary, a: Entry, b: Entry) -> str:
    """How two plans differ, in words."""
    rows = difference_rows(summary, a, b)
    more, less = int((rows["difference"] > 0).sum()), int((rows["difference"] < 0).sum())
    if not more and not less:
        same = "the very same units" if a.plan.kept == b.plan.kept else "other units of each group"
        return f"Both plans remove as much from every channel group, {same}."
    size_a, size_b = plan_size(summary, a.plan), plan_size(summary, b.plan)
    gap = words.kilobytes(abs(size_a.bytes - size_b.bytes))
    side = "smaller" if size_a.bytes < size_b.bytes else "larger"
    return (
        f"**{escaped(a.name)}** removes more from **{more}** and less from **{less}** of "
        f"{len(summary.groups)} channel groups than **{escaped(b.name)}**, and is {gap} {side}."
    )


def classes_line(entries: Sequence[Entry]) -> str:
    """Which classes lose under each plan, in words."""
    lines = []
    for e in entries:
        if not e.per_class:
            continue
        losing = sorted(
            (change, name)
            for name, counts in e.per_class.items()
            if (change := class_change(counts)) < 0
        )
        worst = ", ".join(f"{escaped(n)} ({words.points(c, 1)})" for c, n in losing[:3])
        said = f"most: {worst}" if worst else "none"
        lines.append(
            f"**{escaped(e.name)}**: {len(losing)} of {len(e.per_class)} classes lose, {said}."
        )
    return "  \n".join(lines)


def escaped(name: str) -> str:
    """A user's text so that markdown shows it as it is."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-.!|~$<>:" else c for c in name)


def change_column(at: int) -> str:
    """The column of ``class_rows`` with the change under the plan at a position."""
    return f"change {at}"


def class_rows(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row a class: images, baseline's accuracy (percent), each plan's change in points.

    Args:
        entries: Plans that have results by class; images and baseline are the first one's.
    """
    rows = []
    for name, (images, _, before) in ((entries[0].per_class or {}) if entries else {}).items():
        row = {"class": name, "images": images, "baseline": 100 * before / images}
        for at, e in enumerate(entries):
            counts = (e.per_class or {}).get(name)
            row[change_column(at)] = class_change(counts) if counts else math.nan
        rows.append(row)
    return pd.DataFrame(rows)
