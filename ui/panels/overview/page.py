"""The Overview page."""

from __future__ import annotations

import streamlit as st

from psvit_core.storage.store import Store
from ui.model import loaders, measured, stored_weights, sweeps
from ui.model.fronts import AXES, Overview, PlanPoint
from ui.panels.frame import boot
from ui.panels.overview.first import first_steps_panel
from ui.panels.overview.front import (
    axis_control,
    front_panel,
    images_control,
    selected_point,
    table_panel,
    weights_control,
)
from ui.panels.overview.measuring import measure_front_panel
from ui.panels.overview.plan import plan_panel
from ui.panels.sweep_choice import select_used_sweep

WEIGHTS = "weights"  # widget key; also the name in the URL


def overview_page() -> None:
    """Draw the Overview page."""
    page = boot()
    store, summary, workspace = page.store, page.summary, page.workspace
    sweep = select_used_sweep(
        sweeps.list_sweeps(store, summary), "Predictions", key="overview-sweep"
    )
    shown = images_control(workspace, key="overview-images")
    predictor = measured.calibrated_predictor(sweep, measured.measured_plans(shown, summary))
    view = loaders.overview(shown, summary, sweep, predictor)
    if not view.points:
        first_steps_panel(workspace, summary, key="first")
        measure_front_panel(workspace, summary, sweep, key="front", first=True)
        st.stop()

    with st.container(horizontal=True, gap="medium", key="overview-view"):
        axis = axis_control(key="overview-axis")
        weights = weights_control(key=WEIGHTS)
    view = stored_weights.shown(shown, view, weights)
    selected = selected_point(store, view, predictor, axis)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _all_plans(page.store, view, axis, selected, dark=page.dark)
    with right:
        if selected is not None:
            plan_panel(workspace, view, selected, axis, key="plan")
        st.header("Measure more", anchor=False)
        measure_front_panel(workspace, summary, sweep, key="front", first=not view.measured)


def _all_plans(
    store: Store, view: Overview, axis: str, selected: PlanPoint | None, *, dark: bool
) -> None:
    if axis == "bytes" or any(axis in point.values for point in view.measured):
        front_panel(store, view, axis, selected, key="overview-chart", dark=dark)
    else:
        st.info(
            f"{AXES[axis].title}: not measured yet for these plans, because it takes longer. "
            "Switch it on below and measure a front.",
            icon=":material/timer:",
        )
    if not view.measured:
        st.info("All these plans are predicted from the sweep. Measure a front to verify them.")
    table_panel(view, axis, key="overview-table")
