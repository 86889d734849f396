"""Trainings of one model with different settings, of which the best is kept.

Torch is imported inside functions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.callbacks import Progress, Stop, Tick, never_stop
from psvit_core.errors import JobError, RecordError
from psvit_core.records import FinetuneReport, FinetuneSettings
from psvit_core.tasks.session import Session
from psvit_core.tasks.trials import score, trial_text

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.finetune import FinetuneResult
    from psvit_core.runtime import Run
    from psvit_core.zoo.base import SpikingModel

_REPORT_FILE = "report.json"  # of a training that has ended


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What all trials have in common."""

    small: SpikingModel  # to train copies of
    teacher: SpikingModel | None
    train: EvalSet
    val: EvalSet

    def finetune(
        self,
        settings: FinetuneSettings,
        folder: Path,
        run: Run,
        *,
        progress: Progress,
        tick: Tick,
        stop: Stop = never_stop,
    ) -> FinetuneResult:
        """Train with the settings of one trial, as ``psvit_core.finetune.finetune``."""
        from psvit_core.finetune import finetune

        return finetune(
            self.small,
            self.train,
            self.val,
            teacher=self.teacher,
            settings=settings,
            folder=folder,
            run=run,
            progress=progress,
            tick=tick,
            stop=stop,
        )


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
    files: tuple[Path, ...]  # from which a stopped run would continue
    curve: Path  # the file with the best trial's learning curve


def run_trials(
    session: Session,
    inputs: TrainingInputs,
    trials: Sequence[FinetuneSettings],
    callbacks: TrialCallbacks,
    *,
    resume: bool = True,
) -> TrainedTrials:
    """Train with each of the settings, one after the other or over the session's cluster.

    The best training keeps its state in the store until the caller removes it. Others keep only
    their reports, because a state is several times as large as the model. With these files, stopped
    trials continue, and finished ones are not trained again.

    Args:
        session: The store, the engine and how models are run.
        inputs: Model, teacher and images.
        trials: The settings.
        callbacks: Called meanwhile.
        resume: Continue trainings that were stopped.

    Returns:
        The best trial's result, by ``score``, with the number of trials in its provenance, and all
        reports. Trials whose loss became NaN or infinite are left out with a warning.

    Raises:
        JobError: If the loss of every trial became NaN or infinite.
    """
    from psvit_core.finetune import CURVE_FILE

    settings_of = {_folder(session, inputs, settings): settings for settings in trials}
    compile_for_training(inputs.small, session.run)
    if not resume:
        for path in _files(settings_of):
            path.unlink(missing_ok=True)
    failed: dict[Path, JobError] = {}
    if _uses_cluster(session):
        failed = _train_on_cluster(session, inputs, settings_of, callbacks)
    ended = ended_trials(settings_of)
    reports = {folder: r for folder, r in ended.items() if not _state(folder).exists()}
    for report in reports.values():
        callbacks.ended(report)
    best: tuple[FinetuneResult, Path] | None = None
    for result, folder in _trained(session, inputs, settings_of, callbacks, reports, failed):
        callbacks.ended(result.report)
        reports[folder] = result.report
        if best is None or score(result.report) > score(best[0].report):
            best = result, folder
        if not callbacks.stop():  # what was stopped may go on another time
            drop_surpassed(settings_of, reports)
    _warn_of_failed(session, settings_of, failed)
    if best is None:
        raise next(iter(failed.values()))
    return TrainedTrials(
        best=_one_of(best[0], len(reports)),
        reports=tuple(reports[folder] for folder in settings_of if folder in reports),
        files=_files(settings_of),
        curve=best[1] / CURVE_FILE,
    )


def drop_surpassed(trials: Iterable[Path], reports: Mapping[Path, FinetuneReport]) -> None:
    """Keep the state of the best training that ended, and of the others only their reports.

    Args:
        trials: The folders of all trainings, in their order; of equally good ones the first is
            kept.
        reports: Those of trainings that ended, by folder.
    """
    ended = [folder for folder in trials if folder in reports and _state(folder).exists()]
    best = max(ended, key=lambda folder: score(reports[folder]), default=None)
    for folder in ended:
        reports[folder].save(folder / _REPORT_FILE)
        if folder != best:
            _state(folder).unlink(missing_ok=True)


def ended_trials(trials: Iterable[Path]) -> dict[Path, FinetuneReport]:
    """Return the reports of the trainings that have ended, by folder.

    A report without a state counts only if another training is at least as good and has its state.
    Otherwise its model may be needed, for example if the better training was one of an earlier run
    with more settings. Then it is trained again.
    """
    found = {}
    for folder in trials:
        with suppress(RecordError):  # there is none, or it is damaged: it is trained again
            report = FinetuneReport.load(folder / _REPORT_FILE)
            score(report)  # checks the report
            found[folder] = report
    kept = [score(report) for folder, report in found.items() if _state(folder).exists()]
    return {
        folder: report
        for folder, report in found.items()
        if _state(folder).exists() or (kept and score(report) <= max(kept))
    }


def _state(folder: Path) -> Path:
    """Return the file of a training's state."""
    from psvit_core.finetune import STATE_FILE

    return folder / STATE_FILE


def _files(trials: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(path for folder in trials for path in (_state(folder), folder / _REPORT_FILE))


def _trained(
    session: Session,
    inputs: TrainingInputs,
    trials: Mapping[Path, FinetuneSettings],
    callbacks: TrialCallbacks,
    reports: Mapping[Path, FinetuneReport],
    failed: dict[Path, JobError],
) -> Iterator[tuple[FinetuneResult, Path]]:
    """Yield result and folder of each training without a report; add what diverges to ``failed``.

    After ``stop``, only those that have begun; if none has, the first one.
    """
    from psvit_core.finetune import CURVE_FILE, n_steps

    steps = {folder: n_steps(inputs.train, settings) for folder, settings in trials.items()}
    before = dict(zip(steps, itertools.accumulate(steps.values(), initial=0), strict=False))
    begun = any(_state(folder).exists() for folder in trials)
    for folder in [folder for folder in trials if folder not in reports]:
        stopped = begun and callbacks.stop() and not _state(folder).exists()
        if folder in failed or stopped:
            continue
        callbacks.started(folder / CURVE_FILE)
        text = trial_text(trials[folder], trials.values())
        progress = _of_all(callbacks.progress, before[folder], sum(steps.values()), text)
        try:
            result = inputs.finetune(
                trials[folder],
                folder,
                session.run,
                progress=progress,
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
    """Return whether trainings run on a cluster; warn if nodes would lack the model's code."""
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


def _of_all(progress: Progress, before: int, total: int, text: str) -> Progress:
    """Return the progress of one trial as a part of that of all."""

    def report(done: int, of_this: int, what: str) -> None:
        progress(before + done, total, f"{text}: {what}" if text else what)

    return report


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
