"""How much to remove from each channel group."""

import streamlit as st

import ui
from ui import loaders, state
from ui.drafts import DEFAULT_CRITERION
from ui.panels_measure import measure_panel
from ui.panels_plan import (
    overview_panel,
    planning_panel,
    predicted_drops,
    presets_panel,
    result_tiles,
    shown_block,
    sliders_panel,
    total_drop,
)

page = ui.boot()
draft = state.draft(page.store, page.summary)
view = next((v for v in loaders.sweeps(page.store, page.summary) if v.complete), None)
drops = predicted_drops(view.table if view else None, draft)
predicted = total_drop(drops)
measured = None if draft.empty else loaders.measurement(page.workspace, draft.plan)

result_tiles(page.summary, draft, predicted, measured, key="tiles")
presets_panel(page.workspace, page.summary, view, key="presets")
with st.container():  # its place stays when there is nothing to tell
    planning_panel(page.workspace, page.summary, draft, key="planning")

left, right = st.columns([2, 1], gap="large")
with left:
    block = shown_block(page.summary, key="slide")
    overview_panel(page.summary, draft, drops, key="overview", block=block, dark=page.dark)
    criterion = view.criterion if view else DEFAULT_CRITERION
    sliders_panel(
        page.store, page.summary, draft, drops, key="slide", block=block, criterion=criterion
    )
with right:
    st.subheader("Measured", anchor=False)
    if draft.empty:
        st.markdown("The plan removes nothing yet: move a slider, or take a preset above.")
    else:
        measure_panel(page.workspace, draft.plan, key="measure", predicted=predicted)
    if view is None:
        st.info("Predictions and presets need a finished sweep: see the Sensitivity page.")
    elif not draft.empty and view.criterion != draft.plan.criterion:
        st.warning(
            f"This plan ranks units by {draft.plan.criterion}, the sweep that predicts its drop "
            f"by {view.criterion}: take the prediction as a hint."
        )
