"""Patch embeddings of QKFormer, with deformed shortcuts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.neurons import LIF
from psvit_core.zoo.layers import repeat_over_time


class ConvBNLIF(nn.Module):
    """Base of the patch embeddings: convolution, BatchNorm, pooling of real values, neuron."""

    def add(self, name: str, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        """Add modules ``NAME_conv``, ``NAME_bn`` and ``NAME_lif``."""
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.add_module(f"{name}_conv", conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))
        self.add_module(f"{name}_lif", LIF())

    def current(self, name: str, x: Tensor, pool: bool) -> Tensor:
        """Return the input current of the neuron, (rows, C, H, W)."""
        x = getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1) if pool else x

    def spikes(self, name: str, x: Tensor, pool: bool = False) -> Tensor:
        """Return the spikes for (T, B, C, H, W)."""
        current = self.current(name, x.flatten(0, 1), pool).unflatten(0, x.shape[:2])
        out: Tensor = getattr(self, f"{name}_lif")(current)
        return out


class FirstPatchEmbed(ConvBNLIF):
    """Patch embedding of the image, with a deformed shortcut.

    Args:
        in_channels: Channels of the images.
        first, mid, out: Present widths (``mid`` only in the ImageNet variant).
        imagenet: True for the variant that pools (stride 4), False for stride 1.
    """

    def __init__(self, in_channels: int, first: int, mid: int, out: int, imagenet: bool) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.add("proj", in_channels, first)
        self.add("proj1", first, mid if imagenet else out)
        if imagenet:
            self.add("proj2", mid, out)
        self.add("proj_res", first, out, kernel=1, stride=2 if imagenet else 1)

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Map images (B, C, H, W) or frames (T, B, C, H, W) to integers (T, B, C, h, w)."""
        if x.dim() == 4:  # the first convolution sees the same image at every step: run it once
            current = repeat_over_time(self.current("proj", x, self.imagenet), T)
            f = self.get_submodule("proj_lif")(current)
        else:
            f = self.spikes("proj", x, pool=self.imagenet)
        a = self.spikes("proj1", f, pool=self.imagenet)
        if self.imagenet:
            a = self.spikes("proj2", a)
        return a + self.spikes("proj_res", f)


class PatchEmbed(ConvBNLIF):
    """Patch embedding between stages; halves the resolution, with a deformed shortcut.

    Args:
        c_in, mid, out: Present widths.
        imagenet: True if the first convolution pools, False if the second does.
    """

    def __init__(self, c_in: int, mid: int, out: int, imagenet: bool) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.add("proj3", c_in, mid)
        self.add("proj4", mid, out)
        self.add("proj_res", c_in, out, kernel=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, C, H, W) to (T, B, C', H/2, W/2)."""
        a = self.spikes("proj3", x, pool=self.imagenet)
        return self.spikes("proj4", a, pool=not self.imagenet) + self.spikes("proj_res", x)
