"""Filter pruning via geometric median (He et al. 2019, arXiv 1811.00250)."""

import torch
from torch import Tensor

from psvit_core.importance._base import WeightCriterion, writer_filters
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel


class FPGM(WeightCriterion):
    """Sum of the distances between a unit's filter and all other filters of its group.

    A filter close to the geometric median can be represented by the others.

    Tied layers: the filters of a unit in all layers that write the group form one vector
    ("concatenated").
    """

    name = "fpgm"

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Return the sum of Euclidean distances of each unit, (n_units,) float64."""
        filters = writer_filters(model, group)
        return torch.cdist(filters, filters).sum(1)
