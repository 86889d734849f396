"""Share links: ``?plan=TEXT`` makes a plan the draft of whoever opens it, once per session."""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit, urlunsplit

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.plan.link import read_share, share_text
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import list_models
from ui.model import drafts, fitting, predictor, recovery, saved_plans, state, sweeps
from ui.model.foreign import in_markdown

PARAMETER = "plan"
_PAGE = "compare"  # where links lead
_SUGGESTED_SAVING = 0.25  # of the memory, by the plan suggested instead of an unreadable one
_OPENED, _MODEL_SELECTED = "link-opened", "link-model"  # session keys: a link acts once


def plan_link(summary: ModelSummary, plan: PrunePlan) -> str:
    """Return the URL that opens this plan, under the recovery chosen now.

    Raises:
        InvalidPlanError: If a link cannot describe the plan.
    """
    here = urlsplit(_app_address())
    query = urlencode({PARAMETER: share_text(summary, plan), state.RECOVERY: recovery.chosen()})
    return urlunsplit((here.scheme, here.netloc, f"{here.path.rstrip('/')}/{_PAGE}", query, ""))


def _app_address() -> str:
    """Return the address of the app's first page.

    ``st.context.url`` would be wrong after a visit to Fine-tune: Streamlit cuts the name of the
    first page that ends the address, and ``finetune`` ends with ``tune``.
    """
    folder = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"{st.context.headers.get('Origin', '')}/{folder}"


def write_plan_to_url(summary: ModelSummary, plan: PrunePlan) -> None:
    """Write a plan into this page's URL."""
    st.query_params[PARAMETER] = share_text(summary, plan)
    state.put(_OPENED, True)  # this session has the plan already


def select_model() -> None:
    """Select the model of this session's link, if it is built in, before the list is drawn."""
    text = st.query_params.get(PARAMETER)
    if text is None or state.get(_OPENED) or state.get(_MODEL_SELECTED):
        return
    state.put(_MODEL_SELECTED, True)
    try:
        name = read_share(text).model
    except PsvitError:
        return  # reported by ``open_shared_plan``, which can suggest another plan
    if name in list_models():
        state.put(state.MODEL, name)


def open_shared_plan(store: Store, summary: ModelSummary) -> None:
    """Make the plan of this session's link the draft; if it is wrong, suggest another plan."""
    text = st.query_params.get(PARAMETER)
    if text is None or state.get(_OPENED):
        return
    state.put(_OPENED, True)
    before = state.draft(store, summary)
    try:
        plan = read_share(text).plan(summary)
    except PsvitError as error:
        text = f"Cannot open the link. {in_markdown(str(error))} {_suggest(store, summary)}"
        state.leave_message(text, "error")
        return
    if plan.kept == before.plan.kept:
        return
    if not before.empty:
        saved_plans.save_plan(store, summary, before.plan, "Before the link")
    state.set_draft(store, summary, drafts.draft_of(summary, plan))
    more = "" if before.empty else " Your previous plan is saved on the Compare page."
    state.leave_message(f"The shared plan is now the current plan.{more}")


def _suggest(store: Store, summary: ModelSummary) -> str:
    """Make a suggested plan the draft if that is empty; return what the draft is now."""
    draft = state.draft(store, summary)
    if not draft.empty:
        return "Your own plan remains the current plan."
    view = sweeps.current_sweep(sweeps.list_sweeps(store, summary))
    table = view.table if view else None
    if table is None:
        return "The current plan removes nothing yet."
    try:
        wanted = fitting.Limits(saving=_SUGGESTED_SAVING)
        plan = fitting.fit(table, predictor.policies()[0], wanted, draft)
    except PsvitError:
        return "The current plan removes nothing yet."
    state.set_draft(store, summary, plan)
    return "The current plan is a suggestion instead: it saves a quarter of the memory."
