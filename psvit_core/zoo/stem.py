"""The four-stage convolutional stem that Spikformer and SDT v1 share.

The two differ in pooling and in the order of neuron and pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from psvit_core.neurons import LIF
from psvit_core.zoo.base import GroupSpec, prefixed
from psvit_core.zoo.layers import max_pool, over_time, repeat_over_time

#: Modules of the stem that write and read the residual stream.
STREAM_WRITERS = ("proj_conv3", "proj_bn3", "rpe_conv", "rpe_bn")
STREAM_READER = "rpe_conv"


class StemLayers(nn.Module):
    """Four 3x3 convolutions (C/8, C/4, C/2, C) and a position convolution, each with BatchNorm.

    Args:
        in_channels: Channels of the images.
        widths: Present widths of the four stages, each of which has one convolution.
        pooling: For each stage, True if it halves the resolution.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], pooling: Sequence[bool]) -> None:
        super().__init__()
        self.pooling = tuple(pooling)
        c0, c1, c2, c3 = widths
        self.proj_conv = nn.Conv2d(in_channels, c0, 3, padding=1, bias=False)
        self.proj_bn = nn.BatchNorm2d(c0)
        self.proj_lif = LIF()
        self.proj_conv1 = nn.Conv2d(c0, c1, 3, padding=1, bias=False)
        self.proj_bn1 = nn.BatchNorm2d(c1)
        self.proj_lif1 = LIF()
        self.proj_conv2 = nn.Conv2d(c1, c2, 3, padding=1, bias=False)
        self.proj_bn2 = nn.BatchNorm2d(c2)
        self.proj_lif2 = LIF()
        self.proj_conv3 = nn.Conv2d(c2, c3, 3, padding=1, bias=False)
        self.proj_bn3 = nn.BatchNorm2d(c3)
        self.proj_lif3 = LIF()
        self.rpe_conv = nn.Conv2d(c3, c3, 3, padding=1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(c3)

    def convolve(self, x: Tensor, T: int) -> Tensor:
        """Run everything before the last stage's neuron and pooling.

        Args:
            x: Images (B, C, H, W) or frames (T, B, C, H, W).
            T: Time steps for images.

        Returns:
            (T, B, C, h, w), real values.
        """
        if x.dim() == 4:  # the first convolution sees the same image at every step: run it once
            x = repeat_over_time(self.proj_bn(self.proj_conv(x)), T)
        else:
            x = over_time(self.proj_bn, over_time(self.proj_conv, x))
        x = self.pool(self.proj_lif(x), 0)
        x = over_time(self.proj_bn1, over_time(self.proj_conv1, x))
        x = self.pool(self.proj_lif1(x), 1)
        x = over_time(self.proj_bn2, over_time(self.proj_conv2, x))
        x = self.pool(self.proj_lif2(x), 2)
        return over_time(self.proj_bn3, over_time(self.proj_conv3, x))

    def pool(self, x: Tensor, stage: int) -> Tensor:
        """Max-pool ``x`` if this stage halves the resolution."""
        return max_pool(x) if self.pooling[stage] else x


def stem_specs(embed_dims: int, prefix: str = "patch_embed") -> list[GroupSpec]:
    """Return groups ``stem0`` to ``stem2``: the stem's inner widths."""
    return [
        GroupSpec(
            group_id=f"stem{i}",
            kind="conv",
            width=embed_dims >> (3 - i),
            block="Stem",
            title=f"conv {i + 1}",
            writers=prefixed(prefix, (f"proj_conv{i or ''}", f"proj_bn{i or ''}")),
            readers=(f"{prefix}.proj_conv{i + 1}",),
        )
        for i in range(3)
    ]


def stream_spec(embed_dims: int, writers: Sequence[str], readers: Sequence[str]) -> GroupSpec:
    """Return group ``stream``: the residual stream of all blocks, which the head reads last."""
    return GroupSpec(
        group_id="stream",
        kind="residual",
        width=embed_dims,
        block="All blocks",
        title="residual stream",
        writers=tuple(writers),
        readers=(*readers, "head"),
    )
