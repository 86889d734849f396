"""BatchNorm scale (Liu et al. 2017, Network Slimming, arXiv 1708.06519)."""

import torch
from torch import Tensor, nn

from psvit_core.importance._base import WeightCriterion
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel


class BatchNormScale(WeightCriterion):
    """Absolute value of the scale (gamma) of a unit's BatchNorm.

    Tied layers: the mean over all BatchNorms that write the group ("mean over writers"), including
    consecutive ones in a re-parameterisable convolution.
    """

    name = "bn_scale"

    def scores(self, model: SpikingModel, group: ChannelGroup) -> Tensor:
        """Return the mean absolute gamma of each unit, (n_units,) float64."""
        norms = (nn.modules.batchnorm._BatchNorm,)
        scales = []
        for name, axis in group.writers:
            parent, _, leaf = name.rpartition(".")
            if leaf == "weight" and isinstance(model.get_submodule(parent), norms):
                scale = model.get_parameter(name).detach().double().abs()
                positions = group.maps.get(f"{name}:{axis}")
                scales.append(scale if positions is None else scale[list(positions)])
        return torch.stack(scales).mean(0)
