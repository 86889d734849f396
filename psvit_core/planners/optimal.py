"""The best plan that table and measurements give: a knapsack over (group, prune ratio).

The cost of a plan is the sum of its groups' own KLs to the unpruned outputs (the table's smoothest
number; levels between the grid's ratios are interpolated), or for an accuracy limit the sum of
their own drops. What it saves is the true joint size. ``_search`` solves that; the plans of the
other policies are starting points, so that none of them is better by this cost. With ``measure``
the table's costs are corrected by measured plans (``_trust``), and what counts is the measured KL,
for an accuracy limit the measured drop. A predicted plan's note says how far its cost can be above
the least (``bound``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from psvit_core.errors import TargetError
from psvit_core.planners._base import SLACK, Problem, Ratios
from psvit_core.planners._levels import Levels, make_levels
from psvit_core.planners._resources import Array
from psvit_core.planners._search import solve
from psvit_core.planners._trust import TrustRegion, least_kl, most_saving
from psvit_core.planners.bound import lower_bound
from psvit_core.planners.prime import prime
from psvit_core.planners.psvit import psvit
from psvit_core.planners.uniform import uniform
from psvit_core.plans import reached_ratios
from psvit_core.records import PrunePlan

_POWERS = (1.0, 0.5)  # of the KLs that are summed: independent groups, and coherent ones
_TIE = 1e-3  # pp a root nat: which of two equal drops is better
_BISECTIONS = 10
_WORTH = (
    3.0  # other policies' plans of more than this many times the least predicted KL: unmeasured
)


def optimal(problem: Problem) -> PrunePlan:
    """Least KL at a saving, or the most saving within a drop.

    Predicted: the knapsack's solution. Measured: at most ``problem.budget`` plans are, first the
    knapsack's (groups taken as independent, and as coherent) and the other policies' predicted
    ones unless they are three times worse, then those of the re-fitted costs; the best measured
    one is returned.

    Raises:
        TargetError: If the saving is beyond every group at the grid's largest ratio.
    """
    starts = _other_policies(problem)
    levels = make_levels(problem, starts)
    choices = [levels.choice(start) for start in starts]
    if problem.target.max_drop is not None:
        found = _within_drop(levels, choices, problem.target.max_drop)
    else:
        found = _at_saving(levels, choices, problem.target.saving or 0.0)
    note = problem.note()
    if problem.measure is None and problem.target.saving is not None:
        note += _gap(levels, found, problem.target.saving)
    return problem.plan(levels.ratios(found), "optimal", note)


def _gap(levels: Levels, choice: Array, saving: float) -> str:
    """How far the summed KL of a choice can be above that of the best one, for the note."""
    bound = lower_bound(levels.knapsack(levels.kls, saving - SLACK))
    if not bound:
        return ""
    gap = max(_summed(levels, choice) / bound - 1, 0.0)
    return f"; its summed KL is at most {gap:.2%} above the least"


def _other_policies(problem: Problem) -> list[Ratios]:
    """Predicted plans of the other policies, in both scopes where that is allowed."""
    found = []
    for scope in dict.fromkeys((problem.scope, "inner")):
        predicted = dataclasses.replace(problem, measure=None, scope=scope)
        for policy in (prime, psvit, uniform):
            try:
                plan = policy(predicted)
            except TargetError:
                continue  # a start less: other policies reach less than this one
            found.append(reached_ratios(problem.summary, plan))
    return found


def _at_saving(levels: Levels, starts: list[Array], saving: float) -> Array:
    problem = levels.problem
    top = max(problem.table.ratios)
    if levels.most() < saving - SLACK:
        raise problem.unreachable(levels.most(), f"with ratios up to {top:.0%}")
    inside = [s for s in starts if problem.reaches(levels.ratios(s), saving)]
    solved = [
        solve(levels.knapsack(levels.kls**power, saving - SLACK), inside)
        for power in (_POWERS if problem.measure else _POWERS[:1])
    ]
    found = [choice for choice in solved if choice is not None]
    if problem.measure is None:
        return found[0]
    worth = [s for s in inside if _summed(levels, s) <= _WORTH * _summed(levels, found[0])]
    return least_kl(TrustRegion(levels), saving - SLACK, [*found, *worth])


def _summed(levels: Levels, choice: Array) -> float:
    return float(levels.kls[np.arange(len(choice)), choice].sum())


def _within_drop(levels: Levels, starts: list[Array], max_drop: float) -> Array:
    problem, limit = levels.problem, 100 * max_drop
    best = _most_predicted(levels, starts, limit)
    if problem.measure is None:
        return best
    found = most_saving(TrustRegion(levels), limit, [best], levels.most())
    return levels.choice({}) if found is None else found


def _most_predicted(levels: Levels, starts: Iterable[Array], limit: float) -> Array:
    """The most saving whose summed drops are within ``limit`` (pp), by bisection over it."""
    rows = np.arange(len(levels.drops))
    costs = levels.drops + _TIE * np.sqrt(levels.kls)

    def saved(choice: Array) -> float:
        return levels.problem.saving(levels.ratios(choice))

    def within(choice: Array) -> bool:
        return bool(levels.drops[rows, choice].sum() <= limit + SLACK)

    least = levels.choice({})  # as little as locks and bounds allow; there may be nothing within
    best = max((s for s in [least, *starts] if within(s)), key=saved, default=least)
    low, high = saved(best), levels.most()
    for _ in range(_BISECTIONS):
        found = solve(levels.knapsack(costs, (low + high) / 2), [best])
        if found is not None and within(found):
            best, low = found, max(saved(found), (low + high) / 2)
        else:
            high = (low + high) / 2
    return best
