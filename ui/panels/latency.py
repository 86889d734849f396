"""How long each layer takes: the chart, and the button that times the layers."""

from __future__ import annotations

import streamlit as st

from psvit_core.machine_jobs import latency_job, time_layers
from psvit_core.plan.latency import REST
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.workspace import Workspace
from ui.charts.latency import latency_chart
from ui.model import latency
from ui.model.foreign import in_markdown
from ui.panels.job import follow_job
from ui.panels.widgets import NO_TOOLBAR, action_button, csv_button

_SHOWN = 14  # bars of the chart


def latency_panel(
    workspace: Workspace, summary: ModelSummary, plan: PrunePlan, *, key: str, dark: bool
) -> None:
    """Draw the time of each layer, unpruned and predicted for a plan.

    Args:
        workspace: The model on its images.
        summary: The model.
        plan: The plan.
        key: Prefix of the widgets' keys.
        dark: Whether charts are drawn for the dark theme.
    """
    found = latency.predicted(workspace.store, summary)
    if found is None:
        st.markdown("Not timed yet on this machine.")
        timing_offer(workspace, key=key)
        return
    times = latency.layer_times(found, plan if plan.kept else None)
    shown = latency.largest(times, _SHOWN)
    n_shown, n_layers = (sum(time.name != REST for time in part) for part in (shown, times))
    more = f", the {n_shown} slowest of {n_layers}" if n_shown < n_layers else ""
    st.markdown(latency.total_line(found, plan if plan.kept else None))
    st.plotly_chart(
        latency_chart(shown, dark=dark),
        key=f"{key}-chart",
        theme=None,
        config=NO_TOOLBAR,
        alt=f"Latency by layer{more}: milliseconds",
    )
    st.caption(
        f"Milliseconds by layer{more}. {in_markdown(latency.conditions(workspace.store, summary))} "
        "A plan's time is the sum of its layers at their widths, interpolated between measured "
        "ones, and of what is between layers."
    )
    csv_button(latency.rows(times), "latency.csv", key=f"{key}-csv")


def timing_offer(workspace: Workspace, *, key: str) -> None:
    """Draw the button that times the layers in the background, or how far that is."""
    job = latency_job(workspace)
    if job is not None and job.state != "done":
        follow_job(workspace.store, job, key=f"{key}-job", every=0.5)
        return
    action_button(
        "Time layers",
        time_layers,
        workspace,
        key=f"{key}-start",
        icon=":material/timer:",
        help="Runs the network at 25 combinations of widths on random images, in the background, "
        "and times each layer: seconds for small models, minutes for large ones. Latencies of all "
        "plans are then predicted.",
    )
