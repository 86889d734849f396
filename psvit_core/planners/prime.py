"""PrimeSVT's policy: prioritised pruning, the largest robust groups first.

Source:
    PrimeSVT, arXiv 2606.03428. Its full text was not at hand; its abstract and the issue name the
    steps (groups ordered by size, robust ones chosen, pruned largest first, each as far as an
    accuracy and a memory limit allow, accuracy measured on the way). Everything more exact below
    is our reading.
"""

from __future__ import annotations

import math

from psvit_core.planners._base import Problem, Ratios
from psvit_core.planners.predict import group_drop
from psvit_core.records import ChannelGroup, PrunePlan

#: Percentage points that a memory target is walked with; a predicted drop may exceed 100.
LIMITS = (0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, math.inf)


def prime(problem: Problem) -> PrunePlan:
    """Largest robust groups first, each as far as the drop of the whole plan so far allows.

    1. Order. Groups by what they alone save of the resource at the largest ratio of the table's
       grid, largest first.
    2. Robust ones. With an accuracy limit, a group takes part if its own drop in the table at the
       smallest ratio of the grid is within the limit.
    3. Walk. In that order, each group is raised to the largest ratio of the grid at which the
       drop of the whole plan so far, measured (or predicted), is within the limit; found by
       bisection, which takes the drop to grow with the ratio. The walk ends where the memory
       target is reached; the last group is raised no further than that needs.

    For a memory target alone the accuracy limit is not given: it is the smallest of
    (0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100) percentage points, or none, whose walk reaches
    the target, found by bisection.

    Raises:
        TargetError: If the target is beyond every group at the grid's largest ratio.
    """
    target = problem.target
    if target.max_drop is not None:
        ratios = walk(problem, 100 * target.max_drop)
        return problem.plan(ratios, "prime", problem.note())
    assert target.saving is not None
    top = max(problem.table.ratios)
    most = problem.uniform_ratios(top)
    if not problem.reaches(most, target.saving):
        raise problem.unreachable(problem.saving(most), f"with ratios up to {top:.0%}")
    best, low, high = most, 0, len(LIMITS) - 1
    while low <= high:
        middle = (low + high) // 2
        ratios = walk(problem, LIMITS[middle], target.saving)
        if problem.reaches(ratios, target.saving):
            best, high = ratios, middle - 1
        else:
            low = middle + 1
    return problem.plan(best, "prime", problem.note())


def walk(problem: Problem, limit: float, saving: float | None = None) -> Ratios:
    """Steps 1 to 3 for one accuracy limit in percentage points; may miss ``saving``."""
    grid = (0.0, *problem.table.ratios)
    ratios: Ratios = {}
    for group in _robust_by_size(problem, limit):
        name = group.group_id
        low, high = 0, len(grid) - 1
        if saving is not None and problem.reaches({**ratios, name: grid[-1]}, saving):
            enough = (i for i, r in enumerate(grid) if problem.reaches({**ratios, name: r}, saving))
            high = next(enough)
        while low < high:
            middle = (low + high + 1) // 2
            if problem.drop({**ratios, name: grid[middle]}) <= limit:
                low = middle
            else:
                high = middle - 1
        ratios[name] = grid[low]
        if saving is not None and problem.reaches(ratios, saving):
            break
    return ratios


def _robust_by_size(problem: Problem, limit: float) -> list[ChannelGroup]:
    """Groups whose own drop at the smallest ratio is within the limit, largest saving first."""
    smallest, top = min(problem.table.ratios), max(problem.table.ratios)
    saved = {g.group_id: problem.saving({g.group_id: top}) for g in problem.groups()}
    robust = [g for g in problem.groups() if group_drop(problem.table, g, smallest) <= limit]
    return sorted(robust, key=lambda g: -saved[g.group_id])  # stable: ties in network order
