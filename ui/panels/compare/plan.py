"""Actions on one plan: open it in Tune, measure, share, download, rename, delete."""

from __future__ import annotations

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import editing, saved_plans, state
from ui.model.comparison import ComparedPlan
from ui.model.foreign import in_markdown
from ui.model.saved_plans import SavedPlan
from ui.panels.compare import saving
from ui.panels.measurement import measure_button
from ui.panels.plan import plan_button, plan_line
from ui.panels.widgets import action_button
from ui.shell import links

_LOADED = "This is now the current plan. Edit it on the Tune page."


def actions_panel(
    workspace: Workspace,
    summary: ModelSummary,
    entry: ComparedPlan,
    saved: SavedPlan | None,
    *,
    key: str,
) -> None:
    """Draw a plan in one line, with the buttons for everything that can be done with it.

    Args:
        workspace: The model on its images.
        summary: The model.
        entry: The plan.
        saved: The plan as it is saved; None for a draft that is not.
        key: Prefix of the widgets' keys.
    """
    store, plan = workspace.store, entry.plan
    st.markdown(plan_line(summary, plan))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=key):
        action_button(
            "Open in Tune",
            editing.use_plan,
            store,
            summary,
            plan,
            _LOADED,
            key=f"{key}-load",
            icon=":material/tune:",
            disabled=plan.kept == state.draft(store, summary).plan.kept,
            help="Makes it the current plan. Undo on the Tune page brings the previous one back.",
        )
        if entry.measured is None and plan.kept:
            measure_button(workspace, plan, key=f"{key}-measure")
        action_button(
            "Share",
            _share,
            summary,
            plan,
            key,
            key=f"{key}-share",
            icon=":material/link:",
            disabled=not plan.kept,
            help="Creates a link that opens this plan for anyone who has the same model.",
        )
        plan_button(summary, plan, key=f"{key}-save")
        if saved is not None:
            _saved_plan_buttons(store, summary, saved, key=key)
    if state.get(_shared_key(key)) == plan.kept:
        st.caption("This link opens the plan. It is also in the address bar.")
        st.code(links.plan_link(summary, plan), language=None, wrap_lines=True)


def _share(summary: ModelSummary, plan: PrunePlan, key: str) -> None:
    try:
        links.write_plan_to_url(summary, plan)
    except PsvitError as error:
        state.leave_message(in_markdown(str(error)), "warning")
    else:
        state.put(_shared_key(key), plan.kept)


def _shared_key(key: str) -> str:
    return f"{key}-shared"


def _saved_plan_buttons(store: Store, summary: ModelSummary, saved: SavedPlan, *, key: str) -> None:
    name = f"{key}-rename-{saved.id}-{saved.name}"

    def rename() -> None:
        saved_plans.rename_plan(store, summary, saved, state.get(name) or "")

    with st.popover("Rename", icon=":material/edit:"):
        st.text_input(
            "New name", saved.name, key=name, max_chars=saved_plans.MAX_NAME, on_change=rename
        )
    action_button(
        "Delete",
        saving.delete,
        store,
        summary,
        saved,
        key=f"{key}-delete-{saved.id}",
        icon=":material/delete:",
        type="tertiary",
    )
