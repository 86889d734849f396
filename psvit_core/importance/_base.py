"""What an importance criterion is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel


class Criterion(ABC):
    """Scores the units of a channel group; higher means keep."""

    name: str

    @abstractmethod
    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Importance of each unit of ``group``: (n_units,) float64, finite, deterministic."""


class FilterNorm(Criterion):
    """A norm of each unit's filter.

    Tied members: a unit's filters in all convolutions that write the group count as one vector
    ("concatenated"); biases and BatchNorm tensors are left out.
    """

    order: int

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Norm of each unit's concatenated filters, (n_units,) float64."""
        tensors = model.state_dict()
        filters = [
            tensors[name].detach().double().flatten(1)
            for name, _ in group.writers
            if tensors[name].dim() > 1
        ]
        return torch.cat(filters, dim=1).norm(p=self.order, dim=1)
