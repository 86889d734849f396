"""Firing rate: removes units that rarely fire first (the activity criterion of SNN pruning)."""

from __future__ import annotations

import torch
from torch import Tensor

from psvit_core.importance._readers import Inputs, Reader, ReaderCriterion, Sums


class FiringRate(ReaderCriterion):
    """Mean absolute value of a unit at its readers' inputs; for spikes, the firing rate.

    After an elementwise gate (SDT v1, Q-K attention), it is the rate of the gate's output.

    Tied layers: the mean over all readers ("mean over readers"). For queries and keys, which are
    read by the attention product, it is the mean of the query's and the key's rate.
    """

    name = "firing_rate"

    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Return the sums of absolute values and the number of values."""
        values = reader.values(inputs)
        total = torch.stack([x.abs().sum(dim=(0, 2), dtype=torch.float64) for x in values]).sum(0)
        n = sum(x.shape[0] * x.shape[2] for x in values)
        return {"total": total, "n": total.new_tensor(float(n))}

    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Return the mean absolute value, (n_units,) float64."""
        return sums["total"] / sums["n"]

    def join(self, scores: Tensor) -> Tensor:
        """Return the mean over the readers."""
        return scores.mean(0)
