"""Firing rate: units that seldom fire are removed first (the activity criterion of SNN pruning)."""

from __future__ import annotations

import torch
from torch import Tensor

from psvit_core.importance._readers import Inputs, Reader, ReaderCriterion, Sums


class FiringRate(ReaderCriterion):
    """Mean absolute value of a unit at its readers' inputs: for spikes the firing rate they see.

    Behind an elementwise gate (SDT v1, Q-K attention) it is the rate of what passes the gate.

    Tied members: the mean over all readers ("mean over readers"); for queries and keys, whose
    reader is the attention product, the mean of the query's and the key's rate.
    """

    name = "firing_rate"

    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Sums of absolute values, and their number."""
        values = reader.values(inputs)
        total = torch.stack([x.abs().sum(dim=(0, 2), dtype=torch.float64) for x in values]).sum(0)
        n = sum(x.shape[0] * x.shape[2] for x in values)
        return {"total": total, "n": total.new_tensor(float(n))}

    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Mean absolute value, (n_units,) float64."""
        return sums["total"] / sums["n"]

    def join(self, scores: Tensor) -> Tensor:
        """Mean over the readers."""
        return scores.mean(0)
