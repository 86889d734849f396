"""Panels of the Jobs page: the queue over all models, finished jobs, files, the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from psvit_core.files import last_lines
from psvit_core.jobs import client, queue, versions
from psvit_core.jobs.client import Job
from psvit_core.jobs.logs import job_log, printable
from psvit_core.storage.aside import found_aside
from psvit_core.storage.store import Store, digest
from ui.components.notify import notify_switch
from ui.model import formats, job_texts, loaders, open_files, state
from ui.model.foreign import in_code, in_markdown
from ui.panels.engine import engine_panel
from ui.panels.frame import show_message
from ui.panels.job import cancel_button, progress_text, resume_button, running_title, task_text
from ui.panels.widgets import action_button, download_link
from ui.shell import downloads

_STATES = {  # an icon and a word: never the colour alone
    "done": (":material/check_circle:", "done"),
    "failed": (":material/error:", "failed"),
    "cancelled": (":material/cancel:", "cancelled"),
    "interrupted": (":material/pause_circle:", "interrupted"),
}
_REASONS = {
    "cancelled": "Finished results are stored; resuming continues from there.",
    "interrupted": client.GONE,
}
_ADVICE = {  # by a part of the error message, lower case
    "out of memory": "Use a smaller batch or memory budget, then try again.",
    "no space left": "The disk is full. Remove files below or free some space, then try again. "
    "Finished results are stored.",
}
_SHOWN = 8  # ended jobs before "Show all"
_LOG_LINES = 60
_GO_TO = "jobs-go-to"  # session key: the page to open next


def jobs_page() -> None:
    """Draw the Jobs page."""
    if page := state.pop(_GO_TO):
        state.open_page(page)
    store = loaders.open_store()
    show_message()
    for path in found_aside(store.folder):
        st.warning(
            f"The index of the store was damaged. It is kept as {in_markdown(path.name)}: its jobs "
            "and saved plans are gone, results are used again. Remove that folder to hide this.",
            icon=":material/healing:",
        )
    active = [job.id for job in loaders.active_jobs(store)]

    @st.fragment(run_every=1.0 if active else 3.0)  # jobs may also be started in another tab
    def waiting_and_running() -> None:
        now = loaders.active_jobs(store)
        queue_panel(store, now, key="queue")
        if [job.id for job in now] != active:
            st.rerun()  # a job has started or ended: the rest of the page changes too

    waiting_and_running()
    notify_switch(key="notify")
    engine_panel(store, key="engine")
    others_panel(store, key="others")
    files_panel(store, key="files")
    ended_panel(store, key="ended")
    log_panel(store, key="log")


# ---- the queue -------------------------------------------------------------------------------


def queue_panel(store: Store, jobs: list[Job], *, key: str) -> None:
    """Draw the jobs that run or wait, in the order in which the worker takes them."""
    st.header("Queue", anchor=False)
    if not jobs:
        st.markdown(
            "No jobs are running or waiting. Sweeps, measurements, exports and fine-tuning runs "
            "that you start on the other pages appear here, for all models."
        )
        return
    for job in jobs:
        with st.container(border=True, key=f"{key}-{job.id}"):
            _active_job(store, job, key=f"{key}-{job.id}")


def _active_job(store: Store, job: Job, *, key: str) -> None:
    cancelling = client.cancel_requested(store, job.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{in_markdown(title(job))}**  \n:gray[{in_markdown(_about(store, job))}]",
            width="stretch",
        )
        if job.state == "queued" and not cancelling:
            _move_buttons(store, job, key=key)
        cancel_button(store, job, cancelling, key=f"{key}-cancel")
    line = progress_text(job, task_text(job.task), cancelling, running_title(store, job))
    text = in_markdown(line)
    if job.total and job.state == "running":
        st.progress(min(job.done / job.total, 1.0), text=text)
    else:
        icon = "hourglass_top" if job.state == "running" else "schedule"
        st.markdown(f":material/{icon}: {text}")


def _move_buttons(store: Store, job: Job, *, key: str) -> None:
    """Draw the buttons that move a waiting job forward; none if it waits alone."""
    rivals = [other.id for other in queue.rivals(store, job)]
    if len(rivals) < 2 or job.id not in rivals:
        return
    place = rivals.index(job.id)
    above = rivals[max(place - 1, 0)]
    action_button(
        "Up",
        queue.move,
        *(store, job.id, above),
        key=f"{key}-up",
        type="tertiary",
        icon=":material/arrow_upward:",
        disabled=place == 0,
        help="Run this job before the one above it.",
    )
    action_button(
        "First",
        queue.move,
        *(store, job.id),
        key=f"{key}-first",
        type="tertiary",
        icon=":material/vertical_align_top:",
        disabled=place == 0,
        help="Run this job next. Measurements and other short jobs still run between the steps of "
        "a long one.",
    )


def title(job: Job) -> str:
    """Return the job's task and model."""
    return f"{task_text(job.task).noun} · {loaders.job_model(job)}"


