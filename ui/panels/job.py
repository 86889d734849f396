"""Background jobs on screen: progress, cancel, resume, and redrawing while they run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.words import rate_text
from psvit_core.storage.store import Store
from ui.model import formats
from ui.model.foreign import in_markdown


@dataclass(frozen=True)
class TaskText:
    """The texts for jobs of one task."""

    noun: str  # names such a job in lists and messages
    running: str  # begins its progress line
    failed: str = ""  # replaces "NOUN failed."


TASKS = {
    "sweep": TaskText("Sweep", "Sweep"),
    "measure": TaskText("Measurement", "Measuring"),
    "plan": TaskText("Planning", "Planning"),
    "pareto": TaskText("Front measurement", "Measuring plans"),
    "export": TaskText("Export", "Exporting"),
    "quantize": TaskText("Quantization", "Quantizing and measuring"),
    "graph": TaskText("ONNX export", "Writing and checking the ONNX file"),
    "report": TaskText("Report", "Writing the report"),
    "fits": TaskText("Memory count", "Counting the memory that the network needs"),
    "latency": TaskText("Timing of the layers", "Timing the layers at several widths"),
    "recovery": TaskText("Recovery", "Recovering"),
    "finetune": TaskText("Fine-tuning", "Fine-tuning"),
    "summary": TaskText("Model description", "Reading the model", "Could not read this model."),
    "inspect": TaskText("File inspection", "Inspecting file", "Could not read this file."),
    "check_data": TaskText("Image check", "Checking images", "Could not check these images."),
}
_ENDED = {
    "cancelled": "Finished results are stored; resuming continues from there.",
    "interrupted": "Its worker process ended. Finished results are stored; resuming continues "
    "from there.",
}
_UNITS = {"finetune": "steps", "pareto": "steps", "plan": "steps"}


def task_text(task: str) -> TaskText:
    """Return the texts of a task; an unknown task is shown by its name."""
    return TASKS.get(task) or TaskText(task, task)


def live(render: Callable[[], bool], *, active: bool, every: float = 1.0) -> None:
    """Draw a part of the page, and redraw it while a job is active.

    Args:
        render: Draws the part and returns whether the job is still active.
        active: Whether the job is active now; if not, the part is drawn once.
        every: Seconds between two redraws.
    """

    @st.fragment(run_every=every if active else None)
    def part() -> None:
        if render() != active:
            st.rerun()  # the job has started or ended: the rest of the page changes too

    part()


def follow_job(store: Store, job: Job, *, key: str, task: str = "", every: float = 1.0) -> None:
    """Draw a job's state (``job_panel``), and redraw it while the job is active."""
    live(lambda: job_panel(store, job.id, key=key, task=task), active=job.active, every=every)


def job_panel(store: Store, job_id: str, *, key: str, task: str = "") -> bool:
    """Draw a job's state, with the buttons to cancel or resume it.

    Args:
        store: The store with the job.
        job_id: The job's id.
        key: Prefix of the widgets' keys.
        task: The task whose texts are shown (``TASKS``); the job's own when empty.

    Returns:
        Whether the job waits or runs.
    """
    job = client.find_job(store, job_id)
    text = task_text(task or job.task)
    if job.active:
        _progress(store, job, text, key)
    elif job.state == "failed":
        message = text.failed or f"{text.noun} failed."
        st.error(f"{message} {in_markdown(job.error)}", icon=":material/error:")
        resume_button(store, job, key=f"{key}-resume")
    elif job.state in _ENDED:
        done = f" ({how_far(job)} done)" if job.total else ""
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            st.warning(
                f"{text.noun} {job.state}{in_markdown(done)}. {_ENDED[job.state]}",
                icon=":material/pause_circle:",
            )
            resume_button(store, job, key=f"{key}-resume")
    return job.active


def _progress(store: Store, job: Job, text: TaskText, key: str) -> None:
    cancelling = client.cancel_requested(store, job.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        line = in_markdown(progress_text(job, text, cancelling, running_title(store, job)))
        if job.total or job.task == "sweep":  # other jobs may not know how much there is to do
            st.progress(min(job.done / max(job.total, 1), 1.0), text=line)
        else:
            st.markdown(f":material/hourglass_top: {line}", width="stretch")
        cancel_button(store, job, cancelling, key=f"{key}-cancel")


def how_far(job: Job) -> str:
    """Return a job's progress in its own unit; a sweep's as a percentage of all cells' images."""
    if job.task == "sweep":
        return f"{math.floor(100 * min(job.done / max(job.total, 1), 1.0))}{formats.NBSP}%"
    return f"{job.done:,} of {job.total:,} {_UNITS.get(job.task, job.what)}".rstrip()


def running_title(store: Store, job: Job) -> str:
    """Return the title of the job that a queued job waits for; empty if there is none."""
    if job.state != "queued":
        return ""
    now = [j for j in client.list_jobs(store) if j.state == "running" and j.device == job.device]
    # A short job may run between two batches of a long one: then both are running.
    return max(now, key=lambda j: j.started or j.created).title if now else ""


def progress_text(job: Job, text: TaskText, cancelling: bool = False, waits_for: str = "") -> str:
    """Return a job's progress in one line, as plain text.

    Args:
        job: A job that waits or runs.
        text: The texts of its task.
        cancelling: Whether the job has been asked to stop.
        waits_for: Title of the job that it waits for, if there is one.
    """
    if cancelling:
        return f"{text.running}: cancelling after the current step"
    if job.state == "queued":
        return f"{text.noun} is waiting for {waits_for or 'the worker to start'}"
    if job.total:
        what = job.what if job.task == "sweep" or job.task in _UNITS else ""
        left = formats.time_left(job.seconds_left())
        parts = [f"{text.running}: {how_far(job)}", rate_text(job), left, what]
        return " · ".join(filter(None, parts))
    if job.done:
        parts = [f"{text.running}: {job.done:,} {job.what}", rate_text(job)]
        return " · ".join(filter(None, parts))
    if job.task == "sweep":
        return f"{text.running}: loading the model, then measuring the baseline"
    return f"{text.running}…"


def cancel_button(store: Store, job: Job, cancelling: bool, *, key: str) -> None:
    """Draw the button that cancels a job."""
    st.button(
        "Cancelling" if cancelling else "Cancel",
        key=key,
        disabled=cancelling,
        on_click=_cancel,
        args=(store, job.id),
    )


def resume_button(store: Store, job: Job, *, key: str) -> None:
    """Draw the button that queues a failed, cancelled or interrupted job again."""
    st.button(
        "Try again" if job.state == "failed" else "Resume",
        key=key,
        icon=":material/play_arrow:",
        on_click=_resume,
        args=(store, job.id),
    )


def _cancel(store: Store, job_id: str) -> None:
    client.cancel(store, job_id)


def _resume(store: Store, job_id: str) -> None:
    client.resume(store, job_id)
