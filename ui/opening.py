"""What the Open page does: files of a folder, uploads, jobs that look into files and images."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from psvit_core.errors import OutputError
from psvit_core.files import write_whole
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import Subject
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from ui import loaders, origins, state, words

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")
MODELS_ENV = "PSVIT_MODELS"
_KEEP_FREE = 50_000_000  # bytes of the disk that an upload leaves


# ---- files -----------------------------------------------------------------------------------


def models_folder(store: Store) -> Path:
    """Where models are looked for at first."""
    return Path(os.environ.get(MODELS_ENV) or uploads_folder(store)).expanduser()


def uploads_folder(store: Store) -> Path:
    """Where uploads are written."""
    folder = store.folder / "uploads"
    folder.mkdir(exist_ok=True)
    return folder


def model_files(folder: Path) -> list[tuple[Path, int]]:
    """Model files in a folder, and their bytes, by name; raises ``OSError`` if it has none."""
    files = [
        (path, path.stat().st_size)
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and path.is_file()
    ]
    return sorted(files, key=lambda found: found[0].name.lower())


def keep_upload(store: Store, name: str, content: BinaryIO) -> Path:
    """Write an upload to the disk, beside others of its name: results go by a file's name.

    Args:
        store: In whose folder.
        name: The file's name as the browser tells it; only harmless letters are kept.
        content: What is in it, read from its beginning.

    Raises:
        OutputError: If the disk has no room for it, or cannot be written to.
    """
    content.seek(0, os.SEEK_END)
    n_bytes, free = content.tell(), loaders.free_bytes(store)
    content.seek(0)
    if n_bytes + _KEEP_FREE > free:
        raise OutputError(
            f"The disk is full: {name} needs {words.kilobytes(n_bytes)}, and "
            f"{words.kilobytes(free)} are free on the disk of {store.folder}. Remove files on the "
            "Jobs page, or set PSVIT_CACHE to another disk."
        )
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name).lstrip(".") or "upload.pth"

    def write(part: Path) -> None:
        with part.open("wb") as file:
            shutil.copyfileobj(content, file)

    return write_whole(_free_path(uploads_folder(store) / safe), write)


def _free_path(path: Path) -> Path:
    """The path, with the first number at its end that makes it one of no file yet."""
    free, number = path, 2
    while free.exists():
        free, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return free


def uploads(store: Store) -> list[tuple[Path, int, float]]:
    """Uploaded files that are there, newest first: (path, bytes, when it came)."""
    found = [(path, n, path.stat().st_mtime) for path, n in model_files(uploads_folder(store))]
    return sorted(found, key=lambda upload: upload[2], reverse=True)


def remove_upload(store: Store, name: str) -> None:
    """Remove an uploaded file from the disk; one that is gone already is no matter."""
    (uploads_folder(store) / Path(name).name).unlink(missing_ok=True)


# ---- jobs ------------------------------------------------------------------------------------


def look_into(store: Store, file: str) -> None:
    """Have the worker look into a file."""
    Workspace(Subject(), store).inspect_file(file)


def newest_look(store: Store, file: str) -> Job | None:
    """The newest look into a file, unless the file has changed since."""
    for job in client.list_jobs(store):
        if job.task == "inspect" and job.params["path"] == file:
            return job if Path(file).stat().st_mtime <= job.created else None
    return None


def data_of(workspace: Workspace) -> str:
    """The images that a workspace measures on; empty where they must be given first.

    A pruned file is measured on those of the model that it came from.
    """
    card = origins.source_card(workspace.subject.model)
    built_in = card.data if card and card.data.startswith("digits") else ""
    return workspace.subject.data or built_in


def data_spec(kind: str, place: str) -> str | None:
    """The specification of a kind of data at a place; None where a place is needed."""
    if kind == "digits":
        return kind
    return f"{kind}:{place}" if place else None


def on_data(workspace: Workspace, spec: str) -> Workspace:
    """The same model on other images, all of them."""
    subject = dataclasses.replace(workspace.subject, data=spec, limit=None)
    return Workspace(subject, workspace.store)


def check(workspace: Workspace, spec: str) -> None:
    """Have the worker check images for a model."""
    on_data(workspace, spec).check_data()


def newest_check(workspace: Workspace, spec: str) -> Job | None:
    """The newest check of these images for this model."""
    return loaders.newest_job(on_data(workspace, spec), "check_data")


# ---- choices ---------------------------------------------------------------------------------


def open_model(name: str, checkpoint: str = "") -> None:
    """Have all pages work on a registered model, with weights from a file where one is given."""
    _open(name, checkpoint=checkpoint)


def open_pruned(file: str) -> None:
    """Have all pages work on a pruned file."""
    _open(loaders.OPEN_FILE, file=file)


def _open(model: str, *, file: str = "", checkpoint: str = "") -> None:
    state.choose(state.MODEL, model)
    state.choose(state.FILE, file)
    state.choose(state.CHECKPOINT, checkpoint)
    state.choose(state.DATA, "")


def use_data(spec: str) -> None:
    """Have all pages measure on these images."""
    state.choose(state.DATA, spec)
