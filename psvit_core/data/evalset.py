"""``EvalSet``, a split of a data set: subsets, splits and batches."""

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

from psvit_core.data.files import UnreadableImageError, content_hash
from psvit_core.errors import DataError
from psvit_core.files import data_set_name

SPLITS = ("train", "calib", "val", "test")
N_CALIB = 256
SPLIT_SEED = 0
_CHECK_CHUNK = 10_000

Load = Callable[[int], Tensor]
#: A batch, or the errors of its unreadable images.
BatchOrErrors = Tensor | list[UnreadableImageError]


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """One split of a data set, ready to run a model on.

    ``load`` returns the network input at a position, float32: (C, H, W), or frames (T, C, H, W).
    """

    spec: str
    split: str
    transform: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    load: Load = field(repr=False)
    time_steps: int | None = None  # of frames; None for static images
    bad: tuple[str, ...] = ()  # selected images that were skipped as unreadable
    reading: str = ""  # ``image_folders.READING`` if old versions read other labels or splits

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        """The data as results name it (``files.data_set_name``)."""
        return data_set_name(self.spec)

    def take(self, positions: Sequence[int]) -> EvalSet:
        """Return the images at ``positions``, in that order."""
        chosen = tuple(positions)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            load=_chosen(self.load, chosen),
        )

    def limit(self, n_images: int | None, seed: int = 0) -> EvalSet:
        """Return a stratified, seeded subset.

        Subsets of increasing size are nested, so that results of smaller ones are reused.

        Args:
            n_images: Size of the subset; None or a larger number returns all images.
            seed: Seed of the choice.

        Raises:
            DataError: If the size is below 1 or the seed is out of range.
        """
        chosen = stratified_subset(self.labels, n_images, seed)
        return self if len(chosen) == len(self) else self.take(chosen)

    def batches(
        self, batch: int, dtype: torch.dtype = torch.float32, workers: int = 0
    ) -> Iterator[Tensor]:
        """Yield network inputs in the order of ``ids``; the last batch may be smaller.

        Args:
            batch: Batch size.
            dtype: Data type of the network.
            workers: Processes that load images, which does not change the values.

        Yields:
            (B, C, H, W), or (B, T, C, H, W) for frames.

        Raises:
            DataError: If an image cannot be read; the message counts the images read so far.
        """
        batches = _Batches(self.load, len(self), batch)
        for number, loaded in enumerate(_load_batches(batches, workers)):
            if isinstance(loaded, list):
                n_read = min((number + 1) * batch, len(self))
                first = loaded[0]
                raise DataError(f"{first} Unreadable so far: {len(loaded)} of {n_read} images.")
            yield loaded.to(dtype)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a data set before a subset is selected; no image has been read."""

    transform: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    identify: Callable[[int], str]  # id of the image at a position
    load: Load
    check: Callable[[int], None] | None = None  # raises UnreadableImageError
    time_steps: int | None = None
    reading: str = ""  # as in ``EvalSet``

    def take(self, positions: Sequence[int]) -> Source:
        """Return the images at ``positions``, in that order."""
        chosen = tuple(positions)
        identify, check = self.identify, self.check
        return replace(
            self,
            labels=tuple(self.labels[i] for i in chosen),
            identify=lambda i: identify(chosen[i]),
            load=_chosen(self.load, chosen),
            check=(lambda i: check(chosen[i])) if check else None,
        )

    def load_subset(
        self, spec: str, split: str, n_images: int | None, *, skip_bad: bool, seed: int = 0
    ) -> EvalSet:
        """Return a stratified subset as an ``EvalSet``; ``skip_bad`` removes unreadable images."""
        positions = stratified_subset(self.labels, n_images, seed)
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
            reading=self.reading,
        )


# ---- subsets ---------------------------------------------------------------------------------


def stratified_subset(labels: Sequence[int], n_images: int | None, seed: int = 0) -> list[int]:
    """Return the positions of a stratified, seeded subset, ascending.

    Args:
        labels: Labels of all images.
        n_images: Size of the subset; None or a larger number returns all positions.
        seed: Seed of the choice, in [0, 2^32).

    Raises:
        DataError: If the size is below 1 or the seed is out of range.
    """
    if not 0 <= seed < 1 << 32:
        raise DataError(f"A seed must be an integer from 0 to 2^32 - 1; got {seed}.")
    if n_images is None or n_images >= len(labels):
        return list(range(len(labels)))
    if n_images < 1:
        raise DataError(f"The limit must be at least 1 image; got {n_images}.")
    return sorted(stratified_order(labels, seed)[:n_images])


def _distinct(ids: Sequence[str]) -> tuple[str, ...]:
    """Make ids unique by appending the number of the occurrence to repeated ones.

    Results are stored by id. Equal images have equal results, so it does not matter which of them
    is in a subset.
    """
    seen: Counter[str] = Counter()
    distinct = []
    for name in ids:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}/{seen[name]}")
    return tuple(distinct)


def stratified_order(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Return all positions, ordered so that every prefix has nearly equal class counts."""
    random = np.random.RandomState(seed)  # stable across numpy versions
    rank: dict[int, int] = {}
    keys: list[tuple[int, int, int]] = []
    for position in random.permutation(len(labels)):
        label = labels[position]
        rank[label] = rank.get(label, -1) + 1
        keys.append((rank[label], len(keys), int(position)))
    return [position for _, _, position in sorted(keys)]


