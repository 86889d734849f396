"""The results of a sweep while it runs: what is there, what is new, and when it is written.

Results come in small pieces (one cell on some images); writing each at once would take longer than
making them. So they are gathered and written together when that costs little beside the work since
the last time, and always at the end. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from filelock import FileLock

from psvit_core.outcomes import Array, Outcome, add_outcome, load_outcome
from psvit_core.sensitivity.table import SweepSpec
from psvit_core.store import Store, digest

_WORK_PER_WRITE = 20.0  # write when that many times as long has been worked as writing takes
_FIRST_WRITE_SECONDS = 0.5


@dataclass
class Board:
    """Which images of every cell have results, and results that are not yet written.

    Args:
        spec: The sweep.
        store: Where results are kept.
    """

    spec: SweepSpec
    store: Store
    _done: dict[str, Array] = field(default_factory=dict)  # key -> (n_images,) bool
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    _fresh: dict[str, list[Outcome]] = field(default_factory=dict)
    _held: list[FileLock] = field(default_factory=list)
    _cost: float = _FIRST_WRITE_SECONDS / _WORK_PER_WRITE
    _written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._position = {name: i for i, name in enumerate(self.spec.ids)}

    def missing(self, key: str, images: Array) -> Array:
        """Those of ``images`` (positions in the sweep) without a result of this cell."""
        return images[~self._known(key)[images]]

    def _known(self, key: str) -> Array:
        """Looks into the store again when another process has written there."""
        stamp = self.store.arrays_stamp(key)
        if key not in self._done or stamp != self._stamps.get(key):
            done = self._done.setdefault(key, np.zeros(len(self.spec.ids), dtype=bool))
            kept = load_outcome(self.store, key)
            if kept is not None:
                places = (self._position.get(name) for name in kept.ids.tolist())
                done[[i for i in places if i is not None]] = True
            self._stamps[key] = stamp
        return self._done[key]

    def outcome(self, key: str) -> Outcome | None:
        """All results of a cell; those not yet written are written first."""
        if key in self._fresh:
            self.write()
        return load_outcome(self.store, key)

    def add(self, key: str, outcome: Outcome) -> None:
        """New results of a cell."""
        self._fresh.setdefault(key, []).append(outcome)
        self._known(key)[[self._position[name] for name in outcome.ids.tolist()]] = True

    def hold(self, lock: FileLock) -> None:
        """Release a lock when everything up to now is written."""
        self._held.append(lock)

    def is_due(self) -> bool:
        """Whether writing costs little beside the work since the last time."""
        return time.monotonic() - self._written > _WORK_PER_WRITE * self._cost

    def write(self) -> None:
        """Write what is new."""
        begin = time.monotonic()
        for key in list(self._fresh):
            parts = self._fresh.pop(key)
            add_outcome(self.store, key, _joined(parts))
        for lock in self._held:
            lock.release()
        self._held.clear()
        self._written = time.monotonic()
        self._cost = self._written - begin


def _joined(parts: Sequence[Outcome]) -> Outcome:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    return whole


def cells_lock(store: Store, spec: SweepSpec, group: str) -> FileLock:
    """The lock of whoever runs a group's cells.

    The system frees it when its process ends, however it ends.
    """
    name = digest([spec.baseline_key, group])
    return FileLock(store.place("locks", f"cells-{name}.lock"))


@dataclass
class Baseline:
    """The full model's answers in a sweep: logits and spike counts by image.

    Args:
        spec: The sweep.
        store: Where they are kept.
    """

    spec: SweepSpec
    store: Store
    readers: tuple[str, ...] = ()
    logits: Array = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    reached: Array = field(default_factory=lambda: np.empty((0, 0)))  # (n_images, n_readers)

    def __post_init__(self) -> None:
        n_all = len(self.spec.ids)
        self._there = np.zeros(n_all, dtype=bool)
        self._key = digest(["answers", self.spec.baseline_key])
        self._fresh: list[Outcome] = []
        known = self.store.get_arrays(self._key)
        if known is None:
            return
        place = {name: i for i, name in enumerate(self.spec.ids)}
        rows = [(place[name], i) for i, name in enumerate(known["ids"].tolist()) if name in place]
        self._make_room(tuple(known["readers"].tolist()), known["logits"])
        if rows:
            ours, theirs = (np.array(side) for side in zip(*rows, strict=True))
            self.logits[ours] = known["logits"][theirs]
            self.reached[ours] = known["reached"][theirs]
            self._there[ours] = True

    def _make_room(self, readers: tuple[str, ...], like: Array) -> None:
        n_all = len(self.spec.ids)
        self.readers = readers
        self.logits = np.zeros((n_all, like.shape[1]), dtype=like.dtype)
        self.reached = np.zeros((n_all, len(readers)))

    @property
    def column(self) -> dict[str, int]:
        """Column of each reader in ``reached``."""
        return {name: i for i, name in enumerate(self.readers)}

    def missing(self, images: Array) -> Array:
        """Those of ``images`` (positions in the sweep) without an answer."""
        return images[~self._there[images]]

    def add(
        self, images: Array, logits: Array, reached: Mapping[str, Array], outcome: Outcome
    ) -> None:
        """Answers for some images, and what they make of them."""
        if not len(self.logits):
            self._make_room(tuple(reached), logits)
        self.logits[images] = logits
        for column, name in enumerate(self.readers):
            self.reached[images, column] = reached[name]
        self._there[images] = True
        self._fresh.append(outcome)

    def write(self) -> None:
        """Write what is new."""
        if not self._fresh:
            return
        add_outcome(self.store, self.spec.baseline_key, _joined(self._fresh))
        self._fresh.clear()
        there = np.flatnonzero(self._there)
        with FileLock(self.store.place("locks", f"outcome-{self._key[:2]}.lock")):
            ids = np.array([self.spec.ids[i] for i in there])
            logits, reached = self.logits[there], self.reached[there]
            known = self.store.get_arrays(self._key)
            if known is not None:  # of other images, or by another process
                other = ~np.isin(known["ids"], ids)
                ids = np.concatenate([known["ids"][other], ids])
                logits = np.concatenate([known["logits"][other], logits])
                reached = np.concatenate([known["reached"][other], reached])
            self.store.put_arrays(
                self._key,
                {
                    "ids": ids,
                    "logits": logits,
                    "reached": reached,
                    "readers": np.array(self.readers),
                },
            )

    def outcome(self) -> Outcome:
        """What the store says of the baseline's images."""
        self.write()
        known = load_outcome(self.store, self.spec.baseline_key)
        assert known is not None
        return known
