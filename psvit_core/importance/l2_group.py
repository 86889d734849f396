"""L2 norm of all weights of a unit: the filters that write it and the weights that read it.

The group norm of DepGraph (Fang et al. 2023, arXiv 2301.12900) without its normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psvit_core.importance._base import WeightCriterion, writer_filters
from psvit_core.importance._readers import LayerReader, reading_layers
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel


class L2Group(WeightCriterion):
    """Euclidean norm of a unit's filters and of its readers' weights on it.

    Tied layers: all filters and all readers' weights form one vector ("concatenated"). Groups
    without weights that read them (queries and keys of an attention product) use their filters
    only.
    """

    name = "l2_group"

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Return the norm of each unit's concatenated weights, (n_units,) float64."""
        total = writer_filters(model, group).square().sum(1)
        for layer in reading_layers(model, group):
            total = total + LayerReader(layer, group.n_units).norms
        return torch.sqrt(total)
