"""A sweep's results, buffered until they are written.

Results come in small pieces (one cell on some images), and writing each piece at once would take
longer than computing it. So pieces are collected and written together: whenever writing costs
little compared with the work since the last write, and at the end. No torch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from filelock import FileLock

from psvit_core.sensitivity.spec import SweepSpec
from psvit_core.storage.baselines import add_outputs, load_outputs
from psvit_core.storage.leftovers import passing_lock
from psvit_core.storage.predictions import (
    Array,
    Outcome,
    add_outcome,
    add_outcomes,
    load_outcome,
)
from psvit_core.storage.store import Store, digest

_WORK_PER_WRITE = 20.0  # seconds of work per second of writing
_FIRST_WRITE_SECONDS = 0.5


@dataclass
class ResultBuffer:
    """Results of a sweep's cells that are not yet written, and which images have results.

    Args:
        spec: The sweep.
        store: Where results are written.
    """

    spec: SweepSpec
    store: Store
    _done: dict[str, Array] = field(default_factory=dict)  # key -> (n_images,) bool
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _unwritten: dict[str, list[Outcome]] = field(default_factory=dict)
    _locks: list[FileLock] = field(default_factory=list)
    _write_seconds: float = _FIRST_WRITE_SECONDS / _WORK_PER_WRITE
    _last_write: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._position = {name: i for i, name in enumerate(self.spec.ids)}

    def missing(self, key: str, images: Array) -> Array:
        """Return those of ``images`` (positions in the sweep) without a result of this cell."""
        return images[~self._images_done(key)[images]]

    def _images_done(self, key: str) -> Array:
        """Return which images have a result; rereads the store if another process wrote there."""
        stamp = self.store.arrays_stamp(key)
        if key not in self._done or stamp != self._stamps.get(key):
            done = self._done[key] = np.zeros(len(self.spec.ids), dtype=bool)
            stored = load_outcome(self.store, key)  # None also if they were removed meanwhile
            for known in (*([stored] if stored else []), *self._unwritten.get(key, ())):
                positions = (self._position.get(name) for name in known.ids.tolist())
                done[[i for i in positions if i is not None]] = True
            self._stamps[key] = stamp
        return self._done[key]

    def outcome(self, key: str) -> Outcome | None:
        """Return all results of a cell; unwritten results are written first."""
        if key in self._unwritten:
            self.write()
        return load_outcome(self.store, key)

    def add(self, key: str, outcome: Outcome) -> None:
        """Add results of a cell."""
        self._unwritten.setdefault(key, []).append(outcome)
        self._images_done(key)[[self._position[name] for name in outcome.ids.tolist()]] = True

    def release_after_write(self, lock: FileLock) -> None:
        """Release a lock once all results so far are written."""
        self._locks.append(lock)

    def is_due(self) -> bool:
        """Return whether writing costs little compared with the work since the last write."""
        return time.monotonic() - self._last_write > _WORK_PER_WRITE * self._write_seconds

    def write(self) -> None:
        """Write all results so far."""
        begin = time.monotonic()
        add_outcomes(self.store, {key: _joined(parts) for key, parts in self._unwritten.items()})
        self._unwritten.clear()
        for lock in self._locks:
            lock.release()
        self._locks.clear()
        self._last_write = time.monotonic()
        self._write_seconds = self._last_write - begin


@contextmanager
def store_or_temporary(store: Store | None) -> Iterator[Store]:
    """Yield the store, or a temporary one that is deleted at the end."""
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Store(folder)
        try:
            yield temporary
        finally:
            temporary.close()


def _joined(parts: Sequence[Outcome]) -> Outcome:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    return whole


def group_lock(store: Store, spec: SweepSpec, group: str) -> FileLock:
    """Return the lock that a process holds while it runs a group's cells.

    The system releases it when the process ends, even if the process is killed.
    """
    name = digest([spec.baseline_key, group, *filter(None, [spec.recovered_by])])
    return passing_lock(store, name)


@dataclass
class SweepBaseline:
    """The full model's logits and spike counts on the images of a sweep.

    An image has a baseline only if the store has both its outcome and its raw outputs: a process
    may have been stopped between the two writes.

    Args:
        spec: The sweep.
        store: Where they are stored.
    """

    spec: SweepSpec
    store: Store
    readers: tuple[str, ...] = ()
    logits: Array = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    reached: Array = field(default_factory=lambda: np.empty((0, 0)))  # (n_images, n_readers)

    def __post_init__(self) -> None:
        self._done = np.zeros(len(self.spec.ids), dtype=bool)
        self._unwritten: list[Outcome] = []
        outputs = load_outputs(self.store, self.spec.baseline_key)
        outcome = load_outcome(self.store, self.spec.baseline_key)
        if outputs is None:
            return
        self._allocate(tuple(outputs["readers"].tolist()), outputs["logits"])
        with_outcome = set(outcome.ids.tolist() if outcome else ())
        position = {name: i for i, name in enumerate(self.spec.ids) if name in with_outcome}
        stored = enumerate(outputs["ids"].tolist())
        rows = [(position[name], i) for i, name in stored if name in position]
        if rows:
            ours, theirs = (np.array(side) for side in zip(*rows, strict=True))
            self.logits[ours] = outputs["logits"][theirs]
            self.reached[ours] = outputs["reached"][theirs]
            self._done[ours] = True

    def _allocate(self, readers: tuple[str, ...], like: Array) -> None:
        n_all = len(self.spec.ids)
        self.readers = readers
        self.logits = np.zeros((n_all, like.shape[1]), dtype=like.dtype)
        self.reached = np.zeros((n_all, len(readers)))

    @property
    def column(self) -> dict[str, int]:
        """Column of each reader in ``reached``."""
        return {name: i for i, name in enumerate(self.readers)}

    def missing(self, images: Array) -> Array:
        """Return those of ``images`` (positions in the sweep) without a baseline."""
        return images[~self._done[images]]

    def add(
        self, images: Array, logits: Array, reached: Mapping[str, Array], outcome: Outcome
    ) -> None:
        """Add the full model's outputs for some images, and the outcome made from them."""
        if not len(self.logits):
            self._allocate(tuple(reached), logits)
        self.logits[images] = logits
        for column, name in enumerate(self.readers):
            self.reached[images, column] = reached[name]
        self._done[images] = True
        self._unwritten.append(outcome)

    def write(self) -> None:
        """Write all results so far."""
        if not self._unwritten:
            return
        add_outcome(self.store, self.spec.baseline_key, _joined(self._unwritten))
        self._unwritten.clear()
        done = np.flatnonzero(self._done)
        add_outputs(
            self.store,
            self.spec.baseline_key,
            np.array([self.spec.ids[i] for i in done]),
            {"logits": self.logits[done], "reached": self.reached[done]},
            {"readers": np.array(self.readers)},
        )

    def outcome(self) -> Outcome:
        """Return all stored results of the baseline; unwritten results are written first."""
        self.write()
        stored = load_outcome(self.store, self.spec.baseline_key)
        assert stored is not None
        return stored
