"""Choose plans from a sweep's table, and measure them if there is a session."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from psvit_core.callbacks import Progress, Stop, Tick, ignore_progress, keep_going, never_stop
from psvit_core.errors import InvalidPlanError
from psvit_core.files import data_set_name
from psvit_core.pareto import PlanOrigin
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.latency import PredictedLatency
from psvit_core.records import (
    RECOVERIES,
    LatencyTable,
    Measurement,
    ModelSummary,
    PlanSettings,
    PrunePlan,
    SensitivityTable,
    counting_of,
    sweep_recovery,
)
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.latency import find_latency
from psvit_core.tasks.session import Session

#: Conditions that change a sweep's numbers, and the option that sets each.
_DECISIVE = {
    "data": "--data",
    "split": "--split",
    "T": "--time-steps",
    "precision": "--precision",
    "transform": "--image-size, or other data",
}


#: Passes over the calibration images that take as long as ``auto`` on the demos, about.
_RECOVERY_PASSES = 20


def counting_note(table: SensitivityTable) -> str:
    """Return a note for the user on a table that was counted by an older rule; empty otherwise."""
    if table.conditions.counting == counting_of(table.summary.family):
        return ""
    return (
        f"The sweep of {table.summary.model} counted the MACs and synaptic operations of attention "
        "by an older rule. Its accuracies and byte counts are still valid. To update MACs, "
        "operations and energy, run the sweep again."
    )


def check_swept(table: SensitivityTable, summary: ModelSummary) -> None:
    """Raise ``InvalidPlanError`` unless a table is of these weights."""
    if table.summary.weights_hash != summary.weights_hash:
        raise InvalidPlanError(
            f"The sweep is of {table.summary.model} with other weights than {summary.model}. "
            "Sweep this model, or name the swept one."
        )
    if note := counting_note(table):
        raise InvalidPlanError(note)


def check_table(table: SensitivityTable, session: Session) -> None:
    """Check that measurements of a session are comparable with a table.

    Weights, images and how they are run must be equal. Batch, device and the number of images of
    the split may differ.

    Raises:
        InvalidPlanError: If they are not; the message names the differences.
    """
    from psvit_core.evaluate import conditions_of

    check_swept(table, session.description)
    swept, here = table.conditions, conditions_of(session.model, session.data, session.run)
    differences = [
        f"{name} {getattr(swept, name)}, here {getattr(here, name)} ({option})"
        for name, option in _DECISIVE.items()
        if _comparable(name, getattr(swept, name)) != _comparable(name, getattr(here, name))
    ]
    if differences:
        raise InvalidPlanError(
            f"The sweep was measured with {'; '.join(differences)}. Its drops do not hold here. "
            "Use the sweep's options, or sweep again."
        )
    _check_recovery(swept.recovery, session.recovery.method)


def _check_recovery(swept: str, method: str) -> None:
    """Raise ``InvalidPlanError`` unless a sweep's cells are recovered as the session's demand."""
    wanted = sweep_recovery(method)
    if swept == wanted:
        return
    fitting = " or ".join(m for m in RECOVERIES if sweep_recovery(m) == swept)
    raise InvalidPlanError(
        f"The sweep's cells were measured with recovery {swept}, but plans with recovery {method} "
        f"need cells with recovery {wanted}. Sweep again with recovery {method}, or choose the "
        f"recovery {fitting}."
    )


def _comparable(name: str, value: object) -> object:
    """Return a condition's value with the path in a data specification made absolute."""
    if name != "data":
        return value
    kind, _, place = data_set_name(str(value)).partition(":")
    return kind, str(Path(place).resolve()) if place else ""


def run_plan(
    session: Session | None,
    table: SensitivityTable,
    settings: PlanSettings,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
    *,
    profile: bool = False,
    latency: LatencyTable | None = None,
) -> tuple[PrunePlan, Measurement | None]:
    """Choose a plan; with a session, measure candidates while planning and the plan at the end.

    Without a latency table, plans for a latency target are timed on this machine.

    Args:
        session: The model and its images; None plans by the table's predictions alone.
        table: The sweep's table.
        settings: Policy, target and limits.
        progress: Called after each measured candidate; the total is the largest number.
        tick: Called before each batch; may raise to stop.
        profile: Also profile the chosen plan.
        latency: The model's latency table; None: the stored one of this machine, if there is one.

    Returns:
        (the plan, its measurement or None without a session).

    Raises:
        InvalidPlanError: If the table does not fit the session (``check_table``).
        TargetError: If no plan meets all limits.
    """
    from psvit_core import planners

    origin = plan_origin(settings, table)
    measure = None
    if session:
        check_table(table, session)
        table = planners.for_recovery(table, session.recovery.method)
        total = planners.most_measured(table, settings)[0]
        measure = _candidate_measurer(session, origin, total, progress, tick)
    plan = planners.make_plan(
        table,
        settings.policy,
        memory_saving=settings.memory_saving,
        max_drop=settings.max_drop,
        scope=settings.scope,
        measure=measure,
        round_to=settings.round_to,
        saving=settings.saving,
        resource=settings.resource,
        locked=settings.locked,
        bounds=settings.bounds,
        budget=settings.budget_evaluations,
        cost=_latency_cost(session, table, settings, latency, tick),
        savings=settings.savings,
        stop=_stop_after(settings.budget_seconds),
    )
    if session is None:
        return plan, None
    predicted = planners.predict_drop_interval(table, reached_ratios(table.summary, plan))
    return plan, evaluate(session, plan, tick, profile=profile, origin=origin, predicted=predicted)


