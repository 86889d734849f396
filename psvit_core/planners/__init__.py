"""Planners: a sensitivity table and a target in, a plan out; no torch.

Pure functions of the table, but for an optional ``measure`` callable; without it a plan is labelled
predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from psvit_core.errors import UnknownNameError
from psvit_core.planners._base import SCOPES, Measure, Problem, Target
from psvit_core.planners.psvit import psvit
from psvit_core.planners.uniform import uniform
from psvit_core.records import PrunePlan, SensitivityTable

POLICIES: dict[str, Callable[[Problem], PrunePlan]] = {"uniform": uniform, "psvit": psvit}


def make_plan(
    table: SensitivityTable,
    policy: str = "psvit",
    *,
    memory_saving: float | None = None,
    max_drop: float | None = None,
    scope: str = "all",
    measure: Measure | None = None,
    round_to: int = 1,
) -> PrunePlan:
    """Choose what to prune.

    Args:
        table: Sensitivities of the model.
        policy: ``uniform`` or ``psvit``.
        memory_saving: Fraction of the bytes to save at least, in (0, 1); or
        max_drop: Accuracy drop to stay within, as a fraction in (0, 1).
        scope: ``all`` groups, or ``inner``: all but the residual streams.
        measure: Measures a plan on the planning split (never the test split).
        round_to: Keep widths at multiples of this.

    Raises:
        UnknownNameError: If there is no such policy or scope.
        InvalidRatioError: If not exactly one target in (0, 1) is given.
        TargetError: If the target is not reachable; the message says the most.
    """
    if policy not in POLICIES:
        raise UnknownNameError("policy", policy, POLICIES)
    if scope not in SCOPES:
        raise UnknownNameError("scope", scope, SCOPES)
    target = Target(memory_saving=memory_saving, max_drop=max_drop)
    problem = Problem(table=table, target=target, scope=scope, measure=measure, round_to=round_to)
    return POLICIES[policy](problem)


def predict_drop(table: SensitivityTable, ratios: Mapping[str, float]) -> float:
    """Predicted accuracy drop of these prune ratios together, percentage points.

    The sum of the groups' own measured drops, linear between measured ratios, gains counted as 0.
    A prediction: groups interact, so the true drop of many groups is usually larger.
    """
    problem = Problem(table=table, target=Target(memory_saving=0.5))
    return problem.predicted_drop(ratios)


__all__ = ["POLICIES", "SCOPES", "Measure", "Problem", "Target", "make_plan", "predict_drop"]
