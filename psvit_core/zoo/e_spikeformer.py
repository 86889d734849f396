"""E-SpikeFormer: Spike-driven Transformer v3, base models.

Source:
    Yao et al. 2025, Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
    Training, TPAMI. State-dict keys are those of the official checkpoints. No time axis: the
    integer neuron stands for up to four spikes at deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import IntegerLIF
from psvit_core.zoo.base import (
    GroupSpec,
    SpikingModel,
    accept_unused,
    prefixed,
    scaled_head_width,
)

#: Conv blocks: (name, stage, downsampling before it); stage 3 and 4 are transformer blocks.
_CONV_BLOCKS = (
    ("ConvBlock1_1.0", "stage1a"),
    ("ConvBlock1_2.0", "stage1b"),
    ("ConvBlock2_1.0", "stage2"),
    ("ConvBlock2_2.0", "stage2"),
)
_TRANSFORMER_BLOCKS = tuple(
    [(f"block3.{i}", "stage3") for i in range(6)] + [(f"block4.{i}", "stage4") for i in range(2)]
)
_DOWNSAMPLING = {
    "stage1a": "downsample1_1",
    "stage1b": "downsample1_2",
    "stage2": "downsample2",
    "stage3": "downsample3",
    "stage4": "downsample4",
}
_STAGE_TITLES = {
    "stage1a": "Stage 1a",
    "stage1b": "Stage 1b",
    "stage2": "Stage 2",
    "stage3": "Stage 3",
    "stage4": "Stage 4",
}


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
        out: Tensor = self.encode_bn(self.encode_conv(x))
        return out


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
        out: Tensor = self.pwconv2(self.spike3(h))
        return out


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


class SpikeProduct(nn.Module):
    """``(q k^T) v`` per head, times a stored scale.

    A module of its own, so that its compute can be counted.
    """

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Merged heads: q, k (B, Cqk, N), v (B, Cv, N) to (B, Cv, N)."""
        q, k, v = (x.unflatten(1, (self.heads, -1)).transpose(2, 3) for x in (q, k, v))
        o = (q @ k.transpose(2, 3)) @ v * self.scale  # (B, heads, N, Cv/heads)
        return o.transpose(2, 3).flatten(1, 2)  # (B, Cv, N)


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
        out: Tensor = self.proj_conv(self.attn_spike(o).unflatten(2, x.shape[2:]))
        return out


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
        out: Tensor = self.fc2_bn(self.fc2_conv(self.fc2_spike(h)))
        return out.unflatten(2, x.shape[2:])


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
    image_fed = ("downsample1_1.encode_conv",)

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
        accept_unused(self.family, unused, _UNUSED)
        if len(embed_dim) != 4 or any(e % num_heads for e in embed_dim[2:]) or embed_dim[0] % 2:
            raise ModelError(
                f"embed_dim has four widths, the first even, the last two multiples of "
                f"num_heads={num_heads}; got {list(embed_dim)}."
            )
        arguments = {
            "img_size_h": img_size_h,
            "img_size_w": img_size_w,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "embed_dim": list(embed_dim),
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
        }
        super().__init__(arguments, _group_specs(embed_dim, num_heads, mlp_ratios), widths)
        w = self.widths
        s1a, s1b, s2, s3, s4 = (w[f"{stage}.stream"] for stage in _DOWNSAMPLING)

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
                scale=scaled_head_width(original, num_heads) * 2,
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
        logits: Tensor = self.head(self.spike(x.mean(dim=(2, 3))))
        return logits


_UNUSED: dict[str, Any] = {
    "patch_size": ...,
    "qkv_bias": ...,
    "qk_scale": ...,
    "drop_rate": ...,
    "attn_drop_rate": ...,
    "drop_path_rate": ...,
    "norm_layer": ...,
    "depths": ...,
    "sr_ratios": ...,
    "T": ...,
    "kd": False,
}


