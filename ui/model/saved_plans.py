"""Plans that the user saved under a name, by the weights they are for."""

from __future__ import annotations

import dataclasses
import time
import uuid
from dataclasses import dataclass
from typing import ClassVar

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan, Record
from psvit_core.storage.store import Store

MAX_NAME = 60  # characters


@dataclass(frozen=True, kw_only=True)
class SavedPlan(Record):
    """A plan saved under a name."""

    document: ClassVar[str] = "kept_plan"

    id: str
    name: str
    plan: PrunePlan
    created: float  # seconds since the epoch
    tab: str = ""  # the tab whose draft was saved automatically; empty once renamed


def list_plans(store: Store, summary: ModelSummary) -> list[SavedPlan]:
    """Return the saved plans for these weights, oldest first; unreadable ones are omitted."""
    found = []
    for key in [*store.keys(_prefix(summary))]:
        try:
            saved = SavedPlan.from_dict(store.get(key))
            saved.plan.check(summary.groups, summary.weights_hash)
        except PsvitError:  # written by another version
            continue
        found.append(saved)
    return sorted(found, key=lambda saved: (saved.created, saved.id))


def save_plan(
    store: Store, summary: ModelSummary, plan: PrunePlan, name: str = "", tab: str = ""
) -> SavedPlan:
    """Save a plan and return it; if a saved plan keeps the same units, return that one.

    Args:
        store: The store.
        summary: The model.
        plan: The plan.
        name: Its name; ``Plan 1`` and so on when empty. A number is added if it is taken.
        tab: The tab whose draft is saved automatically. It replaces the one saved of that tab
            before, unless the user renamed that.

    Raises:
        InvalidPlanError: If the plan does not fit the model.
    """
    plan.check(summary.groups, summary.weights_hash)
    others = list_plans(store, summary)
    same = next((other for other in others if other.plan.kept == plan.kept), None)
    if same is not None:
        return same
    before = next((other for other in others if tab and other.tab == tab), None)
    if before is not None:
        return restore_plan(store, summary, dataclasses.replace(before, plan=plan))
    saved = SavedPlan(
        id=uuid.uuid4().hex[:12],
        name=_free_name(name, others),
        plan=plan,
        created=time.time(),
        tab=tab,
    )
    return restore_plan(store, summary, saved)


def rename_plan(store: Store, summary: ModelSummary, saved: SavedPlan, name: str) -> SavedPlan:
    """Rename a saved plan; an empty name changes nothing."""
    if not name.strip() or name.strip() == saved.name:
        return saved
    others = [other for other in list_plans(store, summary) if other.id != saved.id]
    named = dataclasses.replace(saved, name=_free_name(name, others), tab="")
    return restore_plan(store, summary, named)


def delete_plan(store: Store, summary: ModelSummary, saved: SavedPlan) -> None:
    """Delete a saved plan; ``restore_plan`` undoes that."""
    store.delete(_prefix(summary) + saved.id)


def restore_plan(store: Store, summary: ModelSummary, saved: SavedPlan) -> SavedPlan:
    """Write a saved plan unchanged."""
    store.put(_prefix(summary) + saved.id, saved.to_dict())
    return saved


def _free_name(name: str, others: list[SavedPlan]) -> str:
    name = " ".join(name.split())[:MAX_NAME]
    taken = {other.name for other in others}
    if name and name not in taken:
        return name
    number = 2 if name else 1
    while f"{name or 'Plan'} {number}" in taken:
        number += 1
    return f"{name or 'Plan'} {number}"


def _prefix(summary: ModelSummary) -> str:
    return f"kept/{summary.weights_hash}/"
