"""Stamps of files, made of sizes and times: they show whether files have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from psvit_core.files import expand_spec
from psvit_core.image_folders import is_read_anew
from psvit_core.records import Subject

CodeStamp = frozenset[tuple[str, int, int]]

_LEVELS = 2  # split folders and class folders
_SPLITS = ("train", "calib", "val", "test")
_READING = 2.0  # number of the way in which images are read


def code_stamp(folder: Path | None = None) -> CodeStamp:
    """Return name, size and time of every Python file of the package, or of ``folder``."""
    root = folder or Path(__file__).resolve().parents[1]
    found = set()
    for path in root.rglob("*.py"):
        try:
            stat = path.stat()
        except OSError:  # an editor is replacing the file
            continue
        found.add((str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)


def file_stamp(path: str | None) -> list[float]:
    """Return size and time of a file or folder; an empty list if it does not exist."""
    try:
        stat = Path(path).stat() if path else None
    except (OSError, ValueError):
        return []
    return [stat.st_size, stat.st_mtime] if stat else []


def data_stamp(spec: str | None) -> list[float]:
    """Return sizes and times of the file or folder in a data specification.

    For a folder these include its subfolders, two levels deep. Their times change when an image is
    added, removed or replaced, but not when it is overwritten in place. Images that versions up to
    0.2 read differently have another stamp than there.
    """
    _, _, place = expand_spec(spec or "").partition(":")
    stamp = file_stamp(place or None)
    if stamp and Path(place).is_dir():
        for folder in sorted(_folders(Path(place), _LEVELS)):
            stamp += file_stamp(folder)
        if any(is_read_anew(spec or "", name) for name in _SPLITS):
            stamp.append(_READING)
    return stamp


def model_stamp(subject: Subject) -> list[float]:
    """Return sizes and times of the files that a subject's model is loaded from."""
    return [
        *file_stamp(subject.model),
        *file_stamp(subject.checkpoint),
        *file_stamp(subject.plugin),
    ]


def _folders(root: Path, levels: int) -> Iterator[str]:
    try:
        with os.scandir(root) as entries:
            found = [entry.path for entry in entries if entry.is_dir()]
    except OSError:  # a task that reads it names the fault
        return
    for path in found:
        yield path
        if levels > 1:
            yield from _folders(Path(path), levels - 1)
