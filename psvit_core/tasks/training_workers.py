"""Recoveries and trainings on a Ray cluster, each as a whole on one worker.

A worker trains as this process would (``finetune``), in a folder of its own, and returns the
training's state whenever it saves it. This process keeps the state in its store and goes through
the same steps, for which nothing is left to train. So a lost worker costs what it did since it last
saved, and a stopped training continues, here or there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit_core.callbacks import Tick
from psvit_core.cluster.actors import taken
from psvit_core.cluster.images import for_training, in_memory
from psvit_core.cluster.pool import Event, Pool, check_losses, streaming
from psvit_core.cluster.runtime import Connection, current_node, worker_folder
from psvit_core.cluster.settings import EngineSettings
from psvit_core.cluster.streaming import Found, streamed
from psvit_core.data import EvalSet
from psvit_core.durable import make_folder
from psvit_core.errors import JobError
from psvit_core.files import write_atomic
from psvit_core.finetune import CURVE_FILE, STATE_FILE
from psvit_core.finetune.precision import resolved
from psvit_core.records import (
    FinetuneReport,
    FinetuneSettings,
    PrunePlan,
    RecoveryReport,
    RecoverySettings,
)
from psvit_core.runtime import Run
from psvit_core.tasks.trial_runs import (
    TrainingInputs,
    TrialCallbacks,
    compile_for_training,
    drop_surpassed,
    ended_trials,
)
from psvit_core.tasks.trials import trial_text

if TYPE_CHECKING:
    from psvit_core.tasks.session import Session
    from psvit_core.zoo.base import SpikingModel

_SEND_SECONDS = 0.5  # between two messages of a training


# ---- trainings -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainingShare:
    """What every worker gets, once a node, through the object store."""

    inputs: TrainingInputs
    run: Run


@dataclass(frozen=True, kw_only=True)
class TrainingNews:
    """How far a training is; ``curve`` and ``state`` are files' contents, if they are new."""

    done: int  # steps
    total: int
    what: str
    curve: bytes | None = None
    state: bytes | None = None
    report: FinetuneReport | None = None  # at the end
    failure: str = ""  # at the end, if the loss became NaN or infinite


class TrainingWorker:
    """Trains one model with different settings; runs as a Ray actor."""

    def load(self, engine_version: int, shared: Sequence[Any]) -> str:
        """Take model and images from the object store, as ``taken``; return the node."""
        self._share: TrainingShare = taken(engine_version, shared)
        compile_for_training(self._share.inputs.small, self._share.run)
        return current_node()

    def train(self, settings: FinetuneSettings, state: bytes | None) -> Iterator[TrainingNews]:
        """Train from a state, None from the beginning; yield what is new several times a second."""
        with worker_folder() as folder:
            if state is not None:
                (folder / STATE_FILE).write_bytes(state)
            yield from streamed(partial(self._train, settings, folder))

    def _train(self, settings: FinetuneSettings, folder: Path, found: Found) -> None:
        inputs, sender = self._share.inputs, _Sender(folder, found)
        try:
            result = inputs.finetune(
                settings,
                folder,
                self._share.run,
                progress=sender.progress,
                tick=sender.send_state,
            )
        except JobError as error:
            sender.send_failure(str(error))
        else:
            sender.send_state(result.report)


