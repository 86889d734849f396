"""Layers that several families share, among them the modules whose spikes are counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

ATTENTION_SCALE = 0.125  # the published constant for every head width, except in SDT v3


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an image layer to (T, B, ...), with both axes merged as in the official code."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def repeat_over_time(x: Tensor, T: int) -> Tensor:
    """Expand (B, C, H, W) to (T, B, C, H, W) without copying."""
    return x.unsqueeze(0).expand(T, *(-1 for _ in x.shape))


def max_pool(x: Tensor) -> Tensor:
    """Max-pool (T, B, C, H, W) with kernel 3 and stride 2."""
    pooled = F.max_pool2d(x.flatten(0, 1), kernel_size=3, stride=2, padding=1)
    return pooled.unflatten(0, x.shape[:2])


def wide_sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sum over some axes; of half precision, whose whole numbers soon round, in float32."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.sum(dim=axes, dtype=torch.float32) if half else x.sum(dim=axes)


class SpikeSum(nn.Module):
    """Base class of sums of spikes: each unit of the output costs one accumulate."""


class MaskedKeySum(SpikeSum):
    """Column sum of masked keys, the accumulation in spike-driven self-attention (SDSA-1)."""

    def forward(self, k: Tensor, v: Tensor) -> Tensor:
        """Sum ``k * v``, both (T, B, C, H, W), over all tokens to (T, B, C, 1, 1)."""
        return (k * v).sum(dim=(3, 4), keepdim=True)


class HeadSum(SpikeSum):
    """Sum of the queries of each head, the accumulation in Q-K token attention.

    Args:
        heads: Number of heads.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor) -> Tensor:
        """Sum queries (T, B, C, N) to (T, B, heads, 1, N)."""
        return q.unflatten(2, (self.heads, -1)).sum(dim=3, keepdim=True)


def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply each channel of (rows, C, ...) by its own factor, (C,)."""
    if has_torch_function((x, scale)):  # recorded as a single operation
        return handle_torch_function(scale_channels, (x, scale), x, scale)
    return x * scale.view(-1, *[1] * (x.dim() - 2))


class BNAndPad(nn.Module):
    """BatchNorm, then a one-pixel border with the BatchNorm's output for input 0.

    The border is a constant for gradients, as in the published class.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, C, H, W) to (rows, C, H + 2, W + 2)."""
        bn = self.bn
        statistics = (bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
        if self.training:
            return _with_border(bn(x), *statistics)
        return bn_and_pad(x, *statistics)


def bn_and_pad(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Normalize (rows, C, H, W) in evaluation mode and add the border: (rows, C, H + 2, W + 2)."""
    tensors = (x, mean, var, weight, bias)
    if has_torch_function(tensors):  # recorded as a single operation
        return handle_torch_function(bn_and_pad, tensors, *tensors, eps)
    return _with_border(
        F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, weight, bias, eps
    )


def _with_border(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    assert mean is not None
    assert var is not None
    value = bias.detach() - mean * weight.detach() / torch.sqrt(var + eps)
    padded = F.pad(x, (1, 1, 1, 1))
    border = value.view(-1, 1)
    padded[:, :, 0], padded[:, :, -1] = border, border
    padded[:, :, :, 0], padded[:, :, :, -1] = border, border
    return padded
