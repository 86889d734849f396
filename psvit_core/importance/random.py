"""Random scores, the control that every criterion should beat."""

import torch

from psvit_core.importance._base import Calibration, Criterion, Scores
from psvit_core.storage.store import digest
from psvit_core.zoo.base import SpikingModel


class Random(Criterion):
    """Uniform random scores, determined by the seed and the group's name; one per unit."""

    name = "random"

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Return scores in [0, 1) for every group."""
        found = {}
        for group in model.channel_groups():
            own = int(digest([calib.seed, group.group_id])[:15], 16)
            generator = torch.Generator().manual_seed(own)
            found[group.group_id] = torch.rand(
                group.n_units, dtype=torch.float64, generator=generator
            )
        return found
