"""Activation-weighted magnitude: the idea of Wanda (Sun et al. 2024, arXiv 2306.11695) on channels.

Wanda weighs each weight by the norm of its input; here all weights of a reader on a unit are taken
together.
"""

from __future__ import annotations

from torch import Tensor

from psvit_core.importance._readers import Inputs, Reader, ReaderCriterion, Sums


class ActivationWeight(ReaderCriterion):
    """``E[x^2] ||W_u||^2``: mean squared activation at a reader times its weights' squared norm.

    Tied members: the sum over all readers ("sum over readers"). Queries and keys are read by the
    attention product, where each is the other's weight: the mean over rows of ``||q_c k_c^T||^2``,
    the energy of the unit's share of the attention scores.
    """

    name = "activation_weight"

    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Weighted energy, and the number of positions."""
        energy = reader.energy(inputs)
        x = reader.values(inputs)[0]
        return {"energy": energy, "n": energy.new_tensor(float(x.shape[0] * x.shape[2]))}

    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Mean weighted energy, (n_units,) float64."""
        return sums["energy"] / sums["n"]
