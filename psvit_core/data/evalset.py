"""``EvalSet``, what a model is fed with: choosing subsets and splits, reading batches."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psvit_core.data.files import UnreadableImageError, digest
from psvit_core.errors import DataError

SPLITS = ("train", "calib", "val", "test")
N_CALIB = 256
SPLIT_SEED = 0
_CHECKED_AT_ONCE = 10_000

Load = Callable[[int], Tensor]
#: A batch, or the unreadable images in it.
Read = Tensor | list[UnreadableImageError]


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """One split of one data set, ready to be fed to a model.

    ``load`` gives the network input of the image at a position: (C, H, W), or frames
    (T, C, H, W), float32.
    """

    spec: str
    split: str
    transform: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    load: Load = field(repr=False)
    time_steps: int | None = None  # T of frames; None for static images
    bad: tuple[str, ...] = ()  # chosen images that are left out since nothing can read them

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Sequence[int]) -> EvalSet:
        """The images at ``positions`` of this set, in that order."""
        chosen = tuple(positions)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            load=_chosen(self.load, chosen),
        )

    def limit(self, n_images: int | None, seed: int = 0) -> EvalSet:
        """A stratified, seeded subset of ``n_images`` (None or too many: all).

        Subsets of growing size are nested, so that what was measured on a small one is reused.
        """
        chosen = limited(self.labels, n_images, seed)
        return self if len(chosen) == len(self) else self.take(chosen)

    def batches(
        self, batch: int, dtype: torch.dtype = torch.float32, workers: int = 0
    ) -> Iterator[Tensor]:
        """Network inputs in the order of ``ids``; the last batch may be short.

        Args:
            batch: Images a batch.
            dtype: Of the network.
            workers: Processes that decode images; the bits do not depend on it.

        Yields:
            (B, C, H, W), or (B, T, C, H, W) for frames.

        Raises:
            DataError: If an image cannot be read; the message counts those read so far.
        """
        parts = _Parts(self.load, len(self), batch)
        for number, read in enumerate(_read(parts, workers)):
            if isinstance(read, list):
                seen = min((number + 1) * batch, len(self))
                first = read[0]
                raise DataError(f"{first} Unreadable so far: {len(read)} of {seen} images.")
            yield read.to(dtype)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a kind of data says of one split, before a subset is chosen; no image is read yet."""

    transform: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    identify: Callable[[int], str]  # the image's id
    load: Load
    check: Callable[[int], None] | None = None  # raises UnreadableImageError; None: all are good
    time_steps: int | None = None

    def take(self, positions: Sequence[int]) -> Source:
        """The images at ``positions``, in that order."""
        chosen = tuple(positions)
        identify, check = self.identify, self.check
        return replace(
            self,
            labels=tuple(self.labels[i] for i in chosen),
            identify=lambda i: identify(chosen[i]),
            load=_chosen(self.load, chosen),
            check=(lambda i: check(chosen[i])) if check else None,
        )

    def choose(
        self, spec: str, split: str, n_images: int | None, *, skip_bad: bool, seed: int = 0
    ) -> EvalSet:
        """The set of a subset's images; with ``skip_bad`` only those that can be read."""
        positions = limited(self.labels, n_images, seed)
        bad: list[str] = []
        if skip_bad and self.check:
            positions, bad = _readable(self.check, positions, spec)
        return EvalSet(
            spec=spec,
            split=split,
            transform=self.transform,
            ids=_distinct([self.identify(i) for i in positions]),
            labels=tuple(self.labels[i] for i in positions),
            classes=self.classes,
            load=_chosen(self.load, tuple(positions)),
            time_steps=self.time_steps,
            bad=tuple(bad),
        )


# ---- choosing --------------------------------------------------------------------------------


def limited(labels: Sequence[int], n_images: int | None, seed: int = 0) -> list[int]:
    """Positions of a stratified, seeded subset, ascending; all for None or too many.

    Raises:
        DataError: If the limit is below 1, or the seed is none that numpy takes.
    """
    if not 0 <= seed < 1 << 32:
        raise DataError(f"A seed is a whole number from 0 to 2^32 - 1; got {seed}.")
    if n_images is None or n_images >= len(labels):
        return list(range(len(labels)))
    if n_images < 1:
        raise DataError(f"A limit keeps at least one image; got {n_images}.")
    return sorted(stratified_order(labels, seed)[:n_images])


