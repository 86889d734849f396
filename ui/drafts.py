"""The plan being made, as data: what is asked of each group, and the plan that this gives.

Pure functions from a draft to the next one; no streamlit. The plan is the truth; ``asked`` is only
where the user's handles stand, since a ratio is rounded to whole units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from psvit_core.errors import PsvitError, RecordError
from psvit_core.plans import default_criterion, plan_from_ratios, reached_ratios
from psvit_core.records import ModelSummary, PrunePlan, Record
from psvit_core.store import Store

MAX_PERCENT = 95


@dataclass(frozen=True, kw_only=True)
class Draft(Record):
    """A plan being made."""

    document: ClassVar[str] = "plan_draft"

    plan: PrunePlan
    asked: dict[str, float]  # prune ratio that the user or a planner asked for, by group
    locked: tuple[str, ...] = ()  # groups that neither a drag nor a planner may change
    tab: str = field(default="", compare=False)  # that wrote it; no part of the plan

    @property
    def empty(self) -> bool:
        """Whether nothing is removed."""
        return not self.plan.kept


def empty_draft(summary: ModelSummary) -> Draft:
    """A draft that removes nothing."""
    criterion = default_criterion(summary.rankings)
    return Draft(plan=plan_from_ratios(summary, {}, criterion=criterion), asked={})


def draft_of(summary: ModelSummary, plan: PrunePlan, locked: tuple[str, ...] = ()) -> Draft:
    """A draft that is exactly ``plan``, with these groups locked.

    Raises:
        InvalidPlanError: If the plan does not fit the model.
    """
    plan.check(summary.groups, summary.weights_hash)
    reached = reached_ratios(summary, plan)
    asked = {group: r for group, r in reached.items() if r > 0}
    return Draft(plan=plan, asked=asked, locked=locked)


def with_ratio(
    draft: Draft, summary: ModelSummary, group_id: str, ratio: float, criterion: str | None = None
) -> Draft:
    """The draft with one group at another prune ratio: ``with_ratios`` of one."""
    return with_ratios(draft, summary, {group_id: ratio}, criterion)


def with_ratios(
    draft: Draft, summary: ModelSummary, ratios: Mapping[str, float], criterion: str | None = None
) -> Draft:
    """The draft with some groups at other prune ratios; the other groups keep their units.

    Args:
        draft: The draft before.
        summary: The model.
        ratios: Fraction removed, in [0, 1), by group.
        criterion: What an empty draft ranks units by from now on; a begun one keeps its own.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1).
        InvalidPlanError: If there is no such group.
    """
    ranking = criterion if draft.empty and criterion else draft.plan.criterion
    if ranking not in summary.rankings:  # as in a plan file of unknown make
        ranking = default_criterion(summary.rankings)
    changed = plan_from_ratios(summary, ratios, criterion=ranking).kept
    others = {g: units for g, units in draft.plan.kept.items() if g not in ratios}
    kept = {g.group_id: k for g in summary.groups if (k := (others | changed).get(g.group_id))}
    asked = {g: r for g, r in draft.asked.items() if g not in ratios}
    asked |= {g: r for g, r in ratios.items() if r > 0}
    plan = replace(draft.plan, kept=kept, criterion=ranking, policy="by hand", note="")
    return replace(draft, plan=plan, asked=asked)


def with_locks(draft: Draft, summary: ModelSummary, locks: Mapping[str, bool]) -> Draft:
    """The draft with some groups locked or unlocked; the plan stays."""
    now = set(draft.locked) - {g for g, on in locks.items() if not on}
    now |= {g for g, on in locks.items() if on}
    return replace(draft, locked=tuple(g.group_id for g in summary.groups if g.group_id in now))


def ratio_percent(draft: Draft, group_id: str) -> int:
    """Where the group's handle stands, percent."""
    return min(MAX_PERCENT, math.floor(100 * draft.asked.get(group_id, 0.0) + 0.5))


def removed_units(draft: Draft, summary: ModelSummary) -> dict[str, int]:
    """How many units of each group the plan really removes."""
    return {
        g.group_id: g.n_units - len(draft.plan.kept.get(g.group_id, range(g.n_units)))
        for g in summary.groups
    }


def read_plan(summary: ModelSummary, text: bytes | str) -> Draft:
    """The draft of a plan file.

    Raises:
        RecordError: If it is not a plan.
        InvalidPlanError: If it is a plan for another model.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecordError(f"This file is not a JSON document ({error}).") from error
    return draft_of(summary, PrunePlan.from_dict(data))


def load_draft(store: Store, summary: ModelSummary) -> Draft | None:
    """The draft kept for these weights; None without one that can be used."""
    data = store.get(_key(summary))
    if data is None:
        return None
    try:
        draft = Draft.from_dict(data)
        draft.plan.check(summary.groups, summary.weights_hash)
    except PsvitError:
        return None
    return draft


def save_draft(store: Store, summary: ModelSummary, draft: Draft) -> None:
    """Keep the draft, so that it survives a reload."""
    store.put(_key(summary), draft.to_dict())


def lost_draft(stored: Draft | None, seen: Draft | None, new: Draft) -> Draft | None:
    """What another tab has written and would be lost by writing ``new``; None: nothing.

    Args:
        stored: What is in the store now.
        seen: What this tab read from there or wrote there last.
        new: What it is about to write.
    """
    if stored is None or stored.empty or stored.plan.kept == new.plan.kept:
        return None
    return None if seen is not None and stored.plan.kept == seen.plan.kept else stored


def _key(summary: ModelSummary) -> str:
    return f"draft/{summary.weights_hash}"
