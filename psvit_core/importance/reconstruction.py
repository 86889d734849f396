"""Reconstruction error at the readers.

He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks (arXiv 1707.06168), and
Luo et al. 2017, ThiNet (arXiv 1707.06342), remove the channels that change the next layer's output
least. Here each unit is scored on its own, assuming that the next layer's bias is adapted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psvit_core.importance._readers import Inputs, Reader, ReaderCriterion, Sums

_MIN_VARIANCE = 1e-12  # fraction of a channel's mean square; less variance is rounding error


class Reconstruction(ReaderCriterion):
    """Fraction of the variance of the readers' outputs that is lost when the unit is removed.

    Removing unit u changes output channel o of a reader by ``c = sum over taps of W[o,u,tap]
    x[u,tap]``. The score is the sum over o of ``Var(c) / Var(y_o)`` over all images, time steps and
    positions. This is the squared error that remains after adapting the output's mean (by a bias or
    BatchNorm), in units of the normalised output. Cross terms between the taps of a kernel, strides
    and borders are exact. For 1x1 readers, ``Var(c) = W[o,u]^2 Var(x_u)``.

    Tied layers: the sum over all readers ("sum over readers"). Queries and keys are read by the
    attention product, whose output loses ``q_c (k_c^T v)``; queries of Q-K token attention by their
    sum, which loses ``q_c``.
    """

    name = "reconstruction"

    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Return the moments of the units' contributions and of the outputs."""
        y = reader.outputs(output)
        own = {
            "y": y.sum(dim=(0, 2), dtype=torch.float64),
            "yy": y.square().sum(dim=(0, 2), dtype=torch.float64),
            "ny": torch.tensor(float(y.shape[0] * y.shape[2]), dtype=torch.float64),
        }
        return {**reader.contributions(inputs), **own}

    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Return the lost fractions of variance summed over outputs, (n_units,) float64."""
        square = sums["yy"] / sums["ny"]
        variance = square - (sums["y"] / sums["ny"]).square()
        varying = variance > _MIN_VARIANCE * square
        lost = reader.contribution_variance(sums)  # (outputs, n_units)
        return lost[varying].div(variance[varying].unsqueeze(1)).sum(0)