def _latency_cost(
    session: Session | None,
    table: SensitivityTable,
    settings: PlanSettings,
    latency: LatencyTable | None,
    tick: Tick,
) -> Callable[[PrunePlan], float] | None:
    """Return what gives a plan's latency; None without a latency target, or a source for it.

    Raises:
        InvalidPlanError: If the latency table is of another model.
    """
    if "latency" not in settings.target.all_savings:
        return None
    if latency is None and session is not None:
        latency = find_latency(session)
    if latency is None:
        return latency_timer(session, tick) if session else None
    if latency.weights_hash != table.summary.weights_hash:
        raise InvalidPlanError(
            f"The latency table is of {latency.model} with other weights than the sweep's "
            f"{table.summary.model}. Time the swept model."
        )
    return PredictedLatency(latency)


def plan_origin(settings: PlanSettings, table: SensitivityTable) -> PlanOrigin:
    """Return the archive's entry for how the plan of these settings is made."""
    return PlanOrigin(
        policy=settings.policy,
        criterion=table.criterion,
        scope=settings.scope,
        memory_saving=settings.memory_saving,
        max_drop=settings.max_drop,
        saving=settings.saving,
        resource=settings.resource,
        savings=settings.savings,
        locked=settings.locked,
        bounds=settings.bounds,
        round_to=settings.round_to,
        seed=table.seed,
    )


@dataclass(frozen=True, kw_only=True)
class PlanningEstimate:
    """What planning with measurements takes, at most."""

    n_plans: int  # measured, with the chosen one
    n_unlimited: int  # that the policy would measure without a budget
    n_images: int  # that each is measured on
    seconds: float  # of all measurements, at the pace here of a plan that prunes nothing


def planning_estimate(
    session: Session, table: SensitivityTable, settings: PlanSettings, tick: Tick = keep_going
) -> PlanningEstimate:
    """Estimate what planning with measurements takes, by timing one batch of a plan like theirs.

    Plans and images that were measured before are not measured again, so it may take less.

    Raises:
        InvalidPlanError: If the table does not fit the session (``check_table``).
        TargetError: If the target is out of range.
    """
    from psvit_core.planners import most_measured

    check_table(table, session)
    within, whole = most_measured(table, settings)
    n_images = len(session.data)
    recovery = session.recovery
    recovers = recovery.method != "none"
    per_plan = n_images + recovers * (n_images + _RECOVERY_PASSES * recovery.n_images)
    seconds = (within + 1) * per_plan * _image_seconds(session, table, tick)
    if settings.budget_seconds is not None:
        seconds = min(seconds, settings.budget_seconds)
    return PlanningEstimate(
        n_plans=within + 1, n_unlimited=whole + 1, n_images=n_images, seconds=seconds
    )


def _image_seconds(session: Session, table: SensitivityTable, tick: Tick) -> float:
    """Return the seconds per image of a plan that prunes nothing, run as measurements run it."""
    from psvit_core.evaluate import place, predict, predict_plan
    from psvit_core.plan.build import plan_from_ratios

    run, model = session.run, place(session.model, session.run)
    some = session.data.take(list(range(min(run.batch, len(session.data)))))
    plan = plan_from_ratios(table.summary, {}, criterion=table.criterion)
    seconds = 0.0
    for _ in range(2):  # the first one also loads, records and compiles
        start = time.monotonic()
        if predict_plan(model, some, plan, run, tick) is None:
            predict(model, some, run, tick=tick)
        seconds = time.monotonic() - start
    return seconds / len(some)


def _stop_after(seconds: float | None) -> Stop:
    """Return a function that is True after so many seconds from now; None: never."""
    if seconds is None:
        return never_stop
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _candidate_measurer(
    session: Session, origin: PlanOrigin, total: int, progress: Progress, tick: Tick
) -> Callable[[PrunePlan], Measurement]:
    """Return a function that measures a planner's candidates and counts them as progress.

    Args:
        session: The model and its images.
        origin: How the plan is made.
        total: Largest number of candidates.
        progress: Called after each.
        tick: Called before each batch.
    """
    from psvit_core.sensitivity.sweep import refuse_test_split

    refuse_test_split(session.data)
    numbers = count(1)
    origin = dataclasses.replace(origin, tried=True)

    def measure(plan: PrunePlan) -> Measurement:
        result = evaluate(session, plan, tick, origin=origin)
        n = next(numbers)
        progress(n, max(total, n), "plans measured")
        return result

    return measure


def latency_timer(session: Session, tick: Tick) -> Callable[[PrunePlan], float]:
    """Return a function that times a plan on this device, relative to the unpruned model.

    Plans with equal widths are timed once.
    """
    from psvit_core.evaluate import place
    from psvit_core.metrics.profile import latencies_in_turns
    from psvit_core.surgery import apply_plan

    run, whole = session.run, place(session.model, session.run)
    x = next(session.data.take([0]).batches(1, run.dtype)).to(run.device)
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def latency(plan: PrunePlan) -> float:
        widths = tuple(sorted((group, len(units)) for group, units in plan.kept.items()))
        if widths not in known:
            small = place(apply_plan(session.model, plan), run)
            with run.autocast:
                pruned, unpruned = latencies_in_turns((small, whole), x, tick=tick)
            known[widths] = pruned / unpruned
        return known[widths]

    return latency
