"""L2 norm of all that belongs to a unit: the filters that make it and the weights that read it.

The group norm of DepGraph (Fang et al. 2023, arXiv 2301.12900) without its normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psvit_core.importance._base import WeightCriterion, written_filters
from psvit_core.importance._readers import reading_layers
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel


class L2Group(WeightCriterion):
    """Euclidean norm of a unit's filters and of its readers' weights on it.

    Tied members: all filters and all readers' weights count as one vector ("concatenated"). A group
    without readers (queries and keys of an attention product) has its filters only.
    """

    name = "l2_group"

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Norm of each unit's concatenated weights, (n_units,) float64."""
        total = written_filters(model, group).square().sum(1)
        for layer in reading_layers(model, group):
            weight = layer.weight.detach().double().transpose(0, 1)
            total = total + weight.flatten(1).square().sum(1)
        return torch.sqrt(total)
