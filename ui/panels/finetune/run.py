"""Start a run, follow it: progress, learning curve, stop."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.records.jobs import FinetuneRequest
from psvit_core.workspace import Workspace
from ui.charts.training import training_chart
from ui.model import history
from ui.panels.finetune.result import reference_of, trials_table
from ui.panels.finetune.settings import RunSettings
from ui.panels.job import job_panel, live
from ui.panels.plan import default_file_name
from ui.panels.widgets import NO_TOOLBAR, action_button


def start_panel(
    workspace: Workspace, summary: ModelSummary, run: RunSettings, job: Job | None, *, key: str
) -> None:
    """Draw the button that starts a run, and how long the run takes.

    Args:
        workspace: The model on its images.
        summary: The model.
        run: The settings.
        job: The newest run, which must end first.
        key: Prefix of the widgets' keys.
    """
    training = run.training
    running = job is not None and job.active
    pace = history.epoch_seconds(workspace.jobs("finetune"), training) if training else None
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key=key):
        action_button(
            "Fine-tune" if training else "Recover",
            _start,
            workspace,
            summary,
            run,
            key=f"{key}-start",
            type="primary",
            icon=":material/model_training:",
            disabled=run.empty or running,
        )
        st.markdown(
            "Choose a recovery method, or at least some epochs."
            if run.empty
            else history.estimate_line(training, pace, len(run.trials) or 1)
        )


def _start(workspace: Workspace, summary: ModelSummary, run: RunSettings) -> None:
    name = _file_name(summary, run.plan, "tuned" if run.training else "recovered")
    if run.training is not None:
        workspace.start_finetune(run.plan, run.training, name, run.recovery, run.trials)
    elif run.plan is not None:
        workspace.export(run.plan, name, run.recovery, measure=True)


def _file_name(summary: ModelSummary, plan: PrunePlan | None, suffix: str) -> str:
    before = default_file_name(summary, plan) if plan else Path(summary.model).name
    return f"{Path(before).stem.removesuffix('-tuned')}-{suffix}.safetensors"


def run_panel(
    workspace: Workspace, summary: ModelSummary, job: Job, *, dark: bool, key: str
) -> None:
    """Draw a run's progress and learning curve, redrawn while it is active."""
    reference = reference_of(workspace, summary, job)

    def draw() -> bool:
        now = client.find_job(workspace.store, job.id)
        task = "finetune" if now.task == "finetune" else "recovery"
        active = job_panel(workspace.store, job.id, key=f"{key}-job", task=task)
        if now.task != "finetune":
            return active
        records = workspace.finetune_records(now)
        if active:
            trials_table(now)
        if active:
            _stop_row(workspace, now, history.progress_line(records), key=key)
        if records:
            request = now.request
            epochs = request.settings.epochs if isinstance(request, FinetuneRequest) else 0.0
            figure = training_chart(
                records, reference, epochs=max(epochs, records[-1].epoch), dark=dark
            )
            st.plotly_chart(figure, key=f"{key}-curve", config=NO_TOOLBAR)
        return active

    live(draw, active=job.active)


def _stop_row(workspace: Workspace, job: Job, line: str, *, key: str) -> None:
    stopping = client.stop_requested(workspace.store, job.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.markdown("Stopping: writing the best epoch." if stopping else line, width="stretch")
        if job.state == "running":
            st.button(
                "Stop, keep the best",
                key=f"{key}-stop",
                icon=":material/stop_circle:",
                disabled=stopping,
                on_click=_stop,
                args=(workspace, job.id),
                help="Stops after the current step, measures, and writes the network of the best "
                "epoch. Cancel writes nothing, but can be resumed.",
            )


def _stop(workspace: Workspace, job_id: str) -> None:
    client.stop(workspace.store, job_id)
