"""Candidate widths of each group, finer than the table's grid, with their KLs and drops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psvit_core.planners._base import Problem, Ratios
from psvit_core.planners._resources import Array
from psvit_core.planners._search import Knapsack
from psvit_core.planners.predict import drop_at, kl_at
from psvit_core.records import ChannelGroup, n_pruned

STEPS_PER_RATIO = 4  # a grid of 10 % is too coarse to meet savings tightly


@dataclass(frozen=True)
class Levels:
    """Pruning levels of every group in network order; short rows repeat their last level.

    Args:
        problem: The planning problem.
        removed: Removed units, ascending, (n_groups, n_levels).
        kls: KL of pruning this group alone, nats, non-decreasing, (n_groups, n_levels).
        drops: Drop of pruning this group alone, percentage points, non-decreasing, same shape.
    """

    problem: Problem
    removed: Array
    kls: Array
    drops: Array

    def knapsack(self, costs: Array, saving: float) -> Knapsack:
        """Return the knapsack of these costs for a saving of the target's resource."""
        baseline = float(self.problem.form.value(self.problem.full_widths))
        return Knapsack(
            widths=self.problem.full_widths[:, None] - self.removed,
            costs=costs,
            form=self.problem.form,
            limit=(1 - saving) * baseline,
        )

    def ratios(self, choice: Array) -> Ratios:
        """Return the prune ratios of a choice of levels (n_groups,)."""
        return {
            g.group_id: int(row[level]) / g.n_units
            for g, row, level in zip(self.problem.summary.groups, self.removed, choice, strict=True)
        }

    def choice_of(self, ratios: Ratios) -> Array:
        """Return the levels (n_groups,) of ratios that are among them."""
        removed = np.array(self.problem.removed(ratios))
        return np.asarray(np.argmax(self.removed >= removed[:, None], axis=1))

    def max_saving(self) -> float:
        """Return the largest saving of the target's resource, a fraction."""
        return self.problem.saving_at(self.problem.full_widths - self.removed[:, -1])


def build_levels(problem: Problem, starts: Sequence[Ratios]) -> Levels:
    """Return levels at the table's ratios, between them, and at ``starts``, within the limits.

    The last level is the table's largest ratio because nothing was measured beyond. Between cells,
    the square root of the KL is interpolated linearly (``predict.kl_at``).
    """
    groups = problem.summary.groups
    reached = [problem.removed(start) for start in starts]
    rows = [
        sorted({*_counts(problem, group), *(counts[i] for counts in reached)})
        for i, group in enumerate(groups)
    ]
    longest = max(map(len, rows))
    removed = np.array([row + row[-1:] * (longest - len(row)) for row in rows])
    pairs = list(zip(groups, removed, strict=True))
    return Levels(
        problem=problem,
        removed=removed,
        kls=np.stack([kl_at(problem.table, g, row) for g, row in pairs]),
        drops=np.stack([drop_at(problem.table, g, row) for g, row in pairs]),
    )


def _counts(problem: Problem, group: ChannelGroup) -> set[int]:
    """Return the numbers of removed units at one group's levels."""
    grid = [0.0, *problem.table.ratios]
    fine = np.interp(
        np.arange(STEPS_PER_RATIO * (len(grid) - 1) + 1) / STEPS_PER_RATIO, range(len(grid)), grid
    )
    low, high = problem.limits[group.group_id]
    return {
        n_pruned(min(max(float(r), low), high), group.n_units, group.heads, problem.round_to)
        for r in fine
    }
