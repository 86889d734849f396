"""E-SpikeFormer: Spike-driven Transformer v3, base models.

Source:
    Yao et al. 2025, Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
    Training, TPAMI. State-dict keys are those of the official checkpoints. No time axis: the
    integer neuron stands for up to four spikes at deployment.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from psvit_core.neurons import IntegerLIF
from psvit_core.zoo.base import (
    UNUSED_ARGUMENTS,
    GroupSpec,
    SpikingModel,
    accept_unused,
    prefixed,
)
from psvit_core.zoo.layers import SpikeProduct
from psvit_core.zoo.metaformer import (
    DOWNSAMPLING,
    BlockNames,
    check_widths,
    group_specs,
)


def _conv_bn(c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    )


class Downsample(nn.Module):
    """Strided convolution between stages, a neuron first (but not before the image)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, spiking: bool) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
        self.encode_bn = nn.BatchNorm2d(c_out)
        self.encode_spike = IntegerLIF() if spiking else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        if self.encode_spike is not None:
            x = self.encode_spike(x)
        return self.encode_bn(self.encode_conv(x))


class SepConv(nn.Module):
    """Inverted separable convolution, a neuron before each of its three convolutions."""

    def __init__(self, stream: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.spike1 = IntegerLIF()
        self.pwconv1 = _conv_bn(stream, hidden)
        self.spike2 = IntegerLIF()
        self.dwconv = _conv_bn(hidden, hidden, kernel, groups=hidden)
        self.spike3 = IntegerLIF()
        self.pwconv2 = _conv_bn(hidden, stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (B, C, H, W) in and out."""
        h = self.dwconv(self.spike2(self.pwconv1(self.spike1(x))))
        return self.pwconv2(self.spike3(h))


class ConvBlock(nn.Module):
    """Separable convolution, then a channel convolution with a 4 x hidden width."""

    def __init__(self, stream: int, sep_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.Conv = SepConv(stream, sep_hidden, kernel=7)
        self.spike1 = IntegerLIF()
        self.conv1 = nn.Conv2d(stream, channel_hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channel_hidden)
        self.spike2 = IntegerLIF()
        self.conv2 = nn.Conv2d(channel_hidden, stream, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (B, C, H, W)."""
        x = x + self.Conv(x)
        h = self.bn1(self.conv1(self.spike1(x)))
        return x + self.bn2(self.conv2(self.spike2(h)))


class Attention(nn.Module):
    """Spike-driven self-attention with values four times as wide as queries and keys."""

    def __init__(self, stream: int, qk: int, v: int, heads: int, scale: float) -> None:
        super().__init__()
        self.head_spike = IntegerLIF()
        self.q_conv = _conv_bn(stream, qk)
        self.q_spike = IntegerLIF()
        self.k_conv = _conv_bn(stream, qk)
        self.k_spike = IntegerLIF()
        self.v_conv = _conv_bn(stream, v)
        self.v_spike = IntegerLIF()
        self.product = SpikeProduct(heads, scale)
        self.attn_spike = IntegerLIF()
        self.proj_conv = _conv_bn(v, stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (B, C, H, W) in and out."""
        s = self.head_spike(x)
        q, k = self.q_spike(self.q_conv(s)), self.k_spike(self.k_conv(s))
        v = self.v_spike(self.v_conv(s))
        o = self.product(q.flatten(2), k.flatten(2), v.flatten(2))
        return self.proj_conv(self.attn_spike(o).unflatten(2, x.shape[2:]))


class MLP(nn.Module):
    """Two 1-D convolutions over the tokens, a neuron before each."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.fc1_spike = IntegerLIF()
        self.fc1_conv = nn.Conv1d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc2_spike = IntegerLIF()
        self.fc2_conv = nn.Conv1d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm1d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (B, C, H, W) in and out."""
        h = self.fc1_bn(self.fc1_conv(self.fc1_spike(x.flatten(2))))  # (B, hidden, N)
        return self.fc2_bn(self.fc2_conv(self.fc2_spike(h))).unflatten(2, x.shape[2:])


class TransformerBlock(nn.Module):
    """Separable convolution, attention and MLP, each with a membrane shortcut."""

    def __init__(
        self,
        stream: int,
        *,
        sep_hidden: int,
        qk: int,
        v: int,
        hidden: int,
        heads: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.conv = SepConv(stream, sep_hidden, kernel=3)
        self.attn = Attention(stream, qk, v, heads, scale)
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (B, C, H, W)."""
        x = x + self.conv(x)
        x = x + self.attn(x)
        return x + self.mlp(x)


class ESpikeFormer(SpikingModel):
    """SDT v3 base; images (B, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that it is made for.
        num_classes: Length of the logits.
        embed_dim: Stream widths of the four stages, before pruning; stage 1 starts at half.
        num_heads: Heads of both transformer stages.
        mlp_ratios: MLP hidden width over the stream's.
        widths: Present group widths where they differ from the original ones.
        unused: Official arguments without effect here (``depths`` among them: 6 + 2 blocks).
    """

    family = "sdt_v3"
    unseen = {"embed_dim": [64, 128, 256, 360], "num_heads": 8}  # widths decide the scale

    def __init__(
        self,
        *,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (64, 128, 256, 360),
        num_heads: int = 8,
        mlp_ratios: int = 4,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        accept_unused(
            self.family, unused, {**UNUSED_ARGUMENTS, "depths": ..., "T": ..., "kd": False}
        )
        check_widths(embed_dim, num_heads)
        arguments = {
            "img_size_h": img_size_h,
            "img_size_w": img_size_w,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "embed_dim": list(embed_dim),
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
        }
        specs = group_specs(
            embed_dim,
            _NAMES,
            _conv_block_specs,
            functools.partial(_transformer_block_specs, heads=num_heads, mlp_ratios=mlp_ratios),
        )
        super().__init__(arguments, specs, widths)
        w = self.widths
        s1a, s1b, s2, s3, s4 = (w[f"{stage}.stream"] for stage in DOWNSAMPLING)

        def conv_block(name: str, stream: int) -> nn.ModuleList:
            hidden = (w[f"{name}.0.Conv.hidden"], w[f"{name}.0.channelconv.hidden"])
            return nn.ModuleList([ConvBlock(stream, *hidden)])

        def transformer_block(name: str, stream: int, original: int) -> TransformerBlock:
            return TransformerBlock(
                stream,
                sep_hidden=w[f"{name}.conv.hidden"],
                qk=w[f"{name}.attn.qk"],
                v=w[f"{name}.attn.v"],
                hidden=w[f"{name}.mlp.hidden"],
                heads=num_heads,
                scale=(original // num_heads) ** -0.5 * 2,  # of the unpruned width, always
            )

        self.downsample1_1 = Downsample(in_channels, s1a, 7, 2, spiking=False)
        self.ConvBlock1_1 = conv_block("ConvBlock1_1", s1a)
        self.downsample1_2 = Downsample(s1a, s1b, 3, 2, spiking=True)
        self.ConvBlock1_2 = conv_block("ConvBlock1_2", s1b)
        self.downsample2 = Downsample(s1b, s2, 3, 2, spiking=True)
        self.ConvBlock2_1 = conv_block("ConvBlock2_1", s2)
        self.ConvBlock2_2 = conv_block("ConvBlock2_2", s2)
        self.downsample3 = Downsample(s2, s3, 3, 2, spiking=True)
        self.block3 = nn.ModuleList(
            transformer_block(f"block3.{i}", s3, embed_dim[2]) for i in range(6)
        )
        self.downsample4 = Downsample(s3, s4, 3, 1, spiking=True)
        self.block4 = nn.ModuleList(
            transformer_block(f"block4.{i}", s4, embed_dim[3]) for i in range(2)
        )
        self.head = nn.Linear(s4, num_classes)
        self.spike = IntegerLIF(norm=1)

    def real_fed(self) -> dict[str, int]:
        """The first convolution."""
        return {"downsample1_1.encode_conv": 1}

    def spike_unit(self, layer: str) -> int:
        """Levels of an input of 1.0: the neuron before the head is not divided, all others by 4."""
        return 1 if layer == "head" else 4

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.downsample1_1(x)
        for layer in (*self.ConvBlock1_1, self.downsample1_2, *self.ConvBlock1_2):
            x = layer(x)
        for layer in (self.downsample2, *self.ConvBlock2_1, *self.ConvBlock2_2):
            x = layer(x)
        for layer in (self.downsample3, *self.block3, self.downsample4, *self.block4):
            x = layer(x)
        return self.head(self.spike(x.mean(dim=(2, 3))))


_SEP = ("pwconv2.0", "pwconv2.1")
_NAMES = BlockNames(
    conv_out=(*prefixed("Conv", _SEP), "conv2", "bn2"),
    conv_in=("Conv.pwconv1.0", "conv1"),
    transformer_out=(
        *prefixed("conv", _SEP),
        *("attn.proj_conv.0", "attn.proj_conv.1", "mlp.fc2_conv", "mlp.fc2_bn"),
    ),
    transformer_in=("conv.pwconv1.0", *(f"attn.{x}_conv.0" for x in "qkv"), "mlp.fc1_conv"),
)


def _sepconv_spec(name: str, width: int, title: str) -> GroupSpec:
    out = prefixed(name, ("pwconv1.0", "pwconv1.1", "dwconv.0", "dwconv.1"))
    into = (f"{name}.pwconv2.0",)
    return GroupSpec(f"{name}.hidden", "sepconv", 2 * width, title, "SepConv hidden", out, into)


def _conv_block_specs(name: str, width: int, title: str) -> list[GroupSpec]:
    return [
        _sepconv_spec(f"{name}.Conv", width, title),
        GroupSpec(
            f"{name}.channelconv.hidden",
            "channelconv",
            4 * width,
            title,
            "channel conv hidden",
            prefixed(name, ("conv1", "bn1")),
            (f"{name}.conv2",),
        ),
    ]


def _transformer_block_specs(
    name: str, width: int, title: str, *, heads: int, mlp_ratios: int
) -> list[GroupSpec]:
    qk = prefixed(f"{name}.attn", ("q_conv.0", "q_conv.1", "k_conv.0", "k_conv.1"))
    v = prefixed(f"{name}.attn", ("v_conv.0", "v_conv.1"))
    proj = (f"{name}.attn.proj_conv.0",)
    fc1 = prefixed(name, ("mlp.fc1_conv", "mlp.fc1_bn"))
    fc2 = (f"{name}.mlp.fc2_conv",)
    return [
        _sepconv_spec(f"{name}.conv", width, title),
        GroupSpec(f"{name}.attn.qk", "qk", width, title, "attention q, k", qk, (), heads),
        GroupSpec(f"{name}.attn.v", "v", 4 * width, title, "attention v", v, proj, heads),
        GroupSpec(f"{name}.mlp.hidden", "mlp", mlp_ratios * width, title, "MLP hidden", fc1, fc2),
    ]
