"""Choose the images that measurements use, and check them."""

from __future__ import annotations

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary
from psvit_core.records.jobs import CheckDataResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import open_files, state, tables
from ui.model.foreign import in_markdown
from ui.panels.job import follow_job
from ui.panels.widgets import action_button, show_warnings

KINDS = {
    "digits": "Digits (built in)",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10 as JPEGs",
    "folder": "Image folder",
    "imagenet": "ImageNet",
    "npz": "NumPy file",
}
_PLACES = {  # label and example of the path that a kind needs
    "cifar10": ("Folder with the published batches", "/path/to/cifar-10-batches-py"),
    "cifar10-jpeg": ("Folder with train/ and test/", "/path/to/cifar10"),
    "folder": ("Image folder (one subfolder per class)", "/path/to/images"),
    "imagenet": ("Folder with train/ and val/", "/path/to/imagenet"),
    "npz": ("File with images and labels", "/path/to/images.npz"),
}


def images_panel(workspace: Workspace, summary: ModelSummary, *, key: str) -> None:
    """Draw the choice of images, with the report of the last check."""
    st.header("3 · Choose its images", anchor=False)
    now = open_files.current_data(workspace)
    st.caption(
        f"Measurements use {in_markdown(now) or 'no images yet'}. Sizes and channel groups need no "
        "images. Plans are made on the validation split; keep the test split for the final result."
    )
    with st.container(horizontal=True, vertical_alignment="bottom", key=key):
        _preselect_kind(workspace, summary, now, key=key)
        spec = _spec_fields(workspace.store, now, key=key)
        action_button(
            "Check these images",
            open_files.check_data,
            workspace,
            spec,
            key=f"{key}-check",
            icon=":material/fact_check:",
            disabled=spec is None,
        )
    if spec is not None:
        _report(workspace, summary, spec, key=f"{key}-report")


def _preselect_kind(workspace: Workspace, summary: ModelSummary, now: str, *, key: str) -> None:
    """Preselect the images in use, or those that fit the model; again for another model."""
    kind = now.partition(":")[0]
    fitting = kind if kind in KINDS else open_files.fitting_kind(workspace, summary)
    fitting = fitting if fitting in KINDS else "folder"
    if state.get(f"{key}-model", summary.weights_hash) != summary.weights_hash:
        state.put(f"{key}-kind", fitting)
    state.put(f"{key}-model", summary.weights_hash)
    state.set_default(f"{key}-kind", fitting)


def _spec_fields(store: Store, now: str, *, key: str) -> str | None:
    """Draw the kind and place of the images; return their specification, None if incomplete."""
    path = now.partition(":")[2]
    chosen = st.segmented_control(
        "Images",
        list(KINDS),
        format_func=KINDS.__getitem__,
        required=True,
        key=f"{key}-kind",
        persist_state="session",
        label_visibility="collapsed",
    )
    place = ""
    if chosen in _PLACES:
        label, example = _PLACES[chosen]
        name = f"{key}-place-{chosen}"
        state.set_default(name, path)
        place = st.text_input(label, key=name, placeholder=example, persist_state="session").strip()
    try:
        return open_files.data_spec(store, chosen or "digits", place)
    except PsvitError as error:
        st.error(in_markdown(str(error)))
        return None


def _report(workspace: Workspace, summary: ModelSummary, spec: str, *, key: str) -> None:
    job: Job | None = open_files.newest_data_check(workspace, spec)
    if job is None:
        return
    if job.state != "done":
        follow_job(workspace.store, job, key=key)
        return
    report = job.outcome.report if isinstance(job.outcome, CheckDataResult) else None
    if report is None:  # another version wrote it
        return
    if report.problem:
        st.error(
            f"These images cannot be used. {in_markdown(report.problem)}", icon=":material/error:"
        )
    else:
        shape = " × ".join(map(str, report.shape))
        st.success(
            f"Read {report.n_looked} validation images. The model receives them as {shape} and "
            f"has {summary.num_classes} outputs.",
            icon=":material/check_circle:",
        )
        action_button(
            "Use these images",
            open_files.use_data,
            spec,
            key=f"{key}-use",
            type="primary",
            disabled=open_files.current_data(workspace) == spec,
        )
    show_warnings(report.warnings)
    st.dataframe(tables.split_rows(report), hide_index=True, key=f"{key}-splits")
