"""Measure a front: plans of every policy at several savings, in the background."""

from __future__ import annotations

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary, ParetoSettings
from psvit_core.sensitivity.spec import load_spec
from psvit_core.workspace import Workspace
from ui.model import formats, loaders, predictor
from ui.model.durations import plan_time, sweep_time
from ui.model.sweeps import SweepView
from ui.panels.job import job_panel, live
from ui.panels.widgets import action_button

SAVINGS = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8)  # of the memory


def measure_front_panel(
    workspace: Workspace, summary: ModelSummary, sweep: SweepView | None, *, key: str, first: bool
) -> None:
    """Draw the button that measures a front, with the time that takes, or its progress.

    Args:
        workspace: The model on its images.
        summary: The model.
        sweep: A finished sweep to plan from; if None, the job runs a sweep first.
        key: Prefix of the widgets' keys.
        first: Whether nothing is measured yet, which makes this the page's main action.
    """
    job = loaders.newest_job(workspace, "pareto")
    if job is not None and job.state != "done":
        _follow(workspace, job, key=f"{key}-job")
        if job.active:
            return
    profile = st.toggle(
        "Also peak memory and latency on this machine",
        key=f"{key}-profile",
        persist_state="session",
    )
    settings = front_settings(profile=profile)
    action_button(
        "Measure a front",
        _start,
        workspace,
        settings,
        sweep.key if sweep else None,
        key=f"{key}-start",
        icon=":material/insights:",
        type="primary" if first else "secondary",
    )
    st.caption(estimate_line(workspace, summary, settings, sweep))


def _follow(workspace: Workspace, job: Job, *, key: str) -> None:
    def watch() -> bool:
        now = client.find_job(workspace.store, job.id)
        if now.active and now.done != job.done:
            st.rerun()  # one more plan is measured: the chart shows it
        return job_panel(workspace.store, job.id, key=key)

    live(watch, active=job.active)


def front_settings(*, profile: bool) -> ParetoSettings:
    """Return the settings of a front: every policy at ``SAVINGS``, planned from the sweep."""
    return ParetoSettings(
        policies=tuple(predictor.policies()),
        savings=SAVINGS,
        measured_planning=False,
        profile=profile,
    )


def estimate_line(
    workspace: Workspace, summary: ModelSummary, settings: ParetoSettings, sweep: SweepView | None
) -> str:
    """Return what measuring a front includes and how long it takes."""
    conditions = sweep.conditions if sweep else None
    n_plans = len(list(settings.cells()))
    n_images = workspace.subject.limit or (conditions.n_images if conditions else None)
    n_images = n_images or loaders.n_val_images(workspace)
    work = (
        f"{len(settings.policies)} policies × {len(settings.savings)} savings = {n_plans} plans, "
        f"planned from the sweep and measured on {formats.images(workspace.subject.limit)}"
    )
    n_cells = 0 if sweep else len(summary.groups) * len(settings.ratios)
    if n_cells:
        work += f", after a sweep of {n_cells} cells, which this model does not have yet"
    seconds = _seconds(workspace, summary, settings, n_cells, n_images) if n_images else None
    if seconds is None:
        return f"{work}. An estimate appears after the first plans."
    return (
        f"{work}: {formats.rough_duration(seconds)}, estimated from earlier measurements on this "
        "machine. Plans that are already measured are reused."
    )


def _seconds(
    workspace: Workspace,
    summary: ModelSummary,
    settings: ParetoSettings,
    n_cells: int,
    n_images: int,
) -> float | None:
    """Return the time of a front and the sweep before it; None without a pace on this machine."""
    one = plan_time(workspace, summary, n_images, profile=settings.profile)
    sweep = sweep_time(workspace.store, summary, n_cells, n_images) if n_cells else None
    if one is None or (n_cells and (sweep is None or sweep.source == "shipped")):
        return None
    return one * len(list(settings.cells())) + (sweep.seconds if sweep else 0.0)


def _start(workspace: Workspace, settings: ParetoSettings, sweep_key: str | None) -> None:
    workspace.start_pareto(settings, load_spec(workspace.store, sweep_key) if sweep_key else None)
