"""Fine-tunings as text: expected duration, progress, accuracies, provenance."""

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
    PrunePlan,
    RecoveryReport,
)
from psvit_core.tasks.trials import score, trial_text
from ui.model import comparison, formats


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Accuracies to compare a training with: fractions, on the same number of images."""

    baseline: Interval | None = None  # of the unpruned model
    pruned: Interval | None = None  # of the pruned model, before recovery and training


def find_reference(
    measured: Sequence[Measurement],
    plan: PrunePlan,
    n_images: int | None,
    pruned: Measurement | None = None,
) -> Reference:
    """Return the known accuracies of a model and of a plan for it.

    Args:
        measured: Measurements of the model and of plans for it.
        plan: The plan.
        n_images: Number of images; None means any.
        pruned: The plan's measurement, if the training stored one.
    """
    same = [m for m in measured if n_images in (None, m.conditions.n_images)]
    own = pruned or next((m for m in same if m.plan and m.plan.kept == plan.kept), None)
    if own is not None:
        same.append(own)
    unpruned = next((m.accuracy for m in same if m.plan is None), None)
    baseline = next((m.baseline_accuracy for m in same if m.baseline_accuracy), None)
    return Reference(baseline=unpruned or baseline, pruned=own.accuracy if own else None)


def epoch_seconds(jobs: Sequence[Job], settings: FinetuneSettings) -> float | None:
    """Return the seconds per epoch of the last similar training; None without one.

    Similar means the same number of training images and the same teacher.
    """
    for job in jobs:
        report = comparison.finetune_report(job) if job.state == "done" else None
        if report is None or not report.epochs[-1].epoch:
            continue
        before = report.settings
        if (before.train_images, before.teacher) == (settings.train_images, settings.teacher):
            return report.epochs[-1].seconds / report.epochs[-1].epoch
    return None


def estimate_line(
    settings: FinetuneSettings | None, seconds: float | None, n_trials: int = 1
) -> str:
    """Describe how long recovery and training will take.

    Args:
        settings: Settings of the training; None for recovery alone.
        seconds: Seconds per epoch of an earlier training; None without one.
        n_trials: Trainings, of which the best is kept.
    """
    if settings is None:
        return "Recovery alone uses a few hundred images and takes seconds to a minute."
    several = f"{n_trials} trainings, of which the best is kept. " if n_trials > 1 else ""
    if seconds is None:
        return (
            f"{several}An estimate appears after the first steps. You can stop at any time and "
            "keep the best epoch."
        )
    total = seconds * settings.epochs * n_trials
    span = f"{max(1, round(total))} s" if total < 90 else f"{round(total / 60)} min"
    return f"{several}About {span}: the last training took {seconds:.0f} s per epoch."


def trial_lines(
    trials: Sequence[FinetuneReport], wanted: Sequence[FinetuneSettings]
) -> list[tuple[str, str]]:
    """Return (what is particular to a trial, its accuracy) pairs, the best first.

    Args:
        trials: Trials that have ended.
        wanted: Settings of all trials.
    """
    ordered = sorted(trials, key=score, reverse=True)
    return [
        (
            trial_text(report.settings, wanted),
            f"{formats.accuracy(report.best_accuracy)}, epoch {report.best_epoch:.3g}",
        )
        for report in ordered
    ]


def accuracy_lines(
    reference: Reference,
    recovery: RecoveryReport | None,
    start: Interval | None,
    report: FinetuneReport | None,
) -> list[tuple[str, str]]:
    """Return (name, accuracy) pairs of all stages, from the unpruned model to the result."""
    lines = []
    if reference.baseline:
        lines.append(("Unpruned", formats.accuracy(reference.baseline)))
    recovered = recovery is not None and recovery.used != "none"
    if reference.pruned and (recovered or not start):
        lines.append(("Pruned, before recovery", formats.accuracy(reference.pruned)))
    if start:
        name = "Before training" if report else "Pruned (recovery gained nothing)"
        lines.append(("After recovery" if recovered else name, formats.accuracy(start)))
    if report:
        best = report.best_accuracy
        lines.append((f"Best, epoch {report.best_epoch:.3g}", f"**{formats.accuracy(best)}**"))
    if recovery and recovered:
        lines.append(
            ("KL to the unpruned model", f"{recovery.kl_before:.4f} → {recovery.kl_after:.4f} nats")
        )
    return lines


def regained_line(reference: Reference, start: Interval | None, now: Interval | None) -> str:
    """Describe how much of the accuracy that pruning cost was regained.

    Args:
        reference: Accuracies of the unpruned and of the pruned model.
        start: Accuracy before training; stands in for the pruned model's if that is unknown.
        now: Accuracy of the result.

    Returns:
        An empty string if pruning cost nothing or an accuracy is unknown.
    """
    before = reference.pruned or start
    if reference.baseline is None or before is None or now is None:
        return ""
    cost = 100 * (reference.baseline.value - before.value)
    if cost <= 0:
        return ""
    gain = 100 * (now.value - before.value)
    return (
        f"Of the **{formats.points(cost)}** that pruning cost, **{formats.points(gain)}** were "
        "regained."
    )


def gain_line(start: Interval, report: FinetuneReport) -> str:
    """Describe what training gained, and whether the gain is significant."""
    best = report.best_accuracy
    gain = 100 * (best.value - start.value)
    if report.best_epoch == 0:
        return "No epoch improved on the network before training, so that network was written."
    significant = best.low > start.high
    doubt = "" if significant else ", but the intervals overlap: use more images to be sure"
    early = " It was stopped before the last step." if report.stopped_early else ""
    return f"Training gained **{formats.points(gain)}**{doubt}.{early}"


def provenance_line(
    job: Job, recovery: RecoveryReport | None, report: FinetuneReport | None
) -> str:
    """Describe how a file was made, in one line, as its metadata does."""
    plan = job.plan
    parts = [Path(job.subject.model).name if job.subject else ""]
    if plan:
        parts[0] += f" (weights {plan.weights_hash[:12]})"
        parts.append(f"pruned in {len(plan.kept)} groups, units ranked by {plan.criterion}")
    if recovery and recovery.used != "none":
        name = formats.RECOVERY_NAMES[recovery.used].lower()
        parts.append(f"recovery {name} on {recovery.conditions.n_images} images")
    if report:
        s, c = report.settings, report.conditions
        parts.append(
            f"{report.epochs[-1].epoch:.3g} epochs on {c.n_images:,} images of {c.data} "
            f"({c.split}), lr {s.lr:g}, batch {s.batch}, seed {s.seed}"
        )
        if report.trials > 1:
            parts[-1] += f", the best of {report.trials} trials"
        if report.teacher:
            parts.append(f"distilled from {Path(report.teacher).name}")
    return " → ".join(parts)


def validated_epochs(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Return the points of a curve that have a validation accuracy."""
    return [r for r in records if r.val_accuracy is not None]


def progress_line(records: Sequence[EpochRecord]) -> str:
    """Describe the progress of a running training."""
    judged = validated_epochs(records)
    if not judged:
        return "Pruning and measuring the network first; then the curve starts."
    best = max(judged, key=lambda r: r.val_accuracy.value if r.val_accuracy else 0.0)
    assert best.val_accuracy is not None
    where = f"epoch {best.epoch:.3g}" if best.epoch else "before training"
    return f"Best so far **{formats.accuracy(best.val_accuracy)}**, {where}."
