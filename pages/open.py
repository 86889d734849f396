"""Choose a model and its images: built in, from a folder on this machine, or uploaded."""

import streamlit as st

import ui
from ui import head, loaders
from ui.panels_measure import measure_panel, published_panel
from ui.panels_model import bytes_panel, terms_panel
from ui.panels_open import data_panel, found_panel, source_panel

ui.show_message()
source_panel(loaders.open_store(), head.choice(), key="open")
page = ui.boot()

left, right = st.columns([3, 2], gap="large")
with left:
    found_panel(page, key="found")
    data_panel(page.workspace, page.summary, key="data-choice")
with right:
    bytes_panel(page.summary, key="bytes", dark=page.dark)
    st.header("Baseline", anchor=False)
    measure_panel(page.workspace, None, key="baseline")
    published_panel(page.workspace)
    terms_panel()
