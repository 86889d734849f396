"""The channel group that a user has chosen, on whatever page: the same in picture and heatmap."""

from __future__ import annotations

from psvit_core.records import ModelSummary
from ui.model import state

#: Session key of the group's field on the Sensitivity page. Streamlit owns it while it is drawn.
FIELD = "cell-group"
_PICKED = "picked-group"  # until the field is drawn again


def picked_group(summary: ModelSummary) -> str | None:
    """Return the chosen group's id; None before anything was chosen in this model."""
    found = state.get(_PICKED) or state.get(FIELD)
    return found if found in summary.by_id else None


def pick_group(group_id: str) -> None:
    """Choose a group, on a page that does not draw the field."""
    state.put(_PICKED, group_id)


def fill_field(summary: ModelSummary) -> None:
    """Set the field to the group that was chosen elsewhere, before the field is drawn."""
    found = state.pop(_PICKED)
    if found in summary.by_id:
        state.put(FIELD, found)
