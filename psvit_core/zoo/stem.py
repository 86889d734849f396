"""The four-stage convolutional stem that Spikformer and SDT v1 share, up to order and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from psvit_core.neurons import LIF
from psvit_core.zoo.base import GroupSpec, prefixed
from psvit_core.zoo.layers import over_time, repeat_over_time

#: What writes and reads the residual stream inside the stem.
STREAM_OUT = ("proj_conv3", "proj_bn3", "rpe_conv", "rpe_bn")
STREAM_IN = "rpe_conv"


class StemLayers(nn.Module):
    """Four 3x3 convolutions (C/8, C/4, C/2, C) and a position convolution, each with BatchNorm.

    Args:
        in_channels: Of the images.
        widths: Present widths of the four stages.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
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

    def first(self, x: Tensor, T: int) -> Tensor:
        """First convolution of images (B, C, H, W), once, or of frames (T, B, C, H, W)."""
        if x.dim() == 4:  # the same image at every step
            return repeat_over_time(self.proj_bn(self.proj_conv(x)), T)
        return over_time(self.proj_bn, over_time(self.proj_conv, x))


def stem_specs(embed_dims: int, prefix: str = "patch_embed") -> list[GroupSpec]:
    """Groups ``stem0`` to ``stem2``: the stem's inner widths."""
    return [
        GroupSpec(
            f"stem{i}",
            "conv",
            embed_dims >> (3 - i),
            "Stem",
            f"conv {i + 1}",
            prefixed(prefix, (f"proj_conv{i or ''}", f"proj_bn{i or ''}")),
            (f"{prefix}.proj_conv{i + 1}",),
        )
        for i in range(3)
    ]
