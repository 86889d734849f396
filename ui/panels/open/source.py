"""Choose a model: built in, from a folder on this machine, or uploaded."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.files import expand
from psvit_core.records import FileReport, NearestModel
from psvit_core.records.jobs import InspectRequest, InspectResult
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import list_models, model_card
from ui.model import formats, loaders, open_files, roots, state
from ui.model.foreign import in_markdown
from ui.model.loaders import Choice
from ui.model.stored_weights import FLOAT32, SHORT, quantized_note
from ui.panels.job import follow_job
from ui.panels.open.sizing import sizing_form
from ui.panels.widgets import action_button

SOURCES = {"built-in": "Built in", "folder": "From a folder on this machine", "upload": "Upload"}
_SOURCE, _FOLDER = "models-source", "models-folder"
_FILE_TYPES = [suffix.removeprefix(".") for suffix in open_files.SUFFIXES]
_WIDE = 460  # pixels


def source_panel(store: Store, choice: Choice, *, key: str) -> str | None:
    """Draw the choice of a model; nothing is opened before a button is pressed.

    Returns:
        A file that is or was inspected here and is not the open model; None without one.
    """
    st.header("1 · Choose a model", anchor=False)
    source = st.segmented_control(
        "Source",
        list(SOURCES),
        format_func=SOURCES.__getitem__,
        default="built-in",
        required=True,
        key=_SOURCE,
        persist_state="session",
        label_visibility="collapsed",
    )
    file = None
    if source == "folder":
        file = _folder(store, key=f"{key}-folder")
    elif source == "upload":
        file = _upload(store, key=f"{key}-upload")
    else:
        _built_in(choice)
    if file is None or file in (choice.model, choice.checkpoint):
        return None
    return file if open_files.newest_inspection(store, file) else None


# ---- built in --------------------------------------------------------------------------------


def _built_in(choice: Choice) -> None:
    name = loaders.card_title(choice.model) if choice.model in list_models() else ""
    now = f"Now open: **{name}**. " if name else ""
    st.markdown(
        f"{now}Choose any built-in network in the list **Model** at the top of this page. Models "
        "with weights open at once; for the others only the architecture is built in: open their "
        "published checkpoint from a folder, or upload it."
    )


# ---- files -----------------------------------------------------------------------------------


def _folder(store: Store, *, key: str) -> str | None:
    state.set_default(_FOLDER, str(open_files.models_folder(store)))
    place = st.text_input(
        "Folder with models",
        key=_FOLDER,
        persist_state="session",
        help="A folder on the machine that runs this app; $PSVIT_MODELS sets the default. "
        "Nothing is copied.",
    )
    try:
        roots.check_path(store, (place or "").strip() or ".")
        folder = expand((place or "").strip())
        found = open_files.model_files(folder)
    except OSError as error:
        st.error(
            f"Cannot read {in_markdown(str(folder))}: {error.strerror}. Enter a folder that exists."
        )
        return None
    except PsvitError as error:
        st.error(in_markdown(str(error)))
        return None
    if not found:
        st.info(
            f"No model files in {in_markdown(str(folder))}. Supported file types: "
            f"{', '.join(open_files.SUFFIXES)}.",
            icon=":material/folder_off:",
        )
        return None
    return _file_choice(store, found, key=key)


def _upload(store: Store, *, key: str) -> str | None:
    widget = state.resettable_key(f"{key}-file")

    def keep() -> None:
        file = st.session_state[widget]
        if file is None:
            return
        state.reset_widget(f"{key}-file")  # so that the session releases the content
        try:
            path = open_files.save_upload(store, file.name, file)
        except PsvitError as error:
            state.leave_error(error)
        else:
            state.put(f"{key}-kept", str(path))
            open_files.inspect_file(store, str(path))

    st.file_uploader(
        "Checkpoint file",
        _FILE_TYPES,
        key=widget,
        on_change=keep,
        help="Uploads are written to the disk. Opening from a folder is faster and copies nothing.",
    )
    free = formats.kilobytes(loaders.free_bytes(store))
    st.caption(f"Files that would run code are refused. Free disk space: {free}.")
    uploads = open_files.uploaded_files(store)
    return _file_choice(store, uploads, key=f"{key}-kept") if uploads else None


def _file_choice(store: Store, found: list[tuple[Path, int]], *, key: str) -> str:
    """Draw a list of files (path, bytes), the button that inspects one, and its report.

    Returns:
        The chosen file.
    """
    files = {str(file): f"{file.name} · {formats.kilobytes(n)}" for file, n in found}
    state.ensure_option(key, list(files), next(iter(files)))
    widget = state.key_of_content(f"{key}-file", files)
    state.put(widget, state.get(key))

    def take() -> None:
        state.put(key, state.get(widget))

    with st.container(horizontal=True, vertical_alignment="bottom", key=f"{key}-row"):
        file = st.selectbox(
            f"{len(files)} model file{'s' if len(files) != 1 else ''}",
            list(files),
            format_func=lambda path: files.get(path, path),
            key=widget,
            width=_WIDE,
            on_change=take,
        )
        action_button(
            "Inspect",
            open_files.inspect_file,
            store,
            file,
            key=f"{key}-look",
            type="primary",
            icon=":material/search:",
        )
    _file_report(store, file, key=f"{key}-report")
    return file


# ---- the report on a file --------------------------------------------------------------------


def _file_report(store: Store, file: str, *, key: str) -> None:
    """Draw the report of the file's inspection, or its progress."""
    job = open_files.newest_inspection(store, file)
    if job is None:
        st.caption("Inspect the file to find out which model it contains.")
        return
    if job.state != "done":
        follow_job(store, job, key=key)
        return
    report = job.outcome.report if isinstance(job.outcome, InspectResult) else None
    if report is None:  # another version wrote it
        return
    entry = job.request.entry if isinstance(job.request, InspectRequest) else None
    if report.entries:
        _entry_choice(store, report, key=f"{key}-entry")
        if not report.entry:
            return
    facts = (
        f"{report.n_tensors:,} tensors · {formats.short_count(report.n_values)} values · "
        f"{formats.kilobytes(report.bytes)}"
    )
    if report.pruned_from:
        _pruned_file(file, report, facts, key=key)
    elif report.fits:
        _recognised_file(file, entry, report.fits, facts, key=key)
        if report.sizings:
            with st.expander("Open with other arguments", key=f"{key}-other"):
                sizing_form(file, report.sizings, key=f"{key}-sizing", entry=entry)
    elif report.sizings:
        st.success(
            f"Recognised as {' or '.join(s.title for s in report.sizings)}: all tensors match. No "
            f"built-in network has this size. {facts}",
            icon=":material/check_circle:",
        )
        sizing_form(file, report.sizings, key=f"{key}-sizing", entry=entry)
    elif report.nearest:
        _unknown_file(report.nearest, facts)
    for note in report.notes:
        st.caption(in_markdown(f"{note[:1].upper()}{note[1:]}."))


