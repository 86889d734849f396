"""Trainings of one model with different settings, of which the best is kept.

Torch is imported inside functions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit_core.callbacks import Progress, Stop, Tick
from psvit_core.errors import JobError, UnknownNameError
from psvit_core.records import FinetuneReport, FinetuneSettings
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.finetune import FinetuneResult
    from psvit_core.runtime import Run
    from psvit_core.zoo.base import SpikingModel

#: Settings that are the same for all trials: these decide what they are compared on.
_COMMON = ("teacher", "teacher_checkpoint", "train_images")
#: Settings that trials may differ in.
VARIED = tuple(
    sorted(f.name for f in dataclasses.fields(FinetuneSettings) if f.name not in _COMMON)
)
MOST_TRIALS = 64


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What all trials have in common."""

    small: SpikingModel  # to train copies of
    teacher: SpikingModel | None
    train: EvalSet
    val: EvalSet


@dataclass(frozen=True, kw_only=True)
class TrialCallbacks:
    """Functions that ``run_trials`` calls."""

    started: Callable[[Path], None]  # with the file that a trial's curve grows in
    progress: Progress  # after each step, over all trials
    tick: Tick  # before each step; may raise to stop
    stop: Stop  # before each step; True ends all trials, and the best epoch so far counts
    ended: Callable[[FinetuneReport], None]  # with each trial's report, maybe more than once


@dataclass(frozen=True, kw_only=True)
class TrainedTrials:
    """The result of ``run_trials``."""

    best: FinetuneResult  # of the best trial
    reports: tuple[FinetuneReport, ...]  # in the order of the settings, without any not begun
    states: tuple[Path, ...]  # files of the trainings' states
    curve: Path  # the file with the best trial's learning curve


def vary(
    settings: FinetuneSettings, values: Mapping[str, Sequence[Any]]
) -> tuple[FinetuneSettings, ...]:
    """Return the settings of all trials: every combination of the values.

    Args:
        settings: What is not varied.
        values: The values to try, by the name of a setting.

    Raises:
        UnknownNameError: If a name is not one of ``VARIED``.
        JobError: If there are more than ``MOST_TRIALS`` combinations, or a setting has no value.
    """
    for name in values:
        if name not in VARIED:
            raise UnknownNameError("setting to try", name, VARIED)
    distinct = {name: tuple(dict.fromkeys(given)) for name, given in values.items()}
    n_trials = math.prod(len(given) for given in distinct.values())
    if not 1 <= n_trials <= MOST_TRIALS:
        raise JobError(
            f"At least 1 and at most {MOST_TRIALS} combinations of settings can be tried at a time;"
            f" got {n_trials}. Try fewer values, or one setting after the other."
        )
    combinations = itertools.product(*distinct.values())
    return tuple(
        dataclasses.replace(settings, **dict(zip(distinct, chosen, strict=True)))
        for chosen in combinations
    )


def parse_values(text: str) -> tuple[str, tuple[Any, ...]]:
    """Return the setting and the values of a text such as ``lr=0.001,0.0003``.

    Raises:
        UnknownNameError: If the setting is not one of ``VARIED``.
        JobError: If a value cannot be read.
    """
    name, _, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in VARIED:
        raise UnknownNameError("setting to try", name, VARIED)
    hint = typing.get_type_hints(FinetuneSettings)[name]
    kind = next(t for t in (int, float, str) if t is hint or t in typing.get_args(hint))
    try:
        return name, tuple(kind(word.strip()) for word in rest.split(","))
    except ValueError as error:
        what = {int: "whole numbers", float: "numbers"}[kind]
        raise JobError(
            f"The values of {name} are {what}, separated by commas; got {rest!r}. For example "
            "lr=0.001,0.0003."
        ) from error


def trial_text(settings: FinetuneSettings, trials: Iterable[FinetuneSettings]) -> str:
    """Return what is particular to one of several trials, such as ``lr 0.001, seed 1``.

    Args:
        settings: Of the trial.
        trials: Of all trials.
    """
    known = [trial.to_dict() for trial in trials]
    own = settings.to_dict()
    varied = [name for name in VARIED if len({other[name] for other in known}) > 1]
    return ", ".join(f"{name.replace('_', ' ')} {_value_text(own[name])}" for name in varied)


def _value_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_trials(
    session: Session,
    inputs: TrainingInputs,
    trials: Sequence[FinetuneSettings],
    callbacks: TrialCallbacks,
    *,
    resume: bool = True,
) -> TrainedTrials:
    """Train with each of the settings, one after the other or over the session's cluster.

    Each training keeps its state in the store until its caller removes it, so that stopped trials
    continue and finished ones are not trained again.

    Args:
        session: The store, the engine and how models are run.
        inputs: Model, teacher and images.
        trials: The settings.
        callbacks: Called meanwhile.
        resume: Continue trainings that were stopped.

    Returns:
        The best trial's result, by ``score``, with the number of trials in its provenance, and all
        reports. Trials whose loss became infinite are left out with a warning.

    Raises:
        JobError: If the loss of every trial became NaN or infinite.
    """
    from psvit_core.finetune import CURVE_FILE, STATE_FILE

    settings_of = {_folder(session, inputs, settings): settings for settings in trials}
    states = tuple(folder / STATE_FILE for folder in settings_of)
    compile_for_training(inputs.small, session.run)
    failed: dict[Path, JobError] = {}
    if on_cluster := _uses_cluster(session):
        for state in states if not resume else ():
            state.unlink(missing_ok=True)
        failed = _train_on_cluster(session, inputs, settings_of, callbacks)
    resume = resume or on_cluster  # with what the cluster trained
    best: tuple[FinetuneResult, Path] | None = None
    reports = []
    for result, folder in _trained(session, inputs, settings_of, callbacks, failed, resume):
        callbacks.ended(result.report)
        reports.append(result.report)
        if best is None or score(result.report) > score(best[0].report):
            best = result, folder
    _warn_of_failed(session, settings_of, failed)
    if best is None:
        raise next(iter(failed.values()))
    return TrainedTrials(
        best=_one_of(best[0], len(reports)),
        reports=tuple(reports),
        states=states,
        curve=best[1] / CURVE_FILE,
    )


