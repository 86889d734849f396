"""What happens elsewhere, on every page: work of the worker, plans changed in another tab."""

from __future__ import annotations

import re
from html import escape

import streamlit as st

from psvit_core.jobs.client import Job
from psvit_core.plan.size import memory_saving
from psvit_core.records import ModelSummary
from psvit_core.storage.store import Store
from ui.model import editing, formats, loaders, state
from ui.model.foreign import in_markdown

_SECONDS = 3.0  # between two looks
NOUNS = {  # of running work, short enough for the navigation
    "sweep": "sweep",
    "measure": "measuring",
    "plan": "planning",
    "pareto": "front",
    "export": "export",
    "graph": "export",
    "report": "report",
    "fits": "counting",
    "finetune": "training",
    "summary": "reading",
    "inspect": "reading",
    "check_data": "checking",
}


def watch_panel(store: Store) -> None:
    """Draw the work beside the link to Jobs; tell of plans from other tabs, and of a full disk."""

    @st.fragment(run_every=_SECONDS)
    def watch() -> None:
        _work(work_line(loaders.active_jobs(store)))
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
    else:
        now = noun
    return now + (f", {len(jobs) - 1} more" if len(jobs) > 1 else "")


def _work(line: str) -> None:
    """Draw a line of text beside the navigation's link to Jobs."""
    if not line:
        st.html('<span class="psvit-work"></span>')
        return
    text = re.sub(r'[\\"<\s]+', " ", line)  # it becomes a string of CSS
    # Only for the eye: the second text of ``content``, for screen readers, is empty, so that the
    # link is still called Jobs. They find the hidden sentence instead.
    link = '[data-testid="stApp"] a[href$="/jobs"]'
    st.html(
        f'<span class="psvit-work">Running: {escape(line)}</span>'
        f'<style>{link}::after {{ content: "{text}" / ""; }}</style>'
    )


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
