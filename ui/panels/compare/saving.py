"""Save the current plan, open a plan file, undo a deletion."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from ui.model import drafts, formats, saved_plans, state
from ui.model.foreign import in_markdown
from ui.model.saved_plans import SavedPlan
from ui.panels.plan import plan_uploader
from ui.panels.widgets import action_button


def save_panel(
    store: Store, summary: ModelSummary, plans: Sequence[SavedPlan], *, pick: str, key: str
) -> None:
    """Draw the controls that save the current plan, open a plan file and undo a deletion.

    Args:
        store: The store with the plans.
        summary: The model.
        plans: The saved plans.
        pick: Key of the chosen plan, which an opened file becomes.
        key: Prefix of the widgets' keys.
    """
    draft = state.draft(store, summary)
    saved = any(k.plan.kept == draft.plan.kept for k in plans)
    nothing_to_save = draft.empty or saved
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=key):
        name = state.resettable_key(f"{key}-name")
        st.text_input(
            "Name",
            key=name,
            placeholder="e.g. Half the MLPs",
            max_chars=saved_plans.MAX_NAME,
            width=260,
            disabled=nothing_to_save,
        )
        action_button(
            "Save current plan",
            _save,
            store,
            summary,
            draft.plan,
            name,
            key,
            key=f"{key}-keep",
            type="primary",
            icon=":material/bookmark_add:",
            disabled=nothing_to_save,
            help="Saves it on this machine under that name.",
        )
        with st.popover("Open a plan file", icon=":material/upload_file:"):
            _upload(store, summary, pick=pick, key=f"{key}-file")
        _undo_button(store, summary, key=f"{key}-undo")
    if draft.empty:
        st.caption("The current plan removes nothing yet. Make one on the Tune page.")


def _save(store: Store, summary: ModelSummary, plan: PrunePlan, name: str, key: str) -> None:
    try:  # the click on the button may also have ended the editing of the name
        saved_plans.save_plan(store, summary, plan, state.get(name) or "")
    except PsvitError as error:
        state.leave_error(error)
    else:
        state.reset_widget(f"{key}-name")


def _upload(store: Store, summary: ModelSummary, *, pick: str, key: str) -> None:
    def use(content: bytes) -> str:
        plan = drafts.read_plan(summary, content).plan
        found = saved_plans.save_plan(store, summary, plan, "From a file")
        state.put(pick, found.id)
        return f"The plan file is saved as {in_markdown(found.name)}."

    plan_uploader("A plan downloaded as JSON", use, key=key)


# ---- deletions -------------------------------------------------------------------------------


def delete(store: Store, summary: ModelSummary, plan: SavedPlan) -> None:
    """Delete a saved plan; the panel then offers to undo that."""
    saved_plans.delete_plan(store, summary, plan)
    state.put(_deleted_key(summary), plan)


def _undo_button(store: Store, summary: ModelSummary, *, key: str) -> None:
    deleted = state.get(_deleted_key(summary))
    if deleted is not None:
        st.button(
            f"Undo delete: {in_markdown(formats.shorten(deleted.name))}",
            key=key,
            icon=":material/undo:",
            on_click=_undo_delete,
            args=(store, summary),
        )


def _undo_delete(store: Store, summary: ModelSummary) -> None:
    deleted = state.get(_deleted_key(summary))
    if deleted is not None:
        saved_plans.restore_plan(store, summary, deleted)
        state.put(_deleted_key(summary), None)


def _deleted_key(summary: ModelSummary) -> str:
    return f"kept-gone/{summary.weights_hash}"
