"""Share links: ``?plan=TEXT`` puts a plan into the draft of whoever opens it, once a session."""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit, urlunsplit

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.share import read_share, share_text
from psvit_core.store import Store
from psvit_core.zoo.cards import list_models
from ui import drafts, kept, predict, state, sweep_choice, sweep_views

PARAMETER = "plan"
_PAGE = "compare"
_SUGGESTED_SAVING = 0.25  # of the memory, in place of a plan that cannot be read


def plan_link(summary: ModelSummary, plan: PrunePlan) -> str:
    """The address that opens this plan.

    Raises:
        InvalidPlanError: If a link cannot tell it.
    """
    here = urlsplit(st.context.url or "")
    folder = here.path.rpartition("/")[0]
    query = urlencode({PARAMETER: share_text(summary, plan)})
    return urlunsplit((here.scheme, here.netloc, f"{folder}/{_PAGE}", query, ""))


def show_in_address(summary: ModelSummary, plan: PrunePlan) -> None:
    """Write the plan into this page's address."""
    st.query_params[PARAMETER] = share_text(summary, plan)
    state.choose("link-opened", True)  # a session's own link is none that it must open


def choose_model() -> None:
    """Before the model list is drawn: choose the model that a link is for, if it is built in."""
    text = st.query_params.get(PARAMETER)
    if text is None or state.chosen("link-opened") or state.chosen("link-model"):
        return
    state.choose("link-model", True)
    try:
        name = read_share(text).model
    except PsvitError:
        return  # told by ``open_plan``, when there is a model to suggest a plan for
    if name in list_models():
        state.choose(state.MODEL, name)


def open_plan(store: Store, summary: ModelSummary) -> None:
    """Make the plan of this session's link the draft; tell of a wrong one, and suggest a plan."""
    text = st.query_params.get(PARAMETER)
    if text is None or state.chosen("link-opened"):
        return
    state.choose("link-opened", True)
    before = state.draft(store, summary)
    try:
        plan = read_share(text).plan(summary)
    except PsvitError as error:
        state.tell(f"The link was not opened. {error} {_suggest(store, summary)}", "error")
        return
    if plan.kept == before.plan.kept:
        return
    if not before.empty:
        kept.keep_plan(store, summary, before.plan, "Before the link")
    state.set_draft(store, summary, drafts.draft_of(summary, plan))
    more = "" if before.empty else " Yours is kept beside it on the Compare page."
    state.tell(f"The shared plan is open: it is the current plan now.{more}")


def _suggest(store: Store, summary: ModelSummary) -> str:
    """Put a suggested plan into an empty draft; says what the draft is now."""
    draft = state.draft(store, summary)
    if not draft.empty:
        return "Your own plan stays the current one."
    view = sweep_choice.current(sweep_views.sweeps(store, summary))
    table = view.table if view else None
    if table is None:
        return "The current plan removes nothing yet."
    try:
        plan = predict.fit(table, predict.policies()[0], _SUGGESTED_SAVING, draft)
    except PsvitError:
        return "The current plan removes nothing yet."
    state.set_draft(store, summary, plan)
    return "The current plan is a suggested one instead: a quarter of the memory saved."
