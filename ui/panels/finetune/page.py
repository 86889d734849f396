"""The Fine-tune page."""

from __future__ import annotations

import streamlit as st

from psvit_core.jobs.client import Job
from psvit_core.records.jobs import ExportRequest
from psvit_core.workspace import Workspace
from ui.panels.finetune.result import earlier_panel, result_panel
from ui.panels.finetune.run import run_panel, start_panel
from ui.panels.finetune.settings import plan_choice, settings_form
from ui.panels.frame import boot


def finetune_page() -> None:
    """Draw the Fine-tune page."""
    page = boot()
    workspace, summary = page.workspace, page.summary
    jobs = training_jobs(workspace)
    newest = jobs[0] if jobs else None

    left, right = st.columns([2, 3], gap="large")
    with left:
        st.header("Settings", anchor=False)
        choice = plan_choice(workspace, summary, key="tuned-plan")
        if choice is not None:
            run = settings_form(choice.plan, key="tuning")
            start_panel(workspace, summary, run, newest, key="tuning-go")
    with right:
        if newest is None:
            st.header("Training", anchor=False)
            st.markdown(
                "The learning curve appears here during training: training loss, validation loss "
                "and accuracy by epoch, next to the unpruned network. Training continues when "
                "you close this page."
            )
            return
        st.header("Training" if newest.task == "finetune" else "Recovery", anchor=False)
        run_panel(workspace, summary, newest, dark=page.dark, key="run")
        if newest.state == "done":
            result_panel(workspace, summary, newest, key=f"result-{newest.id}")
        earlier = [job for job in jobs[1:] if job.state == "done"]
        if earlier:
            st.header("Earlier runs", anchor=False)
            earlier_panel(workspace, summary, earlier, key="earlier")


def training_jobs(workspace: Workspace) -> list[Job]:
    """Return the fine-tuning runs and recoveries started on this page, newest first."""
    return [
        job
        for job in workspace.jobs("finetune", "export")
        if job.task == "finetune"
        or (isinstance(job.request, ExportRequest) and job.request.measure)
    ]
