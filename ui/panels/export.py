"""Panels of the Export page: write the pruned network, download it, load it again; plan files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import streamlit as st

from psvit_core.files import module_name
from psvit_core.jobs.client import Job
from psvit_core.plan.size import memory_saving
from psvit_core.records import DIGITS_TRANSFORM, ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import (
    comparison,
    drafts,
    editing,
    formats,
    fronts,
    loaders,
    measured,
    provenance,
    recovery,
    state,
    sweeps,
)
from ui.model.drafts import Draft
from ui.model.foreign import in_markdown
from ui.model.provenance import source_card
from ui.model.stored_weights import FLOAT32, SHORT
from ui.panels.fits import fits_panel
from ui.panels.frame import boot
from ui.panels.graph import graph_button, graph_state
from ui.panels.job import follow_job
from ui.panels.measurement import measurement_line
from ui.panels.plan import default_file_name, plan_button, plan_line, plan_uploader
from ui.panels.quantized import quantized_panel
from ui.panels.report import report_panel
from ui.panels.widgets import action_button, download_link, python_button

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\.safetensors")


def export_page() -> None:
    """Draw the Export page."""
    page = boot()
    draft = state.draft(page.store, page.summary)
    left, right = st.columns([2, 1], gap="large")
    with left:
        st.header("Current plan", anchor=False)
        st.markdown(plan_line(page.summary, draft.plan))
        if draft.empty:
            st.info("The plan removes nothing yet. Make one on the Tune page, or open a plan file.")
        else:
            _quantized_line(page.workspace)
            measurement_line(page.workspace, draft.plan, key="measure")
            loss_panel(page.workspace, page.summary, draft.plan)
            export_panel(page.workspace, page.summary, draft.plan, key="export")
        st.header("Does it fit?", anchor=False)
        plan = None if draft.empty else draft.plan
        fits_panel(page.workspace, page.summary, plan, key="fits", dark=page.dark)
        st.header("Files", anchor=False)
        exports_panel(page.workspace, page.summary, key="file")
    with right:
        st.header("Plan file", anchor=False)
        st.caption("A plan lists the units that stay and identifies the weights it was made for.")
        plan_file_panel(page.store, page.summary, draft, key="plan")
        st.header("Report", anchor=False)
        plan = None if draft.empty else draft.plan
        report_panel(page.workspace, page.summary, plan, key="report")


def _quantized_line(workspace: Workspace) -> None:
    """Say that pruning a quantized network writes float32 weights again."""
    weights = provenance.stored_weights(workspace.subject.model)
    if weights != FLOAT32:
        st.info(
            f"The open file stores its weights in {SHORT[weights]}. Pruned by this plan, they are "
            "fp32 again, and the file may be larger than it is now: quantize it below.",
            icon=":material/compress:",
        )


def loss_panel(workspace: Workspace, summary: ModelSummary, plan: PrunePlan) -> None:
    """Draw a warning if the plan is known or expected to lose more than the limit."""
    known = loaders.measurement(workspace, plan)
    predicted = None
    if known is None:
        view = sweeps.current_sweep(sweeps.list_sweeps(workspace.store, summary))
        history = measured.measured_plans(workspace, summary)
        predictor = measured.calibrated_predictor(view, history)
        predicted = predictor.drop(plan) if predictor else None
    text = fronts.loss_warning(known.drop if known else None, predicted)
    if text:
        st.warning(text, icon=":material/trending_down:")


def export_panel(workspace: Workspace, summary: ModelSummary, plan: PrunePlan, *, key: str) -> None:
    """Draw the button that prunes and writes the checkpoint in the background."""
    job = next((j for j in workspace.jobs("export") if j.state != "done"), None)
    with st.container(horizontal=True, vertical_alignment="bottom", key=key):
        recovered = _recovery_choice(workspace, key=f"{key}-recovery")
        as_pruned = not recovered and recovery.used() != "none"
        name = st.text_input(
            "File name",
            default_file_name(summary, plan, as_pruned=as_pruned),
            key=f"{key}-name-{'recovered' if recovered else 'plain'}",
            width=420,
        )
        name = (name or "").strip()
        good = _FILE_NAME.fullmatch(name) is not None
        action_button(
            "Prune and write checkpoint",
            _start,
            workspace,
            plan,
            name,
            recovered,
            key=f"{key}-start",
            type="primary",
            icon=":material/content_cut:",
            disabled=not good or (job is not None and job.active),
        )
    if not good:
        st.error(
            "Invalid file name. Use letters, digits, dots, dashes or underscores, and end it in "
            ".safetensors."
        )
    if job is not None:
        follow_job(workspace.store, job, key=f"{key}-job")


def _recovery_choice(workspace: Workspace, *, key: str) -> bool:
    """Draw the choice of recovery; return whether to recover."""
    method = recovery.used()  # the header's choice, until the user wants another one here
    if loaders.lacks_images(workspace):
        st.caption(f"Without recovery. {recovery.NEEDS_IMAGES}")
        return False
    chosen = st.segmented_control(
        "Recovery without training",
        ["auto" if method == "none" else method, "none"],
        default=method,
        required=True,
        format_func=formats.RECOVERY_NAMES.__getitem__,
        key=f"{key}-{method}",
        persist_state="session",
        help="Auto fits the remaining weights to 256 calibration images, without labels, by the "
        "method that works best on held-out ones. None is PSViT's own setting: a single shot. "
        "Without calibration images nothing is recovered.",
    )
    return chosen != "none"


def _start(workspace: Workspace, plan: PrunePlan, file_name: str, recovered: bool) -> None:
    recovery.export(workspace, plan, file_name, recovered=recovered)


def exports_panel(workspace: Workspace, summary: ModelSummary, *, key: str) -> None:
    """Draw the files written from this model, newest first, each with its download link."""
    jobs = loaders.exports(workspace.store, summary.weights_hash)
    if not jobs:
        st.markdown("No files yet. The checkpoints that you write appear here.")
    for i, job in enumerate(jobs):
        _export_entry(workspace, summary, job, key=f"{key}-{job.id}", first=i == 0)


def _export_entry(
    workspace: Workspace, summary: ModelSummary, job: Job, *, key: str, first: bool
) -> None:
    written, plan = job.written, job.plan
    if written is None or plan is None:
        return
    path = Path(written.path)
    with st.container(border=True, key=key):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(
                f"**{in_markdown(path.name)}**  \n{written.bytes:,} bytes · saves "
                f"{formats.percent(memory_saving(summary, plan))} of the memory · "
                f"{formats.time_ago(job.ended or job.created)}",
                width="stretch",
            )
            if path.is_file():
                download_link(workspace.store, job, path)
                python_button(Path(written.code), key=key)
                graph = graph_button(workspace, summary, path, key=key)
                st.button(
                    "Open here",
                    key=f"{key}-open",
                    on_click=state.put,
                    args=(state.MODEL, str(path)),
                    help="Opens the pruned model in this app, to measure, sweep or prune it again.",
                )
            else:
                graph = None
                st.markdown("The file no longer exists. Write it again.", width="content")
        if graph is not None:
            graph_state(workspace, graph, key=f"{key}-graph-job")
        st.markdown(in_markdown(comparison.gain_text(job)))
        st.caption("SHA-256")
        st.code(written.sha256, language=None)
        if path.is_file():
            with st.expander("Quantize this file", expanded=first, key=f"{key}-bits"):
                quantized_panel(workspace, summary, path, key=f"{key}-quantize")
        with st.expander("Load this file", expanded=first, key=f"{key}-load"):
            load_examples(path.name, workspace)


def load_examples(name: str, workspace: Workspace) -> None:
    """Draw the Python code and the command that load and measure the file on the chosen images."""
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
    command = ["python", "-m", "psvit_core", "evaluate", name, *options, "--json"]
    st.code(shlex.join(command), "bash")
    st.caption(
        "Both need this program where they run: **pip install .** in its folder. The Python file "
        "needs only torch and safetensors (**pip install torch safetensors**). This command writes "
        "it, too:"
    )
    alone = ["python", "-m", "psvit_core", "export", name, "--out", f"{module_name(name)}.py"]
    st.code(shlex.join(alone), "bash")


def plan_file_panel(store: Store, summary: ModelSummary, draft: Draft, *, key: str) -> None:
    """Draw the button that downloads the plan as JSON, and the field that opens one."""
    plan_button(summary, draft.plan, key=f"{key}-save")

    def use(content: bytes) -> str:
        editing.set_draft(store, summary, drafts.read_plan(summary, content))
        return "The plan file is now the current plan."

    plan_uploader("Open a plan (JSON)", use, key=f"{key}-load")
