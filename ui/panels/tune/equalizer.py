"""The equalizer on the Tune page: its data, and the edits that come back from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psvit_core.errors import PsvitError
from psvit_core.records import Interval, Measurement, ModelSummary
from psvit_core.storage.store import Store
from ui.components.equalizer import equalizer
from ui.components.equalizer.columns import column_values
from ui.components.equalizer.edits import Acknowledgement, Edit, apply_edit, read_edits
from ui.model import drafts, editing, state
from ui.model.measured import PartialDrop
from ui.panels.tune.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Results:
    """Return the known values of the draft's drop, in percentage points."""

    predicted: Interval | None
    calibration: float  # factor on the groups' single drops in the prediction
    measured: Measurement | None
    partial: PartialDrop | None  # while it is being measured
    live: str  # id of the job that measures it; empty if none does
    measures: bool  # whether every edit is measured at once


def equalizer_panel(
    store: Store,
    summary: ModelSummary,
    setup: Setup,
    results: Results,
    *,
    saving: float,
    as_columns: bool,
    fixed_sent: bool,
    key: str,
) -> None:
    """Draw the figures of the plan, and the columns that edit it.

    Args:
        store: The store with the draft.
        summary: The model.
        setup: What edits leave unchanged.
        results: Predicted and measured drop of the draft.
        saving: The budget: memory to save, a fraction.
        as_columns: Whether the columns are drawn, or the figures alone.
        fixed_sent: Whether the browser already has ``setup.fixed`` (``equalizer.board``).
        key: The component's key.
    """

    def edit(payload: object) -> None:
        try:
            steps, ack = read_edits(payload, summary, state.get(f"{key}-ack", Acknowledgement()))
        except PsvitError as error:
            state.leave_error(error)
            return
        state.put(f"{key}-ack", ack)
        for step in steps:
            gesture = f"{ack.sender}/{step.gesture}"
            take_step(store, summary, step, setup.criterion, gesture=gesture)
        state.reset_widget(editing.TABLE_KEY)

    draft = state.draft(store, summary)
    ack: Acknowledgement = state.get(f"{key}-ack", Acknowledgement())
    data = {
        "weights": summary.weights_hash,
        "stamp": setup.stamp,
        "fixed": None if fixed_sent else setup.fixed,
        "values": column_values(summary, draft, drafts.removed_units(draft, summary)),
        "largest_drop": setup.predictor.largest_drop if setup.predictor else None,
        "budget": saving,
        "ack": {"sender": ack.sender, "seq": ack.seq},
        "show_columns": as_columns,
        **_result_data(results, empty=draft.empty),
    }
    equalizer(data, key=key, on_edit=edit)


def _result_data(results: Results, *, empty: bool) -> dict[str, Any]:
    drop = results.measured.drop if results.measured else None
    partial = results.partial
    return {
        "predicted": {**results.predicted.to_dict(), "empty": empty} if results.predicted else None,
        "calibration": results.calibration,
        "measured": drop.to_dict() if drop else None,
        "measuring": {
            **partial.drop.to_dict(),
            "images": partial.n_images,
            "of": partial.n_all,
        }
        if partial
        else None,
        "live": results.live,
        "measures": results.measures,
    }


def take_step(
    store: Store, summary: ModelSummary, step: Edit, criterion: str, *, gesture: str | None
) -> None:
    """Apply one step to the draft; an invalid step shows an error and changes nothing."""
    try:
        draft = apply_edit(state.draft(store, summary), summary, step, criterion)
        state.set_draft(store, summary, draft, gesture)
    except PsvitError as error:
        state.leave_error(error)
