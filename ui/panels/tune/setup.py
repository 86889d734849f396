"""The part of the equalizer's data that edits leave unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from psvit_core import planners
from psvit_core.plan.build import default_criterion
from psvit_core.records import ModelSummary, SensitivityTable
from psvit_core.storage.store import digest
from ui.components.equalizer.columns import columns, heat_settings, size_terms
from ui.model import predictor, recovery
from ui.model.predictor import Predictor
from ui.model.sweeps import SweepView


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Equalizer data that edits of a plan leave unchanged."""

    stamp: str  # identifies the rest in the browser
    columns: list[dict[str, Any]]
    terms: dict[str, Any]
    predictor: Predictor | None  # None before a sweep is complete
    criterion: str

    @property
    def fixed(self) -> dict[str, Any]:
        """The data that the browser needs once."""
        return {
            "stamp": self.stamp,
            "columns": self.columns,
            "terms": self.terms,
            "heat": heat_settings(),
        }

    @property
    def table(self) -> SensitivityTable | None:
        """The table that plans are made from; None before a sweep is complete."""
        return self.predictor.table if self.predictor else None


def equalizer_setup(summary: ModelSummary, view: SweepView | None) -> Setup:
    """Return the setup for a model and the cells of a sweep measured so far."""
    key, n_rows = (view.key, len(view.rows)) if view else ("", 0)
    table = planners.for_recovery(view.table, recovery.used()) if view and view.table else None
    joint = [row.calibrating_drop.value for row in table.joint] if table else []
    stamp = f"{summary.weights_hash[:12]}/{key}/{n_rows}/{digest(joint)[:12]}"
    return _setup(stamp, summary, view, table)


@st.cache_resource(max_entries=8, show_spinner=False)
def _setup(
    stamp: str, _summary: ModelSummary, _view: SweepView | None, _table: SensitivityTable | None
) -> Setup:
    return Setup(
        stamp=stamp,
        columns=columns(_summary, _view.rows if _view else (), _view.ratios if _view else ()),
        terms=size_terms(_summary),
        predictor=predictor.make_predictor(_table) if _table else None,
        criterion=_view.criterion if _view else default_criterion(_summary.rankings),
    )
