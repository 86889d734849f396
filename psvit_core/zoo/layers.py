"""Layers that several families share, and the modules whose spikes are counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function


def over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer for images to (T, B, ...), time-major merged as in the official code."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def repeat_over_time(x: Tensor, T: int) -> Tensor:
    """(B, C, H, W) to (T, B, C, H, W) without copying."""
    return x.unsqueeze(0).expand(T, *(-1 for _ in x.shape))


def halve(x: Tensor) -> Tensor:
    """Max-pool 3x3, stride 2, of (T, B, C, H, W)."""
    pooled = F.max_pool2d(x.flatten(0, 1), kernel_size=3, stride=2, padding=1)
    return pooled.unflatten(0, x.shape[:2])


class SpikeSum(nn.Module):
    """A sum of spikes: every unit of its output is one accumulate."""


class MaskedKeySum(SpikeSum):
    """What spike-driven self-attention (SDSA-1) accumulates: the column sum of masked keys."""

    def forward(self, k: Tensor, v: Tensor) -> Tensor:
        """Sum over all tokens of ``k * v``, both (T, B, C, H, W); (T, B, C, 1, 1)."""
        return (k * v).sum(dim=(3, 4), keepdim=True)


class HeadSum(SpikeSum):
    """What Q-K token attention accumulates: the queries of a head, summed.

    Args:
        heads: Number of heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor) -> Tensor:
        """Queries (T, B, C, N) to (T, B, heads, 1, N)."""
        return q.unflatten(2, (self.heads, -1)).sum(dim=3, keepdim=True)


class SpikeProduct(nn.Module):
    """``(q k^T) v`` per head, times a stored scale; heads are channel-contiguous.

    Args:
        heads: Number of heads.
        scale: Factor of the product; a constant of the unpruned model.
    """

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Merged rows: q, k (rows, Cqk, N) and v (rows, Cv, N) to (rows, Cv, N)."""
        q, k, v = (x.unflatten(1, (self.heads, -1)).transpose(2, 3) for x in (q, k, v))
        o = (q @ k.transpose(2, 3)) @ v * self.scale  # (rows, heads, N, Cv/heads)
        return o.transpose(2, 3).flatten(1, 2)  # (rows, Cv, N)


class BNAndPad(nn.Module):
    """BatchNorm, then a border of one pixel that holds what the BatchNorm gives for input 0.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, C, H, W) to (rows, C, H + 2, W + 2)."""
        bn = self.bn
        statistics = (bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
        if self.training:
            return _with_border(bn(x), *statistics)
        return bn_and_pad(x, *statistics)


def bn_and_pad(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """BatchNorm of (rows, C, H, W) in evaluation mode, then its border: (rows, C, H + 2, W + 2)."""
    tensors = (x, mean, var, weight, bias)
    if has_torch_function(tensors):  # a step of its own on a tape
        return handle_torch_function(bn_and_pad, tensors, *tensors, eps)
    return _with_border(
        F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, weight, bias, eps
    )


def _with_border(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    assert mean is not None
    assert var is not None
    value = bias - mean * weight / torch.sqrt(var + eps)
    padded = F.pad(x, (1, 1, 1, 1))
    border = value.view(-1, 1)
    padded[:, :, 0], padded[:, :, -1] = border, border
    padded[:, :, :, 0], padded[:, :, :, -1] = border, border
    return padded
