"""Filling the Pareto archive: policies x targets x scopes, each plan measured; resumes.

What was measured before comes from the store, so a stopped run goes on where it stopped, and
further policies or targets cost only what is new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from psvit_core.errors import InvalidRatioError, TargetError, UnknownNameError
from psvit_core.jobs.engine import (
    Engine,
    PlanSettings,
    Progress,
    RecoverySettings,
    SweepSettings,
    Tick,
    warm_up,
)
from psvit_core.jobs.improved import measure_recovered
from psvit_core.jobs.planning import check_table, made_by, run_plan
from psvit_core.jobs.tasks import evaluate, run_sweep
from psvit_core.pareto import ParetoArchive, Unreached, empty_archive, read_archive
from psvit_core.planners import POLICIES, SCOPES, Target, check_counts, make_plan
from psvit_core.records import RECOVERIES, PrunePlan, Record, SensitivityTable
from psvit_core.sensitivity.table import DEFAULT_RATIOS, SweepSpec
from psvit_core.store import Store, digest

DEFAULT_SAVINGS = (0.1, 0.224, 0.2668, 0.4, 0.55, 0.7)
#: Where a front is predicted, between and beyond what is measured.
PREDICTED_SAVINGS = (0.1, 0.25, 0.3, 0.4, 0.45, 0.55, 0.65, 0.75, 0.85)


@dataclass(frozen=True, kw_only=True)
class ParetoSettings(Record):
    """What a run fills the archive with.

    Raises:
        UnknownNameError: If there is no such policy, scope or recovery.
        InvalidRatioError: If there is no target, or one outside (0, 1), or ``round_to`` is below 1.
    """

    policies: tuple[str, ...] = ("uniform", "psvit")
    savings: tuple[float, ...] = DEFAULT_SAVINGS  # fractions of the bytes
    max_drops: tuple[float, ...] = ()  # fractions
    scopes: tuple[str, ...] = ("all",)
    ratios: tuple[float, ...] = DEFAULT_RATIOS  # of the sweep, where there is none yet
    criterion: str | None = None  # of that sweep; None: as of SweepSettings
    round_to: int = 1
    recoveries: tuple[str, ...] = ("none",)  # of the chosen plans; none is always measured
    calib_images: int = 256  # that recoveries are fitted to
    seed: int = 0  # that chooses them
    measured_planning: bool = True  # planners measure what they try; else they predict it
    profile: bool = False  # also run-time memory and latency of every chosen plan

    def __post_init__(self) -> None:
        for what, names, known in (
            ("policy", self.policies, tuple(POLICIES)),
            ("scope", self.scopes, SCOPES),
            ("recovery", self.recoveries, RECOVERIES),
        ):
            for name in names:
                if name not in known:
                    raise UnknownNameError(what, name, known)
        for saving in self.savings:
            Target(saving=saving)
        for drop in self.max_drops:
            Target(max_drop=drop)
        check_counts(round_to=self.round_to)
        if not (self.policies and self.scopes and (self.savings or self.max_drops)):
            raise InvalidRatioError(
                "A front needs a policy, a scope and a target; for example uniform, all and a "
                "memory saving of 0.224."
            )

    def recovery_settings(self) -> list[RecoverySettings]:
        """Every recovery of a chosen plan."""
        return [
            RecoverySettings(method=method, n_images=self.calib_images, seed=self.seed)
            for method in self.recoveries
            if method != "none"
        ]

    def cells(self) -> Iterator[PlanSettings]:
        """Every plan that is asked for, target by target."""
        targets: list[tuple[float | None, float | None]] = [(s, None) for s in self.savings]
        targets += [(None, d) for d in self.max_drops]
        for saving, drop in targets:
            for policy in self.policies:
                for scope in self.scopes:
                    yield PlanSettings(
                        policy=policy, memory_saving=saving, max_drop=drop, scope=scope,
                        round_to=self.round_to,
                    )  # fmt: skip


def run_pareto(
    engine: Engine,
    settings: ParetoSettings,
    table: SensitivityTable | None = None,
    progress: Progress = lambda done, total, what: None,
    tick: Tick = lambda: None,
) -> ParetoArchive:
    """Plan and measure every cell of ``settings``; returns the archive with all known points.

    Args:
        engine: The model and its images; not the test split.
        settings: Policies, targets, scopes.
        table: A sweep of this model; swept now (or read from the store) when None.
        progress: Called with (steps done, steps in all, what); the sweep's cells are steps too.
        tick: Called before each batch; may raise to stop.

    Raises:
        DataError: If the images are a test split.
        InvalidPlanError: If ``table`` is of other weights or was measured otherwise.
    """
    from psvit_core.sensitivity.sweep import refuse_test

    refuse_test(engine.data)
    cells = list(settings.cells())
    swept = 0
    if table is None:
        swept = len(engine.model.channel_groups()) * len(settings.ratios)
        n_swept = swept
        table = run_sweep(
            engine, SweepSettings(ratios=settings.ratios, criterion=settings.criterion),
            progress=lambda done, total, what: progress(
                done * n_swept // total, n_swept + len(cells), what
            ),
            tick=tick,
        )  # fmt: skip
    else:
        check_table(table, engine)
    if not settings.measured_planning:
        for _ in warm_up(engine):
            tick()
    if settings.profile:  # what the plans' latencies are compared with
        whole = evaluate(engine, None, tick, profile=True)
        engine.store.put(unpruned_key(_empty_archive(engine)), whole.to_dict())
    unreached = []
    for done, cell in enumerate(cells, start=swept):
        title, made = _title(cell), made_by(cell, table)

        def tried(n: int, total: int, what: str, done: int = done, title: str = title) -> None:
            progress(done, swept + len(cells), f"{title}: {n} {what}")

        try:
            if settings.measured_planning:
                plan, found = run_plan(engine, table, cell, tried, tick, profile=settings.profile)
            else:
                plan, _ = run_plan(None, table, cell)
                found = evaluate(engine, plan, tick, profile=settings.profile, made=made)
        except TargetError as error:
            unreached.append(Unreached(made=made, reason=str(error)))
        else:
            assert found is not None
            for recovery in settings.recovery_settings():
                measure_recovered(engine, plan, recovery, made, found, tick)
        progress(done + 1, swept + len(cells), title)
    return dataclasses.replace(engine_archive(engine), unreached=tuple(unreached))


def predicted_plans(store: Store, spec: SweepSpec, table: SensitivityTable) -> list[PrunePlan]:
    """The best plan by prediction at each of ``PREDICTED_SAVINGS`` that can be reached.

    Made once for a finished sweep, then kept in the store.
    """
    key = f"predicted/{digest([spec.key, list(PREDICTED_SAVINGS)])}"
    known = store.get(key)
    if known is not None:
        return [PrunePlan.from_dict(plan) for plan in known]
    plans = []
    for saving in PREDICTED_SAVINGS:
        try:
            plans.append(make_plan(table, "optimal", memory_saving=saving))
        except TargetError:  # it cannot save so much, nor more
            break
    store.put(key, [plan.to_dict() for plan in plans])
    return plans


def engine_archive(engine: Engine) -> ParetoArchive:
    """The archive of an engine's model and images, with all points of the store."""
    return read_archive(engine.store, _empty_archive(engine), engine.warn)


def unpruned_key(archive: ParetoArchive) -> str:
    """Where the profiled measurement of the unpruned model is kept, beside an archive's points."""
    return f"unpruned/{digest(archive.key)}"


def _empty_archive(engine: Engine) -> ParetoArchive:
    from psvit_core.evaluate import conditions_of

    conditions = conditions_of(engine.model, engine.data, engine.run)
    return empty_archive(
        engine.description.model, engine.description.weights_hash, conditions,
        batch_coupled=engine.model.batch_coupled,
    )  # fmt: skip


def _title(cell: PlanSettings) -> str:
    target = cell.memory_saving if cell.memory_saving is not None else cell.max_drop
    what = "saved" if cell.memory_saving is not None else "lost at most"
    return f"{cell.policy} ({cell.scope} groups), {target:.4g} {what}"
