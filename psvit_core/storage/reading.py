"""Read a store's index without writing a byte, for a disk that is full.

SQLite needs space even to open a database: for the memory that its processes share (``-shm``), and
``diskcache`` writes its settings. So the rows are copied into memory, and copied again when the
files have changed.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from psvit_core.storage.disk import JSONOnlyDisk, RefusedRowError

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # seconds to wait for another process
_ROWS = "SELECT key, raw, store_time, mode, filename, value FROM Cache ORDER BY rowid"
_ATTEMPTS = 3  # to copy rows that no process changes meanwhile
_Row = tuple[float, Any, Any, Any]  # time, mode, file name, value
_Stamp = tuple[tuple[int, int], ...]


class FrozenIndex:
    """The rows of a store's index in memory; any number of threads may share it.

    Args:
        folder: Folder of the index; one without a database has no rows.

    Raises:
        sqlite3.Error: If the database cannot be read.
        OSError: If its files cannot be found out.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cache.db"
        self._disk = JSONOnlyDisk(str(folder))
        self._lock = threading.Lock()
        self._stamp: _Stamp = ()
        self._rows: dict[str, _Row] = {}
        self._known()

    def get(self, key: str) -> Any:
        """Return the JSON value under ``key``, or None.

        Raises:
            RefusedRowError: If the row is not JSON.
            UnreadableFileError: If its file cannot be read.
        """
        row = self._known().get(key)
        if row is None:
            return None
        try:
            return self._disk.fetch(*row[1:], False)
        except FileNotFoundError:  # deleted since the row was read
            return None

    def times(self, prefix: str) -> dict[str, float]:
        """Return keys that begin with ``prefix`` and when each was put, in the order of insertion.

        A row whose key is not JSON is left out.
        """
        return {key: row[0] for key, row in self._known().items() if key.startswith(prefix)}

    def _known(self) -> dict[str, _Row]:
        """Return the rows, copied anew if the files have changed."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                stamp = self._stamp_now()
                if stamp == self._stamp:
                    break
                self._rows, self._stamp = self._named(_copied(self._path)), stamp
            return self._rows

    def _stamp_now(self) -> _Stamp:
        found = []
        for tail in ("", "-wal"):
            try:
                facts = self._path.with_name(self._path.name + tail).stat()
            except FileNotFoundError:
                continue
            if facts.st_size:  # a reader leaves an empty log
                found.append((facts.st_size, facts.st_mtime_ns))
        return tuple(found)

    def _named(self, rows: list[tuple[Any, ...]]) -> dict[str, _Row]:
        found = {}
        for key, raw, *row in rows:
            try:
                name = self._disk.get(key, raw)
            except RefusedRowError as error:
                log.warning("skipped a row in %s: %s", self._path, error)
                continue
            if isinstance(name, str):
                found[name] = (row[0], row[1], row[2], row[3])
        return found


def _copied(path: Path) -> list[tuple[Any, ...]]:
    """Return all rows of an index, read in the first way that is possible.

    Raises:
        sqlite3.Error: If it cannot be read in any way.
    """
    if not path.is_file():
        return []
    ways = [
        ("mode=ro", ""),  # another process has opened it, or there is a little space
        ("mode=rw", "PRAGMA locking_mode = exclusive"),  # needs no shared memory
    ]
    log_file = path.with_name(path.name + "-wal")
    if not log_file.exists() or not log_file.stat().st_size:
        ways.append(("immutable=1", ""))  # creates no file, but ignores the log
    error: sqlite3.Error | None = None
    for mode, first in ways:
        try:
            return _read(f"{path.absolute().as_uri()}?{mode}", first)
        except sqlite3.Error as found:
            error = error or found
    assert error is not None
    raise error


def _read(address: str, first: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(address, uri=True, timeout=_TIMEOUT, isolation_level=None)
    with closing(connection):
        if first:
            connection.execute(first)
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'Cache'")
        return connection.execute(_ROWS).fetchall() if tables.fetchone() else []
