"""The Tune page's controls: the equalizer, its numeric twin, budget, policies, undo.

All of it is drawn in one fragment, so that an edit redraws nothing else. What an edit needs is
worked out once per sweep (``prepared``); the drag itself is drawn by the browser alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.plans import default_criterion
from psvit_core.records import Interval, Measurement, ModelSummary, SensitivityTable
from psvit_core.size import plan_size
from psvit_core.store import Store
from ui import drafts, predict, state, sweep_views
from ui.drafts import MAX_PERCENT, Draft
from ui.equalizer import equalizer
from ui.equalizer.columns import columns, locked_reason, looks, moving, size_terms
from ui.equalizer.edits import Ack, Step, apply_step, read_steps

VIEWS = {"Equalizer": True, "Table": False}
MANY_ROWS = 20  # a longer table scrolls
DEFAULT_SAVING = 0.25  # between the 22.4 % of PSViT and the 26.7 % of PrimeSVT
UNITS = {"%": "% saved", "MB": "MB"}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What stays while a plan is made."""

    stamp: str  # names the rest
    columns: list[dict[str, Any]]
    terms: dict[str, Any]
    predictor: predict.Predictor | None  # None before a sweep is complete
    criterion: str

    @property
    def fixed(self) -> dict[str, Any]:
        """What the browser needs once."""
        return {
            "stamp": self.stamp, "columns": self.columns, "terms": self.terms, "looks": looks(),
        }  # fmt: skip

    @property
    def table(self) -> SensitivityTable | None:
        """The table that plans are made from."""
        return self.predictor.table if self.predictor else None


def prepared(summary: ModelSummary, view: sweep_views.SweepView | None) -> Prepared:
    """The columns of a model with a sweep's heat as far as it has come."""
    stamp = (
        f"{summary.weights_hash[:12]}/{view.key if view else ''}/{len(view.rows) if view else 0}"
    )
    return _prepared(stamp, summary, view)


@st.cache_resource(max_entries=8, show_spinner=False)
def _prepared(stamp: str, _summary: ModelSummary, _view: sweep_views.SweepView | None) -> Prepared:
    table = _view.table if _view else None
    return Prepared(
        stamp=stamp,
        columns=columns(_summary, _view.rows if _view else (), _view.ratios if _view else ()),
        terms=size_terms(_summary),
        predictor=predict.predictor(table) if table else None,
        criterion=_view.criterion if _view else default_criterion(_summary.rankings),
    )


# ---- budget, policies, undo ------------------------------------------------------------------


def toolbar(
    store: Store, summary: ModelSummary, ready: Prepared, *, key: str
) -> tuple[float, bool]:
    """Budget and what to do with it; returns (memory to save, whether the equalizer is shown)."""
    draft = state.draft(store, summary)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key=key):
        saving = _budget(summary, key)
        st.button(
            "Fit", key=f"{key}-fit", icon=":material/auto_fix_high:", type="primary",
            disabled=ready.table is None, on_click=_fit,
            args=(store, summary, ready, predict.policies()[0], saving),
            help="The plan within the budget with the smallest predicted drop, around the groups "
            "that are locked.",
        )  # fmt: skip
        _policies(store, summary, ready, draft, saving, key=f"{key}-policy")
        shown = st.segmented_control(
            "Edit as", list(VIEWS), default="Equalizer", required=True, key=f"{key}-view",
            persist_state="session",
        )  # fmt: skip
        st.space("stretch")
        for label, icon, keys, possible, action in (
            ("Undo", "undo", "Ctrl+Z", state.can_undo(summary), state.undo),
            ("Redo", "redo", "Ctrl+Shift+Z", state.can_redo(summary), state.redo),
            ("Reset", "restart_alt", None, not draft.empty, _reset),
        ):
            st.button(
                label, key=f"{key}-{label.lower()}", icon=f":material/{icon}:", shortcut=keys,
                type="tertiary", disabled=not possible, on_click=_step,
                args=(store, summary, action),
            )  # fmt: skip
    return saving, VIEWS[shown or "Equalizer"]


