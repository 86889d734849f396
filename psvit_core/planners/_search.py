"""The knapsack behind ``optimal``: a level for each group, least cost within a resource.

Costs add up; the resource is a quadratic form of the widths (``_resources.WidthForm``), since
weights shrink on two axes. Three solvers feed each other: coordinate descent on the Lagrangian for
many multipliers at once (re-linearised at every step, since with all other groups fixed the
resource is exact in one), an exact dynamic program where the resource is linearised around the
plan so far, and a local search by exact single moves and swaps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from psvit_core.planners._resources import Array, WidthForm

_MULTIPLIERS = 40
_SWEEPS = 12
_STATES = 300  # of the dynamic program at least; it is exact while no more are needed
_CELLS = 1_000_000  # states x levels x groups at least
_REACH = (1, 2, 4)  # levels that a move of the local search goes
_SMALL = 250  # groups x levels: up to this all levels are in reach, and from more starting points
_EPS = 1e-12


@dataclass(frozen=True)
class Knapsack:
    """Choose one level a group: least summed cost, resource at most ``limit``.

    Args:
        widths: (n_groups, n_levels), falling in a row; rows padded by repeating the last.
        costs: (n_groups, n_levels), never falling in a row.
        form: The resource.
        limit: Most of the resource.
    """

    widths: Array
    costs: Array
    form: WidthForm
    limit: float

    @property
    def rows(self) -> Array:
        """Index of every group, (n_groups,)."""
        return np.arange(len(self.widths))

    @property
    def lasts(self) -> Array:
        """The last level of every group that differs from the one before, (n_groups,)."""
        return np.asarray(np.argmin(self.widths, axis=1))

    def at(self, choice: Array) -> Array:
        """Widths of a choice (..., n_groups) of levels."""
        return np.asarray(self.widths[self.rows, choice])

    def cost(self, choice: Array) -> Array:
        """Summed cost of a choice (..., n_groups) of levels."""
        return np.asarray(self.costs[self.rows, choice].sum(axis=-1))

    def fits(self, choice: Array) -> Array:
        """Whether a choice (..., n_groups) is within the limit."""
        return np.asarray(self.form.value(self.at(choice)) <= self.limit * (1 + 1e-12))


def solve(problem: Knapsack, starts: Iterable[Array] = (), *, swaps: int = 150) -> Array | None:
    """A choice of levels (n_groups,) within the limit; None where even the last levels are not.

    Never costs more than a start that fits.

    Args:
        problem: What to choose from.
        starts: Choices that the search also begins from.
        swaps: Most steps of the local search.
    """
    last = problem.lasts
    if not problem.fits(last):
        return None
    pool = [np.asarray(start) for start in starts]
    pool += list(descend(problem))
    pool = [make_fit(problem, choice) for choice in [*_cheapest(problem, pool), last]]
    best = min(pool, key=problem.cost)
    small = problem.costs.size <= _SMALL
    around = _cheapest(problem, pool) if small else [best]
    pool += [relinearised(problem, choice) for choice in around]
    found = [local_search(problem, c, swaps) for c in _cheapest(problem, pool)[: 6 if small else 2]]
    return min(found, key=problem.cost)


def _cheapest(problem: Knapsack, pool: list[Array], n: int = 6) -> list[Array]:
    """The cheapest choices that fit and those that miss the limit by least."""
    distinct = np.unique(np.stack(pool), axis=0)
    fits, costs = problem.fits(distinct), problem.cost(distinct)
    inside = distinct[fits][np.argsort(costs[fits], kind="stable")]
    outside = distinct[~fits][np.argsort(-costs[~fits], kind="stable")]
    return [*inside[:n], *outside[: n // 2]]


def descend(problem: Knapsack) -> Array:
    """Coordinate descent on cost + multiplier x resource, for a range of multipliers at once.

    Begins from all groups whole and from all at their last level, then again on a finer range
    around the limit. Returns choices (n, n_groups), most within or just beyond the limit.
    """
    spread = problem.form.value(problem.widths[:, 0]) - problem.form.value(problem.widths[:, -1])
    unit = float(problem.costs[:, -1].sum()) / max(float(spread), _EPS) or 1.0
    multipliers = unit * np.geomspace(1e-4, 1e3, _MULTIPLIERS)
    found = _descend_at(problem, multipliers)
    fits = problem.fits(found).reshape(2, -1)
    fine = []
    for half in fits:
        first = int(np.argmax(half)) if half.any() else _MULTIPLIERS - 1
        low, high = multipliers[max(first - 1, 0)], multipliers[first]
        fine.append(np.geomspace(low, high, _MULTIPLIERS // 2))
    return np.concatenate([found, _descend_at(problem, np.concatenate(fine))])


def _descend_at(problem: Knapsack, multipliers: Array) -> Array:
    form, n_groups = problem.form, len(problem.widths)
    own = np.diagonal(form.pairs)
    choice = np.zeros((2 * len(multipliers), n_groups), dtype=int)
    choice[len(multipliers) :] = problem.widths.shape[1] - 1
    price = np.tile(multipliers, 2)
    widths = problem.at(choice)
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


def make_fit(problem: Knapsack, choice: Array) -> Array:
    """Raise groups, cheapest saving first, until the limit holds; the last levels must fit."""
    choice = choice.copy()
    while not problem.fits(choice):
        widths = problem.at(choice)
        saved = -problem.form.moves(widths, problem.widths)
        extra = problem.costs - problem.costs[problem.rows, choice][:, None]
        missing = problem.form.value(widths) - problem.limit
        useful = np.minimum(saved, missing)
        price = np.where(saved > _EPS, (extra + _EPS) / np.maximum(useful, _EPS), np.inf)
        g, level = np.unravel_index(np.argmin(price), price.shape)
        choice[g] = level
    return choice


def relinearised(problem: Knapsack, choice: Array, rounds: int = 2) -> Array:
    """The dynamic program on the resource linearised around the best plan so far, repeatedly.

    Exact at once where savings add up; elsewhere the limit of the next round makes up for what the
    linear resource was wrong by.
    """
    best, around, slack = choice, choice, 0.0
    for _ in range(rounds):
        widths = problem.at(around)
        moves = problem.form.moves(widths, problem.widths)
        free = problem.limit - float(problem.form.value(widths)) + slack
        found = dynamic_program(problem.costs, moves, free)
        if found is None or np.array_equal(found, around):
            break
        if problem.fits(found) and problem.cost(found) < problem.cost(best):
            best = found
        predicted = problem.form.value(widths) + moves[problem.rows, found].sum()
        slack = float(predicted - problem.form.value(problem.at(found))) if slack == 0 else 0.0
        around = make_fit(problem, found)
        if problem.cost(around) < problem.cost(best):
            best = around
    return best


def dynamic_program(costs: Array, used: Array, limit: float) -> Array | None:
    """Multiple-choice knapsack with an additive resource; None where nothing fits.

    Keeps the states that no other state beats in both cost and resource. Exact unless too many of
    them are needed (300 for 120 groups of 37 levels, thousands for a few groups); then they are
    thinned evenly over the resource.

    Args:
        costs: (n_groups, n_levels).
        used: (n_groups, n_levels), the resource that a level takes, may be negative.
        limit: Most of the summed resource.
    """
    least = used.min(axis=1)
    later = np.append(np.cumsum(least[::-1])[::-1][1:], 0.0)  # the least that the rest takes
    total, spent = np.zeros(1), np.zeros(1)
    states = max(_STATES, _CELLS // costs.size)
    back: list[tuple[Array, Array]] = []  # per group: (state before, level)
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
    """The best exact move at a time until none helps: one group lowered, or lowered and one raised.

    Args:
        problem: What to choose from.
        choice: Levels that fit, (n_groups,).
        steps: Most moves.
    """
    choice = choice.copy()
    for _ in range(steps):
        widths = problem.at(choice)
        change = problem.form.moves(widths, problem.widths)
        extra = problem.costs - problem.costs[problem.rows, choice][:, None]
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
    """(groups, levels) that lie a few levels from the choice, and the first or the last one."""
    last = problem.lasts
    end = np.zeros_like(last) if sign < 0 else last
    groups, levels = [], []
    small = problem.costs.size <= _SMALL
    reach = range(1, problem.costs.shape[1]) if small else _REACH
    for to in [*(np.clip(choice + sign * n, 0, last) for n in reach), end]:
        moved = problem.widths[problem.rows, to] != problem.at(choice)
        groups.append(problem.rows[moved])
        levels.append(to[moved])
    return np.concatenate(groups), np.concatenate(levels)
