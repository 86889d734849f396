"""Every fault of a store's files as a ``StoreError``: the path, the cause and the way out.

SQLite, diskcache, filelock and the operating system each raise errors of their own when a disk is
full, or a file is damaged, read-only or locked by another program.
"""

from __future__ import annotations

import errno
import os
import sqlite3
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
_WAYS_OUT = {
    "full": f"Free some space, or set {CACHE_ENV} to a folder on another disk.",
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
        way_out = _WAYS_OUT.get(_kind(cause), repair)
        raise StoreError(f"Cannot {doing} {folder}: {_reason(cause)}. {way_out}") from error


def _cause(error: BaseException, folder: Path) -> BaseException:
    """Return the error behind one that hides it."""
    if isinstance(error, _HIDING) and error.__cause__ is not None:
        return error.__cause__
    if isinstance(error, diskcache.Timeout):  # it replaces every error of BEGIN, not only locks
        try:
            with closing(sqlite3.connect(folder / "index" / "cache.db", timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as found:
            return found
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
            way_out = _WAYS_OUT.get(_kind(error), _WAYS_OUT["other"])
            raise StoreError(
                f"Cannot lock {self.lock_file}: {_reason(error)}. {way_out}"
            ) from error
