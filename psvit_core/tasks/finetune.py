"""Fine-tune a pruned model: prune and recover it first if needed, train it, write and measure it.

Torch is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.callbacks import Progress, Stop, Tick, ignore_progress, keep_going, never_stop
from psvit_core.errors import CheckpointError, InvalidPlanError, ModelError, PsvitError
from psvit_core.files import check_model_file
from psvit_core.records import (
    FinetuneReport,
    FinetuneSettings,
    Measurement,
    PrunePlan,
    RecoveryReport,
    RecoverySettings,
)
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.prune import prune_model
from psvit_core.tasks.recover import load_written, measure_trained
from psvit_core.tasks.session import Session
from psvit_core.tasks.trial_runs import TrainingInputs, TrialCallbacks, run_trials
from psvit_core.tasks.trials import without_equals

if TYPE_CHECKING:
    from psvit_core.zoo.base import SpikingModel


@dataclass(frozen=True, kw_only=True)
class FinetuneTask:
    """The input of ``run_finetune``."""

    settings: FinetuneSettings
    out: str | Path  # file for the best epoch's model; the last one's is NAME.last.SUFFIX
    plan: PrunePlan | None = None  # pruned by first; None: the session's model is pruned already
    pruned: Path | None = None  # file that ``plan`` was written to, so that nothing is pruned again
    recovery: RecoverySettings | None = None  # between pruning and training
    resume: bool = True  # continue a stopped training with the same settings
    #: Settings to train with, of which the best are kept (``trials.vary``); empty: ``settings``.
    trials: tuple[FinetuneSettings, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WrittenFinetuning:
    """The files, report and measurements of ``run_finetune``."""

    out: Path  # the best epoch's model
    last: Path  # the last epoch's model
    report: FinetuneReport
    recovery: RecoveryReport | None
    measurement: Measurement  # of the best epoch's model, as in the archive
    plain: Measurement | None = None  # of the plan alone; None if nothing was pruned here
    recovered: Measurement | None = None  # after recovery, before training; None without recovery
    trials: tuple[FinetuneReport, ...] = ()  # of all settings, if several were tried
    curve: Path | None = None  # the file with the learning curve


@dataclass(frozen=True, kw_only=True)
class FinetuneCallbacks:
    """Functions that ``run_finetune`` calls."""

    started: Callable[[Path], None] = lambda curve: None  # with the file that the curve grows in
    progress: Progress = ignore_progress  # after each step
    tick: Tick = keep_going  # before each step; may raise to stop
    stop: Stop = never_stop  # before each step; True ends training and writes the best epoch
    trial_ended: Callable[[FinetuneReport], None] = lambda report: None  # maybe twice for a trial
    finished: Callable[[WrittenFinetuning], None] = lambda done: None  # to store it: without the
    # training's state, which is removed next, the same training would begin anew


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The model that training starts from."""

    small: SpikingModel
    recovery: RecoveryReport | None = None
    plain: Measurement | None = None
    recovered: Measurement | None = None


def run_finetune(
    session: Session, task: FinetuneTask, callbacks: FinetuneCallbacks | None = None
) -> WrittenFinetuning:
    """Train a pruned model; resume a stopped training.

    The archive of the unpruned model gets the plan alone, its recovered model and the best epoch's
    model, so that the gain of each step is known.

    Args:
        session: The pruned model, or the model that the plan is for; its images choose the epoch.
        task: Settings, plan, recovery and files.
        callbacks: Called meanwhile.

    Raises:
        CheckpointError: If there is no plan and the session's model is not pruned, or a file of the
            model would not open again.
        InvalidPlanError: If there is a recovery and no plan.
        DataError: If the session's images are not of the split ``val``.
    """
    from psvit_core.finetune import check_images, check_settings
    from psvit_core.zoo.pruned import check_arguments, save_pruned
    from psvit_core.zoo.recorded import record_measurement

    callbacks = callbacks or FinetuneCallbacks()
    out = check_model_file(task.out)
    last = check_model_file(out.with_name(f"{out.stem}.last{out.suffix}"))
    trials = task.trials or (task.settings,)
    for settings in trials:
        check_settings(settings)
    _check_pruning(session, task)
    check_arguments(session.model)
    val, train = session.data, session.load_images("train", trials[0].train_images)
    for settings in trials:  # before the recovery takes time
        check_images(session.model, train, val, settings)
    start = _prepare(session, task, callbacks.tick)
    teacher = _load_teacher(session, trials, start.small)
    trials = _distinct(session, trials, teacher)
    inputs = TrainingInputs(small=start.small, teacher=teacher, train=train, val=val)
    trained = run_trials(session, inputs, trials, _of_trials(callbacks), resume=task.resume)
    result = trained.best
    save_pruned(result.last, last)
    save_pruned(result.model, out)
    base = session.model if task.plan else teacher
    measured = measure_trained(session, result.model, base, task.plan, callbacks.tick)
    record_measurement(out, measured)
    done = WrittenFinetuning(
        out=out,
        last=last,
        report=result.report,
        recovery=start.recovery,
        measurement=measured,
        plain=start.plain,
        recovered=start.recovered,
        trials=trained.reports if len(trials) > 1 else (),
        curve=trained.curve,
    )
    callbacks.finished(done)
    for file in trained.files:  # a state has several times the model's size
        file.unlink(missing_ok=True)
    return done


