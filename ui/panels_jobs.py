"""Panels of the Jobs page: the queue over all models, what has ended, the log, files."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from pathlib import Path

import streamlit as st

from psvit_core.files import last_lines
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.store import Store, digest
from ui import files, loaders, opening, state, words
from ui.panels_job import progress_text, waits_for

NAMES = {
    "sweep": "Sweep",
    "measure": "Measurement",
    "plan": "Planning",
    "pareto": "Front",
    "export": "Export",
    "finetune": "Fine-tuning",
    "summary": "Reading a model",
    "inspect": "Looking into a file",
    "check_data": "Checking images",
}
_STATES = {  # icon and words: never the colour alone
    "done": (":material/check_circle:", "done"),
    "failed": (":material/error:", "failed"),
    "cancelled": (":material/cancel:", "cancelled"),
    "interrupted": (":material/pause_circle:", "interrupted"),
}
_WHY = {
    "cancelled": "What was finished is kept; resuming goes on from there.",
    "interrupted": "Its worker process is gone: it was killed, or the machine went down or out of "
    "memory. What was finished is kept; resuming goes on from there.",
}
_SHOWN = 8  # ended jobs before "Show all"
_LOG_LINES = 60


def queue_panel(store: Store, jobs: list[Job], *, key: str) -> None:
    """Jobs that run or wait, in the order in which they come."""
    st.header("Queue", anchor=False)
    if not jobs:
        st.markdown(
            "Nothing runs and nothing waits. Sweeps, measurements, exports and fine-tunings that "
            "you start on the other pages appear here, whatever model they are for."
        )
        return
    for job in jobs:
        with st.container(border=True, key=f"{key}-{job.id}"):
            _active_job(store, job, key=f"{key}-{job.id}")


def _active_job(store: Store, job: Job, *, key: str) -> None:
    cancelling = client.cancel_asked(store, job.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{title(job)}**  \n:gray[{_about(job)}]", width="stretch")
        st.button(
            "Cancelling" if cancelling else "Cancel", key=f"{key}-cancel", disabled=cancelling,
            on_click=_cancel, args=(store, job.id),
        )  # fmt: skip
    text = progress_text(job, NAMES[job.task], cancelling, waits_for(store, job))
    if job.total and job.state == "running":
        st.progress(min(job.done / job.total, 1.0), text=text)
    else:
        icon = "hourglass_top" if job.state == "running" else "schedule"
        st.markdown(f":material/{icon}: {text}")


def title(job: Job) -> str:
    """A job in a few words."""
    return f"{NAMES.get(job.task, job.task)} · {loaders.job_model(job)}"


def _detail(job: Job) -> str:
    """What the job was called, where that says more than its kind and model."""
    return "" if job.task in ("inspect", "summary") else job.title


def _about(job: Job) -> str:
    """On what it runs, and since when."""
    parts = [_detail(job), loaders.job_images(job), job.device]
    if job.state == "running" and job.started:
        parts.append(f"running for {words.duration(time.time() - job.started)}")
    elif job.active:
        parts.append(f"asked for {words.ago(job.created)}")
    return " · ".join(filter(None, parts))


def ended_panel(store: Store, *, key: str) -> None:
    """Jobs that ended, the last first, with what can be done about those that ended early."""
    jobs = loaders.ended_jobs(store)
    st.header("Ended", anchor=False)
    if not jobs:
        st.markdown("No job has ended yet.")
        return
    wide = len(jobs) <= _SHOWN or st.toggle(f"Show all {len(jobs)}", key=f"{key}-all")
    for job in jobs if wide else jobs[:_SHOWN]:
        with st.container(key=f"{key}-row-{job.id}", horizontal=True, vertical_alignment="center"):
            icon, word = _STATES[job.state]
            st.markdown(
                f"{icon} **{title(job)}** {word}  \n:gray[{_about_ended(job)}]", width="stretch"
            )
            if job.state != "done":
                label = "Try again" if job.state == "failed" else "Resume"
                st.button(
                    label, key=f"{key}-{job.id}-resume", icon=":material/play_arrow:",
                    on_click=_resume, args=(store, job.id),
                )  # fmt: skip
        if job.state == "failed":
            st.error(_advice(job), icon=":material/error:")
        elif job.state in _WHY:
            st.caption(_WHY[job.state])


def _about_ended(job: Job) -> str:
    parts = [_detail(job), loaders.job_images(job), words.ago(job.ended or job.created)]
    if job.started and job.ended:
        parts.append(f"took {words.duration(job.ended - job.started)}")
    if job.total and job.state != "done":
        parts.append(f"{100 * job.done // job.total}{words.GAP}% done")
    return " · ".join(filter(None, parts))


def _advice(job: Job) -> str:
    """A failed job's error, with the way out where the error does not name it."""
    for sign, advice in _WAYS_OUT.items():
        if sign in job.error.lower():
            return f"{job.error} {advice}"
    return job.error


