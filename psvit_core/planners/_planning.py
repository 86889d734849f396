"""A policy's plan for all kinds of targets: energy and latency, and several limits at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from psvit_core.errors import TargetError
from psvit_core.plan.build import reached_ratios
from psvit_core.planners._base import SLACK, Cost, Problem
from psvit_core.planners._cost import costs_of, plan_by_proxy
from psvit_core.planners._limits import check_target
from psvit_core.planners.forecast import predict_drop
from psvit_core.planners.optimal import optimal
from psvit_core.planners.predict import group_kls
from psvit_core.planners.prime import prime
from psvit_core.planners.psvit import psvit
from psvit_core.planners.uniform import uniform
from psvit_core.records import CLOSED_FORMS, PrunePlan, Target

#: The planner of each policy, in the order of ``POLICIES``.
PLANNERS: dict[str, Callable[[Problem], PrunePlan]] = {
    "uniform": uniform,
    "psvit": psvit,
    "prime": prime,
    "optimal": optimal,
}


def plan_within(problem: Problem, policy: str, cost: Cost | None) -> PrunePlan:
    """Return a policy's plan that meets all limits of the problem's target.

    Args:
        problem: The planning problem; its target may have any resource.
        policy: The policy.
        cost: Energy or latency of a plan, in any unit.

    Raises:
        TargetError: If the limits cannot be met, each or together.
    """
    check_target(problem)
    plan = _plan(problem, policy, cost)
    if policy == "optimal" and problem.measure is None:
        plan = _unbeaten(problem, plan, cost)
    most = problem.target.max_drop
    if most is None or problem.target.saving is None:
        return plan
    drop = _drop_of(problem, plan)
    if drop <= 100 * most + SLACK:
        return plan
    other = _saving_most(problem, policy, cost)
    if other is None:
        raise TargetError(_conflict(problem, policy, drop, cost))
    return other


def _saving_most(problem: Problem, policy: str, cost: Cost | None) -> PrunePlan | None:
    """Return the policy's plan for the drop alone if it also meets the savings.

    A policy's plans for a saving and for a drop differ, so one may meet both where the other fails.
    """
    target = problem.target
    for resource in target.all_savings:
        alone = Target(max_drop=target.max_drop, resource=resource)
        plan = _plan(dataclasses.replace(problem, target=alone), policy, cost)
        if _meets(problem, plan, cost):
            return plan
    return None


def _meets(problem: Problem, plan: PrunePlan, cost: Cost | None) -> bool:
    """Return True if a plan meets all limits of the problem's target."""
    target = problem.target
    assert target.max_drop is not None
    ratios = reached_ratios(problem.summary, plan)
    for resource, saving in target.all_savings.items():
        if resource in CLOSED_FORMS:
            alone = dataclasses.replace(problem, target=Target(saving=saving, resource=resource))
            if not alone.reaches(ratios, saving):
                return False
    costed = costs_of(problem, target, cost)
    if any(one.saved(plan) < one.saving - SLACK for one in costed):
        return False
    return _drop_of(problem, plan) <= 100 * target.max_drop + SLACK


def _plan(problem: Problem, policy: str, cost: Cost | None) -> PrunePlan:
    """Return a policy's plan; only ``optimal`` heeds a drop beside a saving."""
    target = problem.target
    if target.saving is not None and policy != "optimal":
        target = dataclasses.replace(target, max_drop=None)
        problem = dataclasses.replace(problem, target=target)
    if all(r in CLOSED_FORMS for r in (target.resource, *target.savings)):
        return PLANNERS[policy](problem)
    return plan_by_proxy(problem, PLANNERS[policy], target, cost)


def _unbeaten(problem: Problem, plan: PrunePlan, cost: Cost | None) -> PrunePlan:
    """Return ``optimal``'s plan, or a better one of another policy.

    Only for energy and latency: their saving is found by bisection, so that another policy may need
    a smaller MAC saving for it.
    """
    target = problem.target
    if all(r in CLOSED_FORMS for r in (target.resource, *target.savings)):
        return plan
    for policy in PLANNERS:
        if policy == "optimal":
            continue
        try:
            other = _plan(problem, policy, cost)
        except TargetError:
            continue
        if rank_key(problem, other)[0] < rank_key(problem, plan)[0]:
            plan = dataclasses.replace(other, policy="optimal")
    return plan


