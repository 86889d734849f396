"""Limits beside the budget, and what is possible with the locks of the plan."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from psvit_core.plan.size import plan_size
from psvit_core.planners import SavingRange
from psvit_core.records import ModelSummary
from psvit_core.workspace import Workspace
from ui.model import fitting, formats, latency, state
from ui.model.drafts import Draft
from ui.panels.latency import timing_offer
from ui.panels.tune.setup import Setup

#: Resources beside memory whose saving can be a limit.
RESOURCES = ("macs", "energy", "latency")
_LABELS = {
    "drop": "Largest predicted drop (points)",
    "macs": "MACs saved (%)",
    "energy": "Energy saved, theoretical (%)",
    "latency": "Latency saved, predicted (%)",
}
_NAMED = 3  # locked groups in a message


def limits_popover(
    workspace: Workspace,
    summary: ModelSummary,
    changed: Callable[[], None],
    *,
    disabled: bool,
    key: str,
) -> None:
    """Draw the button that opens the limits beside the budget.

    Args:
        workspace: The model on its images.
        summary: The model.
        changed: Called after a limit changed.
        disabled: Whether there is no table to plan from.
        key: Prefix of the widgets' keys.
    """
    now = fitting.limits(summary)
    count = (now.max_drop is not None) + len(now.savings)
    with st.popover(
        f"Limits ({count})" if count else "Limits",
        icon=":material/rule:",
        disabled=disabled,
        help="Further limits that a fitted plan has to meet together with the budget.",
        key=key,
    ):
        st.markdown("A fitted plan meets the budget and all of these. Empty fields set no limit.")
        timed = latency.predicted(workspace.store, summary) is not None
        values = {"drop": None if now.max_drop is None else 100 * now.max_drop}
        values |= {r: 100 * now.savings[r] if r in now.savings else None for r in RESOURCES}
        names = {field: f"{key}-{field}/{summary.weights_hash[:8]}" for field in values}

        def take() -> None:
            drop = state.get(names["drop"])
            savings = {r: state.get(names[r]) / 100 for r in RESOURCES if state.get(names[r])}
            fitting.set_limits(summary, drop / 100 if drop else None, savings)
            changed()

        for field, value in values.items():
            state.put(names[field], None if value is None else round(value, 2))
            st.number_input(
                _LABELS[field],
                0.1,
                99.0,
                step=0.5 if field == "drop" else 1.0,
                format="%.1f",
                key=names[field],
                on_change=take,
                placeholder="no limit",
                disabled=field == "latency" and not timed and value is None,
            )
        if timed:
            st.caption(latency.conditions(workspace.store, summary))
        else:
            timing_offer(workspace, key=f"{key}-timing")


def range_note(summary: ModelSummary, setup: Setup, draft: Draft) -> None:
    """Say which savings are possible if the budget, or the limit on MACs, is out of range."""
    if setup.table is None:
        return
    now = fitting.limits(summary)
    whole = plan_size(summary, None).bytes
    found = fitting.possible(setup.table, setup.stamp, draft)
    if not found.contains(now.saving):
        left = [formats.megabytes(round(whole * (1 - s))) for s in (found.low, found.high)]
        _warn(
            summary,
            f"The budget of {formats.ratio(now.saving)}",
            found,
            f", {left[0]} to {left[1]}",
        )
    macs = now.savings.get("macs")
    if macs is not None:
        found = fitting.possible(setup.table, setup.stamp, draft, "macs")
        if found.high < macs:
            _warn(summary, f"Saving {formats.ratio(macs)} of the MACs", found, "")


def _warn(summary: ModelSummary, what: str, found: SavingRange, sizes: str) -> None:
    text = (
        f"{what} is out of range: {formats.percent(found.low)} to {formats.percent(found.high)} is "
        f"possible{sizes}."
    )
    if found.binding:
        named = [
            f"{summary.by_id[b.group_id].label} (unlocked: up to {formats.percent(b.without)})"
            for b in found.binding[:_NAMED]
        ]
        more = len(found.binding) - _NAMED
        text += f" Locked groups that limit it: {'; '.join(named)}"
        text += f"; and {more} more." if more > 0 else "."
    elif found.low > 0:
        text += " The locked groups alone save the lower figure."
    st.warning(text, icon=":material/rule:")
