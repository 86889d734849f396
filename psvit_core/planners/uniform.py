"""Uniform channel-wise filter pruning: one ratio for every group."""

from __future__ import annotations

from psvit_core.planners._base import Problem, largest_uniform, smallest_uniform
from psvit_core.records import PrunePlan


def uniform(problem: Problem) -> PrunePlan:
    """Return the plan of the smallest uniform ratio for a saving, or the largest for a drop."""
    target = problem.target
    if target.saving is not None:
        ratio = smallest_uniform(problem, target.saving)
    else:
        assert target.max_drop is not None
        ratio = largest_uniform(problem, target.max_drop)
    return problem.plan(problem.uniform_ratios(ratio), "uniform", problem.note())
