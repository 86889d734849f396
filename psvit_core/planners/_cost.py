"""Energy and latency: resources without a closed form in the widths.

Planners choose by a proxy, multiply-accumulates, and the wanted resource of the chosen plan is
then looked up; what saving of the proxy is needed is found by bisection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from psvit_core.errors import TargetError
from psvit_core.metrics.energy import energy_pj
from psvit_core.planners._base import SLACK, Cost, Problem, Target
from psvit_core.plans import plan_from_ratios, reached_ratios
from psvit_core.records import PrunePlan, SensitivityTable, n_pruned
from psvit_core.size import real_macs

_STEPS = 9
_TRIES = 3

Policy = Callable[[Problem], PrunePlan]


def predicted_energy(table: SensitivityTable, plan: PrunePlan) -> float:
    """Predicted theoretical energy of one image under a plan, picojoules.

    MACs of real-fed layers are exact. SOPs are the unpruned model's times, for every group, the
    fraction that its own cell kept (linear between cells): a prediction.

    Raises:
        TargetError: If the table does not hold the unpruned model's SOPs.
    """
    whole = table.baseline_sops
    if not whole:
        raise TargetError(
            "This table does not hold the unpruned model's SOPs. Run sweep again (its finished "
            "cells are kept), or give MODEL and --data to measure energy."
        )
    kept = 1.0
    ratios = reached_ratios(table.summary, plan)
    for group in table.summary.groups:
        removed = n_pruned(ratios[group.group_id], group.n_units, group.heads)
        if removed:
            rows = table.by_group.get(group.group_id, ())
            points = {0: 1.0} | {r.n_pruned: r.sops / whole for r in rows if r.n_pruned}
            kept *= float(np.interp(removed, list(points), list(points.values())))
    return energy_pj(real_macs(table.summary, plan), whole * kept)


def cost_of(problem: Problem, resource: str, cost: Cost | None) -> tuple[Cost, str]:
    """What looks a plan's energy or latency up, and how it is known in words.

    Raises:
        TargetError: If latency is wanted and nothing can measure it.
    """
    if cost is not None:
        return cost, f"{resource} measured"
    if resource == "latency":
        raise TargetError(
            "A latency target needs the model, to time it: give MODEL and --data (in Python: "
            "make_plan with cost=, a function from a plan to its latency)."
        )
    if problem.measure is not None:
        return lambda plan: problem.measured_plan(plan).energy_pj, "energy measured"
    return lambda plan: predicted_energy(problem.table, plan), "energy predicted"


def plan_by_proxy(problem: Problem, policy: Policy, resource: str, cost: Cost | None) -> PrunePlan:
    """A policy's plan for a resource without a closed form.

    Bisection over the MAC saving, with predicted plans whose resource is looked up, finds the
    least that suffices; the policy then plans for it, measured where it can be, and the saving
    asked for is raised where the result misses. With an accuracy limit the plan saves the most
    MACs; nothing is looked up.

    Args:
        problem: The task, with ``macs`` as its target's resource.
        policy: What plans.
        resource: ``energy`` or ``latency``.
        cost: Looks a plan's resource up; None takes what ``cost_of`` finds.

    Raises:
        TargetError: If the target is beyond the policy's largest plan.
    """
    if problem.target.saving is None:
        plan = policy(problem)
        return dataclasses.replace(plan, note=f"{plan.note}; {resource} by its MACs")
    look_up, how = cost_of(problem, resource, cost)
    wanted = problem.target.saving
    whole = look_up(plan_from_ratios(problem.summary, {}, criterion=problem.table.criterion))
    predicted = dataclasses.replace(problem, measure=None)

    most = 0.0

    def at(base: Problem, saving: float) -> tuple[PrunePlan, float]:
        nonlocal most
        plan = policy(dataclasses.replace(base, target=Target(saving=saving, resource="macs")))
        saved = 1 - look_up(plan) / whole
        most = max(most, saved)
        return plan, saved

    enough = _least(lambda saving: at(predicted, saving)[1] >= wanted - SLACK)
    for _ in range(_TRIES):
        if enough is None:
            break
        plan, saved = at(problem, enough)
        if saved >= wanted - SLACK:
            return dataclasses.replace(plan, note=f"{plan.note}; {how}")
        enough = min(enough + 1.2 * (wanted - saved) + 0.002, 0.999)
    raise TargetError(
        f"Saving {wanted:.1%} of the {resource} is not reachable over these groups by MACs as a "
        f"proxy; the most of the plans tried is {most:.1%}. Ask for less, or allow more groups."
    )


def _least(suffices: Callable[[float], bool]) -> float | None:
    """The least saving in (0, 1) that suffices, by bisection; None where none does."""
    low, high, found = 0.0, 1.0, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            enough = suffices(middle)
        except TargetError:  # beyond the policy's largest plan
            high = middle
            continue
        if enough:
            high = found = middle
        else:
            low = middle
    return found
