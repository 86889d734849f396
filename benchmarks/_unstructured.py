"""Unstructured magnitude pruning, the reference for structured pruning.

Sets single weights of all convolutions and linear layers to zero, the smallest magnitudes of the
whole network first (torch's ``global_unstructured`` with L1). Shapes stay, so a dense file and a
dense forward pass gain nothing. This module counts the bytes of a sparse file in two formats.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import prune

from psvit_core.groups import COMPUTE_LAYERS, summarize
from psvit_core.plan.size import plan_size
from psvit_core.records import check_ratio
from psvit_core.zoo.base import SpikingModel

VALUE_BYTES = 4  # float32
INDEX_BYTES = 4  # int32


@dataclass(frozen=True)
class SparseSize:
    """Size of a model with zeros, in bytes.

    All three include everything else that inference reads (affine parameters, BatchNorm
    statistics, biases), dense in float32.
    """

    n_weights: int  # of convolutions and linear layers
    n_left: int  # of those, nonzero
    dense: int  # every weight in float32
    bitmap: int  # one bit per weight, padded to bytes per tensor, and the nonzero values
    csr: int  # rows are output channels: values, int32 columns, int32 row starts (rows + 1)

    @property
    def sparse(self) -> int:
        """Bytes of the smaller sparse format."""
        return min(self.bitmap, self.csr)


def prune_magnitudes(model: SpikingModel, sparsity: float) -> SpikingModel:
    """Return a copy of ``model`` with a fraction of its weights set to zero, smallest first.

    Args:
        model: Stays untouched.
        sparsity: Fraction of the convolution and linear weights that goes, in [0, 1); rounded to
            the nearest number of weights.

    Raises:
        InvalidRatioError: If ``sparsity`` is outside [0, 1).
    """
    check_ratio(sparsity)
    sparse = copy.deepcopy(model)
    layers = [(module, "weight") for _, module in compute_layers(sparse)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
    for module, name in layers:
        prune.remove(module, name)  # zeros instead of a mask
    return sparse


def compute_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the convolutions and linear layers that inference reads, by name."""
    unused = getattr(model, "unused", ())
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, COMPUTE_LAYERS) and f"{name}.weight" not in unused
    ]


def sparse_size(model: SpikingModel) -> SparseSize:
    """Count the remaining weights of ``model`` and its bytes in each format."""
    weights = [module.get_parameter("weight").detach() for _, module in compute_layers(model)]
    dense = plan_size(summarize(model, {}), None).bytes
    n_weights = sum(w.numel() for w in weights)
    rest = dense - n_weights * VALUE_BYTES
    return SparseSize(
        n_weights=n_weights,
        n_left=sum(int(w.count_nonzero()) for w in weights),
        dense=dense,
        bitmap=rest + sum(bitmap_bytes(w) for w in weights),
        csr=rest + sum(csr_bytes(w) for w in weights),
    )


def bitmap_bytes(weight: Tensor) -> int:
    """Return the bytes of one bit per weight, padded, and the nonzero values."""
    return -(-weight.numel() // 8) + int(weight.count_nonzero()) * VALUE_BYTES


def csr_bytes(weight: Tensor) -> int:
    """Return the bytes of compressed rows with int32 indices; a row is an output channel."""
    n_left = int(weight.count_nonzero())
    return n_left * (VALUE_BYTES + INDEX_BYTES) + (len(weight) + 1) * INDEX_BYTES
