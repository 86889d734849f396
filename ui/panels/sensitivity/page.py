"""The Sensitivity page."""

from __future__ import annotations

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records.jobs import SweepResult
from psvit_core.tasks.cautions import CHANCE_SIGN
from ui.charts.heatmap import HeatmapSettings
from ui.model import formats, loaders, state, sweeps
from ui.model.foreign import in_markdown
from ui.model.sweeps import SweepView
from ui.panels.frame import Frame, boot
from ui.panels.job import follow_job, live
from ui.panels.measurement import published_panel
from ui.panels.sensitivity.cell import group_panel
from ui.panels.sensitivity.start import start_panel
from ui.panels.sensitivity.view import heatmap_panel, table_panel, used_line, view_controls
from ui.panels.widgets import show_warnings, was_clicked


def sensitivity_page() -> None:
    """Draw the Sensitivity page."""
    page = boot()
    job = loaders.sweep_job(page.workspace)
    running = job is not None and job.active
    start_panel(page.workspace, page.summary, key="sweep", busy=running)
    state_area = st.container(key="sweep-state")  # as high for a running sweep as for an ended one
    known = [] if running else sweeps.list_sweeps(page.store, page.summary, every=True)
    fitting = sweeps.under_recovery(known)
    views = [*fitting, *(view for view in known if view not in fitting)]
    if not running and not views:
        with state_area:
            _sweep_state(page, job, None)
        st.info(
            "No sweep of this model yet. Start one above: the whole map appears after the first "
            "images and becomes more precise during the sweep.",
            icon=":material/grid_on:",
        )
        _older_line(page)
        st.stop()
    chosen, settings = view_controls(views, page.summary, key="view")
    with state_area:
        _sweep_state(page, job, chosen)

    def results() -> bool:
        if job is not None and running:
            now = client.find_job(page.store, job.id)
            _results(page, sweeps.running_view(page.store, page.summary, now), settings)
            return now.active
        assert chosen is not None
        _results(page, chosen, settings)
        return False

    live(results, active=running, every=2.0)
    used_line(views, chosen)
    _older_line(page)


def _sweep_state(page: Frame, job: Job | None, chosen: SweepView | None) -> None:
    """Draw the progress of a sweep, how it ended, or what to do with a complete one."""
    if job is not None:
        follow_job(page.store, job, key="sweep-job")
        found = job.outcome.warnings if isinstance(job.outcome, SweepResult) else ()
        show_warnings(w for w in found if CHANCE_SIGN not in w)  # every page shows that one
    elif chosen is not None:
        _next_row(chosen)


def _next_row(view: SweepView) -> None:
    """Say whether the shown sweep is done, and lead to what comes next."""
    cells = f"{len(view.rows)} of {view.n_cells} cells"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if not view.complete:
            st.markdown(
                f":material/pause_circle: This sweep is unfinished ({cells}). Start it again above "
                "with the same settings: it continues from there.",
                width="stretch",
            )
            return
        st.markdown(
            f":material/check_circle: **This sweep is done**: {cells} on {view.n_images:,} images. "
            "Next: make a plan from it.",
            width="stretch",
        )
        for title, text in (("Tune", "Make a plan on Tune"), ("Overview", "See plans on Overview")):
            if was_clicked(text, key=f"sweep-next-{title}", icon=":material/arrow_forward:"):
                state.open_page(title)


def _older_line(page: Frame) -> None:
    if older := sweeps.count_older_sweeps(page.store, page.summary):
        st.caption(
            f"{older} sweep{'s' if older > 1 else ''} hidden: MACs and synaptic operations of "
            "attention were counted by an older rule. Run a new sweep to replace them."
        )


def _results(page: Frame, view: SweepView, settings: HeatmapSettings) -> None:
    """Draw the map and the chosen group, with all cells measured so far."""
    _conditions_line(view)
    published_panel(page.workspace)
    left, right = st.columns([3, 2], gap="large")
    with left:
        heatmap_panel(view, settings, key="cell", dark=page.dark)
    with right, st.container(key="sticky"):
        group_panel(page.workspace, view, settings.metric, key="cell", dark=page.dark)
    if view.rows:
        table_panel(view, key="cells")


def _conditions_line(view: SweepView) -> None:
    if view.conditions is None:
        st.caption("The worker is starting. Cells appear here as they are measured.")
        return
    baseline = f" · baseline {formats.accuracy(view.baseline)}" if view.baseline else ""
    conditions = in_markdown(formats.conditions_line(view.conditions))
    ranked = in_markdown(view.criterion)
    st.caption(f"Measured on {conditions} · units ranked by {ranked}{baseline}")
