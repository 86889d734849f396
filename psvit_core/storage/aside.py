"""Damaged databases of a store are renamed, so that new ones are made in their place.

Results lie in files of their own and stay: an equal request finds them again. Plans, jobs and
settings that were in a damaged index are lost, and the file is kept for whoever wants to look.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from psvit_core.storage.faults import StoreLock

log = logging.getLogger(__name__)

_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MARKER = "damaged"  # a file: some process has met damage that only a whole check finds
_TAG = ".damaged-"
_AFTER_INDEX = "its jobs and saved plans are gone; results that lie in files are used again"
_TAILS = ("", "-wal", "-shm")


def is_damage(error: BaseException | None) -> bool:
    """Return whether SQLite says that a file is damaged, or no database."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and code is not None and code & 0xFF in _CODES


def mark_damaged(folder: Path) -> None:
    """Note that a database of a store is damaged; the next start checks them as a whole."""
    (folder / _MARKER).touch()


def set_aside_damaged(folder: Path, index: Path, key_file: Path) -> None:
    """Rename the index and the table of keys of a store that are damaged.

    Args:
        folder: The store's folder.
        index: Folder of the index.
        key_file: The table of keys, which is made again from the index.
    """
    databases = {index: index / "cache.db", key_file: key_file}
    whole = (folder / _MARKER).exists()
    if not any(_is_damaged(path, whole=whole) for path in databases.values()):
        (folder / _MARKER).unlink(missing_ok=True)
        return
    with StoreLock(folder / "aside.lock"):  # another process may have done it meanwhile
        for place, path in databases.items():
            if _is_damaged(path, whole=whole):
                _rename(place, _AFTER_INDEX if place == index else "made again from the index")
        (folder / _MARKER).unlink(missing_ok=True)


def found_aside(folder: Path) -> list[Path]:
    """Return the damaged indexes that were renamed in a store, the oldest first."""
    return sorted(folder.glob(f"index{_TAG}*"))


def _rename(place: Path, after: str) -> None:
    target = f"{place.name}{_TAG}{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000}"
    for tail in _TAILS:
        if (part := place.with_name(place.name + tail)).exists():
            part.rename(place.with_name(target + tail))
    log.warning("%s was damaged. It is kept as %s, and %s.", place, target, after)


def _is_damaged(path: Path, *, whole: bool) -> bool:
    """Return whether a database cannot be read, without a doubt.

    Args:
        path: The file; one that does not exist is not damaged.
        whole: Whether to check all of it, which takes long for a large one.
    """
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if whole or _looks_cut(connection, path):
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                return bool(found != "ok")
    except sqlite3.Error as error:
        return is_damage(error)
    return False


def _looks_cut(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file ends within a page; SQLite itself notices that whole pages are gone.

    The file itself is not opened: closing it would take the locks of all connections of this
    process from the database, and another process would then delete what they still write to.
    """
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    return path.stat().st_size % int(page) != 0
