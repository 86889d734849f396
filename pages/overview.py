"""Accuracy against memory: every plan that is known, the chosen one beside it."""

import streamlit as st

import ui
from ui import loaders, sweep_choice, sweep_views
from ui.fronts import AXES
from ui.panels_overview import (
    axis_control,
    front_panel,
    measure_front_panel,
    plan_panel,
    selected_spot,
    table_panel,
)
from ui.panels_tune_measure import measured_plans, predictor_of

page = ui.boot()
store, summary, workspace = page.store, page.summary, page.workspace
sweep = sweep_choice.used_line(
    sweep_views.sweeps(store, summary), "Predictions", key="overview-sweep"
)
predictor = predictor_of(sweep, measured_plans(workspace, summary))
view = loaders.overview(workspace, summary, sweep, predictor)
conditions = sweep.conditions if sweep else None

if not view.spots:
    st.info(
        "Nothing was measured of this model yet. Measure a front: plans of every policy at several "
        "savings, each with its accuracy. Or look at single groups first, on the Sensitivity page.",
        icon=":material/insights:",
    )
    measure_front_panel(workspace, summary, sweep, conditions, key="front", first=True)
    st.stop()

axis = axis_control(key="overview-axis")
selected = selected_spot(store, view, predictor, axis)
left, right = st.columns([3, 2], gap="large")
with left:
    if any(axis in spot.values for spot in view.measured) or (axis == "bytes" and view.spots):
        front_panel(store, view, axis, selected, key="overview-chart", dark=page.dark)
    else:
        st.info(
            f"{AXES[axis].title}: not measured yet for these plans. It is measured on request, "
            "since it takes longer: switch it on below and measure the front.",
            icon=":material/timer:",
        )
    if not view.measured:
        st.info("All plans here are predicted from the sweep. Measure the front to know.")
    table_panel(view, axis, key="overview-table")
with right:
    if selected is not None:
        plan_panel(workspace, view, selected, axis, key="plan")
    st.header("Measure more", anchor=False)
    measure_front_panel(workspace, summary, sweep, conditions, key="front", first=not view.measured)
