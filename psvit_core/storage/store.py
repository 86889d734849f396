"""Results and job state on disk, under keys made of everything that determines them; no torch.

Small records are compressed JSON in a diskcache index (``disk``, never evicted), and a table lists
their keys (``keys``). Arrays are ``.npz`` files. Every write is atomic, so a killed process leaves
no half-written result. Any number of processes may share a folder, but not on NFS.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from psvit_core.durable import make_folders
from psvit_core.errors import StoreError
from psvit_core.files import expand, write_all_atomic
from psvit_core.storage import bound
from psvit_core.storage.bound import Bound, mark_used
from psvit_core.storage.disk import SYNC_ALL, SYNC_LATER, RefusedRowError
from psvit_core.storage.faults import CACHE_ENV, named_faults
from psvit_core.storage.opening import OpenStore
from psvit_core.storage.processes import is_same_process, process_started
from psvit_core.storage.reading import FrozenIndex

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray[Any, Any]]
T = TypeVar("T")
_USING = "using/"  # of the keys of running work: its process and when it began

#: Part of every result's key; incremented when results change.
ENGINE_VERSION = 2


def default_folder() -> Path:
    """Return the folder of the default store.

    That is ``$PSVIT_CACHE`` if it is set, ``cache/`` in a checkout, and the user's cache directory
    for an installed package.

    Raises:
        StoreError: If the account has no home folder.
    """
    if chosen := os.environ.get(CACHE_ENV):
        return expand(chosen)
    root = Path(__file__).resolve().parents[2]
    if all((root / name).is_file() for name in ("pyproject.toml", "app.py")):
        return root / "cache"
    from platformdirs import user_cache_path  # only installed packages need it

    try:
        folder = user_cache_path("psvit", appauthor=False)
    except RuntimeError:
        folder = None
    if folder is None or not folder.is_absolute():  # older versions leave the ~ in it
        raise StoreError(
            "This account has no home folder to keep results in. "
            f"Set {CACHE_ENV} to a folder that you can write to."
        )
    return folder


def digest(value: object) -> str:
    """Return a hash of JSON data; equal data has equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Store(OpenStore):
    """A folder of results.

    Args:
        folder: The folder; ``default_folder()`` when None. Created if missing.

    Only its owner may use it (``private``). Every fault of its files (damaged, read-only, locked,
    on a full disk) is a ``StoreError`` that names the path and the way out. On a full disk a store
    can be read (``reading``), and it is written again as soon as that is possible.

    Raises:
        StoreError: If the folder cannot be created, may not be written to by this account, or its
            index is damaged or was changed by another program.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        #: By function and prefix, then by key: the time of the row's last change, what was parsed.
        self._parsed: dict[tuple[Callable[..., Any], str], dict[str, tuple[float, Any]]] = {}
        self._refused: dict[str, float] = {}  # keys of unreadable rows, with their times
        super().__init__(expand(folder) if folder else default_folder())
        self._bound = Bound(self.folder, self.used_since)

    def get(self, key: str) -> Any:
        """Return the JSON value under ``key``, or None.

        Raises:
            StoreError: If the row is not JSON, which is not read any further, or the store cannot
                be read.
        """
        frozen = self._only_reading()
        with self.faults("read"):
            try:
                return frozen.get(key) if frozen else self._cache.get(key)
            except RefusedRowError as error:
                raise StoreError(
                    f"Cannot read {key!r} in {self._index}: {error}. This program writes "
                    "no such row. Delete it with "
                    f"Store({str(self.folder)!r}).delete({key!r})."
                ) from error

    def put(self, key: str, value: Any, *, durable: bool = True) -> None:
        """Store a JSON value under ``key``.

        Args:
            key: The key.
            value: The value.
            durable: Whether it is on the disk when this returns. If not, that is faster, and a
                power cut may take it: for what only living processes need.
        """
        with self._changing(durable=durable):
            self._cache.set(key, value)
            self._keys.add(key)

    def put_new(self, key: str, value: Any) -> bool:
        """Store ``value`` unless ``key`` is taken; return whether it was free (atomic)."""
        with self._changing(durable=True):
            added = bool(self._cache.add(key, value))
            if added:
                self._keys.add(key)
        return added

    def delete(self, key: str, *, durable: bool = True) -> None:
        """Delete ``key`` and its value, if it exists; ``durable`` as for ``put``."""
        with self._changing(durable=durable):
            self._cache.delete(key)
            self._keys.remove(key)

    @contextmanager
    def _changing(self, *, durable: bool) -> Iterator[None]:
        """Exclude other changes of the index during the block."""
        self._reopen()
        with self.faults("write to"), self._keys.changing(durable=durable):
            # A process may have been killed between its two writes. Another one killed later would
            # hide that, since only the numbers of keys are compared.
            with suppress(RefusedRowError):  # told to whoever lists the keys
                self._complete_keys()
            self._cache._sql(f"PRAGMA synchronous = {SYNC_ALL if durable else SYNC_LATER}")
            yield

    def keys(self, prefix: str) -> Iterator[str]:
        """Return the keys that begin with ``prefix``."""
        return iter(self.changes(prefix))

    def changes(self, prefix: str) -> dict[str, float]:
        """Return the keys that begin with ``prefix`` and when each was last put.

        Reads no values.

        Returns:
            Seconds since the epoch by key, oldest key first.

        Raises:
            StoreError: If a row's key is not JSON, or the store cannot be read.
        """
        frozen = self._only_reading()
        with self.faults("read"):
            if frozen:
                return frozen.times(prefix)
            if not self._keys.is_complete(len(self._cache)):
                try:
                    with self.faults("write to"):
                        self._enter_unknown_keys()
                except StoreError as error:
                    if not error.unwritable:
                        raise
                    return FrozenIndex(self._index).times(prefix)  # listed once there is space
            return self._keys.times(prefix)

    def _enter_unknown_keys(self) -> None:
        """List keys that older versions put, or a process that was killed before it listed them."""
        try:
            with self._keys.changing():
                self._complete_keys()
        except RefusedRowError as error:
            raise StoreError(
                f"Cannot list the rows in {self._index}: {error}. This program writes no such row. "
                f"Delete {self._index}; the results are then computed again."
            ) from error

    def read(self, prefix: str, parse: Callable[[str, Any], T]) -> dict[str, T]:
        """Parse each value under ``prefix``; return the results by key.

        Results are cached until a value is put again, and shared: do not change them.

        A row that is not JSON is skipped.

        Args:
            prefix: Beginning of the keys.
            parse: A module-level function of (key, JSON value); results are cached per function.
        """
        before, now = self._parsed.get((parse, prefix), {}), {}
        for key, changed in self.changes(prefix).items():
            known = before.get(key)
            if known is None or known[0] != changed:
                value = self._readable(key, changed)
                if value is None:  # deleted in the meantime, or unreadable
                    continue
                known = changed, parse(key, value)
            now[key] = known
        self._parsed[parse, prefix] = now  # without rows that were deleted
        return {key: value for key, (_, value) in now.items()}

    def _readable(self, key: str, changed: float) -> Any:
        """Return the JSON value under ``key``; None for a bad row, which is logged once."""
        if self._refused.get(key) == changed:
            return None
        try:
            return self.get(key)
        except StoreError as error:
            if not isinstance(error.__cause__, RefusedRowError):
                raise
            log.warning("skipped a row: %s", error)
            self._refused[key] = changed
            return None

    def _array_path(self, key: str) -> Path:
        return self.folder / "arrays" / key[:2] / f"{key}.npz"

    def get_arrays(self, key: str) -> Arrays | None:
        """Return the arrays under ``key``, or None.

        Raises:
            StoreError: If the file is damaged or cannot be read.
        """
        path = self._array_path(key)
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            mark_used(path)
            return found
        except FileNotFoundError:
            return None
        except Exception as error:  # numpy and zipfile raise many kinds for damaged files
            if isinstance(error, OSError) and error.errno:
                with named_faults("read", path, ""):
                    raise
            raise StoreError(
                f"{path} is damaged ({error}). Delete it; its results are computed again."
            ) from error

    def arrays_stamp(self, key: str) -> tuple[int, int]:
        """Return a stamp that changes whenever the arrays under ``key`` are written.

        (0, 0) if there are none.
        """
        with self.faults("read"):
            try:
                found = self._array_path(key).stat()
            except FileNotFoundError:
                return 0, 0
        return found.st_ino, found.st_mtime_ns  # several writes may fall into one tick of the clock

    def put_arrays(self, key: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Store arrays under ``key`` (a ``digest``), replacing existing ones."""
        self.put_all_arrays({key: arrays})

    def put_all_arrays(self, entries: Mapping[str, Arrays | Mapping[str, Any]]) -> None:
        """Store arrays under several keys (``put_arrays``); that takes little longer than one."""
        paths = {self._array_path(key): arrays for key, arrays in entries.items()}

        def save(arrays: Mapping[str, Any], part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, **dict(arrays))

        with self.faults("write to"):
            make_folders({path.parent for path in paths})
            writers = {path: partial(save, arrays) for path, arrays in paths.items()}
            write_all_atomic(writers, self.folder / "arrays")
        with self.optional(), self.faults("remove results from"):
            for path in paths:
                self._bound.wrote(path.stat().st_size)

    # ---- the bound on its size (``bound``)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep everything that is read or written from now on until the block ends."""
        key = f"{_USING}{os.getpid()}/{uuid.uuid4().hex[:8]}"
        with self.optional():
            self.put(key, [process_started(os.getpid()), time.time()], durable=False)
        try:
            yield
        finally:
            with self.optional():
                self.delete(key, durable=False)

    def used_since(self) -> float:
        """Return the time from which on results are in use, seconds since the epoch.

        Returns:
            When the oldest work that still runs began, at the latest ``GRACE_SECONDS`` ago; 0 if
            the clock was set back meanwhile, since times of files then say nothing.
        """
        now = time.time()
        begun = [begun for _, begun in running_work(self)]
        if any(moment > now for moment in begun):
            return 0.0
        return min([now - bound.GRACE_SECONDS, *begun])


def running_work(store: Store) -> list[tuple[int, float]]:
    """Return the work that runs on a store (``Store.using``), and remove what killed work noted.

    Returns:
        Of each, its process and when it began, seconds since the epoch.
    """
    found = []
    for key in list(store.keys(_USING)):
        noted = store.get(key)
        if noted is None:  # it has just ended
            continue
        (started, begun), pid = noted, int(key.split("/")[1])
        if is_same_process(pid, started):
            found.append((pid, begun))
        else:
            with store.optional():
                store.delete(key, durable=False)
    return found
