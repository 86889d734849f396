"""Planners: a sensitivity table and a target in, a plan out; no torch.

Pure functions of the table, but for an optional ``measure`` callable; without it a plan is labelled
predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from psvit_core.errors import InvalidRatioError, TargetError, UnknownNameError
from psvit_core.planners._base import (
    DEFAULT_BUDGET,
    SCOPES,
    Cost,
    Measure,
    Problem,
    Target,
    check_counts,
)
from psvit_core.planners._cost import plan_by_proxy
from psvit_core.planners._resources import CLOSED_FORMS, RESOURCES
from psvit_core.planners.optimal import optimal
from psvit_core.planners.predict import (
    calibrate,
    group_curve,
    group_drop,
    group_kls,
    largest_drop,
    predict_drop,
    predict_drop_interval,
    predicted_drops,
)
from psvit_core.planners.prime import prime
from psvit_core.planners.psvit import psvit
from psvit_core.planners.uniform import uniform
from psvit_core.plans import reached_ratios
from psvit_core.records import PrunePlan, SensitivityTable

POLICIES: dict[str, Callable[[Problem], PrunePlan]] = {
    "uniform": uniform,
    "psvit": psvit,
    "prime": prime,
    "optimal": optimal,
}


def make_plan(
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
) -> PrunePlan:
    """Choose what to prune.

    Args:
        table: Sensitivities of the model.
        policy: ``uniform``, ``psvit``, ``prime`` or ``optimal``.
        memory_saving: Fraction of the float32 bytes to save at least, in (0, 1); or
        saving: the same of ``resource``; or
        max_drop: Accuracy drop to stay within, as a fraction in (0, 1), saving the most.
        resource: ``memory``, ``memory_int8``, ``macs`` (exact), ``energy`` (predicted, or measured
            with ``measure``) or ``latency`` (needs ``cost``).
        scope: ``all`` groups, ``inner``: all but the residual streams, or ``best``: both, and of
            the two plans the one with the lower KL (with ``max_drop``: the larger saving).
        measure: Measures a plan on the planning split (never the test split).
        round_to: Keep widths at multiples of this.
        locked: Prune ratio by ``group_id`` of groups that stay exactly there.
        bounds: Least and largest prune ratio by ``group_id``.
        budget: Most plans that ``optimal`` measures, in each scope.
        cost: Energy or latency of a plan, in any unit, for these resources.

    Raises:
        UnknownNameError: If there is no such policy, scope, resource or group.
        InvalidRatioError: If not exactly one target in (0, 1) is given, a ratio is outside, or
            ``round_to`` or ``budget`` is below 1.
        TargetError: If the target is not reachable; the message says the most.
    """
    if policy not in POLICIES:
        raise UnknownNameError("policy", policy, POLICIES)
    if scope not in SCOPES:
        raise UnknownNameError("scope", scope, SCOPES)
    if memory_saving is not None:
        if saving is not None or resource != "memory":
            raise InvalidRatioError(
                f"memory_saving={memory_saving!r} is a saving of float32 bytes. Give saving= with "
                f"resource={resource!r} instead."
            )
        saving = memory_saving
    target = Target(saving=saving, max_drop=max_drop, resource=resource)
    problem = Problem(
        table=table, target=target, measure=measure, round_to=round_to, locked=locked or {},
        bounds=bounds or {}, budget=budget,
    )  # fmt: skip
    plans = {}
    reasons = []
    for one in ("all", "inner") if scope == "best" else (scope,):
        try:
            plans[one] = _plan(dataclasses.replace(problem, scope=one), policy, cost)
        except TargetError as error:
            reasons.append(error)
    if not plans:
        raise reasons[0]
    if scope != "best":
        return plans[scope]
    chosen = min(plans, key=lambda one: _badness(problem, plans[one]))
    note = f"{plans[chosen].note}; scope {chosen} was the better"
    return dataclasses.replace(plans[chosen], note=note)


def _plan(problem: Problem, policy: str, cost: Cost | None) -> PrunePlan:
    problem.check_least()
    target = problem.target
    if target.resource in CLOSED_FORMS:
        return POLICIES[policy](problem)
    by_macs = dataclasses.replace(problem, target=dataclasses.replace(target, resource="macs"))
    return plan_by_proxy(by_macs, POLICIES[policy], target.resource, cost)


def _badness(problem: Problem, plan: PrunePlan) -> float:
    """What makes one scope's plan worse than the other's: less saving, or more KL."""
    if problem.target.max_drop is not None:
        resource = problem.target.resource
        form = resource if resource in CLOSED_FORMS else "macs"
        target = dataclasses.replace(problem.target, resource=form)
        ratios = reached_ratios(problem.summary, plan)
        return -dataclasses.replace(problem, target=target).saving(ratios)
    if problem.measure is not None:
        kl = problem.measured_plan(plan).kl
        if kl is not None:
            return kl
    return sum(group_kls(problem.table, reached_ratios(problem.summary, plan)).values())


__all__ = [
    "DEFAULT_BUDGET",
    "POLICIES",
    "RESOURCES",
    "SCOPES",
    "Cost",
    "Measure",
    "Problem",
    "Target",
    "calibrate",
    "check_counts",
    "group_curve",
    "group_drop",
    "group_kls",
    "largest_drop",
    "make_plan",
    "predict_drop",
    "predict_drop_interval",
    "predicted_drops",
]
