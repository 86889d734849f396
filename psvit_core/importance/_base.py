"""What an importance criterion is, and the filters that the weight criteria look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from psvit_core.data import EvalSet
from psvit_core.records import ChannelGroup
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

Scores = dict[str, Tensor]  # group_id -> (n_units,) float64
Tick = Callable[[], None]  # called before each batch; raises to stop


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What criteria may use besides the weights.

    Args:
        images: Calibration images with labels; empty only for criteria that need none.
        run: Device, batch and decoding; the precision is the model's own.
        seed: For criteria that draw.
        tick: Called before each batch; may raise to stop.
    """

    images: EvalSet | None
    run: Run
    seed: int
    tick: Tick

    def batches(self, model: SpikingModel, batch: int | None = None) -> Iterator[Tensor]:
        """The images in the model's precision, on its device."""
        assert self.images is not None
        first = next(model.parameters())
        for x in self.images.batches(batch or self.run.batch, first.dtype, self.run.workers):
            self.tick()
            yield x.to(first.device)


class Criterion(ABC):
    """Scores the units of channel groups; higher means keep.

    Scores are finite, at least 0, and comparable inside a group only.
    """

    name: str
    #: Whether it needs calibration images.
    needs_images = False

    @abstractmethod
    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Importance of each unit of every group, in network order; ``model`` is not changed."""


class WeightCriterion(Criterion):
    """A criterion that looks at one group's weights and at nothing else."""

    @abstractmethod
    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Importance of each unit of ``group``: (n_units,) float64."""

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Scores of every group; the calibration changes nothing."""
        return {g.group_id: self.scores(model, g).cpu() for g in model.channel_groups()}


def written_filters(model: SpikingModel, group: ChannelGroup) -> Tensor:
    """Each unit's filters in all layers that write the group, as one vector: (n_units, n) float64.

    Biases and BatchNorm tensors are left out.
    """
    filters = []
    for name, _ in group.writers:
        parent, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(model.get_submodule(parent), leaf)
        if tensor.dim() > 1:
            filters.append(tensor.detach().double().flatten(1))
    return torch.cat(filters, dim=1)


class FilterNorm(WeightCriterion):
    """A norm of each unit's filter.

    Tied members: a unit's filters in all convolutions that write the group count as one vector
    ("concatenated"); biases and BatchNorm tensors are left out.
    """

    order: int

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Norm of each unit's concatenated filters, (n_units,) float64."""
        return written_filters(model, group).norm(p=self.order, dim=1)
