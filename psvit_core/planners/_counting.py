"""How many plans a policy measures: what a user wants to know before it starts."""

from __future__ import annotations

import dataclasses
import math

from psvit_core.planners._base import UNIFORM_STEPS, Problem, smallest_uniform
from psvit_core.planners.prime import LIMITS
from psvit_core.planners.psvit import JOINT, UNIFORM_SHARE, needed
from psvit_core.records import CLOSED_FORMS, PlanSettings, SensitivityTable

_CLOSED = frozenset(CLOSED_FORMS)


def most_measured(table: SensitivityTable, settings: PlanSettings) -> tuple[int, int]:
    """Return how many plans are measured while planning, at most.

    The chosen plan, which is measured at the end, is not among them.

    Args:
        table: The sweep's table.
        settings: Policy, target, limits and budget.

    Returns:
        (within the budget, without a budget).

    Raises:
        PsvitError: If the settings are invalid.
        TargetError: If the target is out of range.
    """
    problem = Problem(
        table=table,
        target=settings.target,
        round_to=settings.round_to,
        locked=settings.locked,
        bounds=settings.bounds,
        budget=settings.budget_evaluations,
    )
    scopes = ("all", "inner") if settings.scope == "best" else (settings.scope,)
    within = whole = 0
    for scope in scopes:
        alone = _in_one_scope(dataclasses.replace(problem, scope=scope), settings.policy)
        within += min(alone, problem.budget)
        whole += alone
    return within, whole


def _in_one_scope(problem: Problem, policy: str) -> int:
    target, groups = problem.target, len(problem.groups())
    if policy == "optimal":
        return problem.budget
    if policy == "uniform":
        return 0 if target.saving is not None else 1 + UNIFORM_STEPS
    if policy == "prime":
        walk = groups * math.ceil(math.log2(len(problem.table.ratios) + 1))
        return walk * math.ceil(math.log2(len(LIMITS) + 1)) if target.saving is not None else walk
    if target.saving is None:
        return 1 + UNIFORM_STEPS + needed(problem, 0.0) + JOINT
    if not _CLOSED.issuperset(target.all_savings):
        return needed(problem, 0.0)  # the uniform ratio depends on measurements
    return needed(problem, smallest_uniform(problem, UNIFORM_SHARE * target.saving))