def _trained(
    session: Session,
    inputs: TrainingInputs,
    trials: Mapping[Path, FinetuneSettings],
    callbacks: TrialCallbacks,
    failed: dict[Path, JobError],
    resume: bool,
) -> Iterator[tuple[FinetuneResult, Path]]:
    """Yield the result and the folder of each training; add those that diverge to ``failed``."""
    from psvit_core.finetune import CURVE_FILE, STATE_FILE, finetune, n_steps

    steps = [n_steps(inputs.train, settings) for settings in trials.values()]
    begun = False
    for number, (folder, settings) in enumerate(trials.items()):
        stopped = begun and callbacks.stop() and not (folder / STATE_FILE).exists()
        if folder in failed or stopped:
            continue
        callbacks.started(folder / CURVE_FILE)
        text = trial_text(settings, trials.values())
        try:
            result = finetune(
                inputs.small,
                inputs.train,
                inputs.val,
                teacher=inputs.teacher,
                settings=settings,
                folder=folder,
                resume=resume,
                run=session.run,
                progress=_of_all(callbacks.progress, steps, number, text),
                tick=callbacks.tick,
                stop=callbacks.stop,
            )
        except JobError as error:
            failed[folder] = error
        else:
            begun = True
            yield result, folder


def _warn_of_failed(
    session: Session, trials: Mapping[Path, FinetuneSettings], failed: Mapping[Path, JobError]
) -> None:
    for folder, error in failed.items() if len(failed) < len(trials) else ():
        text = trial_text(trials[folder], trials.values())
        session.warn(f"A training was left out ({text}): {error}")


def _folder(session: Session, inputs: TrainingInputs, settings: FinetuneSettings) -> Path:
    """Return the folder of a training in the store; the same training has the same folder."""
    from psvit_core.finetune import CURVE_FILE, finetune_key

    i = inputs
    key = finetune_key(i.small, i.train, i.val, i.teacher, settings, session.run)
    return session.store.place("finetune", key, CURVE_FILE).parent


def _train_on_cluster(
    session: Session,
    inputs: TrainingInputs,
    trials: Mapping[Path, FinetuneSettings],
    callbacks: TrialCallbacks,
) -> dict[Path, JobError]:
    from psvit_core.tasks.training_workers import train_on_cluster

    return train_on_cluster(session.engine, inputs, trials, callbacks, session.run)


def _uses_cluster(session: Session) -> bool:
    """Return whether a session's trainings run on a cluster, which needs the model's code."""
    if session.engine.is_ray and session.subject.plugin is not None:
        session.warn(
            f"Training runs on this machine: the nodes of a cluster do not have the code of "
            f"{session.subject.plugin}."
        )
        return False
    return session.engine.is_ray


def compile_for_training(model: SpikingModel, run: Run) -> None:
    """Use compiled LIF kernels on CUDA, where there are no native loops; it takes seconds."""
    from psvit_core import neurons
    from psvit_core.kernels import lif

    has_lif = any(isinstance(module, neurons.LIF) for module in model.modules())
    if has_lif and run.device != "cpu":
        lif.use_compiled()


def _of_all(progress: Progress, steps: Sequence[int], number: int, text: str) -> Progress:
    """Return the progress of one trial as a part of that of all."""
    before, total = sum(steps[:number]), sum(steps)

    def report(done: int, of_this: int, what: str) -> None:
        progress(before + done, total, f"{text}: {what}" if text else what)

    return report


def score(report: FinetuneReport) -> tuple[float, float]:
    """Return what trials are compared by: validation accuracy, then loss, of the best epoch."""
    best = next(r for r in report.epochs if r.epoch == report.best_epoch)
    assert best.val_accuracy is not None and best.val_loss is not None
    return best.val_accuracy.value, -best.val_loss


def _one_of(result: FinetuneResult, n_trials: int) -> FinetuneResult:
    """Note in a result, and in the provenance of its models, from how many trials it was chosen."""
    if n_trials == 1:
        return result
    report = dataclasses.replace(result.report, trials=n_trials)
    for model in (result.model, result.last):
        if earlier := model.provenance.get("finetunes"):
            finetunes = [*earlier[:-1], report.to_dict()]
            model.provenance = {**model.provenance, "finetunes": finetunes}
    return dataclasses.replace(result, report=report)
