"""Panels of the Export page: write the pruned network, take it away, load it again; plan files."""

from __future__ import annotations

import json
import re
import shlex
from html import escape
from pathlib import Path

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.jobs.client import Job
from psvit_core.records import DIGITS_TRANSFORM, ModelSummary, PrunePlan
from psvit_core.size import memory_saving
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from ui import drafts, files, loaders, state, words
from ui.drafts import Draft
from ui.origins import source_card
from ui.panels_job import job_panel, live
from ui.panels_plan import default_file_name

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\.safetensors")


def export_panel(workspace: Workspace, summary: ModelSummary, plan: PrunePlan, *, key: str) -> None:
    """Prune and write the checkpoint in the background."""
    job = next((j for j in workspace.jobs("export") if j.state != "done"), None)
    with st.container(horizontal=True, vertical_alignment="bottom", key=key):
        name = st.text_input(
            "File name", default_file_name(summary, plan), key=f"{key}-name", width=420
        )
        name = (name or "").strip()
        good = _FILE_NAME.fullmatch(name) is not None
        st.button(
            "Prune and write checkpoint", key=f"{key}-start", type="primary",
            icon=":material/content_cut:", disabled=not good or (job is not None and job.active),
            on_click=_start, args=(workspace, plan, name),
        )  # fmt: skip
    if not good:
        st.error(
            "A file name has letters, digits, dots, dashes or underscores and ends in .safetensors."
        )
    if job is not None:
        job_id = job.id
        live(
            lambda: job_panel(workspace.store, job_id, key=f"{key}-job", noun="The export"),
            active=job.active,
        )


def _start(workspace: Workspace, plan: PrunePlan, file_name: str) -> None:
    workspace.export(plan, file_name)


def exports_panel(workspace: Workspace, summary: ModelSummary, *, key: str) -> None:
    """Files that were written from this model, newest first, each with its download link."""
    jobs = loaders.exports(workspace.store, summary.weights_hash)
    if not jobs:
        st.markdown("No file yet. What you write appears here, with its download link.")
    for i, job in enumerate(jobs):
        _export_entry(workspace, summary, job, key=f"{key}-{job.id}", first=i == 0)


def _export_entry(
    workspace: Workspace, summary: ModelSummary, job: Job, *, key: str, first: bool
) -> None:
    path, plan = Path(job.result["path"]), PrunePlan.from_dict(job.params["plan"])
    with st.container(border=True, key=key):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(
                f"**{path.name}**  \n{job.result['bytes']:,} bytes · saves "
                f"{words.percent(memory_saving(summary, plan))} of the memory · "
                f"{words.ago(job.ended or job.created)}",
                width="stretch",
            )
            if path.is_file():
                link = escape(files.file_link(workspace.store, job))
                st.html(
                    f'<a class="psvit-button" href="{link}" download="{escape(path.name)}">'
                    "Download</a>",
                    width="content",
                )
                st.button(
                    "Open here", key=f"{key}-open", on_click=state.choose,
                    args=(state.MODEL, str(path)),
                    help="Look at the pruned model on these pages: measure, sweep, prune it again.",
                )  # fmt: skip
            else:
                st.markdown("The file is gone; write it again.", width="content")
        st.caption("SHA-256")
        st.code(job.result["sha256"], language=None)
        with st.expander("Load it again", expanded=first, key=f"{key}-load"):
            load_lines(path.name, workspace)


def load_lines(name: str, workspace: Workspace) -> None:
    """How to use the file in Python and in a shell, on the images chosen above."""
    card, limit = source_card(workspace.subject.model), workspace.subject.limit
    data = workspace.subject.data or (card.data if card else None)
    lines = ["import psvit_core as psvit", "", f'model = psvit.load_model("{name}")']
    if card is not None:
        own = card.transform != DIGITS_TRANSFORM
        transform = f', transform=psvit.model_card("{card.name}").transform' if own else ""
        some = f".limit({limit})" if limit else ""
        lines += [
            f'data = psvit.load_data({json.dumps(data)}, split="val"{transform}){some}',
            "print(psvit.measure(model, data).accuracy)",
        ]
    st.code("\n".join(lines), language="python")
    options = ["--data", data] if data else []
    options += ["--limit", str(limit)] if limit else []
    st.code(
        shlex.join(["python", "-m", "psvit_core", "evaluate", name, *options, "--json"]), "bash"
    )


def plan_files_panel(store: Store, summary: ModelSummary, draft: Draft, *, key: str) -> None:
    """The plan as a JSON file: save it, or load one."""
    plan_name = default_file_name(summary, draft.plan).replace(".safetensors", ".plan.json")
    st.download_button(
        "Download plan (JSON)", json.dumps(draft.plan.to_dict(), indent=1), file_name=plan_name,
        mime="application/json", key=f"{key}-save", icon=":material/download:", on_click="ignore",
    )  # fmt: skip

    widget = state.fresh_key(f"{key}-load")

    def load() -> None:
        content = state.uploaded(widget)
        if content is None:
            return
        state.renew_key(f"{key}-load")  # empty again, also for the same file
        try:
            state.set_draft(store, summary, drafts.read_plan(summary, content))
        except PsvitError as error:
            state.tell(f"The plan was not loaded. {error}", "error")
        else:
            state.tell("The plan is loaded.")

    st.file_uploader("Load a plan (JSON)", "json", key=widget, on_change=load, max_upload_size=20)
