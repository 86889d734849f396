"""The policy ``optimal``: a knapsack over (group, prune ratio).

The cost of a plan is the sum of its groups' KLs to the unpruned outputs (the smoothest number of
the table, interpolated between its ratios), or for an accuracy limit the sum of their drops. Its
saving is the true joint saving. ``_search`` solves the knapsack, starting among others from the
plans of the other policies.

Users see the predicted drop (``predict.predict_drop``), not the KL. A plan of less KL may have a
larger predicted drop, because drops of few images are coarse. Therefore the result is the plan of
least KL among those whose predicted drop no other policy's plan undercuts. The plan of smallest
predicted drop would exploit the noise of the drops: on E-SpikeFormer at 70 % saved it lost 27.7
points where this rule lost 6.5.

With ``measure``, measured plans correct the table's costs (``_trust``), and the result is the plan
of least measured KL, or of largest saving within the measured drop. The note of a predicted plan
bounds how far its cost is above the minimum (``bound``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from psvit_core.errors import TargetError
from psvit_core.plan.build import reached_ratios
from psvit_core.planners._base import SLACK, Problem, Ratios, unreachable
from psvit_core.planners._levels import Levels, build_levels
from psvit_core.planners._resources import Array
from psvit_core.planners._several import cheapest, limits_of
from psvit_core.planners._trust import TrustRegion, least_kl, most_saving
from psvit_core.planners.bound import lower_bound
from psvit_core.planners.prime import prime
from psvit_core.planners.psvit import psvit
from psvit_core.planners.uniform import uniform
from psvit_core.records import PrunePlan

_POWERS = (1.0, 0.5)  # exponents of the summed KLs: independent and coherent groups
_TIE_BREAK = 1e-3  # pp per root nat: prefers the lower KL among equal drops
_BISECTIONS = 10
#: Weights of a nat against a percentage point, where the plan of least KL has too large a drop.
_KL_WEIGHTS = (1e-3, 10.0, 30.0, 100.0, 300.0, 1000.0)
_SWAPS = 40  # steps of the local search for each of these weights
#: Plans of other policies are measured up to this multiple of the least predicted KL.
_MAX_KL_RATIO = 3.0


def optimal(problem: Problem) -> PrunePlan:
    """Return the plan of least KL at a saving, or of the largest saving within a drop.

    Without ``measure``, no other policy's plan has a smaller predicted drop at the saving, or saves
    more within the predicted drop, in the same scope and with the same locks and bounds. With
    ``measure``, at most ``problem.budget`` plans are measured and the best is returned: first the
    solutions for independent and for coherent groups, then the other policies' predicted plans
    unless they are three times worse, then the solutions of refitted costs.

    Raises:
        TargetError: If the saving is not reachable with the table's largest ratio.
    """
    starts = _other_policies(problem)
    levels = build_levels(problem, starts)
    choices = [levels.choice_of(start) for start in starts]
    if problem.target.saving is None:
        assert problem.target.max_drop is not None
        found = _within_drop(levels, choices, problem.target.max_drop)
    else:
        found = _at_saving(levels, choices, problem.target.saving)
    note = problem.note()
    if problem.measure is None and problem.target.saving is not None:
        note += _gap_note(levels, found, problem.target.saving)
    return problem.plan(levels.ratios(found), "optimal", note)


def _gap_note(levels: Levels, choice: Array, saving: float) -> str:
    """Return a note on how far the total KL of a choice can be above the minimum."""
    knapsacks = limits_of(levels, levels.kls, saving - SLACK)
    bound = max(lower_bound(one) or 0.0 for one in knapsacks)  # each limit alone bounds the plan
    if not bound:
        return ""
    gap = max(_total_kl(levels, choice) / bound - 1, 0.0)
    return f"; its summed KL is at most {gap:.2%} above the least"


def _other_policies(problem: Problem) -> list[Ratios]:
    """Return the predicted ratios of the other policies, in the problem's scope and ``inner``."""
    found = []
    for scope in dict.fromkeys((problem.scope, "inner")):
        predicted = dataclasses.replace(problem, measure=None, scope=scope)
        for policy in (prime, psvit, uniform):
            try:
                plan = policy(predicted)
            except TargetError:
                continue  # other policies reach smaller savings than this one
            found.append(reached_ratios(problem.summary, plan))
    return found


