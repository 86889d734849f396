"""Write the pruned network and take it away."""

import streamlit as st

import ui
from ui import state
from ui.panels_export import export_panel, exports_panel, plan_files_panel
from ui.panels_measure import short_measure
from ui.panels_plan import plan_line

page = ui.boot()
draft = state.draft(page.store, page.summary)

left, right = st.columns([2, 1], gap="large")
with left:
    st.header("Your plan", anchor=False)
    st.markdown(plan_line(page.summary, draft.plan))
    if draft.empty:
        st.info("The plan removes nothing yet. Make one on the Tune page, or load one from a file.")
    else:
        short_measure(page.workspace, draft.plan, key="measure")
        export_panel(page.workspace, page.summary, draft.plan, key="export")
    st.header("Files", anchor=False)
    exports_panel(page.workspace, page.summary, key="file")
with right:
    st.header("The plan as a file", anchor=False)
    st.caption("A plan names the units that stay and the weights it was made for.")
    plan_files_panel(page.store, page.summary, draft, key="plan")