def _distinct(
    session: Session, trials: tuple[FinetuneSettings, ...], teacher: SpikingModel | None
) -> tuple[FinetuneSettings, ...]:
    """Return the trials without those that would train equal networks, and say so."""
    distinct = without_equals(trials, has_teacher=teacher is not None)
    if len(distinct) < len(trials):
        session.warn(
            f"{len(trials) - len(distinct)} of {len(trials)} trainings were left out, because they "
            "would train the same network as another one: without a teacher, alpha and temperature "
            "have no effect, and with alpha 0, temperature has none."
        )
    return distinct


def _of_trials(callbacks: FinetuneCallbacks) -> TrialCallbacks:
    return TrialCallbacks(
        started=callbacks.started,
        progress=callbacks.progress,
        tick=callbacks.tick,
        stop=callbacks.stop,
        ended=callbacks.trial_ended,
    )


def _check_pruning(session: Session, task: FinetuneTask) -> None:
    recovery = task.recovery.method if task.recovery else "none"
    if task.plan is None and recovery != "none":
        raise InvalidPlanError(
            f"Recovery ({recovery}) follows pruning, but there is no plan to prune by. Give a plan "
            "and the model that it is for, or omit the recovery."
        )
    if task.plan is None and not session.model.provenance:
        raise CheckpointError(
            f"{session.model.name} is not pruned. Prune it first, or give a pruned file."
        )


def _prepare(session: Session, task: FinetuneTask, tick: Tick) -> _Start:
    """Prune and recover the model that training starts from, and measure both steps."""
    if task.plan is None:
        return _Start(small=session.model)
    if task.pruned is not None:
        return _Start(small=load_written(session, task.pruned))
    plain = evaluate(session, task.plan, tick)
    small, report = prune_model(session, task.plan, task.recovery, tick, on_cluster=True)
    recovered = None
    if report is not None and report.used != "none":
        recovered = measure_trained(session, small, session.model, task.plan, tick)
    return _Start(small=small, recovery=report, plain=plain, recovered=recovered)


def _load_teacher(
    session: Session, trials: Sequence[FinetuneSettings], small: SpikingModel
) -> SpikingModel | None:
    """Return the model to distil from; None if there is none or its weights are not available."""
    from psvit_core.zoo.checkpoint import load_model

    settings = trials[0]  # trials have the same teacher
    if settings.teacher == "none" or all(trial.alpha == 0 for trial in trials):
        return None
    if settings.teacher == "original" and small is not session.model:
        return session.model
    if settings.teacher == "original":
        teacher = load_original(session, small)
        if teacher is None:
            session.warn(
                f"Training runs without distillation: the weights of "
                f"{small.provenance['origin']} that this model was pruned from are not available. "
                "Name a teacher and its checkpoint."
            )
            return None
    else:
        teacher = load_model(settings.teacher, settings.teacher_checkpoint)
    if (teacher.num_classes, teacher.input_shape) != (small.num_classes, small.input_shape):
        raise ModelError(
            f"{teacher.name} takes images {teacher.input_shape} and has {teacher.num_classes} "
            f"outputs, but {small.name} takes {small.input_shape} and has {small.num_classes}. "
            "Distil from a model of the same images and classes."
        )
    if "T" in teacher.arguments:
        teacher.set_time_steps(small.T)
    return teacher


def load_original(session: Session, small: SpikingModel) -> SpikingModel | None:
    """Load the model that ``small`` was pruned from; None if its weights are not available."""
    from psvit_core.zoo.checkpoint import load_origin, weights_hash

    origin = small.provenance
    try:
        subject = session.subject
        original = load_origin(small, subject.checkpoint, ema=subject.ema, entry=subject.entry)
    except PsvitError:  # no such name or file here
        return None
    return original if weights_hash(original) == origin["origin_weights_hash"] else None
