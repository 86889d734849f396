"""Base classes of importance criteria, and the filters that weight criteria use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.records import ChannelGroup
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

Scores = dict[str, Tensor]  # group_id -> (n_units,) float64


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Inputs of criteria other than the weights.

    Args:
        images: Labelled calibration images; None only for criteria that need none.
        run: Device, batch size and workers. Its precision is ignored in favour of the model's.
        seed: Seed of random criteria.
        tick: Called before each batch; may raise to stop.
    """

    images: EvalSet | None
    run: Run
    seed: int
    tick: Tick

    def batches(self, model: SpikingModel, batch: int | None = None) -> Iterator[Tensor]:
        """Yield the images in the model's precision and on its device."""
        assert self.images is not None
        first = next(model.parameters())
        for x in self.images.batches(batch or self.run.batch, first.dtype, self.run.workers):
            self.tick()
            yield x.to(first.device)


class Criterion(ABC):
    """A score for each unit of a channel group; units with higher scores are kept.

    Scores are finite, at least 0, and comparable within a group only.
    """

    name: str
    #: True if it needs calibration images.
    needs_images = False

    @abstractmethod
    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Score each unit of every group, in network order, without changing ``model``."""


class WeightCriterion(Criterion):
    """A criterion that depends only on the weights of the group."""

    @abstractmethod
    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Score each unit of ``group``, (n_units,) float64."""

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Score every group; the calibration is not used."""
        return {g.group_id: self.scores(model, g).cpu() for g in model.channel_groups()}


def writer_filters(model: SpikingModel, group: ChannelGroup) -> Tensor:
    """Concatenate each unit's filters in all layers that write the group, (n_units, n) float64.

    Biases and BatchNorm tensors are excluded.
    """
    filters = []
    for name, axis in group.writers:
        parent, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(model.get_submodule(parent), leaf)
        if tensor.dim() > 1:
            rows = tensor.detach().double().flatten(1)
            if (positions := group.maps.get(f"{name}:{axis}")) is not None:
                rows = rows[list(positions)]
            filters.append(rows)
    return torch.cat(filters, dim=1)


class FilterNorm(WeightCriterion):
    """A norm of each unit's filters.

    Tied layers: the filters of a unit in all layers that write the group form one vector
    ("concatenated").
    """

    order: int

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Return the norm of each unit's concatenated filters, (n_units,) float64."""
        return writer_filters(model, group).norm(p=self.order, dim=1)