def calib_positions(labels: Sequence[int]) -> list[int]:
    """Return the positions of ``calib``: 256 training images, stratified and seeded."""
    return stratified_subset(labels, N_CALIB, SPLIT_SEED)


def split_half(labels: Sequence[int], names: Sequence[str], split: str) -> list[int]:
    """Return the positions of one seeded half of each class: the larger half is ``val``.

    Images are ordered by a hash of their name, so the order of the files and the images of other
    classes do not matter.

    Args:
        labels: Labels of all images.
        names: Names of all images.
        split: ``val`` or ``test``.
    """
    return _split(labels, names, lambda n: (n + 1) // 2, first=split == "val")


def split_tenth(labels: Sequence[int], names: Sequence[str], split: str) -> list[int]:
    """Return the positions of ``val``, a seeded tenth of each class, or of ``train``, the others.

    Each class has at least one image in ``val``.

    Args:
        labels: Labels of all images.
        names: Names of all images, which order them as in ``split_half``.
        split: ``val`` or ``train``.
    """
    return _split(labels, names, lambda n: max(1, (n + 5) // 10), first=split == "val")


def _split(
    labels: Sequence[int], names: Sequence[str], n_first: Callable[[int], int], *, first: bool
) -> list[int]:
    """Return the positions of the first images of each class in a seeded order, or the others."""
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_label.setdefault(label, []).append(position)
    chosen: list[int] = []
    for positions in by_label.values():
        positions.sort(
            key=lambda i: content_hash(f"{SPLIT_SEED}/{names[i]}".encode(errors="replace"))
        )
        middle = n_first(len(positions))
        chosen += positions[:middle] if first else positions[middle:]
    return sorted(chosen)


def _readable(
    check: Callable[[int], None], positions: list[int], spec: str
) -> tuple[list[int], list[str]]:
    """Return the positions of readable images, and the names of the others."""

    def error_at(position: int) -> UnreadableImageError | None:
        try:
            check(position)
        except UnreadableImageError as error:
            return error
        return None

    errors: list[UnreadableImageError | None] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the GIL
        for low in range(0, len(positions), _CHECK_CHUNK):
            errors += pool.map(error_at, positions[low : low + _CHECK_CHUNK])
    bad = [error for error in errors if error]
    if len(bad) == len(positions):
        raise DataError(f"{spec}: none of the {len(bad)} images can be read. {bad[0]}")
    good = [i for i, error in zip(positions, errors, strict=True) if not error]
    return good, [error.name for error in bad]


# ---- batches ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """A ``load`` for selected positions; a class because workers have to unpickle it."""

    load: Load
    positions: tuple[int, ...]

    def __call__(self, position: int) -> Tensor:
        return self.load(self.positions[position])


def _chosen(load: Load, positions: tuple[int, ...]) -> Load:
    if isinstance(load, _Chosen):
        return _Chosen(load.load, tuple(load.positions[i] for i in positions))
    return _Chosen(load, positions)


@dataclass(frozen=True)
class _Batches(Dataset[BatchOrErrors]):
    """The batches of a set by number."""

    load: Load
    n_images: int
    batch: int

    def __len__(self) -> int:
        return (self.n_images + self.batch - 1) // self.batch

    def __getitem__(self, number: int) -> BatchOrErrors:
        low = number * self.batch
        images: list[Tensor] = []
        bad: list[UnreadableImageError] = []
        for position in range(low, min(low + self.batch, self.n_images)):
            try:
                images.append(self.load(position))
            except UnreadableImageError as error:  # raised in a worker, it would lose its message
                bad.append(error)
        return bad or torch.stack(images)


def _load_batches(batches: _Batches, workers: int) -> Iterator[BatchOrErrors]:
    """Yield the batches in order; an unreadable one as its errors."""
    if workers < 0:
        raise DataError(f"The number of workers must be at least 0; got {workers}.")
    workers = min(workers, len(batches))
    if workers == 0:
        yield from (batches[number] for number in range(len(batches)))
        return
    loader = DataLoader(
        batches,
        batch_size=None,  # an item is a batch
        shuffle=False,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # keeps the global generator unchanged
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) and "shared memory" not in str(error):
            raise
        raise DataError(
            "A process that loads images stopped or ran out of memory "
            f"({str(error).splitlines()[0]}). Use fewer workers (--workers 0: none) or a smaller "
            "batch."
        ) from error


def _unchanged(loaded: BatchOrErrors) -> BatchOrErrors:
    return loaded


def visiting_order(data: EvalSet, cluster: int | None) -> list[int]:
    """Return positions of ``data`` in an order in which every prefix is a fair sample.

    Data sets are often sorted by class, so their first images are not representative. The order is
    seeded and stratified as in ``EvalSet.limit``: its first n images are those of a limit of n.

    Args:
        data: Images.
        cluster: Batch size if the images of a batch influence each other: batches then stay
            together and come in a seeded random order, a short one last.
    """
    if cluster is None:
        return stratified_order(data.labels)
    whole = len(data) // cluster
    starts = np.random.RandomState(0).permutation(whole) * cluster
    order = [int(start) + i for start in starts for i in range(cluster)]
    return order + list(range(whole * cluster, len(data)))
