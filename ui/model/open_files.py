"""Files and images to open: folders, uploads, and the jobs that inspect them."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from psvit_core.errors import OutputError
from psvit_core.files import expand, expand_spec, write_atomic
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary, Subject
from psvit_core.records.jobs import InspectRequest
from psvit_core.storage.store import Store
from psvit_core.tasks.fingerprints import file_stamp
from psvit_core.workspace import Workspace
from psvit_core.zoo.sizing import format_arguments
from ui.model import consent, formats, loaders, provenance, roots, state
from ui.model.roots import MODELS_ENV

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")  # in lower case
_RESERVE = 50_000_000  # bytes of the disk that an upload must leave free
_BLOCK = 1 << 20  # bytes read at once
_MAX_NAME = 120  # bytes; longer names leave no space for the numbers and suffixes of results


# ---- files ---------------------------------------------------------------------------------------


def models_folder(store: Store) -> Path:
    """Return the folder that the page shows first."""
    if chosen := os.environ.get(MODELS_ENV):
        return expand(chosen)
    with store.optional():
        return uploads_folder(store)
    return _uploads_path(store)


def uploads_folder(store: Store) -> Path:
    """Return the folder of the uploads; create it if needed."""
    return store.place("uploads", "file").parent


def _uploads_path(store: Store) -> Path:
    """Return the folder of the uploads, which may not exist."""
    return store.folder / "uploads"


def uploaded_files(store: Store) -> list[tuple[Path, int]]:
    """Return the uploaded files with their sizes in bytes, sorted by name."""
    folder = _uploads_path(store)
    return model_files(folder) if folder.is_dir() else []


def model_files(folder: Path) -> list[tuple[Path, int]]:
    """Return the model files of a folder with their sizes in bytes, sorted by name.

    Raises:
        OSError: If the folder cannot be read.
    """
    files = [
        (path, path.stat().st_size)
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    return sorted(files, key=lambda found: found[0].name.lower())


def save_upload(store: Store, name: str, content: BinaryIO) -> Path:
    """Write an upload to the disk under its own name, or a free one: results are stored by name.

    The same file again is not written again.

    Args:
        store: The store whose folder receives the file.
        name: The file's name as the browser reports it; characters that have a meaning to shells
            or systems are replaced, the suffix becomes lower case, and a long name is cut.
        content: The file, read from its start.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    content.seek(0, os.SEEK_END)
    n_bytes, free = content.tell(), loaders.free_bytes(store)
    content.seek(0)
    if n_bytes + _RESERVE > free:
        raise OutputError(
            f"The disk is full: {name} needs {formats.kilobytes(n_bytes)}, but the disk of "
            f"{store.folder} has {formats.kilobytes(free)} left. Remove files on the Jobs page, or "
            "set PSVIT_CACHE to a folder on another disk."
        )

    def write(part: Path) -> None:
        with part.open("wb") as file:
            shutil.copyfileobj(content, file)

    path = _free_path(uploads_folder(store) / _safe_name(name), content)
    return path if path.exists() else write_atomic(path, write)


def _safe_name(name: str) -> str:
    """Return a harmless file name, at most ``_MAX_NAME`` bytes, with a lower-case suffix."""
    plain = re.sub(r"[^\w .,()\[\]+=@-]+", "_", Path(name).name).lstrip(". ") or "upload.pth"
    path = Path(plain)
    suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ""
    stem = plain[: len(plain) - len(suffix)].encode()[: _MAX_NAME - len(suffix)]
    return stem.decode(errors="ignore") + suffix


def _free_path(path: Path, content: BinaryIO) -> Path:
    """Return the path of a file with this content, or the first one that no file has yet."""
    free, number = path, 2
    while free.exists() and not _has_content(free, content):
        free, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return free


def _has_content(path: Path, content: BinaryIO) -> bool:
    """Return whether a file contains exactly this; ``content`` is left at its start."""
    with path.open("rb") as file:
        same = True
        while same and (block := file.read(_BLOCK)):
            same = content.read(len(block)) == block
        same = same and not content.read(1)
    content.seek(0)
    return same


def list_uploads(store: Store) -> list[tuple[Path, int, float]]:
    """Return the uploaded files, newest first: (path, bytes, time of upload)."""
    found = [(path, n, path.stat().st_mtime) for path, n in uploaded_files(store)]
    return sorted(found, key=lambda upload: upload[2], reverse=True)


