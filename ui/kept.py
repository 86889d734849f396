"""Plans that were kept for comparing, as data in the store, by the weights they are for.

No streamlit.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from dataclasses import dataclass
from typing import ClassVar

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan, Record
from psvit_core.store import Store

MAX_NAME = 60  # characters


@dataclass(frozen=True, kw_only=True)
class KeptPlan(Record):
    """A plan with a name."""

    document: ClassVar[str] = "kept_plan"

    id: str
    name: str
    plan: PrunePlan
    created: float  # seconds since the epoch
    tab: str = ""  # whose draft it was, until it gets a name


def kept_plans(store: Store, summary: ModelSummary) -> list[KeptPlan]:
    """The plans kept for these weights, oldest first; those of other versions are left out."""
    found = []
    for key in [*store.keys(_prefix(summary))]:
        try:
            kept = KeptPlan.from_dict(store.get(key))
            kept.plan.check(summary.groups, summary.weights_hash)
        except PsvitError:
            continue
        found.append(kept)
    return sorted(found, key=lambda kept: (kept.created, kept.id))


def keep_plan(
    store: Store, summary: ModelSummary, plan: PrunePlan, name: str = "", tab: str = ""
) -> KeptPlan:
    """Keep a plan; one of the same units that is kept already is returned instead.

    Args:
        store: Where.
        summary: The model.
        plan: The plan.
        name: Its name; ``Plan 1`` and so on when empty. A number is added to one that is taken.
        tab: The tab whose draft it was, for a plan that nobody asked to keep: the one kept of that
            tab before gives way, unless it was renamed.

    Raises:
        InvalidPlanError: If the plan does not fit the model.
    """
    plan.check(summary.groups, summary.weights_hash)
    others = kept_plans(store, summary)
    same = next((kept for kept in others if kept.plan.kept == plan.kept), None)
    if same is not None:
        return same
    before = next((kept for kept in others if tab and kept.tab == tab), None)
    if before is not None:
        return put_back(store, summary, dataclasses.replace(before, plan=plan))
    kept = KeptPlan(
        id=uuid.uuid4().hex[:12], name=_free_name(name, others), plan=plan, created=time.time(),
        tab=tab,
    )  # fmt: skip
    return put_back(store, summary, kept)


def rename_plan(store: Store, summary: ModelSummary, kept: KeptPlan, name: str) -> KeptPlan:
    """Give a kept plan another name; an empty one changes nothing."""
    if not name.strip() or name.strip() == kept.name:
        return kept
    others = [other for other in kept_plans(store, summary) if other.id != kept.id]
    named = dataclasses.replace(kept, name=_free_name(name, others), tab="")
    return put_back(store, summary, named)


def delete_plan(store: Store, summary: ModelSummary, kept: KeptPlan) -> None:
    """Forget a kept plan; ``put_back`` takes that back."""
    store.delete(_prefix(summary) + kept.id)


def put_back(store: Store, summary: ModelSummary, kept: KeptPlan) -> KeptPlan:
    """Write a kept plan as it is."""
    store.put(_prefix(summary) + kept.id, kept.to_dict())
    return kept


def _free_name(name: str, others: list[KeptPlan]) -> str:
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
