"""Changes to the draft and its budget that several pages make."""

from __future__ import annotations

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from ui.model import drafts, loaders, state
from ui.model.drafts import Draft

TABLE_KEY = "tune-table"  # of the Tune page's table, which is redrawn when the draft changes
DEFAULT_SAVING = 0.25  # between the 22.4 % of PSViT and the 26.7 % of PrimeSVT
_LEAST_SAVING, _MOST_SAVING = 0.005, 0.98


def set_draft(store: Store, summary: ModelSummary, draft: Draft) -> None:
    """Replace the draft, and redraw the table that edits it."""
    state.set_draft(store, summary, draft)
    state.reset_widget(TABLE_KEY)


def use_plan(store: Store, summary: ModelSummary, plan: PrunePlan, message: str = "") -> None:
    """Make a plan the draft; locked groups stay locked.

    Args:
        store: The store with the draft.
        summary: The model.
        plan: The plan; an error is shown if it does not fit the model.
        message: Shown if the plan was taken.
    """
    try:
        locked = state.draft(store, summary).locked
        set_draft(store, summary, drafts.draft_of(summary, plan, locked))
    except PsvitError as error:
        state.leave_error(error)
    else:
        if message:
            state.leave_message(message)


def budget(summary: ModelSummary) -> float:
    """Return the memory to save, a fraction: this session's, or the last one that was set."""
    key = _budget_key(summary)
    if state.get(key) is None:
        state.put(key, loaders.open_store().get(key) or DEFAULT_SAVING)
    return float(state.get(key))


def set_budget(summary: ModelSummary, saving: float) -> None:
    """Set the memory to save, a fraction; clipped to the range that the control offers."""
    clipped = min(max(saving, _LEAST_SAVING), _MOST_SAVING)
    state.put(_budget_key(summary), clipped)
    loaders.open_store().put(_budget_key(summary), clipped, durable=False)  # survives a reload


def _budget_key(summary: ModelSummary) -> str:
    return f"budget/{summary.weights_hash}"