@dataclass
class _Sender:
    """Sends what a training writes into its folder."""

    folder: Path
    found: Found
    _latest: TrainingNews = field(default_factory=lambda: TrainingNews(done=0, total=0, what=""))
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)  # stamps of files
    _time: float = 0.0

    def progress(self, done: int, total: int, what: str) -> None:
        """Note progress, and send it now and then with the curve."""
        self._latest = TrainingNews(done=done, total=total, what=what)
        if time.monotonic() - self._time >= _SEND_SECONDS:
            self._send(curve=self._new(CURVE_FILE))

    def send_state(self, report: FinetuneReport | None = None) -> None:
        """Send the state if there is a new one, or at the end of the training."""
        state = self._new(STATE_FILE)
        if state is not None or report is not None:
            self._send(state=state, curve=self._new(CURVE_FILE), report=report)

    def send_failure(self, text: str) -> None:
        """Send why the training ended without a result."""
        self._send(failure=text)

    def _send(self, **contents: Any) -> None:
        self._time = time.monotonic()
        self.found(replace(self._latest, **contents))

    def _new(self, name: str) -> bytes | None:
        """Return the content of a file that is new since it was last sent."""
        path = self.folder / name
        if not path.exists():
            return None
        about = path.stat()
        stamp = (about.st_ino, about.st_mtime_ns)
        if self._sent.get(name) == stamp:
            return None
        self._sent[name] = stamp
        return path.read_bytes()


def train_on_cluster(
    engine: EngineSettings,
    inputs: TrainingInputs,
    trials: Mapping[Path, FinetuneSettings],
    callbacks: TrialCallbacks,
    run: Run,
) -> dict[Path, JobError]:
    """Train on a cluster, each training as soon as a worker is idle.

    Args:
        engine: The cluster.
        inputs: Model, teacher and images.
        trials: Settings by the folder that gets the training's state and curve, in their order.
            Those that have ended (``trial_runs.ended_trials``) are not trained.
        callbacks: Called meanwhile. After ``stop``, the folders have the last states saved.
        run: Device, validation batch size, precision, workers.

    Returns:
        The errors of those whose loss became NaN or infinite, by folder.

    Raises:
        MissingPackageError: If ray is not installed.
        ClusterError: If the cluster cannot be used.
        DataError: If a training cannot have the precision that was asked for.
    """
    ended = ended_trials(trials)
    n_left = len(trials) - len(ended)
    if not n_left:
        return {}
    # This processor chooses the precision, so that all nodes train the same.
    settings = {folder: resolved(chosen, run) for folder, chosen in trials.items()}
    sent = replace(
        inputs,
        train=for_training(inputs.train, run.workers),
        val=for_training(inputs.val, run.workers),
    )
    share = TrainingShare(inputs=sent, run=run)
    with closing(Connection(engine)) as connection:
        pool: Pool[Path] = Pool(
            connection, TrainingWorker, run.device, share, most=len(trials) - len(ended)
        )
        with closing(pool):
            return _Trainings(pool, settings, ended, callbacks).run()


