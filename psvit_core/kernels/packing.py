"""Filters in the memory order that the compiled convolution reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_VECTOR_BYTES = 64  # as in csrc/loops.h
_BLOCK = 8  # vectors of output channels in a block, as in csrc/psvit.c


@dataclass(frozen=True)
class PackedFilters:
    """Weight and bias of a convolution, reordered by ``pack``.

    Attributes:
        weight: Blocks of up to 8 vectors of output channels, each (kh, kw, c_in, block); flat.
        bias: (c_out,), padded with zeros to whole vectors.
        shape: Shape of the original weight: (c_out, c_in, kh, kw).
    """

    weight: Tensor
    bias: Tensor
    shape: torch.Size


def pack(weight: Tensor, bias: Tensor | None) -> PackedFilters:
    """Reorder a weight (c_out, c_in, kh, kw) and a bias (c_out,) for the compiled convolution."""
    lanes = _VECTOR_BYTES // weight.element_size()
    blocks = []
    for part in weight.split(_BLOCK * lanes):
        width = -(-len(part) // lanes) * lanes
        block = weight.new_zeros(*weight.shape[2:], weight.shape[1], width)
        block[..., : len(part)] = part.permute(2, 3, 1, 0)
        blocks.append(block.flatten())
    padded = weight.new_zeros(-(-len(weight) // lanes) * lanes)
    if bias is not None:
        padded[: len(bias)] = bias
    return PackedFilters(torch.cat(blocks), padded, weight.shape)