def _distinct(ids: Sequence[str]) -> tuple[str, ...]:
    """``ids`` where an image that is there again has the number of its occurrence added.

    Results are kept by id; those of equal images are equal, whichever of them is in a subset.
    """
    seen: Counter[str] = Counter()
    distinct = []
    for name in ids:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}/{seen[name]}")
    return tuple(distinct)


def stratified_order(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Positions such that every prefix holds the classes in nearly equal shares."""
    random = np.random.RandomState(seed)  # its streams never change between numpy versions
    rank: dict[int, int] = {}
    keys: list[tuple[int, int, int]] = []
    for position in random.permutation(len(labels)):
        label = labels[position]
        rank[label] = rank.get(label, -1) + 1
        keys.append((rank[label], len(keys), int(position)))
    return [position for _, _, position in sorted(keys)]


def calib_positions(labels: Sequence[int]) -> list[int]:
    """``calib``: 256 training images, stratified and seeded."""
    return limited(labels, N_CALIB, SPLIT_SEED)


def half(labels: Sequence[int], names: Sequence[str], split: str) -> list[int]:
    """One of the seeded halves of each class: the larger is ``val``, the other ``test``.

    An image's turn follows from its name alone, so neither the order of the files nor the images
    of other classes move it to the other half.
    """
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    chosen: list[int] = []
    for positions in by_label.values():
        positions.sort(key=lambda i: digest(f"{SPLIT_SEED}/{names[i]}".encode(errors="replace")))
        middle = (len(positions) + 1) // 2
        chosen += positions[:middle] if split == "val" else positions[middle:]
    return sorted(chosen)


def _readable(
    check: Callable[[int], None], positions: list[int], spec: str
) -> tuple[list[int], list[str]]:
    """Which positions can be read, and the names of the others."""

    def fault(position: int) -> UnreadableImageError | None:
        try:
            check(position)
        except UnreadableImageError as error:
            return error
        return None

    faults: list[UnreadableImageError | None] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding frees the GIL
        for low in range(0, len(positions), _CHECKED_AT_ONCE):
            faults += pool.map(fault, positions[low : low + _CHECKED_AT_ONCE])
    bad = [error for error in faults if error]
    if len(bad) == len(positions):
        raise DataError(f"{spec}: none of the {len(bad)} images can be read. {bad[0]}")
    good = [i for i, error in zip(positions, faults, strict=True) if not error]
    return good, [error.name for error in bad]


# ---- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """A ``load`` by positions of another; a class, so that it can be sent to other processes."""

    load: Load
    positions: tuple[int, ...]

    def __call__(self, position: int) -> Tensor:
        return self.load(self.positions[position])


def _chosen(load: Load, positions: tuple[int, ...]) -> Load:
    if isinstance(load, _Chosen):
        return _Chosen(load.load, tuple(load.positions[i] for i in positions))
    return _Chosen(load, positions)


@dataclass(frozen=True)
class _Parts(Dataset[Read]):
    """The batches of a set, by number."""

    load: Load
    n_images: int
    batch: int

    def __len__(self) -> int:
        return -(-self.n_images // self.batch)

    def __getitem__(self, number: int) -> Read:
        low = number * self.batch
        images: list[Tensor] = []
        bad: list[UnreadableImageError] = []
        for position in range(low, min(low + self.batch, self.n_images)):
            try:
                images.append(self.load(position))
            except UnreadableImageError as error:  # as a value: a worker would garble its message
                bad.append(error)
        return bad or torch.stack(images)


def _read(parts: _Parts, workers: int) -> Iterator[Read]:
    """Batches, or the faults in one, in order."""
    if workers < 0:
        raise DataError(f"Decoding takes 0 or more worker processes; got {workers}.")
    workers = min(workers, len(parts))
    if workers == 0:
        yield from (parts[number] for number in range(len(parts)))
        return
    loader = DataLoader(
        parts,
        batch_size=None,  # an item is a batch
        shuffle=False,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # leave the global one alone
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) and "shared memory" not in str(error):
            raise
        raise DataError(
            f"A process that decodes images ended or found no memory ({str(error).splitlines()[0]})"
            ". Use fewer workers (--workers 0: none) or a smaller batch."
        ) from error


def _as_it_is(read: Read) -> Read:
    return read
