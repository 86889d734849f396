"""PSViT's policy: uniform pruning, then sensitivity-guided raises of single groups.

Source:
    PSViT, arXiv 2606.03257. Its full text was not at hand; its abstract names the steps (uniform
    channel-wise filter pruning, a sensitivity analysis of every layer, a fine-grained per-layer
    plan from sensitivities and architecture, optional fine-tuning). Everything more exact below is
    our reading.
"""

from __future__ import annotations

from psvit_core.planners._base import (
    SLACK,
    Problem,
    Ratios,
    largest_uniform,
    smallest_uniform,
)
from psvit_core.planners.predict import group_drop
from psvit_core.records import ChannelGroup, PrunePlan

UNIFORM_SHARE = 0.5  # our reading: the uniform step takes half of the target

Ladder = list[tuple[float, float]]  # (prune ratio, drop in pp), both never falling


def psvit(problem: Problem) -> PrunePlan:
    """A fine-grained plan in three steps.

    1. Uniform step. One ratio for all groups in scope: the smallest whose joint memory saving is
       half of the target saving; for an accuracy limit, the largest whose drop is within half of
       the limit.
    2. Sensitivities on that uniformly pruned model. For every group and every ratio of the table's
       grid above the uniform one, the drop (from the unpruned baseline) of the uniform plan with
       that one group raised to that ratio is measured. Without ``measure`` it is predicted: the
       group's own drop at that ratio from the table, minus its drop at the uniform ratio, plus the
       predicted drop of the uniform plan. A group's drops are made to never fall with the ratio
       (running maximum), so that a lucky cell behind a bad one is not trusted.
    3. Raises by tolerance. For a tolerance, every group is raised to its largest grid ratio whose
       drop is within it. Tolerances are the finitely many drops of step 2. For a memory target,
       bisection finds the smallest tolerance whose joint saving reaches it, then raises are
       taken back one grid step at a time, most harmful group first, wherever the target still
       holds. For an accuracy limit, bisection finds the largest tolerance whose joint plan,
       measured (or predicted), stays within the limit; the uniform step alone is the fallback.

    Raises:
        TargetError: If the memory target is beyond every group at the grid's largest ratio.
    """
    target = problem.target
    if target.saving is not None:
        base = smallest_uniform(problem, UNIFORM_SHARE * target.saving)
        ladders = _ladders(problem, base)
        ratios = _reach_saving(problem, base, ladders, target.saving)
    else:
        assert target.max_drop is not None
        base = largest_uniform(problem, UNIFORM_SHARE * target.max_drop)
        ladders = _ladders(problem, base)
        ratios = _stay_within(problem, base, ladders, 100 * target.max_drop)
    return problem.plan(ratios, "psvit", problem.note())


def _ladders(problem: Problem, base: float) -> dict[str, Ladder]:
    """Step 2: for each group, its raises above ``base`` with their drops on the uniform model."""
    uniform = problem.uniform_ratios(base)
    before = problem.drop(uniform)
    ladders: dict[str, Ladder] = {}
    for group in problem.groups():
        ladder: Ladder = [(base, before)]
        for ratio in problem.table.ratios:
            if ratio > base:
                drop = _raised_drop(problem, uniform, group, ratio, before)
                ladder.append((ratio, max(drop, ladder[-1][1])))
        ladders[group.group_id] = ladder
    return ladders


def _raised_drop(
    problem: Problem, uniform: Ratios, group: ChannelGroup, ratio: float, before: float
) -> float:
    if problem.measure is not None:
        return problem.drop({**uniform, group.group_id: ratio})
    own = group_drop(problem.table, group, ratio)
    return before + own - group_drop(problem.table, group, uniform[group.group_id])


def _raised(base: float, ladders: dict[str, Ladder], tolerance: float) -> Ratios:
    """Step 3: every group at its largest ratio whose drop is within ``tolerance``."""
    return {
        group: max([base, *(r for r, drop in ladder if drop <= tolerance)])
        for group, ladder in ladders.items()
    }


def _tolerances(ladders: dict[str, Ladder]) -> list[float]:
    return sorted({drop for ladder in ladders.values() for _, drop in ladder})


def _reach_saving(
    problem: Problem, base: float, ladders: dict[str, Ladder], saving: float
) -> Ratios:
    tolerances = _tolerances(ladders) or [0.0]  # none: every group is locked
    most = problem.saving(_raised(base, ladders, tolerances[-1]))
    if most < saving - SLACK:
        raise problem.unreachable(most, f"with ratios up to {max(problem.table.ratios):.0%}")
    low, high = 0, len(tolerances) - 1
    while low < high:
        middle = (low + high) // 2
        if problem.reaches(_raised(base, ladders, tolerances[middle]), saving):
            high = middle
        else:
            low = middle + 1
    return _give_back(problem, _raised(base, ladders, tolerances[high]), ladders, saving)


def _give_back(
    problem: Problem, ratios: Ratios, ladders: dict[str, Ladder], saving: float
) -> Ratios:
    """Take back raises that the target does not need, most harmful first."""
    ratios = dict(ratios)
    stuck: set[str] = set()
    while True:
        raised = {
            group: (drop, step)
            for group, ladder in ladders.items()
            if group not in stuck
            for step, (ratio, drop) in enumerate(ladder)
            if ratio == ratios[group] and step > 0
        }
        if not raised:
            return ratios
        worst = max(raised, key=lambda group: raised[group][0])
        lower = ladders[worst][raised[worst][1] - 1][0]
        if problem.reaches({**ratios, worst: lower}, saving):
            ratios[worst] = lower
        else:
            stuck.add(worst)


def _stay_within(problem: Problem, base: float, ladders: dict[str, Ladder], limit: float) -> Ratios:
    tolerances = _tolerances(ladders)
    best = problem.uniform_ratios(base)
    low, high = 0, len(tolerances) - 1
    while low <= high:
        middle = (low + high) // 2
        ratios = _raised(base, ladders, tolerances[middle])
        if problem.drop(ratios) <= limit:
            best, low = ratios, middle + 1
        else:
            high = middle - 1
    return best
