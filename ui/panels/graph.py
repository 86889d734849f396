"""A checkpoint as an ONNX file: the button, its progress, how the file compares with torch."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.files import is_file
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary
from psvit_core.records.jobs import GraphResult
from psvit_core.workspace import Workspace, write_onnx
from ui.model import loaders
from ui.model.foreign import in_markdown
from ui.panels.job import follow_job
from ui.panels.widgets import download_link


def graph_button(
    workspace: Workspace, summary: ModelSummary, path: Path, *, key: str
) -> Job | None:
    """Draw the button that writes a checkpoint as an ONNX file, or the link that downloads it.

    Returns:
        The job that writes or wrote it; None without one.
    """
    job = loaders.graph_job(workspace, path)
    written = job.written if job is not None else None
    if job is not None and written is not None and is_file(written.path):
        download_link(workspace.store, job, Path(written.path), text="ONNX file")
        return job
    coupled = "The images of this model's batches influence each other: an ONNX file cannot have "
    st.button(
        "Write ONNX",
        key=f"{key}-graph",
        disabled=summary.batch_coupled or (job is not None and job.active),
        on_click=_write_onnx,
        args=(workspace, path),
        help=f"{coupled}a graph for every batch size."
        if summary.batch_coupled
        else "One file for onnxruntime and other programs. It is compared with torch, image by "
        "image and layer by layer, before you get it; large networks take minutes.",
    )
    return None if written is not None else job


def _write_onnx(workspace: Workspace, path: Path) -> None:
    write_onnx(workspace, path)


def graph_state(workspace: Workspace, job: Job, *, key: str) -> None:
    """Draw how far an ONNX file is, or how it compares with torch."""
    if isinstance(job.outcome, GraphResult) and job.state == "done":
        st.caption(in_markdown(f"ONNX: {job.outcome.report.replace(chr(10), '; ')}."))
        return
    follow_job(workspace.store, job, key=key)
