"""How good a predicted plan could be at best: a lower bound on the summed KL; no torch.

For judging ``optimal``, not for planning: the linear program takes longer than the search.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, lil_array

from psvit_core.errors import TargetError
from psvit_core.planners._base import Problem
from psvit_core.planners._levels import Levels, make_levels
from psvit_core.planners._resources import Array


def lower_bound(problem: Problem) -> float:
    """A number that no plan on the levels of ``optimal`` has less summed KL than.

    A linear program: shares of levels instead of a choice (the convex hull of each group's costs),
    and for each product of two widths its McCormick envelope from below.

    Raises:
        TargetError: If the target has no saving, or not even the program reaches it.
    """
    if problem.target.saving is None:
        raise TargetError("A bound needs a saving as its target. Give saving=.")
    levels = make_levels(problem, [])
    costs, bounds, matrix, limits, equal = _program(levels, problem.target.saving)
    result = linprog(
        costs, A_ub=matrix, b_ub=limits, A_eq=equal, b_eq=np.ones(equal.shape[0]), bounds=bounds
    )
    if not result.success:
        raise problem.unreachable(levels.most(), "on these levels")
    return float(result.fun)


def _program(
    levels: Levels, saving: float
) -> tuple[Array, list[tuple[float, float | None]], csr_array, Array, csr_array]:
    """Costs, bounds and constraints over (a share a level, a product a pair of groups)."""
    knapsack = levels.knapsack(levels.kls, saving)
    form, widths = knapsack.form, knapsack.widths
    n_groups, n_levels = widths.shape
    shares = n_groups * n_levels
    left, right = np.nonzero(np.triu(form.pairs, 1))
    equal = lil_array((n_groups, shares + len(left)))
    matrix = lil_array((1 + 2 * len(left), shares + len(left)))
    own = np.diagonal(form.pairs)
    for g in range(n_groups):
        columns = slice(g * n_levels, (g + 1) * n_levels)
        equal[g, columns] = 1
        matrix[0, columns] = form.linear[g] * widths[g] + own[g] * widths[g] ** 2
    limits = [knapsack.limit - form.constant]
    for k, (g, h) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        matrix[0, shares + k] = 2 * form.pairs[g, h]
        for a, b in ((widths[g].min(), widths[h].min()), (widths[g].max(), widths[h].max())):
            line = len(limits)  # product >= b * x + a * y - a * b
            matrix[line, g * n_levels : (g + 1) * n_levels] = b * widths[g]
            matrix[line, h * n_levels : (h + 1) * n_levels] = a * widths[h]
            matrix[line, shares + k] = -1
            limits.append(a * b)
    costs = np.concatenate([levels.kls.ravel(), np.zeros(len(left))])
    bounds: list[tuple[float, float | None]] = [(0.0, None)] * len(costs)
    return costs, bounds, matrix.tocsr(), np.array(limits), equal.tocsr()
