"""The keys of a store with the times of their last change.

``diskcache`` lists keys neither by prefix nor with their times, and pages ask for both several
times a second. ``KeyIndex`` answers from a small SQLite table of its own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from psvit_core.storage.disk import SYNC_ALL, SYNC_LATER
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.processes import boot

_TIMEOUT = 60.0  # seconds to wait for another process's change
_LAST = "\U0010ffff"  # sorts after every other character


class KeyIndex:
    """Keys and times of their last change; any number of threads and processes may share it.

    Args:
        path: The SQLite file. Created if missing.

    Raises:
        sqlite3.DatabaseError: If the file is not a database.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._sql = sqlite3.connect(
            path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        (mode,) = self._sql.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            with StoreLock(path.with_suffix(".lock")):  # two processes cannot switch at once
                self._sql.execute("PRAGMA journal_mode = wal")
        self._sql.execute(
            "CREATE TABLE IF NOT EXISTS Keys "
            "(number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, time REAL NOT NULL)"
        )
        self._sql.execute("CREATE TABLE IF NOT EXISTS Unlisted (n INTEGER)")
        # Syncing every change here, too, would double its time. A power cut may take the last ones
        # instead, so the keys are compared once after every start of the machine.
        self._sql.execute("CREATE TABLE IF NOT EXISTS Compared (boot TEXT)")
        self._boot = boot()

    @contextmanager
    def changing(self, *, durable: bool = True) -> Iterator[None]:
        """Exclude other changes, of all threads and processes, until the block ends.

        Entries of the block become visible at its end, and not at all if it raises.

        Args:
            durable: Whether the change of the cache is on the disk at the end of the block.
        """
        at_once = durable and not self._boot
        with self._lock:
            self._sql.execute(f"PRAGMA synchronous = {SYNC_ALL if at_once else SYNC_LATER}")
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # SQLite ends it by itself when the disk is full
                    self._sql.execute("ROLLBACK")
                raise

    def add(self, key: str) -> None:
        """Enter a key with the current time; only within ``changing``."""
        self._sql.execute(
            "INSERT INTO Keys (key, time) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET time = excluded.time",
            (key, time.time()),
        )

    def remove(self, key: str) -> None:
        """Remove a key, if it is entered; only within ``changing``."""
        self._sql.execute("DELETE FROM Keys WHERE key = ?", (key,))

    def times(self, prefix: str) -> dict[str, float]:
        """Return keys that begin with ``prefix`` and their times, in the order of insertion."""
        with self._lock:
            rows = self._sql.execute(
                "SELECT key, time FROM Keys WHERE key >= ? AND key < ? ORDER BY number",
                (prefix, prefix + _LAST),
            )
            return dict(rows.fetchall())

    def is_complete(self, n_rows: int) -> bool:
        """Return whether all rows of the cache are entered, or known to have other keys.

        Args:
            n_rows: Number of rows in the cache.
        """
        with self._lock:
            counted = (
                "SELECT (SELECT COUNT(*) FROM Keys) + (SELECT TOTAL(n) FROM Unlisted), "
                "(SELECT boot FROM Compared)"
            )
            n_known, compared = self._sql.execute(counted).fetchone()
        return bool(n_known == n_rows and (compared or "") == self._boot)

    def rebuild(self, keys: Iterable[object], n_rows: int) -> list[str]:
        """Enter the keys of a cache that was changed without this index; within ``changing``.

        New keys get times in their order, before those of all later changes.

        Args:
            keys: Keys of the cache, oldest first; keys that are not text are left out.
            n_rows: Number of rows in the cache.

        Returns:
            Keys that were entered and that the cache does not have.
        """
        found = [key for key in keys if isinstance(key, str)]
        known = self.times("")
        self._sql.execute("DELETE FROM Keys")
        self._sql.executemany(
            "INSERT INTO Keys (key, time) VALUES (?, ?)",
            [(key, known.get(key, float(i))) for i, key in enumerate(found, start=1)],
        )
        self._sql.execute("DELETE FROM Unlisted")
        self._sql.execute("INSERT INTO Unlisted VALUES (?)", (n_rows - len(found),))
        self._sql.execute("DELETE FROM Compared")
        self._sql.execute("INSERT INTO Compared VALUES (?)", (self._boot,))
        return sorted(known.keys() - set(found))

    def close(self) -> None:
        """Close the file."""
        self._sql.close()
