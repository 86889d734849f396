"""Layers of SpikingResformer: dual spike self-attention (DSSA) and the grouped feed-forward block.

DSSA scales its products by firing rates, which are buffers of the checkpoint. A model without them
has infinite scales, whose products are NaN, which never fires.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from psvit_core.neurons import LIF
from psvit_core.zoo.layers import over_time
from psvit_core.zoo.products import PatchScores, PatchValues

_MOMENTUM = 0.999  # of the firing rates
#: All neurons fire at 1.0, also those after attention products, and train with this surrogate.
_lif = functools.partial(LIF, atan=True)


class Norm(nn.Module):
    """BatchNorm, one level down as in the checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (rows, C, H, W)."""
        return self.bn(x)


class Step(nn.Sequential):
    """Neuron, convolution and BatchNorm on (T, B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the real-valued output, (T, B, C', H, W)."""
        lif, conv, norm = self
        return over_time(norm, over_time(conv, lif(x)))


def bias_free_conv(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class Downsample(nn.Module):
    """Strided convolution between stages, after a neuron."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.activation = _lif()
        self.conv = bias_free_conv(c_in, c_out, 3, 2)
        self.norm = Norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, C, H, W) to (T, B, C', H/2, W/2)."""
        return over_time(self.norm, over_time(self.conv, self.activation(x)))


class DSSA(nn.Module):
    """Dual spike self-attention: spikes attend to patches of themselves.

    Args:
        stream, y2: Present widths.
        heads: Number of heads.
        head_width: Unpruned stream width of a head.
        patch: Side of the patches.
        n_patches: Number of patches of the images that the model is built for.
        groups: Ids of the channel groups of the stream and of y2.
    """

    firing_rate_x: Tensor
    firing_rate_attn: Tensor

    def __init__(
        self,
        stream: int,
        y2: int,
        *,
        heads: int,
        head_width: int,
        patch: int,
        n_patches: int,
        groups: tuple[str, str],
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.n_patches = heads, head_width, n_patches
        self.register_buffer("firing_rate_x", torch.zeros(1, 1, heads, 1, 1))
        self.register_buffer("firing_rate_attn", torch.zeros(1, 1, heads, 1, 1))
        self.activation_in = _lif()
        self.W = nn.Conv2d(stream, stream + y2, patch, patch, bias=False)
        self.norm = Norm(stream + y2)
        self.scores = PatchScores(heads, groups[0])
        self.activation_attn = _lif()
        self.values = PatchValues(heads, groups[1])
        self.activation_out = _lif()
        self.Wproj = bias_free_conv(y2, stream)
        self.norm_proj = Norm(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this layer, (T, B, C, H, W)."""
        s = self.activation_in(x)
        rows = s.flatten(0, 1)
        y = self.norm(self.W(rows)).flatten(2)  # (rows, C', P), real values
        spikes = rows.flatten(2)  # (rows, C, N)
        self._track("firing_rate_x", spikes.unflatten(1, (self.heads, -1)), self.head_width)
        factor = _scale(self.firing_rate_x, self.head_width)
        scores = self.scores(spikes, y, factor)
        a = self.activation_attn(scores.unflatten(0, x.shape[:2])).flatten(0, 1)
        self._track("firing_rate_attn", a, a.shape[2])
        o = self.values(y, spikes, a, _scale(self.firing_rate_attn, self.n_patches))
        o = self.activation_out(o.unflatten(0, x.shape[:2])).unflatten(3, x.shape[3:])
        return x + over_time(self.norm_proj, over_time(self.Wproj, o))

    def _track(self, name: str, spikes: Tensor, n_channels: int) -> None:
        """Update a firing rate in training; the first batch sets it.

        Args:
            name: Name of the buffer.
            spikes: (rows, heads, channels, positions).
            n_channels: Channels of a head in the unpruned model: removed ones count as silent.
        """
        if not self.training:
            return
        with torch.no_grad():
            rate = getattr(self, name)
            n_spikes = spikes.sum(dim=2, dtype=rate.dtype).mean(dim=(0, 2))
            now = (n_spikes / n_channels).view_as(rate)
            first = not bool(rate.any())
            rate.copy_(now if first else rate * _MOMENTUM + now * (1 - _MOMENTUM))


def _scale(rate: Tensor, size: int) -> Tensor:
    """Return ``1 / sqrt(rate * size)`` for each head, (1, heads, 1, 1)."""
    return 1 / torch.sqrt(rate[0] * size)


class GWFFN(nn.Module):
    """Feed-forward block with a grouped 3x3 convolution on an inner residual.

    Args:
        stream, hidden: Present widths.
        conv_groups: Groups of the 3x3 convolution.
    """

    def __init__(self, stream: int, hidden: int, conv_groups: int) -> None:
        super().__init__()
        self.up = Step(_lif(), bias_free_conv(stream, hidden), Norm(hidden))
        inner = bias_free_conv(hidden, hidden, 3, groups=conv_groups)
        self.conv = nn.Sequential(Step(_lif(), inner, Norm(hidden)))
        self.down = Step(_lif(), bias_free_conv(hidden, stream), Norm(stream))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this layer, (T, B, C, H, W)."""
        u = self.up(x)
        return x + self.down(u + self.conv(u))
