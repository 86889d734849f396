"""What a cell of a sweep needs and returns, and the choice of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from psvit_core.storage.predictions import Array


@dataclass(frozen=True)
class CellOutput:
    """Results of one cell for some images of a batch.

    Attributes:
        images: Positions in the batch of the images that may differ from the full model.
        logits: (len(images), num_classes).
        reached: Spike counts of readers downstream of the change, (len(images),) each.
        requested: Positions in the batch of all requested images.
        recounted: Spike counts of readers that only lose channels, (len(requested),) each.
    """

    images: Array
    logits: Array
    reached: Mapping[str, Array]
    requested: Array
    recounted: Mapping[str, Array]


@dataclass(frozen=True)
class Task:
    """One cell to run on a batch.

    Attributes:
        kept: Units that stay, sorted.
        images: Positions in the batch of the requested images.
        on_done: Called with the output.
        edits: New weights of the unpruned model's tensors, by name: a recovered cell. They change
            every image, also those in which no removed unit was active.
    """

    kept: tuple[int, ...]
    images: Array
    on_done: Callable[[CellOutput], None]
    edits: Mapping[str, Tensor] = field(default_factory=dict)


TaskSource = Callable[[], Sequence[Task]]  # returns the cells of a group that must run now


def select_images(value: Tensor, axis: int, rows: int, chosen: Tensor, batch: int) -> Tensor:
    """Select images of a value; an axis of time steps x images has the time steps first."""
    if rows > 1:
        steps = torch.arange(rows, device=chosen.device) * batch
        chosen = (steps[:, None] + chosen[None]).flatten()
    return select_along(value, axis, chosen)


def as_array(value: Tensor) -> Array:
    """Return a tensor as an array; half precision as float32, since numpy has no bfloat16."""
    half = value.dtype in (torch.bfloat16, torch.float16)
    array: Array = (value.float() if half else value).cpu().numpy()
    return array


def select_along(value: Tensor, axis: int, index: Tensor) -> Tensor:
    """Index along an axis and preserve the memory order (channels-last stays channels-last)."""
    order = sorted(range(value.dim()), key=lambda a: -value.stride()[a])
    dense = value.permute(order).index_select(order.index(axis), index)
    return dense.permute([order.index(a) for a in range(len(order))])
