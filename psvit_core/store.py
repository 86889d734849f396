"""Results and job state on disk, kept under keys made of all that determines them; no torch.

Small records live in a diskcache index (JSON, never evicted), arrays in ``.npz`` files beside it.
Everything is written whole, so a killed process leaves no half result, and any number of processes
may share a folder (not on NFS).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import diskcache
import numpy as np

from psvit_core.errors import OutputError, StoreError
from psvit_core.files import write_whole

Arrays = dict[str, np.ndarray[Any, Any]]
T = TypeVar("T")

#: Part of every result's key; raised when the engine's numbers change.
ENGINE_VERSION = 2

_CACHE_ENV = "PSVIT_CACHE"


def default_folder() -> Path:
    """``$PSVIT_CACHE``, or ``cache/`` beside the package."""
    return Path(os.environ.get(_CACHE_ENV) or Path(__file__).resolve().parents[1] / "cache")


def digest(value: object) -> str:
    """Hash of JSON data: equal data, equal key."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Store:
    """A folder of results.

    Args:
        folder: Where; ``default_folder()`` when None. Created if missing.

    Raises:
        OutputError: If the folder cannot be created or written to.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder else default_folder()
        try:
            (self.folder / "arrays").mkdir(parents=True, exist_ok=True)
            self._index = diskcache.Cache(
                str(self.folder / "index"), disk=diskcache.JSONDisk, eviction_policy="none"
            )
        except OSError as error:
            raise OutputError(
                f"Cannot use {self.folder} as store: {error.strerror}. "
                f"Set {_CACHE_ENV} to a folder that you may write to."
            ) from error
        self._names: dict[bytes, Any] = {}  # keys as the index keeps them, and read
        self._parsed: dict[tuple[Callable[..., Any], str], tuple[float, Any]] = {}

    def get(self, key: str) -> Any:
        """The JSON value under ``key``, or None."""
        return self._index.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under ``key``."""
        self._index.set(key, value)

    def put_new(self, key: str, value: Any) -> bool:
        """Keep ``value`` unless ``key`` is taken; whether it was free (atomic)."""
        return bool(self._index.add(key, value))

    def delete(self, key: str) -> None:
        """Forget ``key``, if it is there."""
        self._index.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys that begin with ``prefix``."""
        return iter(self.changes(prefix))

    def changes(self, prefix: str) -> dict[str, float]:
        """Keys that begin with ``prefix``, and when each was put last, seconds since the epoch.

        One look over the index; no value is read.
        """
        # diskcache tells this column nowhere; reading all values instead takes a hundred times as
        # long, and pages ask several times a second.
        found = self._index._sql("SELECT key, store_time FROM Cache").fetchall()
        times = {}
        for raw, time in found:
            name = self._names.get(raw)
            if name is None:
                name = self._names[raw] = self._index.disk.get(raw, True)
            if isinstance(name, str) and name.startswith(prefix):
                times[name] = time
        return times

    def read(self, prefix: str, parse: Callable[[str, Any], T]) -> dict[str, T]:
        """What ``parse`` makes of each value under ``prefix``, by key.

        Kept until a value is put again, and shared: nobody may change it.

        Args:
            prefix: Which keys.
            parse: A module's function of (key, JSON value); results are kept under it.
        """
        found = {}
        for key, time in self.changes(prefix).items():
            known = self._parsed.get((parse, key))
            if known is None or known[0] != time:
                value = self.get(key)
                if value is None:  # deleted between the two looks
                    continue
                known = self._parsed[parse, key] = time, parse(key, value)
            found[key] = known[1]
        return found

    def _array_path(self, key: str) -> Path:
        return self.folder / "arrays" / key[:2] / f"{key}.npz"

    def get_arrays(self, key: str) -> Arrays | None:
        """The arrays under ``key``, or None.

        Raises:
            StoreError: If the file is damaged; the message says which to delete.
        """
        path = self._array_path(key)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except Exception as error:  # numpy and zipfile raise many kinds for damaged files
            raise StoreError(f"{path} is damaged ({error}). Delete it; it is made anew.") from error

    def arrays_stamp(self, key: str) -> tuple[int, int]:
        """Another one whenever the arrays under ``key`` are written; (0, 0) without any."""
        try:
            found = self._array_path(key).stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns  # a clock's tick may hold several writes

    def put_arrays(self, key: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Keep arrays under ``key`` (a ``digest``), replacing what was there."""
        path = self._array_path(key)
        path.parent.mkdir(exist_ok=True)

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, **cast(dict[str, Any], dict(arrays)))

        write_whole(path, write)

    def place(self, *names: str) -> Path:
        """A file's path under the store, its folder created."""
        path = self.folder.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        """Close the index."""
        self._index.close()
