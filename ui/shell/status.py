"""What happens elsewhere, on every page: work of the worker, plans changed in another tab."""

from __future__ import annotations

import re
from html import escape

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.words import rate_text
from psvit_core.plan.size import memory_saving
from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from ui.components.notify import show_notices
from ui.model import editing, formats, loaders, state
from ui.model.foreign import in_markdown

_SECONDS = 3.0  # between two looks
_SEEN, _NOTICES = "watched-jobs", "job-notices-told"  # session keys: active jobs; messages
_ALLOWED = "browser-notifies"  # session key: whether the browser shows notifications
_KEPT = 3  # messages that the page has at a time
_LONG_SECONDS = 20.0  # from which on the end of a short job is told
_ERROR_WIDTH = 160  # characters
NOUNS = {  # of running work, short enough for the navigation
    "sweep": "sweep",
    "measure": "measuring",
    "plan": "planning",
    "pareto": "front",
    "export": "export",
    "quantize": "export",
    "graph": "export",
    "report": "report",
    "fits": "counting",
    "latency": "timing",
    "finetune": "training",
    "summary": "reading",
    "inspect": "reading",
    "check_data": "checking",
}


def watch_panel(store: Store) -> None:
    """Draw the work beside the link to Jobs; tell of plans from other tabs, and of a full disk."""

    @st.fragment(run_every=_SECONDS)
    def watch() -> None:
        jobs = loaders.active_jobs(store)
        _work(work_line(jobs), pace_line(jobs))
        _tell_of_ended(store, jobs)
        if fault := loaders.writing_fault(store):
            with st.container(key="unwritable"):
                st.error(
                    f"{in_markdown(fault)} What is stored can still be read, but jobs do not run.",
                    icon=":material/hard_drive:",
                )
        summary: ModelSummary | None = state.get(state.SHOWN)
        if summary is not None:
            _other_tab(store, summary)

    with st.container(key="watch"):
        watch()


def work_line(jobs: list[Job]) -> str:
    """Describe active jobs in a few words; empty without any.

    Args:
        jobs: Active jobs, the one that runs first.
    """
    if not jobs:
        return ""
    first = jobs[0]
    noun = NOUNS.get(first.task, first.task)
    if first.state != "running":
        now = f"{noun} waits"
    elif first.total:
        now = f"{noun} {100 * min(first.done, first.total) // first.total}{formats.NBSP}%"
        left = first.seconds_left()
        now += f" · {formats.duration(left)}" if left is not None else ""
    else:
        now = noun
    return now + (f", {len(jobs) - 1} more" if len(jobs) > 1 else "")


def pace_line(jobs: list[Job]) -> str:
    """Describe how fast the first of the active jobs gets on, and when it ends; may be empty."""
    if not jobs:
        return ""
    parts = rate_text(jobs[0]), formats.time_left(jobs[0].seconds_left())
    return ", ".join(filter(None, parts))


def _work(line: str, pace: str) -> None:
    """Draw a line of text beside the navigation's link to Jobs; only its sentence has the pace."""
    if not line:
        st.html('<span class="psvit-work"></span>')
        return
    text = re.sub(r'[\\"<\s]+', " ", line)  # it becomes a string of CSS
    # Only for the eye: the second text of ``content``, for screen readers, is empty, so that the
    # link is still called Jobs. They find the hidden sentence instead.
    link = '[data-testid="stApp"] a[href$="/jobs"]'
    st.html(
        f'<span class="psvit-work">Running: {escape(", ".join(filter(None, (line, pace))))}</span>'
        f'<style>{link}::after {{ content: "{text}" / ""; }}</style>'
    )


def _tell_of_ended(store: Store, active: list[Job]) -> None:
    """Tell of long jobs that ended since the last look: by the browser, or by a message here."""
    before = state.get(_SEEN, [])
    ids = [job.id for job in active]
    state.put(_SEEN, ids)
    allowed = bool(state.get(_ALLOWED))
    gone = set(before) - set(ids)
    ended = [job for job in client.list_jobs(store) if job.id in gone] if gone else []
    news = [job for job in ended if is_worth_telling(job)]
    for job in [] if allowed else news:
        icon = ":material/check_circle:" if job.state == "done" else ":material/error:"
        title, text = ended_words(job)
        st.toast(f"**{in_markdown(title)}** {in_markdown(text)}", icon=icon, duration="long")
    told = [*state.get(_NOTICES, []), *map(_notice, news)][-_KEPT:]
    state.put(_NOTICES, told)
    with st.container(key="notices"):
        show_notices(
            told,
            allowed=allowed,
            key="job-notices",
            on_change=lambda now: state.put(_ALLOWED, now),
        )


def is_worth_telling(job: Job) -> bool:
    """Return whether somebody waits elsewhere for a job that has ended: it took a while."""
    if job.state not in ("done", "failed", "interrupted"):
        return False  # whoever cancelled it knows
    seconds = (job.ended or 0.0) - (job.started or job.created)
    return job.task not in client.SHORT or seconds >= _LONG_SECONDS


def ended_words(job: Job) -> tuple[str, str]:
    """Return title and text of the message that a job has ended, both plain."""
    noun = NOUNS.get(job.task, job.task)
    took = ""
    if job.started and job.ended:
        took = f" after {formats.duration(job.ended - job.started)}"
    error = f": {formats.shorten(job.error, _ERROR_WIDTH)}" if job.error else ""
    title = f"{noun[:1].upper()}{noun[1:]} {job.state}{took}"
    return title, f"{loaders.job_model(job)}{error}"


def _notice(job: Job) -> dict[str, str]:
    title, text = ended_words(job)
    return {"id": f"{job.id}/{job.ended}", "title": title, "text": text}


def _other_tab(store: Store, summary: ModelSummary) -> None:
    other = state.draft_from_elsewhere(store, summary)
    if other is None:
        return
    saving = formats.percent(memory_saving(summary, other.plan))
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="elsewhere"):
        st.markdown(
            f":material/tab: The plan of this model was changed in another tab: it saves {saving} "
            "of the memory there. This tab still shows its own plan.",
            width="stretch",
        )

        if st.button("Use that plan", key="elsewhere-take"):
            state.take_draft_from_elsewhere(store, summary, other)
            state.reset_widget(editing.TABLE_KEY)
            st.rerun()
        st.button(
            "Keep this one",
            key="elsewhere-keep",
            type="tertiary",
            on_click=state.decline_draft_from_elsewhere,
            args=(summary, other),
        )
