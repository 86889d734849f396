"""The measured plans of the model, each with a button that makes it the draft again."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from psvit_core.plan.size import memory_saving
from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from ui.model import editing, formats
from ui.model.formats import POLICY_NAMES
from ui.model.measured import MeasuredPlan
from ui.model.predictor import Predictor

SHOWN_PLANS = 6


def history_panel(
    store: Store,
    summary: ModelSummary,
    history: Sequence[MeasuredPlan],
    predictor: Predictor | None,
    *,
    key: str,
) -> None:
    """Draw the measured plans, the older ones in an expander."""
    if not history:
        st.markdown("Plans that you measure are listed here, with their predicted drop.")
        return
    _rows(store, summary, history[:SHOWN_PLANS], predictor, key=key)
    if older := history[SHOWN_PLANS:]:
        with st.expander(f"{len(older)} more"):
            _rows(store, summary, older, predictor, key=f"{key}-old")


def _rows(
    store: Store,
    summary: ModelSummary,
    history: Sequence[MeasuredPlan],
    predictor: Predictor | None,
    *,
    key: str,
) -> None:
    for at, past in enumerate(history):
        row = f"{key}-row-{at}"
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key=row):
            st.html(_row_html(summary, past, predictor))
            st.button(
                "Restore",
                key=f"{key}-{at}",
                type="tertiary",
                icon=":material/history:",
                on_click=editing.use_plan,
                args=(store, summary, past.plan),
                help="Makes this plan the current one.",
            )


def _predicted(past: MeasuredPlan, predictor: Predictor | None) -> str:
    """Return the drop that was predicted before the plan was measured."""
    if predictor is None and past.measurement.predicted is None:
        return "no sweep"
    frozen = past.measurement.predicted
    shown = predictor.from_sweep(past.plan, past.measurement) if predictor else frozen
    assert shown is not None
    return formats.points(shown.value)


def _row_html(summary: ModelSummary, past: MeasuredPlan, predictor: Predictor | None) -> str:
    """Return a measured plan as three aligned cells."""
    saving = formats.percent(memory_saving(summary, past.plan))
    policy = POLICY_NAMES.get(past.plan.policy, past.plan.policy)
    source = formats.time_ago(past.ended) if past.ended else "part of a front"
    predicted = _predicted(past, predictor)
    m = past.measurement
    drop, n_images = m.drop, m.conditions.n_images
    how = "measured" if m.conditions.recovery == "none" else "recovered"
    below = f"{how}, {n_images} images"
    if m.unrecovered and m.unrecovered.drop:
        below += f"; {formats.points(m.unrecovered.drop.value)} as pruned"
    cells = (
        (f"saves {saving}", f"{policy}, {source}"),
        (predicted, "predicted"),
        (formats.drop(drop) if drop else "", below),
    )
    inner = "".join(
        f"<div><b>{escape(top)}</b><span>{escape(below)}</span></div>" for top, below in cells
    )
    return f'<div class="psvit-plan">{inner}</div>'