def _entry_choice(store: Store, report: FileReport, *, key: str) -> None:
    """Draw the choice among the state dicts of a file; choosing another inspects it."""
    entries = {found.name: found for found in report.entries}

    def label(name: str) -> str:
        average = " · moving average" if entries[name].is_average else ""
        return f"{name} · {entries[name].n_tensors:,} tensors{average}"

    def inspect() -> None:
        if chosen := state.get(widget):
            open_files.inspect_file(store, report.path, chosen)

    widget = state.key_of_content(key, [report.path, *entries])
    state.put(widget, report.entry or None)
    st.selectbox(
        "Weights to load (the file contains several)",
        list(entries),
        index=None,
        placeholder="Choose",
        format_func=label,
        key=widget,
        width=_WIDE,
        on_change=inspect,
    )
    if not report.entry:
        st.caption("Choose the weights to inspect. Nothing in the file says which to use.")


def _pruned_file(file: str, report: FileReport, facts: str, *, key: str) -> None:
    origin = loaders.card_title(report.pruned_from)
    stored = f", with weights in **{SHORT[report.weights]}**" if report.weights in SHORT else ""
    st.success(
        f"A pruned model that this tool wrote, made from {in_markdown(origin)}{stored}. {facts}",
        icon=":material/content_cut:",
    )
    for measured in report.recorded:
        st.caption(in_markdown(formats.recorded_line(measured)))
    if report.weights != FLOAT32:
        st.caption(quantized_note(report.weights))
    action_button(
        "Open the pruned model",
        open_files.open_file,
        file,
        key=f"{key}-pruned",
        type="primary",
    )


def _recognised_file(
    file: str, entry: str | None, names: tuple[str, ...], facts: str, *, key: str
) -> None:
    st.success(
        f"Recognised: every tensor fits {loaders.card_title(names[0])}. {facts}",
        icon=":material/check_circle:",
    )
    with st.container(horizontal=True):
        for name in names:
            action_button(
                f"Open as {model_card(name).title}",
                open_files.open_model,
                name,
                file,
                entry,
                key=f"{key}-{name}",
                type="primary" if name == names[0] else "secondary",
            )


def _unknown_file(nearest: NearestModel, facts: str) -> None:
    st.error(
        f"No known architecture has these tensors ({facts}). The closest is "
        f"{loaders.card_title(nearest.model)}: {nearest.n_matching} tensors match, "
        f"{nearest.n_missing} are missing, "
        f"{nearest.n_unexpected} are unexpected, {nearest.n_reshaped} have a different shape.",
        icon=":material/unknown_document:",
    )
    with st.expander("Tensors that do not fit", key="no-match-tensors"):
        st.code("\n".join(nearest.examples), language=None)
        st.caption("To use a custom network, register it in Python: see the documentation.")
