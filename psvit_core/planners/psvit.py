"""The policy of PSViT: uniform pruning, then sensitivity-guided raises of single groups.

Source:
    PSViT, arXiv 2606.03257. Implemented from the abstract (uniform channel-wise filter pruning, a
    sensitivity analysis of every layer, a fine-grained per-layer plan from sensitivities and
    architecture, optional fine-tuning), without the full text. All further details are our
    interpretation.
"""

from __future__ import annotations

from collections.abc import Callable

from psvit_core.planners._base import (
    SLACK,
    Problem,
    Ratios,
    largest_uniform,
    smallest_uniform,
    unreachable,
)
from psvit_core.planners.predict import group_drop, kl_at
from psvit_core.records import PrunePlan, n_pruned

UNIFORM_SHARE = 0.5  # of the target, taken by the uniform step; our interpretation

#: (prune ratio, drop in pp) by group, both non-decreasing
Raises = dict[str, list[tuple[float, float]]]
Choose = Callable[[float, Raises], Ratios]
JOINT = 8  # measurements kept for the bisection within an accuracy limit


def psvit(problem: Problem) -> PrunePlan:
    """Return a fine-grained plan in three steps.

    1. Uniform step: prune all groups in scope by the same ratio, the smallest that reaches half of
       the target saving. For an accuracy limit: the largest whose drop is within half of the limit.
    2. Sensitivities of the uniformly pruned model: for every group and every larger ratio of the
       table, measure the drop from the unpruned baseline with that one group raised to that ratio.
       Without ``measure`` it is predicted: the predicted drop of the uniform plan, plus the group's
       own drop at the ratio, minus its drop at the uniform ratio. A running maximum makes a
       group's drops non-decreasing, so that noise is not taken for a gain. If the budget is smaller
       than the number of raises, only those that decide are measured: of the raises that the plan
       would make by the values so far, always the one of largest KL in the table.
    3. Raises by tolerance: every group is raised to the largest ratio whose drop is within a
       tolerance, one of the drops of step 2. For a memory target, bisection finds the smallest
       tolerance that reaches it; raises that are not needed are then undone one by one, most
       harmful first. For an accuracy limit, bisection finds the largest tolerance whose joint plan,
       measured or predicted, is within the limit; otherwise the result is the uniform plan.

    Raises:
        TargetError: If the memory target is not reachable with the table's largest ratio.
    """
    target = problem.target
    if target.saving is not None:
        base = smallest_uniform(problem, UNIFORM_SHARE * target.saving)
        saving = target.saving

        def reach(base: float, raises: Raises) -> Ratios:
            return _reach_saving(problem, base, raises, saving)

        ratios = reach(base, _all_raises(problem, base, reach))
    else:
        assert target.max_drop is not None
        base = largest_uniform(problem, UNIFORM_SHARE * target.max_drop)
        limit = 100 * target.max_drop

        def predict(base: float, raises: Raises) -> Ratios:
            return _stay_within(problem, base, raises, limit, predicted=True)

        raises = _all_raises(problem, base, predict, reserve=JOINT)
        ratios = _stay_within(problem, base, raises, limit)
    return problem.plan(ratios, "psvit", problem.note())


def needed(problem: Problem, base: float) -> int:
    """Return the number of plans that steps 1 and 2 measure without a budget."""
    raises = sum(ratio > base for ratio in problem.table.ratios)
    return 1 + len(problem.groups()) * raises


def _all_raises(problem: Problem, base: float, choose: Choose, reserve: int = 0) -> Raises:
    """Return step 2: each group's ratios from ``base`` up, with their drops.

    Args:
        problem: The planning problem.
        base: The uniform ratio.
        choose: Returns the ratios of step 3; it measures nothing.
        reserve: Measurements to leave for step 3.
    """
    uniform = problem.uniform_ratios(base)
    before = problem.drop(uniform)
    drops: dict[tuple[str, float], float] = {}  # measured, or predicted if not
    for group in problem.groups():
        own = group_drop(problem.table, group, uniform[group.group_id])
        for ratio in problem.table.ratios:
            if ratio > base:
                raised = before + group_drop(problem.table, group, ratio) - own
                drops[group.group_id, ratio] = raised
    if problem.measure is None:
        return _steps(problem, base, before, drops)
    order: list[tuple[str, float]] = []
    if problem.budget >= needed(problem, base) + reserve:
        order = list(drops)
    left = list(drops)
    while left and problem.remaining > reserve:
        if not order:
            ratios = choose(base, _steps(problem, base, before, drops))
            order = _deciding(problem, ratios, left)[:1]
        if not order:
            break  # all that the plan consists of was measured
        group_id, ratio = raised_to = order.pop(0)
        drops[raised_to] = problem.drop({**uniform, group_id: ratio})
        left.remove(raised_to)
    return _steps(problem, base, before, drops)


