"""Whether files have changed since they were loaded: sizes and times, not contents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from psvit_core.jobs.engine import Subject

CodeStamp = frozenset[tuple[str, int, int]]

_LEVELS = 2  # split and class folders


def code_stamp(folder: Path | None = None) -> CodeStamp:
    """Name, size and time of every Python file of the package, or of ``folder``."""
    root = folder or Path(__file__).resolve().parents[1]
    found = set()
    for path in root.rglob("*.py"):
        try:
            stat = path.stat()
        except OSError:  # an editor has just taken it away to put a new one there
            continue
        found.add((str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)


def file_stamp(path: str | None) -> list[float]:
    """Size and time of a file or folder; empty where there is none."""
    try:
        stat = Path(path).stat() if path else None
    except (OSError, ValueError):
        return []
    return [stat.st_size, stat.st_mtime] if stat else []


def data_stamp(spec: str | None) -> list[float]:
    """Sizes and times of what a data specification names.

    A file: its own. A folder: its own and those of the folders in it, two levels deep, which
    change when an image comes, goes or is replaced; an image that is overwritten in place is not
    seen.
    """
    place = (spec or "").partition(":")[2]
    stamp = file_stamp(place or None)
    if stamp and Path(place).is_dir():
        for folder in sorted(_folders(Path(place), _LEVELS)):
            stamp += file_stamp(folder)
    return stamp


def model_stamp(subject: Subject) -> list[float]:
    """Sizes and times of the files that a subject's model is made of."""
    return [
        *file_stamp(subject.model), *file_stamp(subject.checkpoint), *file_stamp(subject.plugin)
    ]  # fmt: skip


def _folders(root: Path, levels: int) -> Iterator[str]:
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                yield entry.path
                if levels > 1:
                    yield from _folders(Path(entry.path), levels - 1)
