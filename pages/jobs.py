"""What runs, waits and ended behind the pages; the files that were written."""

import streamlit as st

import ui
from ui import loaders
from ui.panels_jobs import ended_panel, files_panel, log_panel, queue_panel

store = loaders.open_store()
ui.show_message()
active = [job.id for job in loaders.active_jobs(store)]


@st.fragment(run_every=1.0 if active else 3.0)
def queue() -> None:
    """What waits and runs, as it is now; work may be started elsewhere, too."""
    now = loaders.active_jobs(store)
    queue_panel(store, now, key="queue")
    if [job.id for job in now] != active:
        st.rerun()  # began or ended: the rest of the page changes too


queue()
files_panel(store, key="files")
ended_panel(store, key="ended")
log_panel(store, key="log")
