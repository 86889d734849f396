"""How good a plan could be at best: a lower bound on the summed KL; no torch.

The Lagrangian of the knapsack behind ``optimal``: cost + multiplier x (resource - limit). For any
multiplier its least over all choices is no more than the cost of any choice within the limit. That
least is found exactly although resources are products of two widths: a layer ties a group to its
residual stream and hardly to anything else, so groups can be minimised out one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from psvit_core.planners._resources import Array
from psvit_core.planners._search import Knapsack

_DOUBLINGS = 200
_BISECTIONS = 40
_LARGEST = 5_000_000  # numbers in a table while groups are minimised out
_CLOSE = 1e-4  # of the bound, where the bisection ends


def lower_bound(problem: Knapsack) -> float | None:
    """A number that no choice within the limit costs less than; None where it takes too much room.

    The best multiplier is found by bisection: the resource of the least choice falls with it.
    """
    order = _order(problem)
    if order is None:
        return None
    whole = problem.costs[:, -1].sum() / max(float(problem.form.value(problem.widths[:, 0])), 1.0)
    low, high = 0.0, max(float(whole), 1e-30)
    best, beyond = _least(problem, order, 0.0)
    for _ in range(_DOUBLINGS):
        value, beyond = _least(problem, order, high)
        best = max(best, value)
        if beyond <= 0:
            break
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value, beyond = _least(problem, order, middle)
        best = max(best, value)
        low, high = (middle, high) if beyond > 0 else (low, middle)
        if abs(beyond) * (high - low) <= _CLOSE * max(best, 1e-30):
            break
    return best


def _order(problem: Knapsack) -> list[tuple[int, list[int]]] | None:
    """Groups in an order to minimise them out, each with those it is tied to by then."""
    ties = [set(np.flatnonzero(row).tolist()) - {g} for g, row in enumerate(problem.form.pairs)]
    left = set(range(len(ties)))
    n_levels = problem.widths.shape[1]
    order = []
    while left:
        g = min(left, key=lambda one: (len(ties[one]), one))
        if n_levels ** (len(ties[g]) + 1) > _LARGEST:
            return None
        order.append((g, sorted(ties[g])))
        left.remove(g)
        for h in ties[g]:
            ties[h] = (ties[h] | ties[g]) - {g, h}
    return order


def _least(
    problem: Knapsack, order: Sequence[tuple[int, list[int]]], multiplier: float
) -> tuple[float, float]:
    """The least Lagrangian, and by how much its choice is beyond the limit."""
    form, widths = problem.form, problem.widths
    own = np.diagonal(form.pairs)[:, None]
    alone = problem.costs + multiplier * (form.linear[:, None] * widths + own * widths**2)
    tables: list[tuple[list[int], Array]] = [([g], alone[g]) for g in range(len(widths))]
    chosen: list[tuple[int, list[int], Array]] = []
    for g, ties in order:
        axes = [*ties, g]
        total = np.zeros((widths.shape[1],) * len(axes))
        for h in ties:
            if form.pairs[g, h]:
                product = 2 * multiplier * form.pairs[g, h] * widths[h][:, None] * widths[g]
                total = total + _spread(product, [h, g], axes)
        for groups, table in [t for t in tables if g in t[0]]:
            total = total + _spread(table, groups, axes)
        tables = [t for t in tables if g not in t[0]]
        chosen.append((g, ties, np.argmin(total, axis=-1)))
        tables.append((ties, total.min(axis=-1)))
    level = np.zeros(len(widths), dtype=int)
    for g, ties, at in reversed(chosen):
        level[g] = at[tuple(level[ties])]
    least = math.fsum(float(table) for groups, table in tables if not groups)
    beyond = float(form.value(problem.at(level))) - problem.limit
    return least + multiplier * (form.constant - problem.limit), beyond


def _spread(table: Array, groups: Sequence[int], axes: Sequence[int]) -> Array:
    """A table over some groups as one over ``axes``."""
    order = sorted(range(len(groups)), key=lambda i: axes.index(groups[i]))
    shape = [1] * len(axes)
    for i in order:
        shape[axes.index(groups[i])] = table.shape[i]
    return np.transpose(table, order).reshape(shape)
