"""A fine-tuning in words: how long it takes, where it stands, what came out; no streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psvit_core.jobs.client import Job
from psvit_core.records import (
    EpochRecord,
    FinetuneReport,
    FinetuneSettings,
    Interval,
    Measurement,
    RecoveryReport,
)
from ui import compare, words

RECOVERY_NAMES = {
    "none": "None",
    "bn": "BatchNorm",
    "lsq": "Least squares",
    "both": "Both",
    "auto": "Auto",
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Accuracies to set beside a training: fractions, on the same number of images."""

    baseline: Interval | None = None  # of the unpruned model
    pruned: Interval | None = None  # of the plan, before anything was won back


def reference(
    measured: Sequence[Measurement], plan: dict[str, list[int]], n_images: int | None,
    pruned: Measurement | None = None,
) -> Reference:  # fmt: skip
    """The accuracies that are known of the model and of a plan's kept units on so many images.

    Args:
        measured: Measurements of the model and of plans for it.
        plan: The units that the plan keeps, by group.
        n_images: How many images; None: all.
        pruned: The plan's measurement where the training itself kept it.
    """
    same = [m for m in measured if n_images in (None, m.conditions.n_images)]
    own = pruned or next((m for m in same if _kept(m) == plan), None)
    if own is not None:
        same.append(own)
    whole = next((m.accuracy for m in same if m.plan is None), None)
    beside = next((m.baseline_accuracy for m in same if m.baseline_accuracy), None)
    return Reference(baseline=whole or beside, pruned=own.accuracy if own else None)


def _kept(m: Measurement) -> dict[str, list[int]] | None:
    return {g: list(units) for g, units in m.plan.kept.items()} if m.plan else None


def epoch_seconds(jobs: Sequence[Job], settings: FinetuneSettings) -> float | None:
    """Seconds an epoch took last time with as many training images; None without a last time."""
    for job in jobs:
        report = compare.report_of(job) if job.state == "done" else None
        if report is None or not report.epochs[-1].epoch:
            continue
        before = report.settings
        if (before.train_images, before.teacher) == (settings.train_images, settings.teacher):
            return report.epochs[-1].seconds / report.epochs[-1].epoch
    return None


def estimate_line(settings: FinetuneSettings | None, seconds: float | None) -> str:
    """How long it will take, in words.

    Args:
        settings: How is trained; None: recovery only.
        seconds: Of an epoch, if one was trained here before.
    """
    if settings is None:
        return "Recovery alone looks at a few hundred images: some seconds to a minute."
    if seconds is None:
        return (
            "How long an epoch takes here is not known yet; the progress says so after the first "
            "steps, and you can stop at any time and keep the best."
        )
    total = seconds * settings.epochs
    span = f"{max(1, round(total))} s" if total < 90 else f"{round(total / 60)} min"
    return f"About {span}: an epoch took {seconds:.0f} s here last time."


def accuracy_lines(
    reference: Reference,
    recovery: RecoveryReport | None,
    start: Interval | None,
    report: FinetuneReport | None,
) -> list[tuple[str, str]]:
    """The accuracies on the way, from the unpruned model to the written file."""
    lines = []
    if reference.baseline:
        lines.append(("Unpruned", words.accuracy(reference.baseline)))
    recovered = recovery is not None and recovery.used != "none"
    if reference.pruned and (recovered or not start):
        lines.append(("Pruned, before recovery", words.accuracy(reference.pruned)))
    if start:
        name = "Before training" if report else "Pruned: no recovery was better"
        lines.append(("After recovery" if recovered else name, words.accuracy(start)))
    if report:
        best = compare.best_accuracy(report)
        lines.append((f"Best, epoch {report.best_epoch:.3g}", f"**{words.accuracy(best)}**"))
    if recovery and recovered:
        lines.append(
            ("KL to the unpruned model", f"{recovery.kl_before:.4f} → {recovery.kl_after:.4f} nats")
        )
    return lines


def back_line(reference: Reference, start: Interval | None, now: Interval | None) -> str:
    """How much of what pruning cost came back; empty where that is not known or it cost nothing.

    Args:
        reference: The unpruned model, and the pruned one before anything was won back.
        start: Accuracy before training, which is the pruned model's where that was not measured.
        now: Accuracy of what was written.
    """
    before = reference.pruned or start
    if reference.baseline is None or before is None or now is None:
        return ""
    cost = 100 * (reference.baseline.value - before.value)
    if cost <= 0:
        return ""
    back = 100 * (now.value - before.value)
    return f"Of the **{words.points(cost)}** that pruning cost, **{words.points(back)}** came back."


def gain_line(start: Interval, report: FinetuneReport) -> str:
    """What training won, and whether it is more than chance."""
    best = compare.best_accuracy(report)
    gain = 100 * (best.value - start.value)
    if report.best_epoch == 0:
        return "No epoch was better than the network as it came: that one was written."
    sure = best.low > start.high
    doubt = "" if sure else ", though the intervals overlap: more images would tell"
    early = " It was stopped before the last step." if report.stopped_early else ""
    return f"Training won **{words.points(gain)}**{doubt}.{early}"


def provenance_line(
    job: Job, recovery: RecoveryReport | None, report: FinetuneReport | None
) -> str:
    """How a file came to be, in one line; the file itself tells the same."""
    plan = job.params.get("plan")
    model = Path(job.params["subject"]["model"]).name
    parts = [model]
    if plan:
        parts[0] += f" (weights {plan['weights_hash'][:12]})"
        parts.append(f"pruned in {len(plan['kept'])} groups, units ranked by {plan['criterion']}")
    if recovery and recovery.used != "none":
        name = RECOVERY_NAMES[recovery.used].lower()
        parts.append(f"recovery {name} on {recovery.conditions.n_images} images")
    if report:
        s, c = report.settings, report.conditions
        parts.append(
            f"{report.epochs[-1].epoch:.3g} epochs on {c.n_images:,} images of {c.data} "
            f"({c.split}), lr {s.lr:g}, batch {s.batch}, seed {s.seed}"
        )
        if report.teacher:
            parts.append(f"distilled from {Path(report.teacher).name}")
    return " → ".join(parts)


def ends(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    """The points of a curve where validation was measured."""
    return [r for r in records if r.val_accuracy is not None]


def now_line(records: Sequence[EpochRecord]) -> str:
    """Where a running training stands."""
    judged = ends(records)
    if not judged:
        return "The network is pruned and measured first; the curve begins then."
    best = max(judged, key=lambda r: r.val_accuracy.value if r.val_accuracy else 0.0)
    assert best.val_accuracy is not None
    where = f"epoch {best.epoch:.3g}" if best.epoch else "before training"
    return f"Best so far **{words.accuracy(best.val_accuracy)}**, {where}."
