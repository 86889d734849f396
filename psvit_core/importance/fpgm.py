"""Filter pruning via geometric median (He et al. 2019, arXiv 1811.00250)."""

import torch
from torch import Tensor

from psvit_core.importance._base import WeightCriterion, written_filters
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel


class FPGM(WeightCriterion):
    """Sum of the distances of a unit's filter to all others of its group.

    A filter near the geometric median can be stood for by the others.

    Tied members: a unit's filters in all convolutions that write the group count as one vector
    ("concatenated").
    """

    name = "fpgm"

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Sum of the Euclidean distances of each unit's filters, (n_units,) float64."""
        filters = written_filters(model, group)
        return torch.cdist(filters, filters).sum(1)