class _Trainings:
    """Trainings of which some wait, some run and some have ended."""

    def __init__(
        self,
        pool: Pool[Path],
        settings: Mapping[Path, FinetuneSettings],
        ended: Mapping[Path, FinetuneReport],
        callbacks: TrialCallbacks,
    ) -> None:
        self._pool, self._settings, self._callbacks = pool, settings, callbacks
        self._reports = dict(ended)
        self._waiting = deque(folder for folder in settings if folder not in self._reports)
        self._n_trainings = len(self._waiting)
        self._losses = dict.fromkeys(settings, 0)
        self._news: dict[Path, TrainingNews] = {}  # the latest of each training
        self._failed: dict[Path, JobError] = {}

    def run(self) -> dict[Path, JobError]:
        """Run all of them, or until ``stop``; return the errors of failed ones."""
        while self._waiting or self._pool.is_busy:
            self._callbacks.tick()
            if self._callbacks.stop():
                break
            while self._waiting and self._pool.n_idle:
                self._begin(self._waiting.popleft())
            for event in self._pool.events():
                self._take(event)
        return self._failed

    def _text(self, folder: Path) -> str:
        return trial_text(self._settings[folder], self._settings.values())

    def _begin(self, folder: Path) -> None:
        path = folder / STATE_FILE
        state = path.read_bytes() if path.exists() else None
        self._pool.run(
            folder,
            lambda worker: streaming(worker.train)(self._settings[folder], state),
        )
        self._callbacks.started(folder / CURVE_FILE)

    def _take(self, event: Event[Path]) -> None:
        folder = event.job
        if event.is_lost:
            self._losses[folder] += event.node_lived
            check_losses(self._losses[folder], f"a training {self._text(folder)}")
            if folder not in self._reports and folder not in self._failed:  # it had not ended
                self._waiting.appendleft(folder)
        elif event.is_result:
            self._keep(folder, event.result)

    def _keep(self, folder: Path, news: TrainingNews) -> None:
        earlier = self._news.get(folder)
        if earlier and not news.total:  # it goes on after a loss, and has not done a step yet
            news = replace(news, done=earlier.done, total=earlier.total)
        self._news[folder] = news
        if news.failure:
            self._failed[folder] = JobError(news.failure)
        make_folder(folder)
        for name, content in ((STATE_FILE, news.state), (CURVE_FILE, news.curve)):
            if content is not None:
                write_atomic(folder / name, partial(_write, content))
        if news.report is not None:
            self._reports[folder] = news.report
            drop_surpassed(self._settings, self._reports)
            self._callbacks.ended(news.report)
        known = self._news.values()
        text = self._text(folder)
        each = max(latest.total for latest in known)  # of those not begun, about as many
        total = sum(n.total for n in known) + each * (self._n_trainings - len(known))
        what = f"{text}: {news.what}" if text else news.what
        self._callbacks.progress(sum(latest.done for latest in known), total, what)


def _write(content: bytes, part: Path) -> None:
    part.write_bytes(content)


# ---- recoveries ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecoveryShare:
    """What the worker of a recovery gets."""

    model: SpikingModel
    plan: PrunePlan
    calib: EvalSet
    settings: RecoverySettings
    run: Run


class RecoveryWorker:
    """Prunes and recovers one model; runs as a Ray actor."""

    def load(self, engine_version: int, shared: Sequence[Any]) -> str:
        """Take model and images from the object store, as ``taken``; return the node."""
        self._share: RecoveryShare = taken(engine_version, shared)
        return current_node()

    def recover(self) -> Iterator[tuple[SpikingModel, RecoveryReport]]:
        """Yield the recovered model and the report."""
        from psvit_core.recover import recover
        from psvit_core.surgery import apply_plan

        share = self._share
        yield recover(
            apply_plan(share.model, share.plan),
            share.model,
            share.plan,
            share.calib,
            method=share.settings.method,
            run=share.run,
            seed=share.settings.seed,
        )


def recover_on_cluster(
    session: Session, plan: PrunePlan, settings: RecoverySettings, tick: Tick
) -> tuple[SpikingModel, RecoveryReport]:
    """Prune and recover a session's model on its cluster.

    Args:
        session: The model, its images and the cluster.
        plan: The plan.
        settings: Recovery settings, other than ``none``.
        tick: Called several times a second; may raise to stop.

    Returns:
        (the recovered model, on the processor; the report).

    Raises:
        MissingPackageError: If ray is not installed.
        ClusterError: If the cluster cannot be used.
    """
    calib = session.calib(settings.n_images, settings.seed)
    share = RecoveryShare(
        model=session.model,
        plan=plan,
        calib=in_memory(calib, session.run.workers),
        settings=settings,
        run=session.run,
    )
    n_lost = 0
    with closing(Connection(session.engine)) as connection:
        pool: Pool[None] = Pool(connection, RecoveryWorker, share.run.device, share, most=1)
        with closing(pool):
            while True:
                tick()
                if pool.n_idle:
                    pool.run(None, lambda worker: streaming(worker.recover)())
                for event in pool.events():
                    if event.is_result:
                        recovered: tuple[SpikingModel, RecoveryReport] = event.result
                        return recovered
                    n_lost += event.is_lost and event.node_lived
                    check_losses(n_lost, "a recovery")