def _group_specs(embed_dim: Sequence[int], heads: int, mlp_ratios: int) -> list[GroupSpec]:
    widths = dict(zip(_DOWNSAMPLING, (embed_dim[0] // 2, *embed_dim), strict=True))
    stages = list(_DOWNSAMPLING)
    specs = []
    for stage, width in widths.items():
        following = stages[stages.index(stage) + 1 :]
        after = f"{_DOWNSAMPLING[following[0]]}.encode_conv" if following else "head"
        convs = [b for b, s in _CONV_BLOCKS if s == stage]
        transformers = [b for b, s in _TRANSFORMER_BLOCKS if s == stage]
        specs.append(_stream_spec(stage, width, convs, transformers, after))
        for b in convs:
            specs += _conv_block_specs(b, width)
        for b in transformers:
            specs += _transformer_block_specs(b, width, heads, mlp_ratios)
    return specs


def _stream_spec(
    stage: str, width: int, convs: Sequence[str], transformers: Sequence[str], after: str
) -> GroupSpec:
    down = _DOWNSAMPLING[stage]
    out = [f"{down}.encode_conv", f"{down}.encode_bn"]
    into: list[str] = []
    for b in convs:
        out += prefixed(b, ("Conv.pwconv2.0", "Conv.pwconv2.1", "conv2", "bn2"))
        into += prefixed(b, ("Conv.pwconv1.0", "conv1"))
    for b in transformers:
        out += prefixed(b, ("conv.pwconv2.0", "conv.pwconv2.1"))
        out += prefixed(b, ("attn.proj_conv.0", "attn.proj_conv.1", "mlp.fc2_conv", "mlp.fc2_bn"))
        into += prefixed(b, ("conv.pwconv1.0", *(f"attn.{x}_conv.0" for x in "qkv")))
        into.append(f"{b}.mlp.fc1_conv")
    title = "residual stream"
    return GroupSpec(
        f"{stage}.stream",
        "residual",
        width,
        _STAGE_TITLES[stage],
        title,
        tuple(out),
        (*into, after),
    )


def _sepconv_spec(name: str, width: int, block: str) -> GroupSpec:
    out = prefixed(name, ("pwconv1.0", "pwconv1.1", "dwconv.0", "dwconv.1"))
    return GroupSpec(
        f"{name}.hidden", "sepconv", 2 * width, block, "SepConv hidden", out, (f"{name}.pwconv2.0",)
    )


def _conv_block_specs(name: str, width: int) -> list[GroupSpec]:
    block = f"Conv {name.removeprefix('ConvBlock').removesuffix('.0').replace('_', '.')}"
    return [
        _sepconv_spec(f"{name}.Conv", width, block),
        GroupSpec(
            f"{name}.channelconv.hidden",
            "channelconv",
            4 * width,
            block,
            "channel conv hidden",
            prefixed(name, ("conv1", "bn1")),
            (f"{name}.conv2",),
        ),
    ]


def _transformer_block_specs(name: str, width: int, heads: int, mlp_ratios: int) -> list[GroupSpec]:
    stage, index = name.removeprefix("block").split(".")
    block = f"Block {stage}.{int(index) + 1}"
    qk = prefixed(f"{name}.attn", ("q_conv.0", "q_conv.1", "k_conv.0", "k_conv.1"))
    v = prefixed(f"{name}.attn", ("v_conv.0", "v_conv.1"))
    proj = (f"{name}.attn.proj_conv.0",)
    return [
        _sepconv_spec(f"{name}.conv", width, block),
        GroupSpec(f"{name}.attn.qk", "qk", width, block, "attention q, k", qk, (), heads),
        GroupSpec(f"{name}.attn.v", "v", 4 * width, block, "attention v", v, proj, heads),
        GroupSpec(
            f"{name}.mlp.hidden",
            "mlp",
            mlp_ratios * width,
            block,
            "MLP hidden",
            prefixed(name, ("mlp.fc1_conv", "mlp.fc1_bn")),
            (f"{name}.mlp.fc2_conv",),
        ),
    ]
