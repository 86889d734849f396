"""How far each group can go, finer than the table's grid, and what the table says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psvit_core.planners._base import Problem, Ratios
from psvit_core.planners._resources import Array
from psvit_core.planners._search import Knapsack
from psvit_core.planners.predict import drop_at, kl_at
from psvit_core.records import ChannelGroup, n_pruned

FINER = 4  # steps between two ratios of the table's grid: a 10 % grid wastes saving


@dataclass(frozen=True)
class Levels:
    """Levels of every group in network order: (n_groups, n_levels), short rows padded at the end.

    Args:
        problem: What they are the levels of.
        removed: Units that go, rising in a row.
        kls: Each group's own KL there, nats, never falling in a row.
        drops: Each group's own drop there, percentage points, never falling in a row.
    """

    problem: Problem
    removed: Array
    kls: Array
    drops: Array

    def knapsack(self, costs: Array, saving: float) -> Knapsack:
        """The knapsack of these costs at a saving of the target's resource."""
        whole = float(self.problem.form.value(self.problem.full_widths))
        return Knapsack(
            widths=self.problem.full_widths[:, None] - self.removed, costs=costs,
            form=self.problem.form, limit=(1 - saving) * whole,
        )  # fmt: skip

    def ratios(self, choice: Array) -> Ratios:
        """Prune ratios, exactly reached, of a choice of levels (n_groups,)."""
        return {
            g.group_id: int(row[level]) / g.n_units
            for g, row, level in zip(self.problem.summary.groups, self.removed, choice, strict=True)
        }

    def choice(self, ratios: Ratios) -> Array:
        """Levels of ratios that these levels were made with, (n_groups,)."""
        removed = np.array(self.problem.removed(ratios))
        return np.asarray(np.argmax(self.removed >= removed[:, None], axis=1))

    def most(self) -> float:
        """The largest saving of the target's resource, a fraction."""
        return self.problem.saving_at(self.problem.full_widths - self.removed[:, -1])


def make_levels(problem: Problem, starts: Sequence[Ratios]) -> Levels:
    """The table's ratios, steps between them, and the levels of ``starts``, within the limits.

    The table's largest ratio is the last: nothing is known of what lies beyond. Between cells the
    root of the KL is linear (``predict.kl_at``).
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
    """Units of one group that its levels remove."""
    grid = [0.0, *problem.table.ratios]
    fine = np.interp(np.arange(FINER * (len(grid) - 1) + 1) / FINER, range(len(grid)), grid)
    low, high = problem.limits[group.group_id]
    return {
        n_pruned(min(max(float(r), low), high), group.n_units, group.heads, problem.round_to)
        for r in fine
    }