def _detail(store: Store, job: Job) -> str:
    """Return what the job works on; its own title where nothing is known."""
    if job.task in ("inspect", "summary"):
        return ""  # it would only repeat the task and the model
    known = "" if job.task == "check_data" else job_texts.about(store, job)
    return known or job.title


def _about(store: Store, job: Job) -> str:
    parts = [_detail(store, job), loaders.job_images(job), job.device]
    if job.state == "running" and job.started:
        parts.append(f"running for {formats.duration(time.time() - job.started)}")
    elif job.active:
        parts.append(f"queued {formats.time_ago(job.created)}")
        parts.append(_place(store, job))
    return " · ".join(filter(None, parts))


def _place(store: Store, job: Job) -> str:
    """Return a waiting job's place on its device; empty if it waits alone."""
    ids = [other.id for other in queue.waiting(store, job.device)]
    if job.id not in ids or len(ids) < 2:
        return ""
    return f"number {ids.index(job.id) + 1} of {len(ids)} that wait"


# ---- ended jobs ------------------------------------------------------------------------------


def ended_panel(store: Store, *, key: str) -> None:
    """Draw the jobs that ended, newest first, with a button to resume unfinished ones."""
    jobs = loaders.ended_jobs(store)
    st.header("Ended", anchor=False)
    if not jobs:
        st.markdown("No jobs have ended yet.")
        return
    show_all = len(jobs) <= _SHOWN or st.toggle(f"Show all {len(jobs)}", key=f"{key}-all")
    for job in jobs if show_all else jobs[:_SHOWN]:
        with st.container(key=f"{key}-row-{job.id}", horizontal=True, vertical_alignment="center"):
            icon, word = _STATES[job.state]
            what, about = in_markdown(title(job)), in_markdown(_about_ended(store, job))
            st.markdown(f"{icon} **{what}** {word}  \n:gray[{about}]", width="stretch")
            if job.state != "done":
                resume_button(store, job, key=f"{key}-{job.id}-resume")
            elif page := job_texts.result_page(job):
                _result_button(store, job, page, key=f"{key}-{job.id}-show")
        if job.state == "failed":
            st.error(in_markdown(_advice(job)), icon=":material/error:")
        elif job.state in _REASONS:
            st.caption(_REASONS[job.state])
        if job.state in ("failed", "interrupted"):
            _job_log(store, job, key=f"{key}-{job.id}-log")


def _job_log(store: Store, job: Job, *, key: str) -> None:
    """Draw what the worker's log says of a job; nothing if that is not known."""
    lines = job_log(store, job, _LOG_LINES)
    if lines:
        with st.expander("Log of this job", key=key):
            st.code("\n".join(lines), language=None)
            st.caption(f"In a shell: {in_code(f'psvit jobs log {job.id}')}")


def _result_button(store: Store, job: Job, page: str, *, key: str) -> None:
    """Draw the button that opens the page with a job's result."""

    def select() -> None:
        job_texts.select_result(store, job)
        state.put(_GO_TO, page)  # the run after this may be the browser's answer to a new URL

    st.button(
        f"Show on {page}",
        key=key,
        type="tertiary",
        icon=":material/arrow_forward:",
        on_click=select,
    )


def _about_ended(store: Store, job: Job) -> str:
    parts = [
        _detail(store, job),
        loaders.job_images(job),
        formats.time_ago(job.ended or job.created),
    ]
    if job.started and job.ended:
        parts.append(f"took {formats.duration(job.ended - job.started)}")
    if job.total and job.state != "done":
        parts.append(f"{100 * job.done // job.total}{formats.NBSP}% done")
    parts.append(versions.version_note(job.program))
    return " · ".join(filter(None, parts))


