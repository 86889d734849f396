"""Energy and latency: resources that are not an exact function of the widths.

Planners use multiply-accumulates (MACs) as a proxy. Bisection finds the MAC saving whose plan saves
enough of the resource.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from psvit_core.errors import TargetError
from psvit_core.metrics.energy import energy_pj
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.plan.latency import PredictedLatency
from psvit_core.plan.size import real_macs
from psvit_core.planners._base import SLACK, Cost, Problem
from psvit_core.records import CLOSED_FORMS, PrunePlan, SensitivityTable, Target, n_pruned

_STEPS = 9
_TRIES = 3

Policy = Callable[[Problem], PrunePlan]


def predicted_energy(table: SensitivityTable, plan: PrunePlan) -> float:
    """Predict the theoretical energy of one image under a plan, in picojoules.

    MACs of layers that read real values are exact. SOPs are predicted: the unpruned model's, times
    the fraction that each group's own cell retained (interpolated linearly between cells).

    Raises:
        TargetError: If the table does not contain the unpruned model's SOPs.
    """
    baseline = table.baseline_sops
    if not baseline:
        raise TargetError(
            "This table does not contain the unpruned model's SOPs. Run the sweep again (finished "
            "cells are reused), or give MODEL and --data to measure energy."
        )
    fraction = 1.0
    ratios = reached_ratios(table.summary, plan)
    for group in table.summary.groups:
        removed = n_pruned(ratios[group.group_id], group.n_units, group.heads)
        if removed:
            rows = table.by_group.get(group.group_id, ())
            points = {0: 1.0} | {r.n_pruned: r.sops / baseline for r in rows if r.n_pruned}
            fraction *= float(np.interp(removed, list(points), list(points.values())))
    return energy_pj(real_macs(table.summary, plan), baseline * fraction)


def cost_of(problem: Problem, resource: str, cost: Cost | None) -> tuple[Cost, str]:
    """Return a function from plans to their energy or latency, and a note on its source.

    Args:
        problem: The planning problem.
        resource: ``energy`` or ``latency``.
        cost: The function to use if given.

    Raises:
        TargetError: If the resource is latency and ``cost`` is None.
    """
    if isinstance(cost, PredictedLatency):
        return cost, cost.note
    if cost is not None:
        return cost, f"{resource} measured"
    if resource == "latency":
        raise TargetError(
            "A latency target needs the model to measure latency. Give MODEL and --data, or "
            "--latency with a table that `psvit latency` wrote (in Python: make_plan with cost=, a "
            "function from a plan to its latency, such as a PredictedLatency)."
        )
    if problem.measure is not None:
        return lambda plan: problem.measured_plan(plan).energy_pj, "energy measured"
    return lambda plan: predicted_energy(problem.table, plan), "energy predicted"


def plan_by_proxy(problem: Problem, policy: Policy, target: Target, cost: Cost | None) -> PrunePlan:
    """Return a policy's plan for a target with energy or latency.

    Bisection over predicted plans finds the smallest MAC saving that saves enough of these
    resources. The policy then plans for it, with measurements if possible, and the MAC saving is
    raised if the result misses the target. Savings of other resources hold at the same time. With
    an accuracy limit alone, the plan saves as many MACs as possible and ``cost`` is not used.

    Args:
        problem: The planning problem; its target is replaced.
        policy: The planner.
        target: The target.
        cost: Energy or latency of a plan; None uses ``cost_of``'s default. With both, latency.

    Raises:
        TargetError: If the policy's largest plan misses the target.
    """
    if target.saving is None:
        plan = policy(replace(problem, target=replace(target, resource="macs")))
        return replace(plan, note=f"{plan.note}; {target.resource} by its MACs")
    found = costs_of(problem, target, cost)
    exact = {r: s for r, s in target.all_savings.items() if r in CLOSED_FORMS}
    predicted = replace(problem, measure=None)
    maximum = 0.0  # of the resource that is furthest from its target, scaled like ``excess``

    def plan_at(base: Problem, mac_saving: float) -> tuple[PrunePlan, float]:
        """Return the plan for a MAC saving, and by how much it misses the target at most."""
        nonlocal maximum
        least = max(mac_saving, exact.get("macs", 0.0))
        others = {r: s for r, s in exact.items() if r != "macs"}
        macs = Target(saving=least, resource="macs", savings=others, max_drop=target.max_drop)
        plan = policy(replace(base, target=macs))
        share = min(one.saved(plan) / one.saving for one in found)
        maximum = max(maximum, share)
        return plan, max(one.saving - one.saved(plan) for one in found)

    mac_saving = _smallest(lambda saving: plan_at(predicted, saving)[1] <= SLACK)
    for _ in range(_TRIES):
        if mac_saving is None:
            break
        plan, missing = plan_at(problem, mac_saving)
        if missing <= SLACK:
            return replace(plan, note="; ".join([plan.note, *(one.how for one in found)]))
        mac_saving = min(mac_saving + 1.2 * missing + 0.002, 0.999)
    what = " and ".join(f"{one.saving:.1%} of the {one.resource}" for one in found)
    most = " and ".join(f"{one.saving * maximum:.1%}" for one in found)
    raise TargetError(
        f"Saving {what} is not reachable; the maximum found is {most}. Lower the target, or allow "
        "more groups."
    )


@dataclass(frozen=True, kw_only=True)
class _Costed:
    """A resource that has to be evaluated for each plan."""

    resource: str
    saving: float  # target
    cost: Cost
    how: str  # note on the source of its values
    baseline: float  # cost of the unpruned model

    def saved(self, plan: PrunePlan) -> float:
        """Return the fraction of the resource that a plan saves."""
        return 1 - self.cost(plan) / self.baseline


def costs_of(problem: Problem, target: Target, cost: Cost | None) -> list[_Costed]:
    """Return the target's resources that are not an exact function of the widths."""
    savings = {r: s for r, s in target.all_savings.items() if r not in CLOSED_FORMS}
    whole = plan_from_ratios(problem.summary, {}, criterion=problem.table.criterion)
    found = []
    for resource, saving in savings.items():
        given = cost if resource == "latency" or len(savings) == 1 else None
        cost_at, how = cost_of(problem, resource, given)
        found.append(
            _Costed(
                resource=resource, saving=saving, cost=cost_at, how=how, baseline=cost_at(whole)
            )
        )
    return found


def _smallest(suffices: Callable[[float], bool]) -> float | None:
    """Return the smallest saving in (0, 1) that suffices, by bisection; None if none does."""
    low, high, found = 0.0, 1.0, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            enough = suffices(middle)
        except TargetError:  # above the policy's largest saving
            high = middle
            continue
        if enough:
            high = found = middle
        else:
            low = middle
    return found
