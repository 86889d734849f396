"""Meta-SpikeFormer: Spike-driven Transformer v2.

Source:
    Yao et al. 2024, Spike-driven Transformer V2, ICLR, arXiv 2404.03663. State-dict keys match
    the official checkpoints, with the re-parameterisable convolutions unfolded, as published.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.zoo.base import UNUSED_ARGUMENTS, GroupSpec, check_unused_arguments, prefixed
from psvit_core.zoo.layers import ATTENTION_SCALE, BNAndPad, over_time, repeat_over_time
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
from psvit_core.zoo.sizing import (
    Choice,
    Shapes,
    heads_choice,
    image_size_choice,
    time_steps_choice,
)


class Downsample(nn.Module):
    """Strided convolution between stages, after a neuron except for the first one."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, spiking: bool) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
        self.encode_bn = nn.BatchNorm2d(c_out)
        self.encode_lif = LIF() if spiking else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, B, C, H, W) to (T, B, C', H/stride, W/stride)."""
        if self.encode_lif is not None:
            x = self.encode_lif(x)
        return over_time(self.encode_bn, over_time(self.encode_conv, x))


class SepConv(nn.Module):
    """Inverted separable convolution without neuron or BatchNorm after the depthwise one."""

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
        """Return the branch output; (T, B, C, H, W) in and out."""
        h = over_time(self.bn1, over_time(self.pwconv1, self.lif1(x)))
        h = over_time(self.pwconv2, over_time(self.dwconv, self.lif2(h)))
        return over_time(self.bn2, h)


class ConvBlock(nn.Module):
    """Separable convolution, then a channel convolution with four times the width."""

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
        """Return the stream after this block, (T, B, C, H, W)."""
        x = x + self.Conv(x)
        h = over_time(self.bn1, over_time(self.conv1, self.lif1(x)))
        return x + over_time(self.bn2, over_time(self.conv2, self.lif2(h)))


class RepConv(nn.Module):
    """1x1, BatchNorm with padding, depthwise 3x3, 1x1, BatchNorm: linear, so it can be folded."""

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
        """Map (rows, C, H, W) to (rows, C', H, W)."""
        return self.body(x)


def _rep_conv(c_in: int, mid: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(RepConv(c_in, mid, c_out), nn.BatchNorm2d(c_out))


class Attention(nn.Module):
    """Spike-driven self-attention with RepConv projections."""

    def __init__(self, stream: int, mid: Mapping[str, int], qk: int, v: int, heads: Heads) -> None:
        super().__init__()
        self.head_lif = LIF()
        self.q_conv = _rep_conv(stream, mid["q"], qk)
        self.q_lif = LIF()
        self.k_conv = _rep_conv(stream, mid["k"], qk)
        self.k_lif = LIF()
        self.v_conv = _rep_conv(stream, mid["v"], v)
        self.v_lif = LIF()
        self.product = SpikeProduct(heads, ATTENTION_SCALE, keys_first=True)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = _rep_conv(v, mid["proj"], stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        s = self.head_lif(x)
        q, k = self.q_lif(over_time(self.q_conv, s)), self.k_lif(over_time(self.k_conv, s))
        v = self.v_lif(over_time(self.v_conv, s))
        o = self.product(*(y.flatten(0, 1).flatten(2) for y in (q, k, v)))  # (T*B, C, N)
        o = self.attn_lif(o.unflatten(0, x.shape[:2]))
        return over_time(self.proj_conv, o.unflatten(3, x.shape[3:]))


class MLP(nn.Module):
    """Two 1-D convolutions over the tokens, each after a neuron."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.fc1_lif = LIF()
        self.fc1_conv = nn.Conv1d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc2_lif = LIF()
        self.fc2_conv = nn.Conv1d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm1d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        h = over_time(self.fc1_bn, over_time(self.fc1_conv, self.fc1_lif(x.flatten(3))))
        h = over_time(self.fc2_bn, over_time(self.fc2_conv, self.fc2_lif(h)))  # (T, B, C, N)
        return h.unflatten(3, x.shape[3:])


class TransformerBlock(nn.Module):
    """Attention and MLP, each with a membrane shortcut."""

    def __init__(
        self, stream: int, *, mid: Mapping[str, int], qk: int, v: int, hidden: int, heads: Heads
    ) -> None:
        super().__init__()
        self.attn = Attention(stream, mid, qk, v, heads)
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (T, B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class MetaSpikeFormer(Metaformer):
    """SDT v2: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that the model is built for.
        num_classes: Length of the logits.
        embed_dim: Unpruned stream widths of the four stages; stage 1 starts at half.
        num_heads: Number of heads in both transformer stages.
        mlp_ratios: MLP hidden width divided by the stream width; 4 in the published code.
        kd: True to add a distillation head; evaluation averages both heads.
        T: Time steps; published weights exist for 1 and 4.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect (among them ``depths``: always 6 + 2 blocks).
    """

    family = "sdt_v2"
    title = "Meta-SpikeFormer (SDT v2)"
    hashed_arguments: ClassVar[Mapping[str, Any]] = {"num_heads": 8}

    def __init__(  # noqa: PLR0913  # the official names
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
        check_unused_arguments(self.family, unused, {**UNUSED_ARGUMENTS, "depths": ...})
        check_embed_dim(embed_dim, num_heads)
        if mlp_ratios != 4:
            raise ModelError(f"mlp_ratios must be 4 in Meta-SpikeFormer; got {mlp_ratios!r}.")
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
        transformer_specs = functools.partial(_transformer_block_specs, heads=num_heads)
        classifiers = ("head", "head_kd") if kd else ("head",)
        specs = group_specs(
            embed_dim, _STREAM_MODULES, _conv_block_specs, transformer_specs, classifiers
        )
        super().__init__(arguments, specs, widths)
        self._build()

    def _build(self) -> None:
        self._build_stages(Downsample, ConvBlock)
        self.lif = LIF()
        stream, num_classes = self.widths["stage4.stream"], self.num_classes
        self.head = nn.Linear(stream, num_classes)
        self.head_kd = nn.Linear(stream, num_classes) if self.arguments["kd"] else None

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but heads, time steps and image size."""
        if (STAGE_TENSORS | {"block3.0.attn.q_conv.0.body.0.weight"}) - shapes.keys():
            return None
        return {**read_stages(shapes), "kd": "head_kd.weight" in shapes}

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of heads, time steps and image size."""
        return (
            heads_choice(size["embed_dim"][2:], (8,)),
            time_steps_choice((4, 1)),
            image_size_choice((224, 288)),
        )

    def _transformer_block(self, name: str, stream: int) -> TransformerBlock:
        w, heads = self.widths, int(self.arguments["num_heads"])
        return TransformerBlock(
            stream,
            mid={x: w[f"{name}.attn.{x}_conv.mid"] for x in ("q", "k", "v", "proj")},
            qk=w[f"{name}.attn.qk"],
            v=w[f"{name}.attn.v"],
            hidden=w[f"{name}.mlp.hidden"],
            heads=Heads(heads, self.full_width(name) // heads),
        )

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution and all layers that follow a convolution without a neuron.

        The published models fold RepConv and the separable convolutions for deployment. This model
        runs, and counts, them unfolded.
        """
        real = {"downsample1_1.encode_conv": 1}
        for name, module in self.named_modules():
            if isinstance(module, RepConv):
                real |= dict.fromkeys((f"{name}.body.2.0", f"{name}.body.2.1"), self.T)
            elif isinstance(module, SepConv):
                real[f"{name}.pwconv2"] = self.T
        return real

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, averaged over time steps (and over both heads with ``kd``)."""
        if x.dim() == 4:  # the first convolution sees the same image at every step: run it once
            x = repeat_over_time(self.downsample1_1(x.unsqueeze(0))[0], self.T)
        else:
            x = self.downsample1_1(x.transpose(0, 1))
        x = self._run_stages(x)
        spikes = self.lif(x.mean(dim=(3, 4)))  # (T, B, C)
        logits = over_time(self.head, spikes).mean(dim=0)
        if self.head_kd is None:
            return logits
        return (logits + over_time(self.head_kd, spikes).mean(dim=0)) / 2


_REP_WRITERS = ("0.body.2.1", "0.body.2.2", "1")  # write the output of a RepConv projection
_STREAM_MODULES = StreamModules(
    conv_writers=("Conv.pwconv2", "Conv.bn2", "conv2", "bn2"),
    conv_readers=("Conv.pwconv1", "conv1"),
    transformer_writers=(*prefixed("attn.proj_conv", _REP_WRITERS), "mlp.fc2_conv", "mlp.fc2_bn"),
    transformer_readers=(*(f"attn.{x}_conv.0.body.0" for x in "qkv"), "mlp.fc1_conv"),
)


def _conv_block_specs(name: str, width: int, title: str) -> list[GroupSpec]:
    sep = f"{name}.Conv"
    writers, readers = prefixed(sep, ("pwconv1", "bn1", "dwconv")), (f"{sep}.pwconv2",)
    group_id = f"{sep}.hidden"
    return [
        GroupSpec(group_id, "sepconv", 2 * width, title, "SepConv hidden", writers, readers),
        channel_conv_spec(name, 4 * width, title),
    ]


def _transformer_block_specs(name: str, width: int, title: str, *, heads: int) -> list[GroupSpec]:
    attn = f"{name}.attn"
    specs = []
    for x in ("q", "k", "v", "proj"):
        body = f"{attn}.{x}_conv.0.body"
        writers, readers = prefixed(body, ("0", "1.bn", "2.0")), (f"{body}.2.1",)
        group_id, shown = f"{attn}.{x}_conv.mid", f"RepConv {x} middle"
        specs.append(GroupSpec(group_id, "repconv_mid", width, title, shown, writers, readers))
    q_k = (*prefixed(f"{attn}.q_conv", _REP_WRITERS), *prefixed(f"{attn}.k_conv", _REP_WRITERS))
    v, proj = prefixed(f"{attn}.v_conv", _REP_WRITERS), (f"{attn}.proj_conv.0.body.0",)
    return [
        *specs,
        GroupSpec(f"{attn}.qk", "qk", width, title, "attention q, k", q_k, (), heads),
        GroupSpec(f"{attn}.v", "v", width, title, "attention v", v, proj, heads),
        mlp_spec(name, 4 * width, title),
    ]
