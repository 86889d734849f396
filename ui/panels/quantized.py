"""A checkpoint with its weights in fewer bits: the choice, the job, the files, their accuracy."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.files import is_file
from psvit_core.jobs.client import Job
from psvit_core.records import STORED_WEIGHTS, ModelSummary
from psvit_core.records.jobs import QuantizeResult
from psvit_core.workspace import Workspace, quantize_file
from ui.model import formats, state
from ui.model.foreign import in_code, in_markdown
from ui.model.stored_weights import SHORT, quantize_jobs
from ui.panels.graph import graph_button, graph_state
from ui.panels.job import follow_job
from ui.panels.widgets import action_button, download_link, python_button


def quantized_panel(workspace: Workspace, summary: ModelSummary, path: Path, *, key: str) -> None:
    """Draw the choice of weights, and what was written of a checkpoint with such weights.

    Args:
        workspace: The unpruned model on its images.
        summary: The unpruned model.
        path: The checkpoint, in float32.
        key: Prefix of the widgets' keys.
    """
    jobs = quantize_jobs(workspace.store, path)
    with st.container(horizontal=True, vertical_alignment="bottom", key=key):
        chosen = st.segmented_control(
            "Quantize weights to",
            list(STORED_WEIGHTS),
            format_func=SHORT.__getitem__,
            default="int8",
            required=True,
            key=f"{key}-kind",
            help="Of convolutions and linear layers: int8 with a scale per output channel, fp16 or "
            "bf16. Everything else stays fp32. The network computes in fp32 with these weights.",
        )
        kind = chosen or "int8"
        action_button(
            "Quantize and measure",
            _quantize,
            workspace,
            path,
            kind,
            key=f"{key}-start",
            icon=":material/compress:",
            disabled=kind in jobs and jobs[kind].active,
            help="Writes the file again with these weights, in the background, and measures it on "
            "the chosen images: paired with the unpruned network, and with this file.",
        )
    for job in jobs.values():
        if job.state == "done":
            _file(workspace, summary, job, key=f"{key}-{job.id}")
        else:
            follow_job(workspace.store, job, key=f"{key}-{job.id}-job")


def _quantize(workspace: Workspace, path: Path, kind: str) -> None:
    quantize_file(workspace, path, kind, f"{path.stem}-{SHORT[kind]}{path.suffix}")


def _file(workspace: Workspace, summary: ModelSummary, job: Job, *, key: str) -> None:
    """Draw a quantized file: its bytes, links, exports and accuracy."""
    done = job.outcome
    if not isinstance(done, QuantizeResult) or not done.path:
        return
    path = Path(done.path)
    saving = formats.percent(done.memory_saving)
    st.markdown(
        f"**{in_markdown(path.name)}**  \n{done.bytes:,} bytes · {SHORT.get(done.kind, '')} · its "
        f"weights take {done.weights_bytes:,} bytes instead of {done.float32_bytes:,}, **{saving} "
        "less than the unpruned network in fp32**"
    )
    if not is_file(path):
        st.markdown("The file no longer exists. Quantize again.")
        return
    with st.container(horizontal=True, vertical_alignment="center", key=key):
        label = f"Download {path.name}"
        download_link(workspace.store, job, path, text=f"Download {SHORT[done.kind]}", label=label)
        python_button(Path(done.code), key=key)
        graph = graph_button(workspace, summary, path, key=key)
        st.button(
            "Open here",
            key=f"{key}-open",
            on_click=state.put,
            args=(state.MODEL, str(path)),
            help="Opens the quantized model in this app, to measure or sweep it.",
        )
    if graph is not None:
        graph_state(workspace, graph, key=f"{key}-graph-job")
    st.markdown(in_markdown(accuracy_text(done)))
    st.caption(f"SHA-256 {in_code(done.sha256)}")


def accuracy_text(done: QuantizeResult) -> str:
    """Describe what a quantized network was measured to lose, or why it was not measured."""
    m, alone = done.file_measurement, done.against_float32
    if m is None:
        return " ".join(done.warnings)
    parts = [f"Top-1 {formats.accuracy(m.accuracy)}"]
    if m.drop is not None:
        parts.append(f"drop {formats.drop(m.drop)} against the unpruned network in fp32")
    if alone is not None and alone.drop is not None:
        noise = ", within noise" if formats.within_noise(alone.drop) else ""
        parts.append(f"{formats.drop(alone.drop)} against this network in fp32{noise}")
    return f"{'; '.join(parts)}. Measured on {formats.plan_conditions(m)}."
