"""Planners create a prune plan from a sensitivity table and a target; no torch.

Planners are pure functions of the table, apart from an optional ``measure`` callable. Without it,
the plan's note says that its drop is predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from psvit_core.callbacks import Stop, never_stop
from psvit_core.errors import TargetError, UnknownNameError
from psvit_core.planners._base import Cost, Measure, Problem
from psvit_core.planners._counting import most_measured
from psvit_core.planners._limits import Binding, SavingRange, saving_range
from psvit_core.planners._planning import PLANNERS, plan_within, rank_key
from psvit_core.planners.forecast import (
    MIN_JOINT,
    MUCH_LOST,
    for_recovery,
    is_calibrated,
    predict_drop,
    predict_drop_interval,
    prediction_note,
    with_measured,
)
from psvit_core.planners.predict import (
    calibrate,
    group_curve,
    group_drop,
    group_kls,
    largest_drop,
    predicted_drops,
    sum_of_drops,
)
from psvit_core.records import (
    DEFAULT_BUDGET,
    POLICIES,
    RESOURCES,
    SCOPES,
    PrunePlan,
    SensitivityTable,
    Target,
    check_counts,
    make_target,
)


def make_plan(  # noqa: PLR0913  # a public signature
    table: SensitivityTable,
    policy: str = "psvit",
    *,
    memory_saving: float | None = None,
    max_drop: float | None = None,
    saving: float | None = None,
    resource: str = "memory",
    scope: str = "all",
    measure: Measure | None = None,
    round_to: int = 1,
    locked: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    budget: int = DEFAULT_BUDGET,
    cost: Cost | None = None,
    savings: Mapping[str, float] | None = None,
    stop: Stop = never_stop,
) -> PrunePlan:
    """Create a plan for one target, or for several limits that hold together.

    With a saving, ``max_drop`` is a limit. With ``max_drop`` alone, the plan saves what it can.

    Args:
        table: Sensitivities of the model.
        policy: One of ``POLICIES``.
        memory_saving: Smallest fraction of the float32 bytes to save, in (0, 1).
        max_drop: Largest accuracy drop, a fraction in (0, 1).
        saving: Smallest fraction of ``resource`` to save, in (0, 1).
        resource: ``memory``, ``memory_int8``, ``macs``, ``energy`` or ``latency`` (needs ``cost``).
        scope: ``all`` groups, ``inner`` (no residual streams) or ``best`` (the better of both).
        measure: Measures a plan on the planning split, never on the test split.
        round_to: Round widths to multiples of this.
        locked: Fixed prune ratio by ``group_id``.
        bounds: Smallest and largest prune ratio by ``group_id``.
        budget: Largest number of plans that are measured in each scope.
        cost: Energy or latency of a plan, in any unit; with both in the target: latency.
        savings: Smallest savings of further resources, fractions in (0, 1).
        stop: Asked before each measurement; True ends measuring, like a spent budget.

    Raises:
        PsvitError: If a name is unknown, or a number out of range.
        TargetError: If the limits cannot be met; the message says what is possible.
    """
    problem = Problem(
        table=table,
        target=make_target(
            memory_saving=memory_saving,
            saving=saving,
            max_drop=max_drop,
            resource=resource,
            savings=savings,
        ),
        measure=measure,
        round_to=round_to,
        locked=locked or {},
        bounds=bounds or {},
        budget=budget,
        stop=stop,
    )
    return _plan_in(problem, policy, scope, cost)


def _plan_in(problem: Problem, policy: str, scope: str, cost: Cost | None) -> PrunePlan:
    """Check the names of policy and scope, and plan."""
    if policy not in POLICIES:
        raise UnknownNameError("policy", policy, POLICIES)
    if scope not in SCOPES:
        raise UnknownNameError("scope", scope, SCOPES)
    if scope == "best":
        return _better_scope(problem, policy, cost)
    return plan_within(dataclasses.replace(problem, scope=scope), policy, cost)


def _better_scope(problem: Problem, policy: str, cost: Cost | None) -> PrunePlan:
    """Plan in the scopes ``all`` and ``inner`` and return the better plan (``rank_key``)."""
    plans = {}
    errors = []
    for scope in ("all", "inner"):
        try:
            plans[scope] = plan_within(problem.in_scope(scope), policy, cost)
        except TargetError as error:
            errors.append(error)
    if not plans:
        raise errors[0]
    chosen = min(plans, key=lambda scope: rank_key(problem, plans[scope]))
    note = f"{plans[chosen].note}; scope {chosen} was the better"
    return dataclasses.replace(plans[chosen], note=note)


__all__ = [
    "DEFAULT_BUDGET",
    "MIN_JOINT",
    "MUCH_LOST",
    "PLANNERS",
    "POLICIES",
    "RESOURCES",
    "SCOPES",
    "Binding",
    "Cost",
    "Measure",
    "Problem",
    "SavingRange",
    "Target",
    "calibrate",
    "check_counts",
    "for_recovery",
    "group_curve",
    "group_drop",
    "group_kls",
    "is_calibrated",
    "largest_drop",
    "make_plan",
    "most_measured",
    "predict_drop",
    "predict_drop_interval",
    "predicted_drops",
    "prediction_note",
    "saving_range",
    "sum_of_drops",
    "with_measured",
]
