"""The format of rows in the store's index: compressed JSON, and nothing else.

``diskcache`` unpickles rows of mode 4 and keys with ``raw=0``, also through its ``JSONDisk``, so
whoever can write to a cache folder can run code (CVE-2025-69872). ``JSONOnlyDisk`` reads and writes
the rows of ``JSONDisk`` and refuses all others before anything is unpickled.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache

from psvit_core.durable import make_folder, sync_files, sync_folders

log = logging.getLogger(__name__)

SYNC_ALL, SYNC_LATER = 2, 1  # SQLite's FULL and NORMAL: on the disk at once, or with the next one
#: Settings of every index; they replace those in the file.
SETTINGS: dict[str, Any] = {
    **diskcache.DEFAULT_SETTINGS,
    "eviction_policy": "none",
    "sqlite_synchronous": SYNC_LATER,  # ``Store`` sets it for each of its changes
}

_COUNTERS = ("count", "size", "hits", "misses")
_RAW, _BINARY = 1, 2  # modes: value in the row; value in a file
_COMPRESS_LEVEL = 1  # part of every key's bytes
_VALUE_FILE = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
_PLAIN_WORD = re.compile(r"[a-z-]+")


class RefusedRowError(Exception):
    """A row or setting that ``JSONOnlyDisk`` does not write."""


class UnreadableFileError(Exception):
    """A value's file that cannot be read; its cause is the ``OSError``."""


class JSONOnlyDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Keys and values as zlib-compressed JSON."""

    def put(self, key: Any) -> tuple[Any, bool]:
        """Return the database form of a key, and True: it is raw bytes, not a pickle."""
        return super().put(_pack(key))

    def get(self, key: Any, raw: Any) -> Any:
        """Return the key of a row.

        Raises:
            RefusedRowError: If it is not compressed JSON.
        """
        if raw != 1 or not isinstance(key, bytes):
            raise RefusedRowError(f"its key {str(key)[:40]!r} is not JSON (raw={raw!r})")
        return _unpack(key)

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        """Return the row of a value: (size, mode, file name, value in the row)."""
        if read:
            raise TypeError("the store takes JSON values, not files")
        return super().store(_pack(value), False, key=key)

    def _write(self, full_path: Any, iterator: Any, mode: Any, encoding: Any = None) -> Any:
        """Write a value's file; return its size. It is on the disk before the row that names it."""
        path = Path(full_path)
        make_folder(path.parent)
        size = super()._write(full_path, iterator, mode, encoding)
        sync_files([path])
        sync_folders([path.parent])
        return size

    def fetch(self, mode: Any, filename: Any, value: Any, read: bool) -> Any:
        """Return the value of a row.

        Raises:
            RefusedRowError: If it is not compressed JSON, in the row or in a file of this index.
            UnreadableFileError: If its file cannot be read.
            FileNotFoundError: If its file is gone.
        """
        if mode == _RAW and isinstance(value, bytes):
            return _unpack(value)
        if mode == _BINARY and value is None and _is_value_file(filename):
            try:
                return _unpack(Path(self._directory, filename).read_bytes())
            except FileNotFoundError:  # deleted since the row was read
                raise
            except OSError as error:  # diskcache would take it for a missing row
                raise UnreadableFileError(filename) from error
        place = f", file {filename!r}" if filename is not None else ""
        raise RefusedRowError(f"its value is not JSON (mode {mode!r}{place})")

    def remove(self, file_path: Any) -> None:
        """Remove a value's file; other files that a row names stay."""
        if _is_value_file(file_path):
            super().remove(file_path)
        else:
            log.warning("%r is not a file of %s and is not removed", file_path, self._directory)


def check_settings(database: Path) -> None:
    """Check the settings in an index's file before ``diskcache`` applies them.

    ``diskcache`` inserts them into SQL and sets them as attributes.

    Raises:
        RefusedRowError: If there are others than ``diskcache`` writes.
        sqlite3.DatabaseError: If the file is not a database.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'Settings'")
        if tables.fetchone() is None:
            return
        found = connection.execute("SELECT key, value FROM Settings").fetchall()
    for key, value in found:
        known = key in SETTINGS or key in _COUNTERS
        if not known or not (isinstance(value, int) or _is_plain_word(value)):
            raise RefusedRowError(f"its setting {key!r} is {value!r}")


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), _COMPRESS_LEVEL)


def _unpack(data: bytes) -> Any:
    try:
        return json.loads(zlib.decompress(data))
    except (zlib.error, ValueError, RecursionError) as error:
        raise RefusedRowError(f"it is not compressed JSON ({error})") from error


def _is_value_file(name: Any) -> bool:
    return isinstance(name, str) and _VALUE_FILE.fullmatch(name) is not None


def _is_plain_word(value: Any) -> bool:
    return isinstance(value, str) and _PLAIN_WORD.fullmatch(value) is not None
