"""Panels of the Open page: where a model comes from, what was found in it, its images."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.errors import OutputError
from psvit_core.jobs.client import Job
from psvit_core.jobs.opening import DataReport, FileReport, NearestModel
from psvit_core.records import ModelSummary
from psvit_core.size import plan_size
from psvit_core.store import Store, digest
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import list_models, model_card
from ui import loaders, opening, state, tables, words
from ui.equalizer.columns import locked_reason
from ui.frame import Frame
from ui.loaders import Choice
from ui.panels_job import job_panel, live
from ui.panels_model import card_panel, groups_panel, size_tiles

SOURCES = {
    "built-in": "Built in",
    "folder": "From a folder on this machine",
    "upload": "Upload",
}
_SOURCE, _FOLDER = "models-source", "models-folder"
_FILE_TYPES = [suffix.removeprefix(".") for suffix in opening.SUFFIXES]
DATA_KINDS = {
    "digits": "Digits (built in)",
    "cifar10": "CIFAR-10",
    "folder": "Class folders",
    "imagenet": "ImageNet",
    "npz": "NumPy file",
}
_PLACES = {
    "cifar10": ("Folder of the published batches", "/path/to/cifar-10-batches-py"),
    "folder": ("Folder with one folder a class", "/path/to/images"),
    "imagenet": ("Folder with train/ and val/", "/path/to/imagenet"),
    "npz": ("File with images and labels", "/path/to/images.npz"),
}


# ---- 1. the model ----------------------------------------------------------------------------


def source_panel(store: Store, choice: Choice, *, key: str) -> None:
    """Choose a model; nothing is opened before a button is pressed."""
    st.header("1 · Choose a model", anchor=False)
    source = st.segmented_control(
        "Where it comes from", list(SOURCES), format_func=SOURCES.__getitem__, default="built-in",
        required=True, key=_SOURCE, persist_state="session", label_visibility="collapsed",
    )  # fmt: skip
    if source == "folder":
        _folder(store, key=f"{key}-folder")
    elif source == "upload":
        _upload(store, key=f"{key}-upload")
    else:
        _built_in(choice, key=f"{key}-built-in")


def _built_in(choice: Choice, *, key: str) -> None:
    names = list_models()
    state.settle(f"{key}-name", names, choice.model if choice.model in names else names[0])
    with st.container(horizontal=True, vertical_alignment="bottom", key=key):
        name = st.selectbox(
            "Built-in network", names, key=f"{key}-name", width=460, persist_state="session",
            format_func=lambda n: model_card(n).title,
            help="Models with weights open at once. The others are known by architecture: give "
            "their published checkpoint.",
        )  # fmt: skip
        card = model_card(name)
        if card.weights:
            st.button(
                "Open", key=f"{key}-go", type="primary", icon=":material/folder_open:",
                disabled=choice.model == name, on_click=opening.open_model, args=(name,),
            )  # fmt: skip
    if card.weights is None:
        file = f" ({card.file_name})" if card.file_name else ""
        st.info(
            f"The weights of {card.title} are not included. Get the published checkpoint{file}, "
            "then open it from a folder or upload it: its architecture is recognised.",
            icon=":material/key_off:",
        )
        with st.container(border=True):
            card_panel(card, None)


def _folder(store: Store, *, key: str) -> None:
    state.settle_first(_FOLDER, str(opening.models_folder(store)))
    place = st.text_input(
        "Folder with models", key=_FOLDER, persist_state="session",
        help="A folder on the machine that runs this app. $PSVIT_MODELS names the one to begin "
        "with. Nothing is copied.",
    )  # fmt: skip
    folder = Path((place or "").strip()).expanduser()
    try:
        found = opening.model_files(folder)
    except OSError as error:
        st.error(f"Cannot read {folder}: {error.strerror}. Give a folder that exists.")
        return
    if not found:
        st.info(
            f"There is no model file in {folder}. Files that can be opened end in "
            f"{', '.join(opening.SUFFIXES)}.",
            icon=":material/folder_off:",
        )
        return
    _choose_file(store, {str(file): f"{file.name} · {words.kilobytes(n)}" for file, n in found},
                 key=key)  # fmt: skip


def _choose_file(store: Store, files: dict[str, str], *, key: str) -> None:
    state.settle(key, list(files), next(iter(files)))
    widget = f"{key}-file/{digest(files)}"  # a list that changes is another one to the browser
    state.choose(widget, state.chosen(key))

    def take() -> None:
        state.choose(key, state.chosen(widget))

    with st.container(horizontal=True, vertical_alignment="bottom", key=f"{key}-row"):
        file = st.selectbox(
            f"{len(files)} model file{'s' if len(files) != 1 else ''}", list(files),
            format_func=lambda path: files.get(path, path), key=widget, width=460, on_change=take,
        )  # fmt: skip
        st.button(
            "Look into it", key=f"{key}-look", type="primary", icon=":material/search:",
            on_click=opening.look_into, args=(store, file),
        )  # fmt: skip
    _file_report(store, file, key=f"{key}-report")


def _upload(store: Store, *, key: str) -> None:
    widget = state.fresh_key(f"{key}-file")

    def keep() -> None:
        file = st.session_state[widget]
        if file is None:
            return
        state.renew_key(f"{key}-file")  # so that the session lets go of the content
        try:
            path = opening.keep_upload(store, file.name, file)
        except OutputError as error:
            state.tell_error(error)
        else:
            state.choose(f"{key}-kept", str(path))
            opening.look_into(store, str(path))

    st.file_uploader(
        "Checkpoint file", _FILE_TYPES, key=widget, on_change=keep,
        help="Written to the disk at once. Opening from a folder is faster and copies nothing.",
    )  # fmt: skip
    st.caption(
        f"Files that would run code are refused. {words.kilobytes(loaders.free_bytes(store))} are "
        "free on the disk."
    )
    kept = opening.model_files(opening.uploads_folder(store))
    if kept:
        names = {str(file): f"{file.name} · {words.kilobytes(n)}" for file, n in kept}
        _choose_file(store, names, key=f"{key}-kept")


def _file_report(store: Store, file: str, *, key: str) -> None:
    """What a look into the file has found, or how far it is."""
    job = opening.newest_look(store, file)
    if job is None:
        st.caption("A look tells which model the file holds, before anything is opened.")
        return
    if job.state != "done":
        job_id = job.id
        live(lambda: job_panel(store, job_id, key=key, noun="The look"), active=job.active)
        return
    report = FileReport.from_dict(job.result["report"])
    facts = (
        f"{report.n_tensors:,} tensors · {words.count(report.n_values)} values · "
        f"{words.kilobytes(report.bytes)}"
    )
    if report.pruned_from:
        st.success(
            f"A model that this tool pruned from {loaders.card_title(report.pruned_from)}. {facts}",
            icon=":material/content_cut:",
        )
        st.button(
            "Open the pruned model", key=f"{key}-pruned", type="primary",
            on_click=opening.open_pruned, args=(file,),
        )  # fmt: skip
    elif report.fits:
        st.success(
            f"Recognised: every tensor has its place in {loaders.card_title(report.fits[0])}. "
            f"{facts}",
            icon=":material/check_circle:",
        )
        with st.container(horizontal=True):
            for name in report.fits:
                st.button(
                    f"Open as {model_card(name).title}", key=f"{key}-{name}",
                    type="primary" if name == report.fits[0] else "secondary",
                    on_click=opening.open_model, args=(name, file),
                )  # fmt: skip
    elif report.nearest:
        _no_match(report.nearest, facts)


def _no_match(nearest: NearestModel, facts: str) -> None:
    st.error(
        f"No known architecture has these tensors ({facts}). The nearest is "
        f"{loaders.card_title(nearest.model)}: {nearest.n_missing} tensors are missing, "
        f"{nearest.n_unexpected} are unexpected, {nearest.n_reshaped} have another shape.",
        icon=":material/unknown_document:",
    )
    with st.expander("Tensors that do not fit", key="no-match-tensors"):
        st.code("\n".join(nearest.examples), language=None)
        st.caption("A network of your own is registered in Python: see the README's section on it.")


# ---- 2. what was found -----------------------------------------------------------------------


def found_panel(page: Frame, *, key: str) -> None:
    """The load report of the open model: family, sizes, groups, what is unused or locked."""
    summary = page.summary
    st.header("2 · What was found", anchor=False)
    card_panel(page.workspace.card, summary)
    size_tiles(plan_size(summary, None), len(summary.groups))
    st.markdown("  \n".join(f":material/{icon}: {text}" for icon, text in load_lines(summary)))
    with st.expander(f"All {len(summary.groups)} channel groups", key=f"{key}-groups-open"):
        groups_panel(summary, key=f"{key}-groups")


def load_lines(summary: ModelSummary) -> list[tuple[str, str]]:
    """What loading found, as (icon, text)."""
    stored = summary.shapes.tensors
    unused = [tensor.name for tensor in stored if tensor.role == "unused"]
    lines = [("check_circle", f"All {len(stored)} tensors were found, none is left over.")]
    if unused:
        some = ", ".join(f"`{name}`" for name in unused[:3])
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        text = f"{len(unused)} of them are read by no computation and do not count as memory"
        lines.append(("info", f"{text}: {some}{more}."))
    locked = [(group, reason) for group in summary.groups if (reason := locked_reason(group))]
    lines += [("lock", f"{group.label} is locked: {reason}.") for group, reason in locked]
    if not locked:
        lines.append(("lock_open", "No channel group is locked: every one can lose units."))
    if summary.batch_coupled:
        text = "An image's result depends on the images beside it, so batches are kept together"
        lines.append(("link", f"{text} and intervals are wider."))
    return lines


# ---- 3. the images ---------------------------------------------------------------------------


def data_panel(workspace: Workspace, summary: ModelSummary, *, key: str) -> None:
    """Choose the images that measurements use, and check them before."""
    st.header("3 · Choose its images", anchor=False)
    now = opening.data_of(workspace)
    st.caption(
        f"Measurements use {now or 'no images yet'}. Sizes and groups need none. Plans are made on "
        "the validation split; the test split is only for the end."
    )
    kind = now.partition(":")[0] if now else ""
    state.settle_first(f"{key}-kind", kind if kind in DATA_KINDS else "digits")
    with st.container(horizontal=True, vertical_alignment="bottom", key=key):
        chosen = st.segmented_control(
            "Images", list(DATA_KINDS), format_func=DATA_KINDS.__getitem__, required=True,
            key=f"{key}-kind", persist_state="session", label_visibility="collapsed",
        )  # fmt: skip
        place = ""
        if chosen in _PLACES:
            label, example = _PLACES[chosen]
            state.settle_first(f"{key}-place-{chosen}", now.partition(":")[2] if now else "")
            place = st.text_input(
                label, key=f"{key}-place-{chosen}", placeholder=example, persist_state="session",
            ).strip()  # fmt: skip
        spec = opening.data_spec(chosen or "digits", place)
        st.button(
            "Check these images", key=f"{key}-check", icon=":material/fact_check:",
            disabled=spec is None, on_click=opening.check, args=(workspace, spec),
        )  # fmt: skip
    if spec is not None:
        _data_report(workspace, summary, spec, key=f"{key}-report")


def _data_report(workspace: Workspace, summary: ModelSummary, spec: str, *, key: str) -> None:
    job: Job | None = opening.newest_check(workspace, spec)
    if job is None:
        return
    if job.state != "done":
        job_id, store = job.id, workspace.store
        live(lambda: job_panel(store, job_id, key=key, noun="The check"), active=job.active)
        return
    report = DataReport.from_dict(job.result["report"])
    if report.problem:
        st.error(f"These images cannot be used. {report.problem}", icon=":material/error:")
    else:
        shape = " × ".join(map(str, report.shape))
        st.success(
            f"{report.n_looked} validation images were read; the model gets them as {shape}. It "
            f"has {summary.num_classes} outputs.",
            icon=":material/check_circle:",
        )
        st.button(
            "Use these images", key=f"{key}-use", type="primary",
            disabled=opening.data_of(workspace) == spec, on_click=opening.use_data, args=(spec,),
        )  # fmt: skip
    st.dataframe(tables.split_rows(report), hide_index=True, key=f"{key}-splits")