def _advice(job: Job) -> str:
    """Return a failed job's error, followed by advice if the error is a known one."""
    for sign, advice in _ADVICE.items():
        if sign in job.error.lower():
            return f"{job.error} {advice}"
    return job.error


# ---- jobs of other versions ------------------------------------------------------------------


def others_panel(store: Store, *, key: str) -> None:
    """Draw the jobs that another version of the program has written; nothing if there are none."""
    others = versions.list_other_jobs(store)
    if not others:
        return
    st.header("Of other versions", anchor=False)
    st.markdown(f"This version cannot run these jobs. {versions.WAY_OUT}")
    for other in others:
        name = digest(other.id)
        made = f"version {other.program}" if other.program else "an older version"
        when = formats.time_ago(other.created) if other.created else ""
        about = " · ".join(filter(None, [made, other.state, when, other.why]))
        with st.container(key=f"{key}-{name}", horizontal=True, vertical_alignment="center"):
            st.markdown(
                f"**{in_markdown(other.title)}**  \n:gray[{in_markdown(about)}]", width="stretch"
            )
            action_button(
                "Remove this job", versions.remove, store, other.id, key=f"{key}-{name}-remove"
            )


# ---- files -----------------------------------------------------------------------------------


def files_panel(store: Store, *, key: str) -> None:
    """Draw the files that exports and fine-tuning runs wrote, then uploads, newest first."""
    jobs, uploads = loaders.written_files(store), open_files.list_uploads(store)
    st.header("Files", anchor=False)
    if not jobs and not uploads:
        st.markdown("No files yet. Exported checkpoints and uploads appear here.")
        return
    total = sum(job.written.bytes for job in jobs if job.written)
    total += sum(n_bytes for _, n_bytes, _ in uploads)
    free = loaders.free_bytes(store)
    used, folder = formats.kilobytes(total), in_markdown(str(store.folder))
    st.caption(f"{used} in {folder} · {formats.kilobytes(free)} free on its disk")
    for job in jobs:
        with st.container(border=True, key=f"{key}-{job.id}"):
            _file_row(store, job, key=f"{key}-{job.id}")
    for path, n_bytes, uploaded in uploads:
        name = f"{key}-{digest(path.name)}"
        with st.container(border=True, key=name):
            _upload_row(store, path, n_bytes, uploaded, key=name)


def _file_row(store: Store, job: Job, *, key: str) -> None:
    written = job.written
    if written is None:
        return
    path = Path(written.path)
    title = f"{task_text(job.task).noun} of {loaders.job_model(job)}"

    def remove() -> None:
        downloads.remove_file(store, client.find_job(store, job.id))

    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{in_markdown(path.name)}**  \n:gray[{in_markdown(title)} · "
            f"{written.bytes:,} bytes · {formats.date_and_time(job.ended or job.created)}]",
            width="stretch",
        )
        download_link(store, job, path, label=f"Download {path.name}")
        _remove_button(path.name, remove, key=key)
    st.markdown(f"SHA-256 {in_code(written.sha256)}")


def _upload_row(store: Store, path: Path, n_bytes: int, uploaded: float, *, key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{in_markdown(path.name)}**  \n:gray[Upload · {n_bytes:,} bytes · "
            f"{formats.date_and_time(uploaded)}]",
            width="stretch",
        )
        _remove_button(path.name, lambda: open_files.remove_upload(store, path.name), key=key)


def _remove_button(name: str, remove: Callable[[], None], *, key: str) -> None:
    """Draw the button that removes a file after the user has confirmed it."""

    def confirmed() -> None:
        remove()
        state.leave_message(f"Removed {in_markdown(name)}.")

    with st.popover("Remove", key=f"{key}-ask"):
        st.markdown(f"Remove **{in_markdown(name)}** from the disk? This cannot be undone.")
        st.button("Remove the file", key=f"{key}-remove", type="primary", on_click=confirmed)


# ---- the log ---------------------------------------------------------------------------------


def log_panel(store: Store, *, key: str) -> None:
    """Draw the last lines of each worker's log."""
    for path in sorted((store.folder / "logs").glob("worker-*.log")):
        device = path.stem.removeprefix("worker-")
        with st.expander(f"Log of the worker on {in_markdown(device)}", key=f"{key}-{device}"):
            lines = [printable(line) for line in last_lines(path, _LOG_LINES)]
            st.code("\n".join(lines) or "The log is empty.", language=None)
            st.caption(f"The last {len(lines)} lines of {in_markdown(str(path))}")
