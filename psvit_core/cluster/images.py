"""Images in memory: what workers measure on, since they need not reach the driver's files."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from psvit_core.data import EvalSet
from psvit_core.storage.predictions import Array

#: More bytes of images are not sent: the nodes read the files themselves.
MOST_BYTES = 1 << 33


def for_training(data: EvalSet, workers: int = 0) -> EvalSet:
    """Return training images as a node can read them: decoded, or their files if they are many.

    Args:
        data: The images. Above ``MOST_BYTES`` decoded, their files have to be on the nodes, at the
            same paths.
        workers: Processes that decode them.
    """
    fits = data.load(0).nbytes * len(data) <= MOST_BYTES
    return in_memory(data, workers) if fits else data


def in_memory(data: EvalSet, workers: int = 0) -> EvalSet:
    """Return the same images, decoded, in one array.

    The object store shares an array among all workers of a node.

    Args:
        data: The images.
        workers: Processes that decode them.
    """
    (x,) = data.batches(len(data), workers=workers)
    return replace(data, load=_Loaded(x.numpy()))


class _Loaded:
    """A ``load`` of images in an array; a class because workers have to unpickle it."""

    def __init__(self, images: Array) -> None:
        self._images = images

    def __call__(self, position: int) -> Tensor:
        """Return a copy of the image at a position: shared arrays are read-only."""
        return torch.tensor(self._images[position])