def _budget(summary: ModelSummary, key: str) -> float:
    """The memory to save, a fraction; asked for in percent saved or in MB left."""
    whole = plan_size(summary, None).bytes / 1e6
    saving = float(state.chosen(_budget_key(summary), DEFAULT_SAVING))
    in_mb = state.chosen(f"{key}-unit") == "MB"
    name = f"{key}-{'mb' if in_mb else 'percent'}/{summary.weights_hash[:8]}"
    state.choose(name, round(whole * (1 - saving), 3) if in_mb else round(100 * saving, 1))

    def take() -> None:
        value = float(state.chosen(name))
        set_budget(summary, 1 - value / whole if in_mb else value / 100)

    if in_mb:
        st.number_input(
            "Budget", round(0.02 * whole, 3), round(0.995 * whole, 3), step=round(whole / 50, 3),
            format="%.3f", key=name, on_change=take, width=130,
            help=f"Memory that the weights may take; unpruned they take {whole:.3f} MB.",
        )  # fmt: skip
    else:
        st.number_input(
            "Budget", 0.5, 98.0, step=1.0, format="%.1f", key=name, on_change=take, width=130,
            help="Memory to save, in percent of the unpruned model.",
        )  # fmt: skip
    st.segmented_control(
        "Budget in", list(UNITS), format_func=UNITS.__getitem__, default="%", required=True,
        key=f"{key}-unit", persist_state="session", label_visibility="collapsed",
    )  # fmt: skip
    return saving


def set_budget(summary: ModelSummary, saving: float) -> None:
    """Ask for this saving of memory from now on, a fraction within what can be asked for."""
    state.choose(_budget_key(summary), min(max(saving, 0.005), 0.98))


def _budget_key(summary: ModelSummary) -> str:
    return f"budget/{summary.weights_hash}"


def _policies(
    store: Store, summary: ModelSummary, ready: Prepared, draft: Draft, saving: float, *, key: str
) -> None:
    """The policies; the one that made the draft is marked, a click applies one at the budget."""
    names = predict.policies()
    made_by = draft.plan.policy if draft.plan.policy in names and not draft.empty else None
    state.choose(key, made_by)

    def apply() -> None:
        # A click on the marked one clears it: that asks for it again, as at another budget.
        policy = state.chosen(key) or made_by
        if policy is not None:
            _fit(store, summary, ready, policy, saving)

    st.segmented_control(
        "Policy at this budget", names, format_func=predict.POLICY_NAMES.__getitem__, key=key,
        disabled=ready.table is None, on_change=apply, help=_POLICY_HELP,
    )  # fmt: skip


_POLICY_HELP = (
    "Uniform: one prune ratio for all groups. PSViT: a uniform step for half of the saving, then "
    "single groups by their sensitivity. PrimeSVT: the largest layers first. Optimal: the smallest "
    "predicted drop for the budget."
)


def _fit(store: Store, summary: ModelSummary, ready: Prepared, policy: str, saving: float) -> None:
    assert ready.table is not None
    try:
        draft = predict.fit(ready.table, policy, saving, state.draft(store, summary))
        set_draft(store, summary, draft)
    except PsvitError as error:
        state.tell_error(error)


def set_draft(store: Store, summary: ModelSummary, draft: Draft) -> None:
    """Replace the draft and have the table show it."""
    state.set_draft(store, summary, draft)
    state.renew_key("tune-table")


def _step(store: Store, summary: ModelSummary, action: Any) -> None:
    action(store, summary)
    state.renew_key("tune-table")


def _reset(store: Store, summary: ModelSummary) -> None:
    locked = state.draft(store, summary).locked
    empty = drafts.empty_draft(summary)
    state.set_draft(store, summary, drafts.with_locks(empty, summary, dict.fromkeys(locked, True)))


# ---- the equalizer ---------------------------------------------------------------------------


def equalizer_panel(
    store: Store, summary: ModelSummary, ready: Prepared, *, handed_over: bool, saving: float,
    board: bool,
    predicted: Interval | None, calibration: float, measured: Measurement | None,
    measuring: dict[str, Any] | None, key: str,
) -> None:  # fmt: skip
    """What the plan gives, and the columns that make it.

    Args:
        store: Where the draft is kept.
        summary: The model.
        ready: What stays while a plan is made.
        handed_over: Whether the browser has that already (``equalizer.board``).
        saving: The budget: memory to save, a fraction.
        board: Whether the columns are shown, or the figures alone.
        predicted: Predicted drop of the draft, percentage points.
        calibration: What the groups' own drops are multiplied with in it.
        measured: Measurement of the draft.
        measuring: The estimate so far while it is being measured.
        key: The component's key.
    """
    draft = state.draft(store, summary)
    ack: Ack = state.chosen(f"{key}-ack", Ack())

    def edit(payload: object) -> None:
        try:
            steps, done = read_steps(payload, summary, state.chosen(f"{key}-ack", Ack()))
        except PsvitError as error:
            state.tell_error(error)
            return
        state.choose(f"{key}-ack", done)
        for step in steps:
            take_step(
                store, summary, step, ready.criterion, gesture=f"{done.sender}/{step.gesture}"
            )
        state.renew_key("tune-table")

    drop = measured.drop if measured else None
    data = {
        "weights": summary.weights_hash,
        "stamp": ready.stamp,
        "fixed": None if handed_over else ready.fixed,
        "values": moving(summary, draft, drafts.removed_units(draft, summary)),
        "predicted": {**predicted.to_dict(), "empty": draft.empty} if predicted else None,
        "most": ready.predictor.most if ready.predictor else None,
        "calibration": calibration,
        "measured": drop.to_dict() if drop else None,
        "measuring": measuring,
        "budget": saving,
        "ack": {"sender": ack.sender, "seq": ack.seq},
        "board": board,
    }
    equalizer(data, key=key, on_edit=edit)


