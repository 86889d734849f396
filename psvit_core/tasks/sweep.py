"""Run the sensitivity sweep of a session. Torch is imported inside functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.errors import ClusterError, DataError, ModelError
from psvit_core.plan.build import default_criterion
from psvit_core.records import SensitivityTable, SweepSettings, sweep_recovery
from psvit_core.sensitivity.spec import SweepSpec, save_spec
from psvit_core.storage.predictions import load_outcome
from psvit_core.tasks.cautions import chance_warning, precision_warning
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.sensitivity.work import MakeMeasurer


def run_sweep(
    session: Session,
    settings: SweepSettings,
    started: Callable[[str], None] = lambda key: None,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
) -> SensitivityTable:
    """Run or resume a sweep.

    Args:
        session: The model and its images. If it recovers pruned models, each cell is measured after
            the layers that read its group were refitted (``records.sweep_recovery``).
        settings: Ratios, criterion and mode.
        started: Called with the sweep's store key before the first cell runs.
        progress: Called after each step.
        tick: Called before each batch; may raise to stop.

    Raises:
        ModelError: If no channel group can be removed exactly.
        DataError: If the images are a test split, or the criterion needs calibration images and
            there are none.
    """
    from psvit_core.sensitivity.recovered import SweepOptions
    from psvit_core.sensitivity.sweep import run_spec

    if not session.model.channel_groups():
        raise ModelError(
            f"{session.model.name} has no channel group that can be removed exactly. "
            "psvit groups lists the reasons."
        )
    spec, recovery_images = _spec_of(session, settings, tick)
    save_spec(session.store, spec)
    started(spec.key)
    baseline = BaselineWatch(session, spec)

    def report(done: int, total: int, what: str) -> None:
        baseline.look()
        progress(done, total, what)

    table = run_spec(
        spec,
        session.model,
        session.data,
        run=session.run,
        store=session.store,
        progress=report,
        tick=tick,
        options=SweepOptions(
            memory_budget=settings.memory_budget,
            recovery_images=recovery_images,
            measurer=_measurer(session, settings),
        ),
    )
    baseline.look()
    session.caution(precision_warning(table.precision_check, table.conditions.precision))
    return table


def _measurer(session: Session, settings: SweepSettings) -> MakeMeasurer | None:
    """Return what measures the cells on the session's cluster; None: this process does.

    Raises:
        MissingPackageError: If ray is not installed.
        ClusterError: If the model's code is not on the nodes.
    """
    if not session.engine.is_ray:
        return None
    check_cluster(session)
    from psvit_core.cluster.sweep import on_cluster

    return on_cluster(session.engine, session.model, settings.memory_budget)


def check_cluster(session: Session) -> None:
    """Raise ``ClusterError`` if the nodes of a cluster do not have a model's code."""
    if session.subject.plugin is not None:
        raise ClusterError(
            f"The nodes of a cluster do not have the code of {session.subject.plugin}. Use "
            "--engine local for models of your own."
        )


def _spec_of(
    session: Session, settings: SweepSettings, tick: Tick
) -> tuple[SweepSpec, EvalSet | None]:
    """Return the sweep of a session, and the images that recover its cells, if they are."""
    from psvit_core.sensitivity.recovered import recovered
    from psvit_core.sensitivity.sweep import RankingOptions, make_spec

    criterion, calib = _choose_criterion(session, settings)
    spec = make_spec(
        session.model,
        session.data,
        ratios=settings.ratios,
        ranking=RankingOptions(criterion=criterion, calib=calib, seed=settings.seed),
        run=session.run,
        store=session.store,
        mode=settings.mode,
        tick=tick,
    )
    images = _recovery_images(session)
    return (recovered(spec, images) if images is not None else spec), images


def _recovery_images(session: Session) -> EvalSet | None:
    """Return the calibration images of a session whose cells are recovered, else None."""
    recovery = session.recovery
    if sweep_recovery(recovery.method) == "none":
        return None
    return session.calib(recovery.n_images, recovery.seed)


class BaselineWatch:
    """Warns once the baseline of a running sweep is complete, and no better than guessing.

    A part of the images would not do: its wide interval often contains chance.

    Args:
        session: The session that is warned.
        spec: The sweep.
    """

    def __init__(self, session: Session, spec: SweepSpec) -> None:
        self._session, self._spec = session, spec
        self._seen = False

    def look(self) -> None:
        """Read the baseline of the sweep until it has all images, and judge it once."""
        if self._seen:
            return
        found = load_outcome(self._session.store, self._spec.baseline_key)
        known = found.among(self._spec.ids) if found is not None else None
        if known is not None and len(known) == len(self._spec.ids):
            self._seen = True
            accuracy = known.accuracy(self._spec.cluster)
            self._session.caution(chance_warning(accuracy, self._spec.summary.num_classes))


def _choose_criterion(session: Session, settings: SweepSettings) -> tuple[str, EvalSet | None]:
    """Return the sweep's criterion and the calibration images that it needs.

    The default criterion depends on whether the data has calibration images.
    """
    from psvit_core.importance import CRITERIA, criterion
    from psvit_core.records import WEIGHT_CRITERIA

    chosen = settings.criterion
    if chosen is not None and not criterion(chosen).needs_images:
        return chosen, None
    try:
        calib = session.calib(settings.calib_images, settings.seed)
    except DataError as error:
        if chosen is not None:
            raise
        by_weights = default_criterion(WEIGHT_CRITERIA)
        session.warn(
            f"Units are ranked by {by_weights}, because there are no calibration images: {error}"
        )
        return by_weights, None
    return chosen or default_criterion(CRITERIA), calib
