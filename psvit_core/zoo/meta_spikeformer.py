"""Meta-SpikeFormer: Spike-driven Transformer v2.

Source:
    Yao et al. 2024, Spike-driven Transformer V2, ICLR, arXiv 2404.03663. State-dict keys are those
    of the official checkpoints, with the re-parameterisable convolutions unfolded, as published.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.zoo.base import (
    UNUSED_ARGUMENTS,
    GroupSpec,
    SpikingModel,
    accept_unused,
    prefixed,
)
from psvit_core.zoo.layers import BNAndPad, SpikeProduct, over_time, repeat_over_time
from psvit_core.zoo.metaformer import (
    DOWNSAMPLING,
    BlockNames,
    check_widths,
    group_specs,
)

_SCALE = 0.125  # the published constant, whatever the head width


class Downsample(nn.Module):
    """Strided convolution between stages, a neuron first (but not before the image)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, spiking: bool) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
        self.encode_bn = nn.BatchNorm2d(c_out)
        self.encode_lif = LIF() if spiking else None

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, C, H, W) to (T, B, C', H/stride, W/stride)."""
        if self.encode_lif is not None:
            x = self.encode_lif(x)
        return over_time(self.encode_bn, over_time(self.encode_conv, x))


class SepConv(nn.Module):
    """Inverted separable convolution; no neuron and no BatchNorm after the depthwise one."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.lif1 = LIF()
        self.pwconv1 = nn.Conv2d(stream, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.lif2 = LIF()
        self.dwconv = nn.Conv2d(hidden, hidden, 7, padding=3, groups=hidden, bias=False)
        self.pwconv2 = nn.Conv2d(hidden, stream, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, H, W) in and out."""
        h = over_time(self.bn1, over_time(self.pwconv1, self.lif1(x)))
        h = over_time(self.pwconv2, over_time(self.dwconv, self.lif2(h)))
        return over_time(self.bn2, h)


class ConvBlock(nn.Module):
    """Separable convolution, then a channel convolution with a 4 x hidden width."""

    def __init__(self, stream: int, sep_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.Conv = SepConv(stream, sep_hidden)
        self.lif1 = LIF()
        self.conv1 = nn.Conv2d(stream, channel_hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channel_hidden)
        self.lif2 = LIF()
        self.conv2 = nn.Conv2d(channel_hidden, stream, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (T, B, C, H, W)."""
        x = x + self.Conv(x)
        h = over_time(self.bn1, over_time(self.conv1, self.lif1(x)))
        return x + over_time(self.bn2, over_time(self.conv2, self.lif2(h)))


class RepConv(nn.Module):
    """1x1, BatchNorm with padding, depthwise 3x3, 1x1, BatchNorm: linear, so foldable into one."""

    def __init__(self, c_in: int, mid: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, mid, 1, bias=False),
            BNAndPad(mid),
            nn.Sequential(
                nn.Conv2d(mid, mid, 3, groups=mid, bias=False),
                nn.Conv2d(mid, c_out, 1, bias=False),
                nn.BatchNorm2d(c_out),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(rows, C, H, W) to (rows, C', H, W)."""
        return self.body(x)


def _rep_conv(c_in: int, mid: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(RepConv(c_in, mid, c_out), nn.BatchNorm2d(c_out))


class Attention(nn.Module):
    """Spike-driven self-attention with RepConv projections."""

    def __init__(self, stream: int, mid: Mapping[str, int], qk: int, v: int, heads: int) -> None:
        super().__init__()
        self.head_lif = LIF()
        self.q_conv = _rep_conv(stream, mid["q"], qk)
        self.q_lif = LIF()
        self.k_conv = _rep_conv(stream, mid["k"], qk)
        self.k_lif = LIF()
        self.v_conv = _rep_conv(stream, mid["v"], v)
        self.v_lif = LIF()
        self.product = SpikeProduct(heads, _SCALE)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = _rep_conv(v, mid["proj"], stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, H, W) in and out."""
        s = self.head_lif(x)
        q, k = self.q_lif(over_time(self.q_conv, s)), self.k_lif(over_time(self.k_conv, s))
        v = self.v_lif(over_time(self.v_conv, s))
        o = self.product(*(y.flatten(0, 1).flatten(2) for y in (q, k, v)))  # (T*B, C, N)
        o = self.attn_lif(o.unflatten(0, x.shape[:2]))
        return over_time(self.proj_conv, o.unflatten(3, x.shape[3:]))


class MLP(nn.Module):
    """Two 1-D convolutions over the tokens, a neuron before each."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.fc1_lif = LIF()
        self.fc1_conv = nn.Conv1d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc2_lif = LIF()
        self.fc2_conv = nn.Conv1d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm1d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, H, W) in and out."""
        h = over_time(self.fc1_bn, over_time(self.fc1_conv, self.fc1_lif(x.flatten(3))))
        h = over_time(self.fc2_bn, over_time(self.fc2_conv, self.fc2_lif(h)))  # (T, B, C, N)
        return h.unflatten(3, x.shape[3:])


class TransformerBlock(nn.Module):
    """Attention and MLP, each with a membrane shortcut."""

    def __init__(
        self, stream: int, *, mid: Mapping[str, int], qk: int, v: int, hidden: int, heads: int
    ) -> None:
        super().__init__()
        self.attn = Attention(stream, mid, qk, v, heads)
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (T, B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class MetaSpikeFormer(SpikingModel):
    """SDT v2; images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that it is made for.
        num_classes: Length of the logits.
        embed_dim: Stream widths of the four stages, before pruning; stage 1 starts at half.
        num_heads: Heads of both transformer stages.
        mlp_ratios: MLP hidden width over the stream's; 4 in the published code.
        kd: Whether there is a distillation head; evaluation averages both.
        T: Time steps; the published weights exist for 1 and 4.
        widths: Present group widths where they differ from the original ones.
        unused: Official arguments without effect here (``depths`` among them: 6 + 2 blocks).
    """

    family = "sdt_v2"
    unseen = {"num_heads": 8}

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
        kd: bool = False,
        T: int = 1,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        accept_unused(self.family, unused, {**UNUSED_ARGUMENTS, "depths": ...})
        check_widths(embed_dim, num_heads)
        if mlp_ratios != 4:
            raise ModelError(f"mlp_ratios is 4 in Meta-SpikeFormer; got {mlp_ratios!r}.")
        arguments = {
            "img_size_h": img_size_h,
            "img_size_w": img_size_w,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "embed_dim": list(embed_dim),
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
            "kd": kd,
            "T": T,
        }
        specs = group_specs(
            embed_dim,
            _NAMES,
            _conv_block_specs,
            functools.partial(_transformer_block_specs, heads=num_heads),
            heads=("head", "head_kd") if kd else ("head",),
        )
        super().__init__(arguments, specs, widths)
        w = self.widths
        s1a, s1b, s2, s3, s4 = (w[f"{stage}.stream"] for stage in DOWNSAMPLING)

        def conv_block(name: str, stream: int) -> nn.ModuleList:
            hidden = (w[f"{name}.0.Conv.hidden"], w[f"{name}.0.channelconv.hidden"])
            return nn.ModuleList([ConvBlock(stream, *hidden)])

        def transformer_block(name: str, stream: int) -> TransformerBlock:
            return TransformerBlock(
                stream,
                mid={x: w[f"{name}.attn.{x}_conv.mid"] for x in ("q", "k", "v", "proj")},
                qk=w[f"{name}.attn.qk"],
                v=w[f"{name}.attn.v"],
                hidden=w[f"{name}.mlp.hidden"],
                heads=num_heads,
            )

        self.downsample1_1 = Downsample(in_channels, s1a, 7, 2, spiking=False)
        self.ConvBlock1_1 = conv_block("ConvBlock1_1", s1a)
        self.downsample1_2 = Downsample(s1a, s1b, 3, 2, spiking=True)
        self.ConvBlock1_2 = conv_block("ConvBlock1_2", s1b)
        self.downsample2 = Downsample(s1b, s2, 3, 2, spiking=True)
        self.ConvBlock2_1 = conv_block("ConvBlock2_1", s2)
        self.ConvBlock2_2 = conv_block("ConvBlock2_2", s2)
        self.downsample3 = Downsample(s2, s3, 3, 2, spiking=True)
        self.block3 = nn.ModuleList(transformer_block(f"block3.{i}", s3) for i in range(6))
        self.downsample4 = Downsample(s3, s4, 3, 1, spiking=True)
        self.block4 = nn.ModuleList(transformer_block(f"block4.{i}", s4) for i in range(2))
        self.lif = LIF()
        self.head = nn.Linear(s4, num_classes)
        self.head_kd = nn.Linear(s4, num_classes) if kd else None

    def real_fed(self) -> dict[str, int]:
        """The first convolution, and every layer behind a convolution without a neuron between.

        The published models fold RepConv and the separable convolutions for deployment; here they
        run, and are counted, unfolded.
        """
        real = {"downsample1_1.encode_conv": 1}
        for name, module in self.named_modules():
            if isinstance(module, RepConv):
                real |= dict.fromkeys((f"{name}.body.2.0", f"{name}.body.2.1"), self.T)
            elif isinstance(module, SepConv):
                real[f"{name}.pwconv2"] = self.T
        return real

    def forward(self, x: Tensor) -> Tensor:
        """Logits, mean over the time steps (and over both heads with ``kd``)."""
        if x.dim() == 4:  # the first convolution sees the same image at every step: do it once
            x = repeat_over_time(self.downsample1_1(x.unsqueeze(0))[0], self.T)
        else:
            x = self.downsample1_1(x.transpose(0, 1))
        for layer in (*self.ConvBlock1_1, self.downsample1_2, *self.ConvBlock1_2):
            x = layer(x)
        for layer in (self.downsample2, *self.ConvBlock2_1, *self.ConvBlock2_2):
            x = layer(x)
        for layer in (self.downsample3, *self.block3, self.downsample4, *self.block4):
            x = layer(x)
        spikes = self.lif(x.mean(dim=(3, 4)))  # (T, B, C)
        logits = over_time(self.head, spikes).mean(dim=0)
        if self.head_kd is None:
            return logits
        return (logits + over_time(self.head_kd, spikes).mean(dim=0)) / 2


_REP_OUT = ("0.body.2.1", "0.body.2.2", "1")  # what writes the output of a RepConv projection
_NAMES = BlockNames(
    conv_out=("Conv.pwconv2", "Conv.bn2", "conv2", "bn2"),
    conv_in=("Conv.pwconv1", "conv1"),
    transformer_out=(*prefixed("attn.proj_conv", _REP_OUT), "mlp.fc2_conv", "mlp.fc2_bn"),
    transformer_in=(*(f"attn.{x}_conv.0.body.0" for x in "qkv"), "mlp.fc1_conv"),
)


def _conv_block_specs(name: str, width: int, title: str) -> list[GroupSpec]:
    sep, channel = prefixed(name, ("Conv", "channelconv"))
    return [
        GroupSpec(
            f"{sep}.hidden",
            "sepconv",
            2 * width,
            title,
            "SepConv hidden",
            prefixed(sep, ("pwconv1", "bn1", "dwconv")),
            (f"{sep}.pwconv2",),
        ),
        GroupSpec(
            f"{channel}.hidden",
            "channelconv",
            4 * width,
            title,
            "channel conv hidden",
            prefixed(name, ("conv1", "bn1")),
            (f"{name}.conv2",),
        ),
    ]


def _transformer_block_specs(name: str, width: int, title: str, *, heads: int) -> list[GroupSpec]:
    attn = f"{name}.attn"
    specs = []
    for x in ("q", "k", "v", "proj"):
        body = f"{attn}.{x}_conv.0.body"
        specs.append(
            GroupSpec(
                f"{attn}.{x}_conv.mid",
                "repconv_mid",
                width,
                title,
                f"RepConv {x} middle",
                prefixed(body, ("0", "1.bn", "2.0")),
                (f"{body}.2.1",),
            )
        )
    q_k_out = (*prefixed(f"{attn}.q_conv", _REP_OUT), *prefixed(f"{attn}.k_conv", _REP_OUT))
    v_out, v_in = prefixed(f"{attn}.v_conv", _REP_OUT), (f"{attn}.proj_conv.0.body.0",)
    fc1, fc2 = prefixed(name, ("mlp.fc1_conv", "mlp.fc1_bn")), (f"{name}.mlp.fc2_conv",)
    return [
        *specs,
        GroupSpec(f"{attn}.qk", "qk", width, title, "attention q, k", q_k_out, (), heads),
        GroupSpec(f"{attn}.v", "v", width, title, "attention v", v_out, v_in, heads),
        GroupSpec(f"{name}.mlp.hidden", "mlp", 4 * width, title, "MLP hidden", fc1, fc2),
    ]