_WAYS_OUT = {
    "out of memory": "Take fewer images at once (a smaller batch or memory budget), then try "
    "again.",
    "no space left": "The disk is full: remove files below, or free space, then try "
    "again. What was finished is kept.",
}


def _cancel(store: Store, job_id: str) -> None:
    client.cancel(store, job_id)


def _resume(store: Store, job_id: str) -> None:
    client.resume(store, job_id)


# ---- files -----------------------------------------------------------------------------------


def files_panel(store: Store, *, key: str) -> None:
    """Files that exports and fine-tunings wrote, then uploads, each the newest first."""
    jobs, uploads = loaders.written_files(store), opening.uploads(store)
    st.header("Files", anchor=False)
    if not jobs and not uploads:
        st.markdown("No file yet. Pruned checkpoints that you export, and uploads, appear here.")
        return
    whole = sum(job.result["bytes"] for job in jobs) + sum(n_bytes for _, n_bytes, _ in uploads)
    free = loaders.free_bytes(store)
    st.caption(f"{words.kilobytes(whole)} in {store.folder} · {words.kilobytes(free)} free there")
    for job in jobs:
        with st.container(border=True, key=f"{key}-{job.id}"):
            _file_row(store, job, key=f"{key}-{job.id}")
    for path, n_bytes, came in uploads:
        with st.container(border=True, key=f"{key}-{digest(path.name)}"):
            _upload_row(store, path, n_bytes, came, key=f"{key}-{digest(path.name)}")


def _file_row(store: Store, job: Job, *, key: str) -> None:
    path = Path(job.result["path"])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{path.name}**  \n:gray[{NAMES[job.task]} of {loaders.job_model(job)} · "
            f"{job.result['bytes']:,} bytes · {words.moment(job.ended or job.created)}]",
            width="stretch",
        )
        link = escape(files.file_link(store, job))
        st.html(
            f'<a class="psvit-button" href="{link}" download="{escape(path.name)}" '
            f'aria-label="Download {escape(path.name)}">Download</a>',
            width="content",
        )
        _ask_removal(
            path.name, lambda: files.remove_file(store, client.find_job(store, job.id)), key=key
        )
    st.markdown(f"SHA-256 `{job.result['sha256']}`")


def _upload_row(store: Store, path: Path, n_bytes: int, came: float, *, key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{path.name}**  \n:gray[Upload · {n_bytes:,} bytes · {words.moment(came)}]",
            width="stretch",
        )
        _ask_removal(path.name, lambda: opening.remove_upload(store, path.name), key=key)


def _ask_removal(name: str, remove: Callable[[], None], *, key: str) -> None:
    def done() -> None:
        remove()
        state.tell(f"{name} is removed.")

    with st.popover("Remove", key=f"{key}-ask"):
        st.markdown(f"Remove **{name}** from the disk? It cannot be had back.")
        st.button("Remove the file", key=f"{key}-remove", type="primary", on_click=done)


# ---- the log ---------------------------------------------------------------------------------


def log_panel(store: Store, *, key: str) -> None:
    """The last lines of each worker's log."""
    for path in sorted((store.folder / "logs").glob("worker-*.log")):
        device = path.stem.removeprefix("worker-")
        with st.expander(f"Log of the worker on {device}", key=f"{key}-{device}"):
            lines = last_lines(path, _LOG_LINES)
            st.code("\n".join(lines) or "Nothing was written yet.", language=None)
            st.caption(f"The last {len(lines)} lines of {path}")
