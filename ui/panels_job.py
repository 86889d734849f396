"""Background work on screen: progress, cancel, resume; and how a part of a page follows it."""

from __future__ import annotations

import math
from collections.abc import Callable

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.store import Store
from ui import words

_ENDED = {
    "cancelled": "was cancelled. What was finished is kept; resuming goes on from there.",
    "interrupted": "was interrupted: its worker process is gone. What was finished is kept; "
    "resuming goes on from there.",
}


def live(render: Callable[[], bool], *, active: bool, every: float = 1.0) -> None:
    """Draw a part of the page, again and again while work is going on.

    Args:
        render: Draws and returns whether the work still goes on.
        active: Whether it goes on now; without work nothing is redrawn.
        every: Seconds between two looks.
    """

    @st.fragment(run_every=every if active else None)
    def part() -> None:
        if render() != active:
            st.rerun()  # began or ended: the rest of the page changes too

    part()


def job_panel(store: Store, job_id: str, *, key: str, noun: str) -> bool:
    """Draw a job's state with what can be done about it.

    Args:
        store: Where the job is.
        job_id: Which job.
        key: Prefix of the widgets' keys.
        noun: What is going on, e.g. "The sweep"; begins the sentences.

    Returns:
        Whether the job waits or runs.
    """
    job = client.find_job(store, job_id)
    if job.active:
        _progress(store, job, key, noun)
    elif job.state == "failed":
        st.error(f"{noun} failed. {job.error}", icon=":material/error:")
        _resume_button(store, job, key, "Try again")
    elif job.state in _ENDED:
        done = f" ({how_far(job)} done)" if job.total else ""
        st.warning(f"{noun} {_ENDED[job.state]}{done}", icon=":material/pause_circle:")
        _resume_button(store, job, key, "Resume")
    return job.active


def _progress(store: Store, job: Job, key: str, noun: str) -> None:
    cancelling = client.cancel_asked(store, job.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        text = progress_text(job, noun, cancelling, waits_for(store, job))
        if job.total or job.task == "sweep":  # only sweeps know how much there is to do
            st.progress(min(job.done / max(job.total, 1), 1.0), text=text)
        else:
            st.markdown(f":material/hourglass_top: {text}", width="stretch")
        st.button(
            "Cancelling" if cancelling else "Cancel",
            key=f"{key}-cancel",
            disabled=cancelling,
            on_click=_cancel,
            args=(store, job.id),
        )


_UNITS = {"finetune": "steps", "pareto": "steps", "plan": "steps"}


def how_far(job: Job) -> str:
    """What of a job is done, in its own unit; a sweep counts images of cells: a percentage."""
    if job.task == "sweep":
        return f"{math.floor(100 * min(job.done / max(job.total, 1), 1.0))}{words.GAP}%"
    return f"{job.done:,} of {job.total:,} {_UNITS.get(job.task, job.what)}".rstrip()


def waits_for(store: Store, job: Job) -> str:
    """The title of the job that the worker runs while this one waits; empty without one."""
    if job.state != "queued":
        return ""
    now = [j for j in client.list_jobs(store) if j.state == "running" and j.device == job.device]
    # A short job may run between two batches of a long one: then both run.
    return max(now, key=lambda j: j.started or j.created).title if now else ""


def progress_text(job: Job, noun: str, cancelling: bool = False, before: str = "") -> str:
    """One line on how far a job is; ``before`` is the title of the job that it waits for."""
    if cancelling:
        return f"{noun}: cancelling, the step that runs is being finished"
    if job.state == "queued":
        return (
            f"{noun} waits for: {before}" if before else f"{noun}: waiting for the worker to start"
        )
    if not job.total:
        first = "loading the model, then measuring the baseline" if job.task == "sweep" else ""
        steps = f"{job.done} {job.what}" if job.done else first
        return " · ".join(filter(None, [f"{noun}: running", steps]))
    what = job.what if job.task == "sweep" or job.task in _UNITS else ""
    parts = [f"{noun}: {how_far(job)}", words.time_left(job.seconds_left()), what]
    return " · ".join(filter(None, parts))


def _resume_button(store: Store, job: Job, key: str, label: str) -> None:
    st.button(
        label, key=f"{key}-resume", icon=":material/play_arrow:", on_click=_resume,
        args=(store, job.id),
    )  # fmt: skip


def _cancel(store: Store, job_id: str) -> None:
    client.cancel(store, job_id)


def _resume(store: Store, job_id: str) -> None:
    client.resume(store, job_id)
