"""Reconstruction error at the readers, as channel pruning by reconstruction minimises it.

He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks (arXiv 1707.06168), and
Luo et al. 2017, ThiNet (arXiv 1707.06342), choose channels whose removal changes the next layer's
output least; here each unit by itself, with the next layer's bias free to follow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psvit_core.importance._readers import Inputs, Reader, ReaderCriterion, Sums

_LEAST = 1e-12  # of a channel's mean square: less variance than this is rounding


class Reconstruction(ReaderCriterion):
    """Share of the variance of its readers' outputs that is lost with the unit alone.

    For a unit u and an output channel o of a reader, ``c = sum over taps of W[o,u,tap] x[u,tap]``
    is what disappears from the output ``y_o``. The score is the sum over o of
    ``Var(c) / Var(y_o)``, over all images, time steps and positions: the squared error that is left
    when the output's mean may follow (a bias or a BatchNorm takes it up), in the units that the
    reader's BatchNorm gives its output. Exact with the cross terms between the taps of a kernel, at
    strides and borders; terms between different units are none, since one is removed at a time.
    For 1x1 readers ``Var(c) = W[o,u]^2 Var(x_u)``.

    Tied members: the sum over all readers ("sum over readers"). Queries and keys are read by the
    attention product, whose output loses ``q_c (k_c^T v)``; queries of Q-K token attention by their
    sum, which loses ``q_c``.
    """

    name = "reconstruction"

    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Moments of the units' contributions and of the outputs."""
        y = reader.outputs(output)
        own = {
            "y": y.sum(dim=(0, 2), dtype=torch.float64),
            "yy": y.square().sum(dim=(0, 2), dtype=torch.float64),
            "ny": torch.tensor(float(y.shape[0] * y.shape[2]), dtype=torch.float64),
        }
        return {**reader.contributions(inputs), **own}

    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Lost shares of variance, summed over output channels, (n_units,) float64."""
        square = sums["yy"] / sums["ny"]
        variance = square - (sums["y"] / sums["ny"]).square()
        moving = variance > _LEAST * square
        lost = reader.contribution_variance(sums)  # (outputs, n_units)
        return lost[moving].div(variance[moving].unsqueeze(1)).sum(0)
