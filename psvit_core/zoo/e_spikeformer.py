"""E-SpikeFormer: Spike-driven Transformer v3, base models.

Source:
    Yao et al. 2025, Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
    Training, TPAMI. State-dict keys match the official checkpoints. There is no time axis: one
    output of the integer neuron represents up to four spikes at deployment.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import IntegerLIF
from psvit_core.zoo.base import UNUSED_ARGUMENTS, GroupSpec, check_unused_arguments, prefixed
from psvit_core.zoo.metaformer import (
    STAGE_TENSORS,
    Metaformer,
    StreamModules,
    channel_conv_spec,
    check_embed_dim,
    group_specs,
    mlp_spec,
    read_stages,
)
from psvit_core.zoo.products import Heads, SpikeProduct
from psvit_core.zoo.sizing import Choice, Shapes, heads_choice, image_size_choice


def _conv_bn(c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
    )


class Downsample(nn.Module):
    """Strided convolution between stages, after a neuron except for the first one."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, spiking: bool) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
        self.encode_bn = nn.BatchNorm2d(c_out)
        self.encode_spike = IntegerLIF() if spiking else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        if self.encode_spike is not None:
            x = self.encode_spike(x)
        return self.encode_bn(self.encode_conv(x))


class SepConv(nn.Module):
    """Inverted separable convolution with a neuron before each of its three convolutions."""

    def __init__(self, stream: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.spike1 = IntegerLIF()
        self.pwconv1 = _conv_bn(stream, hidden)
        self.spike2 = IntegerLIF()
        self.dwconv = _conv_bn(hidden, hidden, kernel, groups=hidden)
        self.spike3 = IntegerLIF()
        self.pwconv2 = _conv_bn(hidden, stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (B, C, H, W) in and out."""
        h = self.dwconv(self.spike2(self.pwconv1(self.spike1(x))))
        return self.pwconv2(self.spike3(h))


class ConvBlock(nn.Module):
    """Separable convolution, then a channel convolution with four times the width."""

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
        """Return the stream after this block, (B, C, H, W)."""
        x = x + self.Conv(x)
        h = self.bn1(self.conv1(self.spike1(x)))
        return x + self.bn2(self.conv2(self.spike2(h)))


class Attention(nn.Module):
    """Spike-driven self-attention; values are four times as wide as queries and keys."""

    def __init__(self, stream: int, qk: int, v: int, heads: Heads, scale: float) -> None:
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
        """Return the branch output; (B, C, H, W) in and out."""
        s = self.head_spike(x)
        q, k = self.q_spike(self.q_conv(s)), self.k_spike(self.k_conv(s))
        v = self.v_spike(self.v_conv(s))
        o = self.product(q.flatten(2), k.flatten(2), v.flatten(2))
        return self.proj_conv(self.attn_spike(o).unflatten(2, x.shape[2:]))


class MLP(nn.Module):
    """Two 1-D convolutions over the tokens, each after a neuron."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.fc1_spike = IntegerLIF()
        self.fc1_conv = nn.Conv1d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc2_spike = IntegerLIF()
        self.fc2_conv = nn.Conv1d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm1d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (B, C, H, W) in and out."""
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
        heads: Heads,
        scale: float,
    ) -> None:
        super().__init__()
        self.conv = SepConv(stream, sep_hidden, kernel=3)
        self.attn = Attention(stream, qk, v, heads, scale)
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (B, C, H, W)."""
        x = x + self.conv(x)
        x = x + self.attn(x)
        return x + self.mlp(x)


class ESpikeFormer(Metaformer):
    """SDT v3 base model: images (B, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that the model is built for.
        num_classes: Length of the logits.
        embed_dim: Unpruned stream widths of the four stages; stage 1 starts at half.
        num_heads: Number of heads in both transformer stages.
        mlp_ratios: Hidden width of channel convolutions and MLP divided by the stream width.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect (among them ``depths``: always 6 + 2 blocks).
    """

    family = "sdt_v3"
    title = "E-SpikeFormer (SDT v3)"
    #: Unpruned widths are among them, because they set the attention scale.
    hashed_arguments: ClassVar[Mapping[str, Any]] = {
        "embed_dim": [64, 128, 256, 360],
        "num_heads": 8,
    }

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
        check_unused_arguments(self.family, unused, _UNUSED)
        check_embed_dim(embed_dim, num_heads)
        if mlp_ratios != int(mlp_ratios) or mlp_ratios < 1:
            raise ModelError(
                f"mlp_ratios must be a whole number of at least 1; got {mlp_ratios!r}."
            )
        mlp_ratios = int(mlp_ratios)
        arguments = {
            "img_size_h": img_size_h,
            "img_size_w": img_size_w,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "embed_dim": list(embed_dim),
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
        }
        transformer_specs = functools.partial(
            _transformer_block_specs, heads=num_heads, mlp_ratios=mlp_ratios
        )
        conv_specs = functools.partial(_conv_block_specs, mlp_ratios=mlp_ratios)
        specs = group_specs(embed_dim, _STREAM_MODULES, conv_specs, transformer_specs)
        super().__init__(arguments, specs, widths)
        self._build()

    def _build(self) -> None:
        self._build_stages(Downsample, ConvBlock)
        self.head = nn.Linear(self.widths["stage4.stream"], self.num_classes)
        self.spike = IntegerLIF(norm=1)

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but heads and image size."""
        if (STAGE_TENSORS | {"block3.0.conv.pwconv1.0.weight"}) - shapes.keys():
            return None
        return read_stages(shapes)

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of heads and image size."""
        return heads_choice(size["embed_dim"][2:], (8,)), image_size_choice((224,))

    def _transformer_block(self, name: str, stream: int) -> TransformerBlock:
        w, heads = self.widths, int(self.arguments["num_heads"])
        head_width = self.full_width(name) // heads
        return TransformerBlock(
            stream,
            sep_hidden=w[f"{name}.conv.hidden"],
            qk=w[f"{name}.attn.qk"],
            v=w[f"{name}.attn.v"],
            hidden=w[f"{name}.mlp.hidden"],
            heads=Heads(heads, 4 * head_width, qk_width=head_width),
            scale=head_width**-0.5 * 2,  # always of the unpruned width
        )

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution."""
        return {"downsample1_1.encode_conv": 1}

    def spike_unit(self, layer: str) -> int:
        """Return 1 for the head, whose input neuron has norm 1, and 4 for all other layers."""
        return 1 if layer == "head" else 4

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        x = self._run_stages(self.downsample1_1(x))
        return self.head(self.spike(x.mean(dim=(2, 3))))


_UNUSED: dict[str, Any] = {**UNUSED_ARGUMENTS, "depths": ..., "T": ..., "kd": False}
_SEP_WRITERS = ("pwconv2.0", "pwconv2.1")
_STREAM_MODULES = StreamModules(
    conv_writers=(*prefixed("Conv", _SEP_WRITERS), "conv2", "bn2"),
    conv_readers=("Conv.pwconv1.0", "conv1"),
    transformer_writers=(
        *prefixed("conv", _SEP_WRITERS),
        *("attn.proj_conv.0", "attn.proj_conv.1", "mlp.fc2_conv", "mlp.fc2_bn"),
    ),
    transformer_readers=("conv.pwconv1.0", *(f"attn.{x}_conv.0" for x in "qkv"), "mlp.fc1_conv"),
)


def _sepconv_spec(name: str, width: int, title: str) -> GroupSpec:
    writers = prefixed(name, ("pwconv1.0", "pwconv1.1", "dwconv.0", "dwconv.1"))
    readers = (f"{name}.pwconv2.0",)
    group_id = f"{name}.hidden"
    return GroupSpec(group_id, "sepconv", 2 * width, title, "SepConv hidden", writers, readers)


def _conv_block_specs(name: str, width: int, title: str, *, mlp_ratios: int) -> list[GroupSpec]:
    return [
        _sepconv_spec(f"{name}.Conv", width, title),
        channel_conv_spec(name, mlp_ratios * width, title),
    ]


def _transformer_block_specs(
    name: str, width: int, title: str, *, heads: int, mlp_ratios: int
) -> list[GroupSpec]:
    qk = prefixed(f"{name}.attn", ("q_conv.0", "q_conv.1", "k_conv.0", "k_conv.1"))
    v = prefixed(f"{name}.attn", ("v_conv.0", "v_conv.1"))
    proj = (f"{name}.attn.proj_conv.0",)
    return [
        _sepconv_spec(f"{name}.conv", width, title),
        GroupSpec(f"{name}.attn.qk", "qk", width, title, "attention q, k", qk, (), heads),
        GroupSpec(f"{name}.attn.v", "v", 4 * width, title, "attention v", v, proj, heads),
        mlp_spec(name, mlp_ratios * width, title),
    ]