def take_step(
    store: Store, summary: ModelSummary, step: Step, criterion: str, *, gesture: str | None
) -> None:
    """Do one step; one that does not fit is told and changes nothing."""
    try:
        draft = apply_step(state.draft(store, summary), summary, step, criterion)
        state.set_draft(store, summary, draft, gesture)
    except PsvitError as error:
        state.tell_error(error)


# ---- the numeric twin ------------------------------------------------------------------------


def table_panel(store: Store, summary: ModelSummary, ready: Prepared, *, key: str) -> None:
    """The same plan as a table: whole percents, locks as ticks, what it gives beside."""
    draft = state.draft(store, summary)
    name = state.fresh_key("tune-table")

    def take() -> None:
        changes = state.chosen(name)["edited_rows"]
        before = state.draft(store, summary)
        for step in table_steps(before, summary, changes):
            take_step(store, summary, step, ready.criterion, gesture=None)
        if refused(state.draft(store, summary), summary, changes):
            state.renew_key("tune-table")

    st.data_editor(
        table_rows(summary, draft, ready), key=name, hide_index=True, on_change=take,
        height="content" if len(summary.groups) <= MANY_ROWS else 620, num_rows="fixed",
        disabled=["block", "group", "units", "removed", "alone"],
        column_config={
            "block": st.column_config.TextColumn("Block"),
            "group": st.column_config.TextColumn("Channel group"),
            "remove": st.column_config.NumberColumn(
                "Remove, %", min_value=0, max_value=MAX_PERCENT, step=1, format="%d", required=True,
                help="Whole percents: 30 removes 30 % of the units.",
            ),
            "lock": st.column_config.CheckboxColumn("Locked"),
            "removed": st.column_config.NumberColumn("Units removed"),
            "units": st.column_config.NumberColumn("Units"),
            "alone": st.column_config.NumberColumn(
                "Drop alone, pp", format="%.2f", help="Predicted from the sweep, rest untouched."
            ),
        },
    )  # fmt: skip
    st.caption("Type whole percents. Undo takes the last change back; locked groups keep theirs.")


def table_rows(summary: ModelSummary, draft: Draft, ready: Prepared) -> pd.DataFrame:
    """One row a group, in network order."""
    removed = drafts.removed_units(draft, summary)
    alone = [
        ready.predictor.alone(g.group_id, removed[g.group_id] / g.n_units)
        if ready.predictor
        else None
        for g in summary.groups
    ]
    return pd.DataFrame(
        {
            "block": [g.block for g in summary.groups],
            "group": [g.title for g in summary.groups],
            "remove": [drafts.ratio_percent(draft, g.group_id) for g in summary.groups],
            "lock": [g.group_id in draft.locked for g in summary.groups],
            "removed": [removed[g.group_id] for g in summary.groups],
            "units": [g.n_units for g in summary.groups],
            "alone": pd.Series(alone, dtype="float64"),
        }
    )


def table_steps(draft: Draft, summary: ModelSummary, changes: dict[int, Any]) -> list[Step]:
    """What the table's edits change in the draft; an edit that stands already changes nothing."""
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
            steps.append(Step(seq=1, gesture=1, percents=percents, locks=locks))
    return steps


def refused(draft: Draft, summary: ModelSummary, changes: dict[int, Any]) -> bool:
    """Whether the table shows a change that the draft did not take."""
    return bool(table_steps(draft, summary, changes)) or any(
        locked_reason(summary.groups[row]) and cells.get("lock") for row, cells in changes.items()
    )