def _drop_of(problem: Problem, plan: PrunePlan) -> float:
    """Return the measured drop of a plan, or without ``measure`` the predicted one."""
    if problem.measure is not None:
        measured = problem.measured_plan(plan).drop
        assert measured is not None
        return measured.value
    return predict_drop(problem.table, reached_ratios(problem.summary, plan))


def _conflict(problem: Problem, policy: str, drop: float, cost: Cost | None) -> str:
    """Return the message for limits that cannot be met together: which, and what is possible."""
    target = problem.target
    assert target.max_drop is not None
    how = "measured" if problem.measure is not None else "predicted"
    text = (
        f"These limits cannot be met together by {policy}: {target.text}. The plan of these "
        f"savings loses {drop:.2f} points ({how})."
    )
    predicted = dataclasses.replace(problem, measure=None)
    most = target.max_drop
    single = {r: Target(saving=s, resource=r, max_drop=most) for r, s in target.all_savings.items()}
    if len(single) > 1:
        for resource, alone in single.items():
            lost = _drop_at(predicted, alone, policy, cost)
            text += f" The saving of {resource} alone loses {lost:.2f} (predicted)."
    for resource, saving in target.all_savings.items():
        possible, lost = _saving_of(predicted, policy, resource, cost)
        what = f"{possible:.1%} of the {resource.replace('_', ' in ')}"
        if lost <= 100 * most + SLACK:
            text += (
                f" Within {100 * most:.4g} points, at most {what} can be saved (predicted; asked: "
                f"{saving:.1%})."
            )
        else:  # the policy adds up the drops of single groups
            text += f" Its plan for {100 * most:.4g} points saves {what} but loses {lost:.2f}."
    if policy != "optimal" and _optimal_meets(predicted, cost):
        text += " The policy optimal can meet them all (predicted)."
    return f"{text} Allow a larger drop, or save less."


def _optimal_meets(problem: Problem, cost: Cost | None) -> bool:
    try:
        return _meets(problem, _plan(problem, "optimal", cost), cost)
    except TargetError:
        return False


def _drop_at(problem: Problem, target: Target, policy: str, cost: Cost | None) -> float:
    plan = _plan(dataclasses.replace(problem, target=target), policy, cost)
    return _drop_of(problem, plan)


def _saving_of(
    problem: Problem, policy: str, resource: str, cost: Cost | None
) -> tuple[float, float]:
    """Return what a policy's plan within the target's drop saves of a resource, and its drop."""
    target = Target(max_drop=problem.target.max_drop, resource=resource)
    plan = _plan(dataclasses.replace(problem, target=target), policy, cost)
    any_saving = Target(saving=0.5, resource=resource)
    if resource not in CLOSED_FORMS:
        return costs_of(problem, any_saving, cost)[0].saved(plan), _drop_of(problem, plan)
    ratios = reached_ratios(problem.summary, plan)
    saving = dataclasses.replace(problem, target=any_saving).saving(ratios)
    return saving, _drop_of(problem, plan)


def rank_key(problem: Problem, plan: PrunePlan) -> tuple[float, ...]:
    """Return what ranks a plan, lower is better.

    For an accuracy limit, the negative saving; otherwise the measured KL, or the predicted drop and
    then the predicted KL.
    """
    if problem.target.saving is None:
        resource = problem.target.resource
        form = resource if resource in CLOSED_FORMS else "macs"
        target = dataclasses.replace(problem.target, resource=form)
        ratios = reached_ratios(problem.summary, plan)
        return (-dataclasses.replace(problem, target=target).saving(ratios),)
    if problem.measure is not None:
        kl = problem.measured_plan(plan).kl
        if kl is not None:
            return (kl,)
    ratios = reached_ratios(problem.summary, plan)
    kl = sum(group_kls(problem.table, ratios).values())
    return (round(predict_drop(problem.table, ratios), 6), kl)
