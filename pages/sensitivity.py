"""What each channel group costs when a part of it is removed alone."""

import streamlit as st

import ui
from psvit_core.jobs import client
from ui import loaders, sweep_views
from ui.panels_job import job_panel, live
from ui.panels_measure import published_panel
from ui.panels_sweep import (
    group_panel,
    heatmap_panel,
    how_measured,
    start_panel,
    table_panel,
    view_controls,
)

page = ui.boot()
job = loaders.sweep_job(page.workspace)
running = job is not None and job.active
start_panel(page.workspace, page.summary, key="sweep", busy=running)
with st.container():  # its place stays when the job ends, so that nothing below is drawn twice
    if job is not None:
        job_id = job.id
        live(lambda: job_panel(page.store, job_id, key="sweep-job", noun="Sweep"), active=running)

views = [] if running else sweep_views.sweeps(page.store, page.summary)
if not running and not views:
    st.info(
        "No sweep of this model yet. Start one above: the whole map is there after the first "
        "images and gets sharper while it runs.",
        icon=":material/grid_on:",
    )
    st.stop()
chosen, look = view_controls(views, page.summary, key="view")


def results() -> bool:
    """The map and the chosen group, as far as the sweep has come."""
    if job is not None and running:
        now = client.find_job(page.store, job.id)
        view = sweep_views.running_view(page.store, page.summary, now)
    else:
        assert chosen is not None
        now, view = None, chosen
    how_measured(view)
    published_panel(page.workspace)
    left, right = st.columns([3, 2], gap="large")
    with left:
        heatmap_panel(view, look, key="cell", dark=page.dark)
    with right, st.container(key="sticky"):
        group_panel(page.workspace, view, look.metric, key="cell", dark=page.dark)
    if view.rows:
        table_panel(view, key="cells")
    return now is not None and now.active


live(results, active=running, every=2.0)
