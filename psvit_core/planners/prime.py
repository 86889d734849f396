"""The policy of PrimeSVT: prioritised pruning, the largest robust groups first.

Source:
    PrimeSVT, arXiv 2606.03428. Implemented from the abstract (groups ordered by size, robust ones
    selected and pruned as far as accuracy and memory limits allow, accuracy measured on the way),
    without the full text. All further details are our interpretation.
"""

from __future__ import annotations

import math

from psvit_core.planners._base import Problem, Ratios, unreachable
from psvit_core.planners.predict import group_drop
from psvit_core.records import ChannelGroup, PrunePlan

#: Accuracy limits tried for a memory target, pp; a predicted drop may exceed 100.
LIMITS = (0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, math.inf)


def prime(problem: Problem) -> PrunePlan:
    """Return a plan that prunes the largest robust groups first.

    1. Order: sort groups by what each alone saves of the resource at the table's largest ratio.
    2. Selection: skip groups whose own drop at the table's smallest ratio exceeds the limit.
    3. Walk: raise each group in turn to the largest ratio of the table at which the drop of the
       whole plan so far, measured or predicted, is within the limit. Found by bisection, assuming
       that the drop grows with the ratio. The walk ends when the memory target is reached; the last
       group is raised no further than needed.

    A memory target has no accuracy limit of its own: bisection finds the smallest limit of
    ``LIMITS`` whose walk reaches the target.

    Raises:
        TargetError: If the target is not reachable with the table's largest ratio.
    """
    target = problem.target
    if target.saving is None:
        assert target.max_drop is not None
        ratios = walk(problem, 100 * target.max_drop)
        return problem.plan(ratios, "prime", problem.note())
    top = max(problem.table.ratios)
    largest = problem.uniform_ratios(top)
    if not problem.reaches(largest, target.saving):
        raise unreachable(problem, problem.saving(largest), f"with ratios up to {top:.0%}")
    best, low, high = largest, 0, len(LIMITS) - 1
    while low <= high:
        middle = (low + high) // 2
        ratios = walk(problem, LIMITS[middle], target.saving)
        if problem.reaches(ratios, target.saving):
            best, high = ratios, middle - 1
        else:
            low = middle + 1
    return problem.plan(best, "prime", problem.note())


def walk(problem: Problem, limit: float, saving: float | None = None) -> Ratios:
    """Return the ratios of steps 1 to 3 for one accuracy limit; they may miss ``saving``.

    Args:
        problem: The planning problem.
        limit: Largest drop, percentage points.
        saving: Saving that ends the walk, a fraction; None for no end.
    """
    grid = (0.0, *problem.table.ratios)
    ratios: Ratios = {}

    def allowed(tried: Ratios) -> bool:
        # A target saving is no promise of a drop: scaled predictions may decide after the budget.
        return problem.within(tried, limit) if saving is None else problem.drop(tried) <= limit

    for group in _robust_by_size(problem, limit):
        name = group.group_id
        low, high = 0, len(grid) - 1
        if saving is not None and problem.reaches({**ratios, name: grid[-1]}, saving):
            enough = (i for i, r in enumerate(grid) if problem.reaches({**ratios, name: r}, saving))
            high = next(enough)
        while low < high:
            middle = (low + high + 1) // 2
            if allowed({**ratios, name: grid[middle]}):
                low = middle
            else:
                high = middle - 1
        ratios[name] = grid[low]
        if saving is not None and problem.reaches(ratios, saving):
            break
    return ratios


def _robust_by_size(problem: Problem, limit: float) -> list[ChannelGroup]:
    """Return the groups whose drop at the smallest ratio is within the limit, largest first."""
    smallest, top = min(problem.table.ratios), max(problem.table.ratios)
    saved = {g.group_id: problem.saving({g.group_id: top}) for g in problem.groups()}
    robust = [g for g in problem.groups() if group_drop(problem.table, g, smallest) <= limit]
    return sorted(robust, key=lambda g: -saved[g.group_id])  # stable: ties stay in network order