def _deciding(
    problem: Problem, ratios: Ratios, left: list[tuple[str, float]]
) -> list[tuple[str, float]]:
    """Return the unmeasured raises of a plan, the largest KL first."""
    by_id = problem.summary.by_id

    def kl(raised_to: tuple[str, float]) -> float:
        group = by_id[raised_to[0]]
        return float(
            kl_at(problem.table, group, n_pruned(raised_to[1], group.n_units, group.heads))
        )

    return sorted((r for r in left if ratios.get(r[0]) == r[1]), key=lambda r: -kl(r))


def _steps(
    problem: Problem, base: float, before: float, drops: dict[tuple[str, float], float]
) -> Raises:
    """Return each group's ratios and drops, both non-decreasing."""
    raises: Raises = {}
    for group in problem.groups():
        steps = [(base, before)]
        for ratio in problem.table.ratios:
            if ratio > base:
                steps.append((ratio, max(drops[group.group_id, ratio], steps[-1][1])))
        raises[group.group_id] = steps
    return raises


def _raised(base: float, raises: Raises, tolerance: float) -> Ratios:
    """Return step 3: every group at its largest ratio whose drop is within ``tolerance``."""
    return {
        group: max([base, *(r for r, drop in steps if drop <= tolerance)])
        for group, steps in raises.items()
    }


def _tolerances(raises: Raises) -> list[float]:
    return sorted({drop for steps in raises.values() for _, drop in steps})


def _reach_saving(problem: Problem, base: float, raises: Raises, saving: float) -> Ratios:
    tolerances = _tolerances(raises) or [0.0]  # empty if every group is locked
    maximum = problem.saving(_raised(base, raises, tolerances[-1]))
    if maximum < saving - SLACK:
        raise unreachable(problem, maximum, f"with ratios up to {max(problem.table.ratios):.0%}")
    low, high = 0, len(tolerances) - 1
    while low < high:
        middle = (low + high) // 2
        if problem.reaches(_raised(base, raises, tolerances[middle]), saving):
            high = middle
        else:
            low = middle + 1
    return _undo_raises(problem, _raised(base, raises, tolerances[high]), raises, saving)


def _undo_raises(problem: Problem, ratios: Ratios, raises: Raises, saving: float) -> Ratios:
    """Undo raises that the target does not need, most harmful first."""
    ratios = dict(ratios)
    needed: set[str] = set()
    while True:
        undoable = {
            group: (drop, step)
            for group, steps in raises.items()
            if group not in needed
            for step, (ratio, drop) in enumerate(steps)
            if ratio == ratios[group] and step > 0
        }
        if not undoable:
            return ratios
        worst = max(undoable, key=lambda group: undoable[group][0])
        lower = raises[worst][undoable[worst][1] - 1][0]
        if problem.reaches({**ratios, worst: lower}, saving):
            ratios[worst] = lower
        else:
            needed.add(worst)


def _stay_within(
    problem: Problem, base: float, raises: Raises, limit: float, *, predicted: bool = False
) -> Ratios:
    """Return the plan of the largest tolerance within the limit.

    Args:
        problem: The planning problem.
        base: The uniform ratio.
        raises: Step 2.
        limit: Largest drop, percentage points.
        predicted: Estimate joint drops instead of measuring them.
    """
    tolerances = _tolerances(raises)
    best = problem.uniform_ratios(base)
    low, high = 0, len(tolerances) - 1
    while low <= high:
        middle = (low + high) // 2
        ratios = _raised(base, raises, tolerances[middle])
        if problem.estimate(ratios) <= limit if predicted else problem.within(ratios, limit):
            best, low = ratios, middle + 1
        else:
            high = middle - 1
    return best
