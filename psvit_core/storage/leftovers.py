"""What killed processes leave in a store: temporary files, files of values, locks; no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from psvit_core.durable import remove_leftovers
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.store import Store

_PREFIX = "cells-"  # of the files of passing locks: a sweep has one for each of its groups


def passing_lock(store: Store, name: str) -> PassingLock:
    """Return a lock of a store whose file goes with it, for locks of which there are many."""
    return PassingLock(store.place("locks", f"{_PREFIX}{name}.lock"))


class PassingLock(StoreLock):
    """A lock whose file goes with it."""

    def acquire(self, *arguments: Any, **options: Any) -> Any:
        """Acquire the lock, as ``StoreLock.acquire``."""
        while True:
            held = super().acquire(*arguments, **options)
            if self._is_there():
                return held
            super().release()  # another process removed the file before this one locked it

    def _is_there(self) -> bool:
        handle = self._context.lock_file_fd
        assert handle is not None
        try:
            return os.path.samestat(os.fstat(handle), Path(self.lock_file).stat())
        except FileNotFoundError:
            return False

    def release(self, force: bool = False) -> None:
        """Release the lock and remove its file."""
        if self.is_locked:
            with suppress(PermissionError):  # some systems do not remove open files
                Path(self.lock_file).unlink(missing_ok=True)
        super().release(force)


def tidy(store: Store) -> None:
    """Remove what killed processes left; what living ones use stays.

    Nothing happens while the store cannot be written to.
    """
    with store.optional(), store.faults("tidy"):
        remove_leftovers(store.folder)
        for path in (store.folder / "locks").glob(f"{_PREFIX}*.lock"):
            _remove_idle(path)
    with store.optional():
        store.remove_unused_files()


def _remove_idle(path: Path) -> None:
    """Remove the file of a lock that no process holds."""
    lock = StoreLock(path)
    with suppress(Timeout):
        lock.acquire(timeout=0)
        path.unlink(missing_ok=True)
        lock.release()
