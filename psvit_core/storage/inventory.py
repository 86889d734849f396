"""What a store holds, whether all of it can be read, and what can be computed again; no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psvit_core.errors import StoreError
from psvit_core.storage.aside import found_aside
from psvit_core.storage.layout import MARKER
from psvit_core.storage.store import Store

#: Parts of a store's folder, and what they hold.
PARTS = {
    "arrays": "results by image, which are computed again if they are needed",
    "index": "jobs, plans, settings, measured fronts",
    "exports": "written checkpoints",
    "finetune": "learning curves, and states from which stopped trainings continue",
    "uploads": "uploaded files",
    "logs": "logs of the workers",
    "locks": "locks",
}
STATE_FILE = "state.pt"  # of a training that may continue
_INDEX_FILES = ("keys.", MARKER)  # beginnings of the names of files that belong to the index


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a store's folder."""

    name: str  # one of ``PARTS``, ``set aside`` or ``other``
    n_files: int
    n_bytes: int


def list_parts(store: Store) -> list[Part]:
    """Return the parts of a store with their sizes; those without files are left out."""
    aside = {path.name for path in found_aside(store.folder)}
    sizes: dict[str, list[int]] = {}
    for path in _files(store.folder):
        top = path.relative_to(store.folder).parts[0]
        name = "index" if top.startswith(_INDEX_FILES) else top
        name = "set aside" if top in aside else name if name in PARTS else "other"
        try:
            sizes.setdefault(name, []).append(path.stat().st_size)
        except FileNotFoundError:  # a process has just removed it
            continue
    order = (*PARTS, "set aside", "other")
    return [
        Part(name=name, n_files=len(sizes[name]), n_bytes=sum(sizes[name]))
        for name in order
        if name in sizes
    ]


def find_faults(store: Store) -> Iterator[tuple[str, str]]:
    """Read everything in a store; yield (place, what is wrong) of each part that cannot be read."""
    for key in [*store.changes("")]:
        try:
            store.get(key)
        except StoreError as error:
            yield key, str(error)
    for path in _array_files(store):
        try:
            store.get_arrays(path.stem)
        except StoreError as error:
            yield str(path), str(error)


def clear_results(
    store: Store, *, damaged_only: bool = False, trainings: bool = False
) -> tuple[int, int]:
    """Remove the results by image, which are computed again, and indexes that were set aside.

    Plans, checkpoints, uploads, jobs, learning curves and measured fronts stay.

    Args:
        store: The store; no job may run on it.
        damaged_only: Remove only results that cannot be read.
        trainings: Also remove the states of stopped trainings, which then begin anew.

    Returns:
        (number of files removed, their bytes).
    """
    chosen = [path for path in _array_files(store) if not damaged_only or _is_damaged(store, path)]
    folders = [] if damaged_only else found_aside(store.folder)
    chosen += [file for folder in folders for file in _files(folder)]
    if trainings:
        chosen += sorted((store.folder / "finetune").glob(f"*/{STATE_FILE}"))
    n_bytes = sum(path.stat().st_size for path in chosen)
    with store.faults("clear"):
        for path in chosen:
            path.unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder)
    return len(chosen), n_bytes


def _is_damaged(store: Store, path: Path) -> bool:
    try:
        store.get_arrays(path.stem)
    except StoreError:
        return True
    return False


def _array_files(store: Store) -> list[Path]:
    return sorted((store.folder / "arrays").glob("*/*.npz"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
