"""Every fault of a store's files as a ``StoreError``: the path, the cause and the way out.

SQLite, diskcache, filelock and the operating system each raise errors of their own when a disk is
full, or a file is damaged, read-only or locked by another program.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import diskcache
from filelock import FileLock, Timeout

from psvit_core.errors import OutputError, StoreError
from psvit_core.storage.disk import RefusedRowError, UnreadableFileError

CACHE_ENV = "PSVIT_CACHE"

_HIDING = (OutputError, UnreadableFileError)  # their cause is the ``OSError``
_FAULTS = (sqlite3.Error, diskcache.Timeout, OSError, RefusedRowError, *_HIDING)
_OS_KINDS = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EACCES: "read-only",
    errno.EPERM: "read-only",
    errno.EROFS: "read-only",
}
_SQLITE_KINDS = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_PERM: "read-only",
    sqlite3.SQLITE_CANTOPEN: "read-only",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_IOERR: "other",
    sqlite3.SQLITE_NOMEM: "other",
    sqlite3.SQLITE_INTERRUPT: "other",
}
_VAGUE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL)
_PROBE_BYTES = 1 << 16  # SQLite needs 32 KB to open a database
_WAYS_OUT = {
    "full": f"Free some space on the disk of DISK, for example with psvit cache clear, or set "
    f"{CACHE_ENV} to a folder on another disk.",
    "read-only": f"Set {CACHE_ENV} to a folder that you can write to.",
    "locked": "Another program has locked it: wait for that program or end it, then try again. A "
    "store must not be on a network drive.",
    "other": f"Check the disk, or set {CACHE_ENV} to another folder.",
}


@contextmanager
def named_faults(doing: str, folder: Path, repair: str) -> Iterator[None]:
    """Raise ``StoreError`` for every fault of the store's files in the block.

    Args:
        doing: What the block does, for the message, such as ``open``.
        folder: The store's folder, or the file in it.
        repair: How to repair damaged files: ``Delete X; ...``.
    """
    try:
        yield
    except _FAULTS as error:
        cause = _cause(error, folder)
        kind = _kind(cause)
        way_out = _WAYS_OUT.get(kind, repair).replace("DISK", str(_mount_point(folder)))
        fault = StoreError(f"Cannot {doing} {folder}: {_reason(cause)}. {way_out}")
        fault.kind = kind
        raise fault from error


def writing_error(folder: Path) -> OSError | None:
    """Return why nothing can be written to a folder, such as a full disk; None if it can be."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            left = _PROBE_BYTES
            while left:  # only the second write to a disk that has just become full raises
                left -= file.write(bytes(left))
    except OSError as error:
        return error
    return None


def _mount_point(path: Path) -> Path:
    """Return where the disk of a path is mounted."""
    path = path.absolute()
    return next((p for p in (path, *path.parents) if p.is_mount()), path)


def _cause(error: BaseException, folder: Path) -> BaseException:
    """Return the error behind one that hides it."""
    if isinstance(error, _HIDING) and error.__cause__ is not None:
        return error.__cause__
    if isinstance(error, diskcache.Timeout):  # it replaces every error of BEGIN, not only locks
        try:
            with closing(sqlite3.connect(folder / "index" / "cache.db", timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as found:
            error = found
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _VAGUE and folder.is_dir():  # it does not tell why
        return writing_error(folder) or error
    if isinstance(error, FileNotFoundError) and error.filename:  # diskcache hides why
        there = next(p for p in (Path(error.filename), *Path(error.filename).parents) if p.exists())
        if not os.access(there, os.W_OK):
            return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    return error


def _kind(error: BaseException) -> str:
    """Return ``full``, ``read-only``, ``locked``, ``damaged`` or ``other``."""
    if isinstance(error, (diskcache.Timeout, Timeout)):
        return "locked"
    if isinstance(error, OSError):
        return _OS_KINDS.get(error.errno or 0, "other")
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)  # extended; its low byte is the kind
        return "damaged" if code is None else _SQLITE_KINDS.get(code & 0xFF, "damaged")
    return "damaged" if isinstance(error, RefusedRowError) else "other"


def _reason(error: BaseException) -> str:
    if isinstance(error, (diskcache.Timeout, Timeout)):
        return "it is locked"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300].rstrip(".")


class StoreLock(FileLock):
    """A lock on a file of a store; faults other than a timeout raise ``StoreError``."""

    def acquire(self, *arguments: Any, **options: Any) -> Any:
        """Acquire the lock, as ``FileLock.acquire``.

        Raises:
            StoreError: If the lock's file cannot be created or locked.
            Timeout: If another process holds it for longer than the timeout.
        """
        try:
            return super().acquire(*arguments, **options)
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            with named_faults("lock", Path(self.lock_file), _WAYS_OUT["other"]):
                raise error if isinstance(error, OSError) else OSError(str(error)) from error
