"""The knapsack problem behind ``optimal``: one level per group, least cost within a resource limit.

Costs add up. The resource is a quadratic form of the widths (``_resources.WidthForm``) because
weights shrink along two axes. Three solvers are combined: coordinate descent on the Lagrangian for
many multipliers at once (exact in one group while the others are fixed), a dynamic program on the
resource linearised around the best choice so far, and a local search with exact moves and swaps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from psvit_core.planners._resources import Array, WidthForm

_MULTIPLIERS = 40
_SWEEPS = 12
_STATES = 300  # minimum number of states of the dynamic program, exact while no more are needed
_CELLS = 1_000_000  # minimum of states x groups x levels
_MOVES = (1, 2, 4)  # levels per move of the local search
_SMALL = 250  # groups x levels up to which all moves and more starting points are tried
_EPS = 1e-12


@dataclass(frozen=True)
class Knapsack:
    """Choose one level per group with the least total cost and a resource of at most ``limit``.

    A *choice* is an array of levels, one per group.

    Args:
        widths: (n_groups, n_levels), descending; short rows repeat their last value.
        costs: (n_groups, n_levels), non-decreasing.
        form: The resource as a function of the widths.
        limit: Largest value of the resource.
    """

    widths: Array
    costs: Array
    form: WidthForm
    limit: float

    @property
    def group_indices(self) -> Array:
        """Index of every group, (n_groups,)."""
        return np.arange(len(self.widths))

    @property
    def last_levels(self) -> Array:
        """The first level with the smallest width of every group, (n_groups,)."""
        return np.asarray(np.argmin(self.widths, axis=1))

    def widths_of(self, choice: Array) -> Array:
        """Return the widths of choices (..., n_groups)."""
        return np.asarray(self.widths[self.group_indices, choice])

    def cost(self, choice: Array) -> Array:
        """Return the total cost of choices (..., n_groups)."""
        return np.asarray(self.costs[self.group_indices, choice].sum(axis=-1))

    def fits(self, choice: Array) -> Array:
        """Return which choices (..., n_groups) are within the limit."""
        return np.asarray(self.form.value(self.widths_of(choice)) <= self.limit * (1 + 1e-12))


def solve(problem: Knapsack, starts: Iterable[Array] = (), *, swaps: int = 150) -> Array | None:
    """Return a cheap choice within the limit, (n_groups,).

    Args:
        problem: The knapsack.
        starts: Additional starting choices. The result never costs more than one that fits.
        swaps: Largest number of steps of the local search.

    Returns:
        None if even the last levels exceed the limit.
    """
    last = problem.last_levels
    if not problem.fits(last):
        return None
    pool = [np.asarray(start) for start in starts]
    pool += list(coordinate_descent(problem))
    pool = [repaired(problem, choice) for choice in [*_cheapest(problem, pool), last]]
    best = min(pool, key=problem.cost)
    small = problem.costs.size <= _SMALL
    centres = _cheapest(problem, pool) if small else [best]
    pool += [solve_linearised(problem, choice) for choice in centres]
    found = [local_search(problem, c, swaps) for c in _cheapest(problem, pool)[: 6 if small else 2]]
    return min(found, key=problem.cost)


def _cheapest(problem: Knapsack, pool: list[Array], n: int = 6) -> list[Array]:
    """Return up to ``n`` cheapest choices that fit, and the most expensive ones that do not."""
    distinct = np.unique(np.stack(pool), axis=0)
    fits, costs = problem.fits(distinct), problem.cost(distinct)
    inside = distinct[fits][np.argsort(costs[fits], kind="stable")]
    outside = distinct[~fits][np.argsort(-costs[~fits], kind="stable")]
    return [*inside[:n], *outside[: n // 2]]


def coordinate_descent(problem: Knapsack) -> Array:
    """Minimise cost + multiplier x resource by coordinate descent, for many multipliers at once.

    Descends from the first and from the last levels, then repeats with multipliers for which the
    resource is close to the limit.

    Returns:
        Choices (n, n_groups), most of them within or slightly beyond the limit.
    """
    span = problem.form.value(problem.widths[:, 0]) - problem.form.value(problem.widths[:, -1])
    unit = float(problem.costs[:, -1].sum()) / max(float(span), _EPS) or 1.0
    multipliers = unit * np.geomspace(1e-4, 1e3, _MULTIPLIERS)
    found = _descend(problem, multipliers)
    fits = problem.fits(found).reshape(2, -1)
    fine = []
    for half in fits:
        first = int(np.argmax(half)) if half.any() else _MULTIPLIERS - 1
        low, high = multipliers[max(first - 1, 0)], multipliers[first]
        fine.append(np.geomspace(low, high, _MULTIPLIERS // 2))
    return np.concatenate([found, _descend(problem, np.concatenate(fine))])


def _descend(problem: Knapsack, multipliers: Array) -> Array:
    form, n_groups = problem.form, len(problem.widths)
    own = np.diagonal(form.pairs)
    choice = np.zeros((2 * len(multipliers), n_groups), dtype=int)
    choice[len(multipliers) :] = problem.widths.shape[1] - 1
    price = np.tile(multipliers, 2)
    widths = problem.widths_of(choice)
    squares = problem.widths**2
    for _ in range(_SWEEPS):
        before = choice.copy()
        for g in range(n_groups):
            slope = form.linear[g] + 2 * (widths @ form.pairs[g] - own[g] * widths[:, g])
            used = slope[:, None] * problem.widths[g] + own[g] * squares[g]
            choice[:, g] = np.argmin(problem.costs[g] + price[:, None] * used, axis=1)
            widths[:, g] = problem.widths[g, choice[:, g]]
        if np.array_equal(before, choice):
            break
    return choice


def repaired(problem: Knapsack, choice: Array) -> Array:
    """Return the choice with groups raised until it fits, cheapest saving first.

    The last levels must be within the limit.
    """
    choice = choice.copy()
    while not problem.fits(choice):
        widths = problem.widths_of(choice)
        saved = -problem.form.moves(widths, problem.widths)
        extra = problem.costs - problem.costs[problem.group_indices, choice][:, None]
        missing = problem.form.value(widths) - problem.limit
        useful = np.minimum(saved, missing)
        price = np.where(saved > _EPS, (extra + _EPS) / np.maximum(useful, _EPS), np.inf)
        g, level = np.unravel_index(np.argmin(price), price.shape)
        choice[g] = level
    return choice


def solve_linearised(problem: Knapsack, choice: Array, rounds: int = 2) -> Array:
    """Improve a choice by dynamic programs on the resource linearised around the last solution.

    Exact after one round if savings add up. Otherwise the next round's limit compensates the error
    of the linearisation.
    """
    best, centre, slack = choice, choice, 0.0
    for _ in range(rounds):
        widths = problem.widths_of(centre)
        moves = problem.form.moves(widths, problem.widths)
        free = problem.limit - float(problem.form.value(widths)) + slack
        found = dynamic_program(problem.costs, moves, free)
        if found is None or np.array_equal(found, centre):
            break
        if problem.fits(found) and problem.cost(found) < problem.cost(best):
            best = found
        predicted = problem.form.value(widths) + moves[problem.group_indices, found].sum()
        slack = (
            float(predicted - problem.form.value(problem.widths_of(found))) if slack == 0 else 0.0
        )
        centre = repaired(problem, found)
        if problem.cost(centre) < problem.cost(best):
            best = centre
    return best


def dynamic_program(costs: Array, used: Array, limit: float) -> Array | None:
    """Solve the multiple-choice knapsack with an additive resource.

    Keeps the states that no other state dominates in cost and resource. Exact unless there are too
    many of them (300 for 120 groups of 37 levels, thousands for few groups); then an even selection
    over the resource is kept.

    Args:
        costs: (n_groups, n_levels).
        used: Resource of each level, possibly negative, (n_groups, n_levels).
        limit: Largest total resource.

    Returns:
        The choice (n_groups,); None if no choice fits.
    """
    least = used.min(axis=1)
    later = np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)  # minimum of the remaining groups
    total, spent = np.zeros(1), np.zeros(1)
    states = max(_STATES, _CELLS // costs.size)
    back: list[tuple[Array, Array]] = []  # per group: (previous state, level)
    for g in range(len(costs)):
        all_spent = (spent[:, None] + used[g]).ravel()
        all_total = (total[:, None] + costs[g]).ravel()
        inside = np.flatnonzero(all_spent + later[g] <= limit + 1e-9 * abs(limit) + 1e-6)
        if not len(inside):
            return None
        order = inside[np.argsort(all_spent[inside], kind="stable")]
        falling = np.minimum.accumulate(all_total[order])
        keep = order[np.append(True, falling[1:] < falling[:-1])]
        if len(keep) > states:
            keep = keep[np.unique(np.linspace(0, len(keep) - 1, states).round().astype(int))]
        back.append((keep // costs.shape[1], keep % costs.shape[1]))
        total, spent = all_total[keep], all_spent[keep]
    state = int(np.argmin(total))
    choice = np.zeros(len(costs), dtype=int)
    for g in range(len(costs) - 1, -1, -1):
        choice[g] = back[g][1][state]
        state = int(back[g][0][state])
    return choice


def local_search(problem: Knapsack, choice: Array, steps: int = 150) -> Array:
    """Apply the best move until none lowers the cost.

    A move lowers the level of one group, or lowers one and raises another.

    Args:
        problem: The knapsack.
        choice: A choice that fits, (n_groups,).
        steps: Largest number of moves.
    """
    choice = choice.copy()
    for _ in range(steps):
        widths = problem.widths_of(choice)
        change = problem.form.moves(widths, problem.widths)
        extra = problem.costs - problem.costs[problem.group_indices, choice][:, None]
        down_g, down_l = _steps(problem, choice, -1)
        up_g, up_l = _steps(problem, choice, 1)
        grown, shrunk = change[down_g, down_l], np.append(change[up_g, up_l], 0.0)
        gained, lost = extra[down_g, down_l], np.append(extra[up_g, up_l], 0.0)
        if not len(down_g):
            break
        dw = problem.widths[down_g, down_l] - widths[down_g]
        uw = np.append(problem.widths[up_g, up_l] - widths[up_g], 0.0)
        up_all = np.append(up_g, 0)
        cross = 2 * problem.form.pairs[np.ix_(down_g, up_all)] * dw[:, None] * uw
        fits = problem.form.value(widths) + grown[:, None] + shrunk + cross <= problem.limit * (
            1 + 1e-12
        )
        same = (down_g[:, None] == up_all) & (uw != 0)
        total = np.where(fits & ~same, gained[:, None] + lost, np.inf)
        i, j = np.unravel_index(np.argmin(total), total.shape)
        if total[i, j] >= -_EPS:
            break
        choice[down_g[i]] = down_l[i]
        if j < len(up_g):
            choice[up_g[j]] = up_l[j]
    return choice


def _steps(problem: Knapsack, choice: Array, sign: int) -> tuple[Array, Array]:
    """Return (groups, levels) a few levels from the choice, and the first or last levels."""
    last = problem.last_levels
    end = np.zeros_like(last) if sign < 0 else last
    groups, levels = [], []
    small = problem.costs.size <= _SMALL
    moves = range(1, problem.costs.shape[1]) if small else _MOVES
    for to in [*(np.clip(choice + sign * n, 0, last) for n in moves), end]:
        moved = problem.widths[problem.group_indices, to] != problem.widths_of(choice)
        groups.append(problem.group_indices[moved])
        levels.append(to[moved])
    return np.concatenate(groups), np.concatenate(levels)
