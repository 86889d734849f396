"""Fill the Pareto archive: measure policies x targets x scopes.

Earlier measurements come from the store, so a stopped run continues where it stopped, and more
policies or targets cost only their own measurements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.errors import TargetError
from psvit_core.pareto import ParetoArchive, Unreached, empty_archive, read_archive
from psvit_core.plan.build import reached_ratios
from psvit_core.planners import for_recovery, make_plan, predict_drop_interval
from psvit_core.records import (
    Measurement,
    ParetoSettings,
    PlanSettings,
    PrunePlan,
    SensitivityTable,
    SweepSettings,
)
from psvit_core.sensitivity.spec import SweepSpec
from psvit_core.storage.store import Store, digest
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.plan import check_table, plan_origin, run_plan
from psvit_core.tasks.recover import measure_recovered
from psvit_core.tasks.session import Session, warm_up
from psvit_core.tasks.sweep import check_cluster, run_sweep
from psvit_core.tasks.unpruned import profiled_measurement_key

#: Savings at which a front is predicted: between and beyond the usual measured ones.
PREDICTED_SAVINGS = (0.1, 0.25, 0.3, 0.4, 0.45, 0.55, 0.65, 0.75, 0.85)


def run_pareto(
    session: Session,
    settings: ParetoSettings,
    table: SensitivityTable | None = None,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
) -> ParetoArchive:
    """Plan and measure every cell of ``settings``.

    Args:
        session: The model and its images; not the test split.
        settings: Policies, targets and scopes.
        table: A sweep of this model; None runs one, or reads it from the store.
        progress: Called with (steps done, all steps, description); a sweep's cells are steps too.
        tick: Called before each batch; may raise to stop.

    Returns:
        The archive with all known points, and the targets that no plan reaches.

    Raises:
        DataError: If the images are a test split.
        InvalidPlanError: If ``table`` is of other weights or was measured differently.
    """
    from psvit_core.sensitivity.sweep import refuse_test_split

    refuse_test_split(session.data)
    cells = list(settings.cells())
    swept = 0
    if table is None:
        swept = len(session.model.channel_groups()) * len(settings.ratios)
        table = _run_sweep(session, settings, (swept, len(cells)), progress, tick)
    else:
        check_table(table, session)
    _measure_first(session, settings, tick)
    unreached = []
    ready = _ready(session, settings, table, cells, tick)
    for done, cell in enumerate(ready, start=swept):
        title = _title(cell)

        def report(n: int, total: int, what: str, done: int = done, title: str = title) -> None:
            progress(done, swept + len(cells), f"{title}: {n} {what}")

        try:
            measure_cell(session, settings, table, cell, report, tick)
        except TargetError as error:
            unreached.append(Unreached(made=plan_origin(cell, table), reason=str(error)))
        progress(done + 1, swept + len(cells), title)
    return dataclasses.replace(session_archive(session), unreached=tuple(unreached))


def _ready(
    session: Session,
    settings: ParetoSettings,
    table: SensitivityTable,
    cells: Sequence[PlanSettings],
    tick: Tick,
) -> Iterable[PlanSettings]:
    """Return a front's plans; on a cluster, each once its measurements are in the store."""
    if not session.engine.is_ray:
        return cells
    from psvit_core.tasks.front_workers import measured_on_cluster

    check_cluster(session)
    return measured_on_cluster(session, settings, table, cells, measure_cell, tick)


def _run_sweep(
    session: Session,
    settings: ParetoSettings,
    n_steps: tuple[int, int],
    progress: Progress,
    tick: Tick,
) -> SensitivityTable:
    """Run the front's own sweep as the first of ``n_steps`` (cells of the sweep, plans)."""
    n_cells, n_plans = n_steps

    def report(done: int, total: int, what: str) -> None:
        progress(done * n_cells // total, n_cells + n_plans, what)

    own = SweepSettings(ratios=settings.ratios, criterion=settings.criterion)
    return run_sweep(session, own, progress=report, tick=tick)


def _measure_first(session: Session, settings: ParetoSettings, tick: Tick) -> None:
    """Measure what all plans are compared with."""
    if not settings.measured_planning:
        for _ in warm_up(session):
            tick()
    if settings.profile:
        baseline = evaluate(session, None, tick, profile=True)
        session.store.put(profiled_measurement_key(_empty_archive(session)), baseline.to_dict())


def measure_cell(
    session: Session,
    settings: ParetoSettings,
    table: SensitivityTable,
    cell: PlanSettings,
    progress: Progress,
    tick: Tick,
) -> None:
    """Choose one plan of a front, measure it and each of its recoveries.

    Raises:
        TargetError: If no plan reaches the cell's target.
    """
    table = for_recovery(table, session.recovery.method)
    origin = plan_origin(cell, table)
    found: Measurement | None
    if settings.measured_planning:
        plan, found = run_plan(session, table, cell, progress, tick, profile=settings.profile)
    else:
        plan, _ = run_plan(None, table, cell)
        predicted = predict_drop_interval(table, reached_ratios(table.summary, plan))
        found = evaluate(
            session, plan, tick, profile=settings.profile, origin=origin, predicted=predicted
        )
    plain = found.plain if found else None
    assert plain is not None
    for recovery in settings.recovery_settings():
        measure_recovered(session, plan, recovery, origin, plain, tick)


def predicted_key(spec: SweepSpec) -> str:
    """Return the key of the plans predicted from a sweep in the store."""
    return f"predicted/{digest([spec.key, list(PREDICTED_SAVINGS)])}"


def predicted_plans(store: Store, spec: SweepSpec, table: SensitivityTable) -> list[PrunePlan]:
    """Return the best predicted plan at each of ``PREDICTED_SAVINGS`` that can be reached.

    They are made once for each finished sweep and stored.
    """
    key = predicted_key(spec)
    known = store.get(key)
    if known is not None:
        return [PrunePlan.from_dict(plan) for plan in known]
    plans = []
    for saving in PREDICTED_SAVINGS:
        try:
            plans.append(make_plan(table, "optimal", memory_saving=saving))
        except TargetError:  # larger savings cannot be reached either
            break
    with store.optional():
        store.put(key, [plan.to_dict() for plan in plans])
    return plans


def session_archive(session: Session) -> ParetoArchive:
    """Return the archive of a session's model and images, with all points in the store."""
    return read_archive(session.store, _empty_archive(session), session.warn)


def _empty_archive(session: Session) -> ParetoArchive:
    from psvit_core.evaluate import conditions_of

    conditions = conditions_of(session.model, session.data, session.run)
    return empty_archive(
        session.description.model,
        session.description.weights_hash,
        conditions,
        batch_coupled=session.model.batch_coupled,
    )


def _title(cell: PlanSettings) -> str:
    target = cell.memory_saving if cell.memory_saving is not None else cell.max_drop
    what = "saved" if cell.memory_saving is not None else "lost at most"
    return f"{cell.policy} ({cell.scope} groups), {target:.4g} {what}"
