"""The bound on a store's size: results that are computed again go first, the least used before.

Only results by image are ever removed (``arrays``). Plans, checkpoints, uploads, jobs and measured
fronts stay, and so does everything that was read or written since the oldest running work began.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from psvit_core.errors import PsvitError
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.private import make_private

log = logging.getLogger(__name__)

LIMIT_ENV = "PSVIT_CACHE_LIMIT"
DEFAULT_LIMIT = 20_000_000_000  # bytes
GRACE_SECONDS = 600.0  # results used since then stay in any case
_LOW = 0.9  # of the bound, at which removing ends
_LOOKS = 50  # times that the size is looked up while as much as the bound is written
_UNITS = {"": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([kmgt]b|)", re.IGNORECASE)


def size_limit() -> int | None:
    """Return the bound on a store's size in bytes; None without one.

    Raises:
        PsvitError: If ``PSVIT_CACHE_LIMIT`` is no size.
    """
    text = os.environ.get(LIMIT_ENV, "").strip()
    if not text:
        return DEFAULT_LIMIT
    if text.lower() == "none":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise PsvitError(
            f"{LIMIT_ENV} is {text!r:.60}, which is no size. Give gigabytes (20), a size "
            "with a unit (500MB), or none."
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


@dataclass(frozen=True, kw_only=True)
class Evicted:
    """What was removed to keep a store within its bound."""

    n_files: int
    n_bytes: int
    over: int  # bytes beyond the bound that could not be removed


def evict(folder: Path, limit: int, used_since: float) -> Evicted:
    """Remove results, the least recently used first, until a store is well within its bound.

    Work that begins meanwhile keeps what it reads: that is used after this began.

    Args:
        folder: The store's folder.
        limit: The bound, bytes.
        used_since: Files used later, seconds since the epoch, are in use and stay.

    Raises:
        OSError: If a file cannot be removed.
    """
    sizes = dict(_files(folder))
    total = sum(size for _, size in sizes.values())
    if total <= limit:
        return Evicted(n_files=0, n_bytes=0, over=0)
    arrays = folder / "arrays"
    removable = sorted(
        (used, size, path)
        for path, (used, size) in sizes.items()
        if path.suffix == ".npz" and path.parent.parent == arrays  # others are being written
    )
    n_files, n_bytes = 0, 0
    for _, size, path in removable:
        if total - n_bytes <= _LOW * limit:
            break
        with suppress(FileNotFoundError):  # another process has removed it
            if _last_use(path.stat()) >= used_since:  # looked up again: it may be used now
                continue
            path.unlink()
            n_files, n_bytes = n_files + 1, n_bytes + size
    return Evicted(n_files=n_files, n_bytes=n_bytes, over=max(total - n_bytes - limit, 0))


def mark_used(path: Path) -> None:
    """Note that a file was used now; its time of change stays."""
    with suppress(OSError):  # a disk that is read-only or full
        changed = path.stat().st_mtime_ns
        os.utime(path, ns=(time.time_ns(), changed))


def _last_use(facts: os.stat_result) -> float:
    return max(facts.st_atime, facts.st_mtime)


def _files(folder: Path) -> Iterator[tuple[Path, tuple[float, int]]]:
    """Yield every file of a store with its last use and its bytes."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            with suppress(OSError):  # a process has just removed it
                facts = path.stat(follow_symlinks=False)
                yield path, (_last_use(facts), facts.st_size)


class Bound:
    """Keeps a store within its bound while it is written.

    Args:
        folder: The store's folder.
        used_since: Returns the time for ``evict``, at most the present.
    """

    def __init__(self, folder: Path, used_since: Callable[[], float]) -> None:
        self._folder, self._used_since = folder, used_since
        self._limit = size_limit()
        self._written: float = 0 if self._limit is None else self._limit  # look at the first write
        self._said = False

    def wrote(self, n_bytes: int) -> None:
        """Note that bytes were written; remove results if the store has become too large.

        Raises:
            OSError: If results cannot be removed.
        """
        self._written += n_bytes
        if self._limit is None or self._written < self._limit / _LOOKS:
            return
        self._written = 0
        if sum(size for _, (_, size) in _files(self._folder)) <= self._limit:
            return
        try:
            locks = self._folder / "locks"
            make_private(locks)
            with StoreLock(locks / "evict.lock", timeout=0):
                done = evict(self._folder, self._limit, self._used_since())
        except Timeout:  # another process is removing
            return
        if done.n_files:
            log.info("removed %d results, %d bytes", done.n_files, done.n_bytes)
        if done.over and not self._said:
            self._said = True
            log.warning("%s", over_text(self._folder, self._limit, done.over))


def over_text(folder: Path, limit: int, over: int) -> str:
    """Return what to do if what must be kept is larger than the bound."""
    return (
        f"The store in {folder} is {over / 1e6:,.1f} MB larger than its bound of "
        f"{limit / 1e6:,.1f} MB: plans, checkpoints, uploads, jobs, measured fronts and what "
        f"running work uses are never removed. Raise {LIMIT_ENV}, or remove files on the Jobs page."
    )
