"""The plan as a table of numbers, an alternative to the equalizer."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from ui.components.equalizer.edits import Edit
from ui.model import drafts, editing, state
from ui.model.drafts import MAX_PERCENT, Draft, locked_reason
from ui.panels.tune.equalizer import take_step
from ui.panels.tune.setup import Setup

MANY_ROWS = 20  # a longer table scrolls
_READ_ONLY = ["block", "group", "units", "removed", "alone"]
_COLUMNS = {
    "block": st.column_config.TextColumn("Block"),
    "group": st.column_config.TextColumn("Channel group"),
    "remove": st.column_config.NumberColumn(
        "Remove, %",
        min_value=0,
        max_value=MAX_PERCENT,
        step=1,
        format="%d",
        required=True,
        help="Whole percent: 30 removes 30 % of the units.",
    ),
    "lock": st.column_config.CheckboxColumn("Locked"),
    "removed": st.column_config.NumberColumn("Units removed"),
    "units": st.column_config.NumberColumn("Units"),
    "alone": st.column_config.NumberColumn(
        "Single drop, pp",
        format="%.2f",
        help="Predicted from the sweep, if only this group is pruned.",
    ),
}


def table_panel(store: Store, summary: ModelSummary, setup: Setup) -> None:
    """Draw the plan as an editable table."""
    draft = state.draft(store, summary)
    name = state.resettable_key(editing.TABLE_KEY)

    def take() -> None:
        changes = state.get(name)["edited_rows"]
        before = state.draft(store, summary)
        for step in table_steps(before, summary, changes):
            take_step(store, summary, step, setup.criterion, gesture=None)
        if has_refused_changes(state.draft(store, summary), summary, changes):
            state.reset_widget(editing.TABLE_KEY)

    st.data_editor(
        table_rows(summary, draft, setup),
        key=name,
        hide_index=True,
        on_change=take,
        height="content" if len(summary.groups) <= MANY_ROWS else 620,
        num_rows="fixed",
        disabled=_READ_ONLY,
        column_config=_COLUMNS,
    )
    st.caption("Enter whole percents. Undo reverts the last change. Locked groups do not change.")


def table_rows(summary: ModelSummary, draft: Draft, setup: Setup) -> pd.DataFrame:
    """Return one row per group, in network order."""
    removed = drafts.removed_units(draft, summary)
    predictor = setup.predictor
    alone = [
        predictor.group_drop(g.group_id, removed[g.group_id] / g.n_units) if predictor else None
        for g in summary.groups
    ]
    return pd.DataFrame(
        {
            "block": [g.place for g in summary.groups],
            "group": [g.title for g in summary.groups],
            "remove": [drafts.ratio_percent(draft, g.group_id) for g in summary.groups],
            "lock": [g.group_id in draft.locked for g in summary.groups],
            "removed": [removed[g.group_id] for g in summary.groups],
            "units": [g.n_units for g in summary.groups],
            "alone": pd.Series(alone, dtype="float64"),
        }
    )


def table_steps(draft: Draft, summary: ModelSummary, changes: dict[int, Any]) -> list[Edit]:
    """Return the steps that apply the table's edits; edits that change nothing are skipped.

    Args:
        draft: The draft before the edits.
        summary: The model.
        changes: The edited cells by row, as ``st.data_editor`` reports them.
    """
    steps = []
    for row, cells in sorted(changes.items()):
        group_id = summary.groups[row].group_id
        percent, lock = cells.get("remove"), cells.get("lock")
        percents = {}
        if percent is not None and percent != drafts.ratio_percent(draft, group_id):
            percents = {group_id: int(percent)}
        locks = {}
        if lock is not None and lock != (group_id in draft.locked):
            locks = {group_id: bool(lock)}
        if percents or locks:
            steps.append(Edit(seq=1, gesture=1, percents=percents, locks=locks))
    return steps


def has_refused_changes(draft: Draft, summary: ModelSummary, changes: dict[int, Any]) -> bool:
    """Return whether the table shows an edit that the draft did not accept."""
    return bool(table_steps(draft, summary, changes)) or any(
        locked_reason(summary.groups[row]) and cells.get("lock") for row, cells in changes.items()
    )
