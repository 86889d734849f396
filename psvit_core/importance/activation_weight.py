"""Activation-weighted magnitude: Wanda (Sun et al. 2024, arXiv 2306.11695) applied to channels.

Wanda scores each weight by its magnitude times the norm of its input. Here all weights of a reader
on a unit are combined.
"""

from __future__ import annotations

from torch import Tensor

from psvit_core.importance._readers import Inputs, Reader, ReaderCriterion, Sums


class ActivationWeight(ReaderCriterion):
    """``E[x^2] ||W_u||^2``: mean squared activation at a reader times its weights' squared norm.

    Tied layers: the sum over all readers ("sum over readers"). Queries and keys are read by the
    attention product, where each acts as the weight of the other: the mean over rows of
    ``||q_c k_c^T||^2``, the energy of the unit's part of the attention scores.
    """

    name = "activation_weight"

    def sums(self, reader: Reader, inputs: Inputs, output: Tensor) -> Sums:
        """Return the weighted energy and the number of positions."""
        energy = reader.energy(inputs)
        x = reader.values(inputs)[0]
        return {"energy": energy, "n": energy.new_tensor(float(x.shape[0] * x.shape[2]))}

    def score(self, reader: Reader, sums: Sums) -> Tensor:
        """Return the mean weighted energy, (n_units,) float64."""
        return sums["energy"] / sums["n"]
