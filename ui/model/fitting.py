"""Policies' plans for the budget and its further limits, and which plans still fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import streamlit as st

from psvit_core import planners
from psvit_core.errors import PsvitError, TargetError
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.latency import PredictedLatency
from psvit_core.plan.size import memory_saving
from psvit_core.planners import SavingRange
from psvit_core.records import ModelSummary, PrunePlan, SensitivityTable
from ui.model import drafts, editing, state
from ui.model.drafts import Draft

_REMEMBERED = 60  # fitted plans; undo goes back 50 steps
_CLOSE = 0.02  # a plan of an earlier session that saves so little more still fits the budget


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a plan has to meet."""

    saving: float  # memory to save, a fraction
    max_drop: float | None = None  # a fraction
    savings: Mapping[str, float] = field(default_factory=dict)  # further resources -> fraction

    @property
    def only_memory(self) -> bool:
        """Whether the budget is the only limit."""
        return self.max_drop is None and not self.savings


def limits(summary: ModelSummary) -> Limits:
    """Return the budget with its further limits."""
    drop, savings = state.get(_limits_key(summary), (None, {}))
    return Limits(saving=editing.budget(summary), max_drop=drop, savings=savings)


def set_limits(summary: ModelSummary, max_drop: float | None, savings: Mapping[str, float]) -> None:
    """Set the limits beside the budget."""
    state.put(_limits_key(summary), (max_drop, dict(savings)))


def locked_ratios(summary: ModelSummary, draft: Draft) -> dict[str, float]:
    """Return the prune ratios of the draft's locked groups."""
    reached = reached_ratios(summary, draft.plan)
    return {group: reached[group] for group in draft.locked}


def fit(
    table: SensitivityTable,
    policy: str,
    wanted: Limits,
    draft: Draft,
    latency: PredictedLatency | None = None,
) -> Draft:
    """Return a draft by a policy that meets all limits; locked groups stay.

    Args:
        table: The sweep's table.
        policy: The policy.
        wanted: The limits.
        draft: Its locked groups stay.
        latency: Predicts latencies; a limit on latency needs it.

    Raises:
        PsvitError: If no plan of the other groups meets them; groups are named as on screen.
    """
    try:
        plan = planners.make_plan(
            table,
            policy,
            memory_saving=wanted.saving,
            max_drop=wanted.max_drop,
            savings=wanted.savings,
            locked=locked_ratios(table.summary, draft),
            cost=latency,
        )
    except TargetError as error:
        raise TargetError(with_labels(str(error), table.summary)) from error
    return drafts.draft_of(table.summary, with_locked_units(plan, draft), draft.locked)


def with_locked_units(plan: PrunePlan, draft: Draft) -> PrunePlan:
    """Return the plan with the draft's own units in its locked groups.

    A planner fixes only how many units a locked group keeps.
    """
    kept = {g: units for g, units in plan.kept.items() if g not in draft.locked}
    kept |= {g: draft.plan.kept[g] for g in draft.locked if g in draft.plan.kept}
    return replace(plan, kept=kept)


def remember_fit(summary: ModelSummary, draft: Draft, wanted: Limits) -> None:
    """Remember for which limits and locks a draft was fitted."""
    known = dict(state.get(_fits_key(summary), {}))
    known.pop(_kept_key(draft), None)
    known[_kept_key(draft)] = (wanted, frozenset(draft.locked))
    state.put(_fits_key(summary), dict(list(known.items())[-_REMEMBERED:]))


def fitting_policy(summary: ModelSummary, draft: Draft) -> str | None:
    """Return the policy that made the draft if its plan is the policy's at the present limits.

    Locking groups as they are leaves a plan its policy's; unlocking does not, because the policy
    could now choose them.
    """
    if draft.empty or draft.plan.policy not in planners.POLICIES:
        return None
    now = limits(summary)
    known = state.get(_fits_key(summary), {}).get(_kept_key(draft))
    if known is not None:
        fitted, locked = known
        return draft.plan.policy if fitted == now and locked <= set(draft.locked) else None
    more = memory_saving(summary, draft.plan) - now.saving
    return draft.plan.policy if now.only_memory and -1e-9 <= more <= _CLOSE else None


def possible(
    table: SensitivityTable, stamp: str, draft: Draft, resource: str = "memory"
) -> SavingRange:
    """Return the savings that are possible with the draft's locks, and which locks bind.

    Args:
        table: Sensitivities of the model.
        stamp: Identifies the table.
        draft: The plan.
        resource: ``memory``, ``memory_int8`` or ``macs``.
    """
    locked = locked_ratios(table.summary, draft)
    return _possible(stamp, tuple(sorted(locked.items())), resource, table)


@st.cache_resource(max_entries=32, show_spinner=False)
def _possible(
    stamp: str, locked: tuple[tuple[str, float], ...], resource: str, _table: SensitivityTable
) -> SavingRange:
    try:
        return planners.saving_range(_table, resource=resource, locked=dict(locked))
    except PsvitError:  # a table of another model's groups
        return SavingRange(low=0.0, high=1.0, free=1.0)


def with_labels(text: str, summary: ModelSummary) -> str:
    """Return a message with groups named as on screen."""
    for group in summary.groups:
        text = text.replace(repr(group.group_id), group.label)
    return text


def _kept_key(draft: Draft) -> tuple[object, ...]:
    return (draft.plan.policy, *sorted(draft.plan.kept.items()))


def _limits_key(summary: ModelSummary) -> str:
    return f"limits/{summary.weights_hash}"


def _fits_key(summary: ModelSummary) -> str:
    return f"fits/{summary.weights_hash}"
