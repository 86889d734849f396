"""What is in the network, and where its bytes are."""

import streamlit as st

import ui
from psvit_core.size import plan_size
from ui.panels_measure import measure_panel, published_panel
from ui.panels_model import bytes_panel, card_panel, groups_panel, size_tiles, terms_panel

page = ui.boot()

left, right = st.columns([3, 2], gap="large")
with left:
    card_panel(page.workspace.card, page.summary)
    size_tiles(plan_size(page.summary, None), len(page.summary.groups))
    bytes_panel(page.summary, key="bytes", dark=page.dark)
with right:
    st.subheader("Baseline on this machine", anchor=False)
    measure_panel(page.workspace, None, key="baseline")
    published_panel(page.workspace)
    terms_panel()
groups_panel(page.summary, key="groups")
