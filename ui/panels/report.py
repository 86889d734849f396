"""The panel that writes a run's report in the background and downloads it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.files import is_file
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.records.jobs import ReportResult
from psvit_core.workspace import Workspace, request_report
from ui.model import formats, loaders, recovery
from ui.model.foreign import in_markdown
from ui.panels.job import follow_job
from ui.panels.plan import default_file_name
from ui.panels.widgets import action_button, download_link


def report_panel(
    workspace: Workspace, summary: ModelSummary, plan: PrunePlan | None, *, key: str
) -> None:
    """Draw the button that writes a report, and the link to the newest one of this plan.

    Args:
        workspace: The model on its images.
        summary: The model.
        plan: The plan to report on; None: of the newest checkpoint, else the front's knee.
        key: Beginning of the widgets' keys.
    """
    st.caption(
        "What was measured so far, as one HTML page that opens anywhere and prints to PDF. Nothing "
        "is measured for it."
    )
    job = loaders.plan_job(workspace, "report", plan)
    name = _file_name(summary, plan)
    with st.container(horizontal=True, vertical_alignment="center", key=key):
        action_button(
            "Write report",
            _start,
            workspace,
            plan,
            name,
            recovery.used(),
            key=f"{key}-start",
            icon=":material/description:",
            disabled=job is not None and job.active,
        )
        written = job.written if job is not None else None
        if job is not None and written is not None and is_file(written.path):
            download_link(workspace.store, job, Path(written.path), text="Download report")
    if job is not None:
        _state(workspace, job, key=f"{key}-job")


def _file_name(summary: ModelSummary, plan: PrunePlan | None) -> str:
    """Return the page's name: that of the checkpoint, with another end."""
    unpruned = PrunePlan(
        model=summary.model, weights_hash=summary.weights_hash, criterion="", kept={}
    )
    stem = default_file_name(summary, plan or unpruned).removesuffix(".safetensors")
    return f"{stem if plan else stem.removesuffix('-saves0')}.report.html"


def _start(workspace: Workspace, plan: PrunePlan | None, name: str, method: str) -> None:
    request_report(workspace, plan, name, method)


def _state(workspace: Workspace, job: Job, *, key: str) -> None:
    """Draw how far a report is, or what it lacks."""
    if job.state != "done" or not isinstance(job.outcome, ReportResult):
        follow_job(workspace.store, job, key=key)
        return
    missing = ", ".join(job.outcome.missing)
    lacks = f" It says that these were not measured: {missing}." if missing else ""
    st.caption(in_markdown(f"Written {formats.time_ago(job.ended or job.created)}.{lacks}"))
