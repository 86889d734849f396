"""A lower bound on the total KL of any plan, from Lagrangian relaxation; no torch.

For any multiplier, the minimum of cost + multiplier x (resource - limit) over all choices is at
most the cost of every choice within the limit. The minimum is computed exactly by variable
elimination: most groups interact only with their residual stream, so the tables stay small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from psvit_core.planners._resources import Array
from psvit_core.planners._search import Knapsack

_DOUBLINGS = 200
_BISECTIONS = 40
_MAX_TABLE = 5_000_000  # entries of a table during elimination
_TOLERANCE = 1e-4  # relative to the bound; ends the bisection


def lower_bound(problem: Knapsack) -> float | None:
    """Return a lower bound on the cost of all choices within the limit.

    The best multiplier is found by bisection: the resource of the minimising choice decreases with
    it.

    Returns:
        None if elimination needs tables that are too large.
    """
    order = _elimination_order(problem)
    if order is None:
        return None
    scale = problem.costs[:, -1].sum() / max(float(problem.form.value(problem.widths[:, 0])), 1.0)
    low, high = 0.0, max(float(scale), 1e-30)
    best, excess = _minimise(problem, order, 0.0)
    for _ in range(_DOUBLINGS):
        value, excess = _minimise(problem, order, high)
        best = max(best, value)
        if excess <= 0:
            break
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value, excess = _minimise(problem, order, middle)
        best = max(best, value)
        low, high = (middle, high) if excess > 0 else (low, middle)
        if abs(excess) * (high - low) <= _TOLERANCE * max(best, 1e-30):
            break
    return best


def _elimination_order(problem: Knapsack) -> list[tuple[int, list[int]]] | None:
    """Return the groups in elimination order, each with its neighbours at that point."""
    neighbours = [
        set(np.flatnonzero(row).tolist()) - {g} for g, row in enumerate(problem.form.pairs)
    ]
    remaining = set(range(len(neighbours)))
    n_levels = problem.widths.shape[1]
    order = []
    while remaining:
        g = min(remaining, key=lambda one: (len(neighbours[one]), one))
        if n_levels ** (len(neighbours[g]) + 1) > _MAX_TABLE:
            return None
        order.append((g, sorted(neighbours[g])))
        remaining.remove(g)
        for h in neighbours[g]:
            neighbours[h] = (neighbours[h] | neighbours[g]) - {g, h}
    return order


def _minimise(
    problem: Knapsack, order: Sequence[tuple[int, list[int]]], multiplier: float
) -> tuple[float, float]:
    """Return the minimum of the Lagrangian, and the excess of its choice over the limit."""
    form, widths = problem.form, problem.widths
    own = np.diagonal(form.pairs)[:, None]
    alone = problem.costs + multiplier * (form.linear[:, None] * widths + own * widths**2)
    tables: list[tuple[list[int], Array]] = [([g], alone[g]) for g in range(len(widths))]
    chosen: list[tuple[int, list[int], Array]] = []
    for g, neighbours in order:
        axes = [*neighbours, g]
        total = np.zeros((widths.shape[1],) * len(axes))
        for h in neighbours:
            if form.pairs[g, h]:
                product = 2 * multiplier * form.pairs[g, h] * widths[h][:, None] * widths[g]
                total = total + _broadcast(product, [h, g], axes)
        for groups, table in [t for t in tables if g in t[0]]:
            total = total + _broadcast(table, groups, axes)
        tables = [t for t in tables if g not in t[0]]
        chosen.append((g, neighbours, np.argmin(total, axis=-1)))
        tables.append((neighbours, total.min(axis=-1)))
    level = np.zeros(len(widths), dtype=int)
    for g, neighbours, at in reversed(chosen):
        level[g] = at[tuple(level[neighbours])]
    least = math.fsum(float(table) for groups, table in tables if not groups)
    excess = float(form.value(problem.widths_of(level))) - problem.limit
    return least + multiplier * (form.constant - problem.limit), excess


def _broadcast(table: Array, groups: Sequence[int], axes: Sequence[int]) -> Array:
    """Reshape a table over some groups so that it broadcasts over ``axes``."""
    order = sorted(range(len(groups)), key=lambda i: axes.index(groups[i]))
    shape = [1] * len(axes)
    for i in order:
        shape[axes.index(groups[i])] = table.shape[i]
    return np.transpose(table, order).reshape(shape)