def remove_upload(store: Store, name: str) -> None:
    """Remove an uploaded file from the disk, if it still exists."""
    (_uploads_path(store) / Path(name).name).unlink(missing_ok=True)


# ---- jobs ----------------------------------------------------------------------------------------


def inspect_file(store: Store, file: str, entry: str | None = None) -> None:
    """Start a job that inspects a file, or one of its state dicts.

    Raises:
        OutsideError: If the file lies outside the folders that users may name.
    """
    roots.check_path(store, file)
    Workspace(Subject(), store).inspect_file(file, entry)


def newest_inspection(store: Store, file: str) -> Job | None:
    """Return the newest inspection of a file, of whichever of its state dicts.

    None if the file has changed since.
    """
    asked = InspectRequest(path=file, stamp=tuple(file_stamp(file)))
    return next((job for job in client.list_jobs(store) if _is_of_file(job, asked)), None)


def _is_of_file(job: Job, asked: InspectRequest) -> bool:
    request = job.request
    return (
        isinstance(request, InspectRequest)
        and dataclasses.replace(request, entry=asked.entry) == asked
    )


def current_data(workspace: Workspace) -> str:
    """Return the data specification that a workspace measures on; empty if none is set.

    A pruned file uses the data of its original model.
    """
    card = provenance.source_card(workspace.subject.model)
    built_in = card.data if card and card.images_included else ""
    return workspace.subject.data or built_in


def fitting_kind(workspace: Workspace, summary: ModelSummary) -> str:
    """Return the kind of images that most likely fits a model."""
    card = provenance.source_card(workspace.subject.model)
    if card is not None:
        return card.data.partition("-")[0] if card.data.startswith("digits") else card.data
    channels, side, _ = summary.input_shape
    if summary.num_classes == 1000:
        return "imagenet"
    if summary.num_classes == 10 and channels == 3 and side <= 64:
        return "cifar10"
    return "digits" if summary.num_classes == 10 and channels == 1 else "folder"


def data_spec(store: Store, kind: str, place: str) -> str | None:
    """Return the specification of a kind of data; None if it still needs a place.

    Raises:
        PsvitError: If the place lies outside the folders that users may name, or has no name.
    """
    if kind == "digits":
        return kind
    roots.check_path(store, place)
    return expand_spec(f"{kind}:{place}") if place else None


def with_data(workspace: Workspace, spec: str) -> Workspace:
    """Return the workspace of the same model on all images of other data."""
    subject = dataclasses.replace(workspace.subject, data=spec, limit=None)
    return Workspace(subject, workspace.store)


def check_data(workspace: Workspace, spec: str) -> None:
    """Start a job that checks images for a model.

    Raises:
        OutsideError: If they lie outside the folders that users may name.
    """
    roots.check_spec(workspace.store, spec)
    with_data(workspace, spec).check_data()


def newest_data_check(workspace: Workspace, spec: str) -> Job | None:
    """Return the newest check of these images for this model."""
    return loaders.newest_job(with_data(workspace, spec), "check_data")


# ---- choices -------------------------------------------------------------------------------------


def open_model(name: str, checkpoint: str = "", entry: str | None = None) -> None:
    """Open a registered model on all pages, optionally with weights from a file.

    Args:
        name: The model.
        checkpoint: Path of the file.
        entry: State dict to load, if the file contains several.
    """
    _open(name, {state.CHECKPOINT: checkpoint, state.ENTRY: entry or ""})


def open_file(
    file: str, arguments: Mapping[str, Any] | None = None, entry: str | None = None
) -> None:
    """Open a pruned file or a checkpoint on all pages.

    Args:
        file: Its path.
        arguments: What a checkpoint's tensors do not reveal; none for a pruned file.
        entry: State dict to load, if the file contains several.
    """
    text = format_arguments(arguments or {})
    _open(loaders.OPEN_FILE, {state.FILE: file, state.ARGUMENTS: text, state.ENTRY: entry or ""})


def _open(model: str, fields: Mapping[str, str]) -> None:
    consent.give(fields.get(state.FILE), fields.get(state.CHECKPOINT))
    state.put(state.MODEL, model)
    for key in (state.FILE, state.CHECKPOINT, state.DATA, state.ARGUMENTS, state.ENTRY):
        state.put(key, fields.get(key, ""))


def use_data(spec: str) -> None:
    """Use these images on all pages."""
    consent.give(spec)
    state.put(state.DATA, spec)
