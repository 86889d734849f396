"""The toolbar of the Tune page: budget, policies, undo."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.plan.size import plan_size
from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import drafts, editing, fitting, formats, latency, predictor, state
from ui.model.drafts import Draft
from ui.panels.tune.limits import limits_popover, range_note
from ui.panels.tune.setup import Setup

VIEWS = {"Equalizer": True, "Table": False}
UNITS = {"%": "% saved", "MB": "MB"}
_BUDGET_WIDTH = 130  # pixels
_LEAST_MB, _MOST_MB = 0.02, 0.995  # of the unpruned model
_POLICY_HELP = (
    "Uniform: one prune ratio for all groups. PSViT: a uniform step for half of the saving, then "
    "single groups by their sensitivity. PrimeSVT: the largest layers first. Optimal: the least "
    "change of the outputs among plans whose predicted drop no other policy undercuts."
)


def toolbar(
    workspace: Workspace, summary: ModelSummary, setup: Setup, *, key: str
) -> tuple[float, bool]:
    """Draw the toolbar.

    Returns:
        (memory to save, a fraction; whether the plan is edited in the equalizer).
    """
    store = workspace.store
    draft = state.draft(store, summary)
    marked = fitting.fitting_policy(summary, draft)

    def refit() -> None:
        # A plan that is a policy's follows the budget; any other stays as it is.
        if marked is not None and setup.table is not None:
            _fit(store, summary, setup, marked, quiet=True)

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=key):
        saving = _budget(summary, refit, key)
        limits_popover(workspace, summary, refit, disabled=setup.table is None, key=f"{key}-limits")
        st.button(
            "Fit",
            key=f"{key}-fit",
            icon=":material/auto_fix_high:",
            type="primary",
            disabled=setup.table is None,
            on_click=_fit,
            args=(store, summary, setup, predictor.policies()[0]),
            help="Finds the plan within the budget that changes the outputs least, among those "
            "whose predicted drop no policy's plan undercuts. Locked groups stay as they are.",
        )
        _policies(store, summary, setup, marked, key=f"{key}-policy")
        # One element, so that a narrow window moves it to a second line as a whole.
        with st.container(
            horizontal=True, vertical_alignment="bottom", gap="small", key=f"{key}-end"
        ):
            shown = st.segmented_control(
                "Edit as",
                list(VIEWS),
                default="Equalizer",
                required=True,
                key=f"{key}-view",
                persist_state="session",
            )
            st.space("stretch")
            _undo_buttons(store, summary, draft, key=key)
    range_note(summary, setup, draft)
    return saving, VIEWS[shown or "Equalizer"]


# ---- budget ----------------------------------------------------------------------------------


def _budget(summary: ModelSummary, changed: Callable[[], None], key: str) -> float:
    """Draw the budget, in percent saved or in MB left; return the memory to save, a fraction.

    Args:
        summary: The model.
        changed: Called after the budget changed.
        key: Prefix of the widgets' keys.
    """
    whole = plan_size(summary, None).bytes / 1e6
    saving = editing.budget(summary)
    in_mb = state.get(f"{key}-unit") == "MB"
    name = f"{key}-{'mb' if in_mb else 'percent'}/{summary.weights_hash[:8]}"
    state.put(name, round(whole * (1 - saving), 3) if in_mb else round(100 * saving, 1))

    def take() -> None:
        value = float(state.get(name))
        editing.set_budget(summary, 1 - value / whole if in_mb else value / 100)
        changed()

    if in_mb:
        st.number_input(
            "Budget",
            round(_LEAST_MB * whole, 3),
            round(_MOST_MB * whole, 3),
            step=round(whole / 50, 3),
            format="%.3f",
            key=name,
            on_change=take,
            width=_BUDGET_WIDTH,
            help=f"Memory that the pruned weights may use; the unpruned ones use {whole:.3f} MB.",
        )
    else:
        st.number_input(
            "Budget",
            0.5,
            98.0,
            step=1.0,
            format="%.1f",
            key=name,
            on_change=take,
            width=_BUDGET_WIDTH,
            help="Memory to save, in percent of the unpruned model.",
        )
    st.segmented_control(
        "Budget in",
        list(UNITS),
        format_func=UNITS.__getitem__,
        default="%",
        required=True,
        key=f"{key}-unit",
        persist_state="session",
        label_visibility="collapsed",
    )
    return saving


# ---- policies --------------------------------------------------------------------------------


def _policies(
    store: Store, summary: ModelSummary, setup: Setup, marked: str | None, *, key: str
) -> None:
    """Draw the policies; the one whose plan the draft is now is marked, a click applies one."""
    names = predictor.policies()
    state.put(key, marked)

    def apply() -> None:
        # A click on the marked policy clears the choice: it means to apply it again.
        policy = state.get(key) or marked
        if policy is not None:
            _fit(store, summary, setup, policy)

    st.segmented_control(
        "Policy at this budget",
        names,
        format_func=formats.POLICY_NAMES.__getitem__,
        key=key,
        disabled=setup.table is None,
        on_change=apply,
        help=_POLICY_HELP,
    )


def _fit(
    store: Store, summary: ModelSummary, setup: Setup, policy: str, *, quiet: bool = False
) -> None:
    """Make a policy's plan at the present limits the draft.

    Args:
        store: The store with the draft.
        summary: The model.
        setup: Has the table to plan from.
        policy: The policy.
        quiet: Show no error for a budget out of range, which the toolbar explains anyway.
    """
    assert setup.table is not None
    wanted, draft = fitting.limits(summary), state.draft(store, summary)
    if quiet and not fitting.possible(setup.table, setup.stamp, draft).contains(wanted.saving):
        return
    try:
        predicted = latency.predicted(store, summary) if "latency" in wanted.savings else None
        fitted = fitting.fit(setup.table, policy, wanted, draft, predicted)
        fitting.remember_fit(summary, fitted, wanted)
        editing.set_draft(store, summary, fitted)
    except PsvitError as error:
        state.leave_error(error)


# ---- undo ------------------------------------------------------------------------------------


def _undo_buttons(store: Store, summary: ModelSummary, draft: Draft, *, key: str) -> None:
    can_undo, can_redo = state.can_undo(summary), state.can_redo(summary)
    for label, icon, shortcut, possible, action in (
        ("Undo", "undo", "Ctrl+Z", can_undo, state.undo),
        ("Redo", "redo", "Ctrl+Shift+Z", can_redo, state.redo),
        ("Reset", "restart_alt", None, not draft.empty, _reset),
    ):
        st.button(
            label,
            key=f"{key}-{label.lower()}",
            icon=f":material/{icon}:",
            shortcut=shortcut,
            type="tertiary",
            disabled=not possible,
            on_click=_change,
            args=(store, summary, action),
        )


def _change(
    store: Store, summary: ModelSummary, action: Callable[[Store, ModelSummary], None]
) -> None:
    action(store, summary)
    state.reset_widget(editing.TABLE_KEY)


def _reset(store: Store, summary: ModelSummary) -> None:
    locked = state.draft(store, summary).locked
    empty = drafts.empty_draft(summary)
    state.set_draft(store, summary, drafts.with_locks(empty, summary, dict.fromkeys(locked, True)))
