"""The plan being edited: pure functions from one draft to the next, and its storage.

A draft has the plan and the prune ratios that were requested. The plan is authoritative. Requested
ratios only place the user's handles, since a ratio is rounded to whole units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from psvit_core.errors import PsvitError, RecordError
from psvit_core.plan.build import default_criterion, plan_from_ratios, reached_ratios
from psvit_core.records import ChannelGroup, ModelSummary, PrunePlan, Record, n_pruned
from psvit_core.storage.store import Store

MAX_PERCENT = 95  # of a group that can be requested
_STORED_STEPS = 20  # of undo, and as many of redo
_STORED_UNITS = 100_000  # kept units in all of them, about half a megabyte


def locked_reason(group: ChannelGroup) -> str | None:
    """Return why a group cannot lose any unit; None if it can."""
    if n_pruned(MAX_PERCENT / 100, group.n_units, group.heads):
        return None
    if group.heads:
        return f"it has {group.n_units} units in {group.heads} heads, and each head keeps one"
    return "its only unit must stay"


@dataclass(frozen=True, kw_only=True)
class Draft(Record):
    """A plan being edited."""

    document: ClassVar[str] = "plan_draft"

    plan: PrunePlan
    asked: dict[str, float]  # prune ratio requested by the user or a planner, by group
    locked: tuple[str, ...] = ()  # groups that neither edits nor planners change
    tab: str = field(default="", compare=False)  # the browser tab that wrote it

    @property
    def empty(self) -> bool:
        """Whether the plan removes nothing."""
        return not self.plan.kept


def empty_draft(summary: ModelSummary) -> Draft:
    """Return a draft that removes nothing."""
    criterion = default_criterion(summary.rankings)
    return Draft(plan=plan_from_ratios(summary, {}, criterion=criterion), asked={})


def draft_of(summary: ModelSummary, plan: PrunePlan, locked: tuple[str, ...] = ()) -> Draft:
    """Return a draft of exactly this plan, with these groups locked.

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
    """Return the draft with one group at another prune ratio (see ``with_ratios``)."""
    return with_ratios(draft, summary, {group_id: ratio}, criterion)


def with_ratios(
    draft: Draft, summary: ModelSummary, ratios: Mapping[str, float], criterion: str | None = None
) -> Draft:
    """Return the draft with some groups at other prune ratios; other groups keep their units.

    Args:
        draft: The draft before.
        summary: The model.
        ratios: Fraction removed, in [0, 1), by group.
        criterion: Criterion that ranks units from now on if the draft is empty; ignored otherwise.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1).
        InvalidPlanError: If the model has no such group.
    """
    ranking = criterion if draft.empty and criterion else draft.plan.criterion
    if ranking not in summary.rankings:  # a plan file may name any criterion
        ranking = default_criterion(summary.rankings)
    changed = plan_from_ratios(summary, ratios, criterion=ranking).kept
    others = {g: units for g, units in draft.plan.kept.items() if g not in ratios}
    kept = {g.group_id: k for g in summary.groups if (k := (others | changed).get(g.group_id))}
    asked = {g: r for g, r in draft.asked.items() if g not in ratios}
    asked |= {g: r for g, r in ratios.items() if r > 0}
    plan = replace(draft.plan, kept=kept, criterion=ranking, policy="by hand", note="")
    return replace(draft, plan=plan, asked=asked)


def with_locks(draft: Draft, summary: ModelSummary, locks: Mapping[str, bool]) -> Draft:
    """Return the draft with some groups locked or unlocked."""
    locked = set(draft.locked) - {g for g, on in locks.items() if not on}
    locked |= {g for g, on in locks.items() if on}
    return replace(draft, locked=tuple(g.group_id for g in summary.groups if g.group_id in locked))


def ratio_percent(draft: Draft, group_id: str) -> int:
    """Return the position of a group's handle, percent."""
    return min(MAX_PERCENT, math.floor(100 * draft.asked.get(group_id, 0.0) + 0.5))


def removed_units(draft: Draft, summary: ModelSummary) -> dict[str, int]:
    """Return the number of units that the plan removes, by group."""
    return {
        g.group_id: g.n_units - len(draft.plan.kept.get(g.group_id, range(g.n_units)))
        for g in summary.groups
    }


def read_plan(summary: ModelSummary, text: bytes | str) -> Draft:
    """Return the draft of a plan file.

    Raises:
        RecordError: If the file is not a plan.
        InvalidPlanError: If the plan is for another model.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"This file is not a JSON document ({error}). Choose a plan file."
        ) from error
    return draft_of(summary, PrunePlan.from_dict(data))


def load_draft(store: Store, summary: ModelSummary, browser: str = "") -> Draft | None:
    """Return the stored draft for these weights; None without a usable one.

    Args:
        store: The store.
        summary: The model.
        browser: Whose draft it is; empty: that of all browsers.
    """
    data = store.get(_key(summary, browser))
    if data is None:
        return None
    try:
        draft = Draft.from_dict(data)
        draft.plan.check(summary.groups, summary.weights_hash)
    except PsvitError:
        return None
    return draft


def save_draft(store: Store, summary: ModelSummary, draft: Draft, browser: str = "") -> None:
    """Store the draft, so that it survives a reload."""
    # Not durable: a drag stores one every few pixels.
    store.put(_key(summary, browser), draft.to_dict(), durable=False)


def save_history(
    store: Store,
    summary: ModelSummary,
    undo: Sequence[Draft],
    redo: Sequence[Draft],
    browser: str = "",
) -> None:
    """Store the newest steps of undo and redo, so that they survive a reload."""
    steps = {"undo": _newest(undo), "redo": _newest(redo)}
    store.put(_history_key(summary, browser), steps, durable=False)


def _newest(steps: Sequence[Draft]) -> list[dict[str, Any]]:
    """Return the last steps as JSON data: plans of large networks have many units."""
    n_units = 0
    kept: list[dict[str, Any]] = []
    for step in reversed(steps[-_STORED_STEPS:]):
        n_units += sum(map(len, step.plan.kept.values()))
        if n_units > _STORED_UNITS:
            break
        kept.append(step.to_dict())
    return kept[::-1]


def load_history(store: Store, summary: ModelSummary, browser: str = "") -> dict[str, list[Draft]]:
    """Return the stored steps of ``undo`` and ``redo``; none if this version cannot read them."""
    data = store.get(_history_key(summary, browser)) or {}
    try:
        found = {
            name: [Draft.from_dict(step) for step in data.get(name, ())]
            for name in ("undo", "redo")
        }
        for step in (*found["undo"], *found["redo"]):
            step.plan.check(summary.groups, summary.weights_hash)
    except PsvitError:
        return {"undo": [], "redo": []}
    return found


def lost_draft(stored: Draft | None, seen: Draft | None, new: Draft) -> Draft | None:
    """Return another tab's draft that writing ``new`` would lose; None if nothing would be lost.

    Args:
        stored: The draft in the store now.
        seen: The draft that this tab last read or wrote there.
        new: The draft that this tab is about to write.
    """
    if stored is None or stored.empty or stored.plan.kept == new.plan.kept:
        return None
    return None if seen is not None and stored.plan.kept == seen.plan.kept else stored


def _history_key(summary: ModelSummary, browser: str) -> str:
    return "/".join(filter(None, ("draft-history", summary.weights_hash, browser)))


def _key(summary: ModelSummary, browser: str) -> str:
    return "/".join(filter(None, ("draft", summary.weights_hash, browser)))