def _at_saving(levels: Levels, starts: list[Array], saving: float) -> Array:
    problem = levels.problem
    maximum = levels.max_saving()
    if maximum < saving - SLACK:
        top = max(problem.table.ratios)
        raise unreachable(problem, maximum, f"with ratios up to {top:.0%}")
    inside = [s for s in starts if problem.reaches(levels.ratios(s), saving)]
    solved = [
        cheapest(levels, levels.kls**power, saving - SLACK, inside)
        for power in (_POWERS if problem.measure else _POWERS[:1])
    ]
    found = [choice for choice in solved if choice is not None]
    if problem.measure is None:
        return _least_kl_unbeaten(levels, found[0], inside, saving)
    limit = _MAX_KL_RATIO * _total_kl(levels, found[0])
    others = [s for s in inside if _total_kl(levels, s) <= limit]
    return least_kl(TrustRegion(levels), saving - SLACK, [*found, *others])


def _least_kl_unbeaten(levels: Levels, least: Array, others: list[Array], saving: float) -> Array:
    """Return the choice of least KL whose predicted drop is not above that of any other policy.

    Args:
        levels: Levels of the groups.
        least: The choice of least KL.
        others: Choices of the other policies that reach the saving.
        saving: Smallest saving of the resource, a fraction.
    """

    def shown(choice: Array) -> float:
        return levels.problem.shown_drop(levels.ratios(choice))

    limit = levels.problem.target.max_drop
    most = min(map(shown, others), default=np.inf)
    most = (most if limit is None else min(most, 100 * limit)) + SLACK
    if shown(least) <= most:
        return least
    found = [least, *others]
    for weight in _KL_WEIGHTS:
        costs = levels.drops + weight * levels.kls
        choice = cheapest(levels, costs, saving - SLACK, found, swaps=_SWAPS)
        found += [] if choice is None else [choice]
    within = [c for c in found if shown(c) <= most]  # none if the limit cannot be met
    if not within:
        return min(found, key=shown)
    return min(within, key=lambda c: _total_kl(levels, c))


def _total_kl(levels: Levels, choice: Array) -> float:
    return float(levels.kls[np.arange(len(choice)), choice].sum())


def _within_drop(levels: Levels, starts: list[Array], max_drop: float) -> Array:
    problem, limit = levels.problem, 100 * max_drop
    best = _most_predicted(levels, starts, limit)
    if problem.measure is None:
        return best
    found = most_saving(TrustRegion(levels), limit, [best], levels.max_saving())
    return levels.choice_of({}) if found is None else found


def _most_predicted(levels: Levels, starts: Iterable[Array], limit: float) -> Array:
    """Return the choice of largest saving with a total drop within ``limit`` (pp), by bisection."""
    costs = levels.drops + _TIE_BREAK * np.sqrt(levels.kls)

    def saved(choice: Array) -> float:
        return levels.problem.saving(levels.ratios(choice))

    def within(choice: Array) -> bool:
        # By the shown drop, like the other policies: a group's drop may fall with the ratio.
        return levels.problem.shown_drop(levels.ratios(choice)) <= limit + SLACK

    least = levels.choice_of({})  # may exceed the limit because of locks and bounds
    best = max((s for s in [least, *starts] if within(s)), key=saved, default=least)
    low, high = saved(best), levels.max_saving()
    for _ in range(_BISECTIONS):
        found = cheapest(levels, costs, (low + high) / 2, [best])
        if found is not None and within(found):
            best, low = found, max(saved(found), (low + high) / 2)
        else:
            high = (low + high) / 2
    return best
