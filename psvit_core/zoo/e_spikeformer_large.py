"""E-SpikeFormer Large: the 83M and 173M models of Spike-driven Transformer v3.

Another architecture than the base models (``e_spikeformer``): three stages, no separable
convolutions, projections of two linear layers, and a neuron that rounds halves up.

Source:
    Yao et al. 2025, Scaling Spike-driven Transformer with Efficient Spike Firing Approximation
    Training, TPAMI. State-dict keys match the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import IntegerLIF
from psvit_core.zoo.base import UNUSED_ARGUMENTS, SpikingModel, check_unused_arguments
from psvit_core.zoo.e_spikeformer_large_groups import STAGES, group_specs
from psvit_core.zoo.layers import ATTENTION_SCALE, repeat_over_time, scale_channels
from psvit_core.zoo.products import Heads, SpikeProduct
from psvit_core.zoo.sizing import (
    Choice,
    Option,
    Shapes,
    count_blocks,
    heads_choice,
    image_size_choice,
    ratio,
    time_steps_choice,
)

_START_SCALE = 1e-6  # of the branches, in an untrained model


class Downsample(nn.Module):
    """Strided convolution between stages, after a neuron except for the first one."""

    def __init__(self, c_in: int, c_out: int, kernel: int, levels: int | None) -> None:
        super().__init__()
        self.encode_conv = nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2)
        self.encode_bn = nn.BatchNorm2d(c_out)
        self.encode_lif = None if levels is None else _neuron(levels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/2, W/2)."""
        if self.encode_lif is not None:
            x = self.encode_lif(x)
        return self.encode_bn(self.encode_conv(x))


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with a membrane shortcut."""

    def __init__(self, stream: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.neuron1 = _neuron(levels)
        self.conv1 = nn.Sequential(_conv_bn(stream, hidden))
        self.neuron2 = _neuron(levels)
        self.conv2 = nn.Sequential(_conv_bn(hidden, stream))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (B, C, H, W)."""
        return x + self.conv2(self.neuron2(self.conv1(self.neuron1(x))))


class Projection(nn.Module):
    """Two 1x1 convolutions with BatchNorms and no neuron between them: linear."""

    def __init__(self, c_in: int, mid: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = _linear_bn(c_in, mid)
        self.conv2 = _linear_bn(mid, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, N) to (B, C', N)."""
        return self.conv2(self.conv1(x))


class Attention(nn.Module):
    """Spike-driven self-attention with two-layer projections.

    Args:
        stream: Present width.
        mid: Present widths inside the projections q, k, v and proj.
        qk, v: Present widths.
        heads: The heads.
        levels: Levels of the neurons.
    """

    def __init__(
        self, stream: int, *, mid: Mapping[str, int], qk: int, v: int, heads: Heads, levels: int
    ) -> None:
        super().__init__()
        self.head_lif = _neuron(levels)
        self.q_conv = _projection(stream, mid["q"], qk)
        self.q_lif = _neuron(levels)
        self.k_conv = _projection(stream, mid["k"], qk)
        self.k_lif = _neuron(levels)
        self.v_conv = _projection(stream, mid["v"], v)
        self.v_lif = _neuron(levels)
        self.product = SpikeProduct(heads, ATTENTION_SCALE, keys_first=True)
        self.attn_lif = _neuron(levels)
        self.proj_conv = _projection(v, mid["proj"], stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (B, C, N) in and out."""
        s = self.head_lif(x)
        q, k = self.q_lif(self.q_conv(s)), self.k_lif(self.k_conv(s))
        v = self.v_lif(self.v_conv(s))
        return self.proj_conv(self.attn_lif(self.product(q, k, v)))


class MLP(nn.Module):
    """Two 1x1 convolutions, each after a neuron."""

    def __init__(self, stream: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.fc1_lif = _neuron(levels)
        self.fc1_conv = nn.Conv1d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm1d(hidden)
        self.fc2_lif = _neuron(levels)
        self.fc2_conv = nn.Conv1d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm1d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (B, C, N) in and out."""
        h = self.fc1_bn(self.fc1_conv(self.fc1_lif(x)))
        return self.fc2_bn(self.fc2_conv(self.fc2_lif(h)))


class TransformerBlock(nn.Module):
    """Attention and MLP with scaled branches; the base model has a linear branch before them.

    Args:
        attention, mlp: The scaled branches.
        stream: Present width.
        rep_mid: Present width inside the linear branch; None without one.
        levels: Levels of the neurons.
    """

    def __init__(
        self, attention: Attention, mlp: MLP, *, stream: int, rep_mid: int | None, levels: int
    ) -> None:
        super().__init__()
        self.layer_scale1 = nn.Parameter(torch.full((stream,), _START_SCALE))
        self.layer_scale2 = nn.Parameter(torch.full((stream,), _START_SCALE))
        self.lif = _neuron(levels)  # only the base model calls it
        self.rep_conv = None if rep_mid is None else Projection(stream, rep_mid, stream)
        self.attn = attention
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (B, C, N)."""
        if self.rep_conv is not None:
            x = x + self.rep_conv(self.lif(x))
        x = x + scale_channels(self.attn(x), self.layer_scale1)
        return x + scale_channels(self.mlp(x), self.layer_scale2)


class ESpikeFormerLarge(SpikingModel):
    """SDT v3 large model: images (B, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that the model is built for.
        num_classes: Length of the logits.
        nb_classes: Official name of the length of ``head``, which ``num_classes`` only sets for
            ``head_kd``; if given, it is the length of the logits.
        embed_dim: Unpruned stream widths of the three stages; stage 1 starts at half.
        num_heads: Number of heads.
        mlp_ratios: Hidden width of conv blocks and MLP divided by the stream width.
        depths: Number of transformer blocks.
        sr_ratios: Width of the values divided by the stream width.
        choice: "large", or "base" with a linear branch in every block; None takes the family's.
        levels: Levels of the neurons, a constant of the official module: 4, or 8 for weights named
            1x8; None takes the family's.
        kd: True to add a distillation head; evaluation averages both heads.
        T: Time steps, each with the same image: neurons have no state, so the logits do not depend
            on it.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect.
    """

    family = "sdt_v3_large"
    title = "E-SpikeFormer Large (SDT v3)"
    hashed_arguments: ClassVar[Mapping[str, Any]] = {"num_heads": 8, "levels": 4}
    default_choice: ClassVar[str] = "large"
    default_levels: ClassVar[int] = 4

    def __init__(  # noqa: PLR0913  # the official names
        self,
        *,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        nb_classes: int | None = None,
        embed_dim: Sequence[int] = (128, 256, 512),
        num_heads: int = 8,
        mlp_ratios: int = 4,
        depths: int = 8,
        sr_ratios: int = 1,
        choice: str | None = None,
        levels: int | None = None,
        kd: bool = True,
        T: int = 1,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        allowed = {k: v for k, v in UNUSED_ARGUMENTS.items() if k != "sr_ratios"}
        check_unused_arguments(self.family, unused, {**allowed, "mlp_ratio": ...})
        if kd and nb_classes not in (None, num_classes):
            raise ModelError(
                "Both heads are averaged, so nb_classes and num_classes must be equal with kd; "
                f"got {nb_classes} and {num_classes}."
            )
        arguments = {
            "img_size_h": img_size_h,
            "img_size_w": img_size_w,
            "in_channels": in_channels,
            "num_classes": num_classes if nb_classes is None else nb_classes,
            "embed_dim": list(embed_dim),
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
            "depths": depths,
            "sr_ratios": sr_ratios,
            "choice": choice or self.default_choice,
            "levels": levels or self.default_levels,
            "kd": kd,
            "T": T,
        }
        _check_arguments(arguments)
        super().__init__(arguments, group_specs(arguments), widths)
        self._build()

    def _build(self) -> None:
        w, a, levels = self.widths, self.arguments, self.arguments["levels"]
        s1a, s1b, s2, s3 = (w[f"{stage}.stream"] for stage in STAGES)

        def conv(name: str, stream: int) -> nn.ModuleList:
            hidden = w[f"{name}.0.channelconv.hidden"]
            return nn.ModuleList([ConvBlock(stream, hidden, levels)])

        self.downsample1_1 = Downsample(a["in_channels"], s1a, 7, None)
        self.ConvBlock1_1 = conv("ConvBlock1_1", s1a)
        self.downsample1_2 = Downsample(s1a, s1b, 3, levels)
        self.ConvBlock1_2 = conv("ConvBlock1_2", s1b)
        self.downsample2 = Downsample(s1b, s2, 3, levels)
        self.ConvBlock2_1 = conv("ConvBlock2_1", s2)
        self.ConvBlock2_2 = conv("ConvBlock2_2", s2)
        self.downsample3 = Downsample(s2, s3, 3, levels)
        self.block3 = nn.ModuleList(self._block(f"block3.{i}", s3) for i in range(a["depths"]))
        self.lif = _neuron(levels, norm=1)
        self.head = nn.Linear(s3, self.num_classes)
        self.head_kd = nn.Linear(s3, self.num_classes) if a["kd"] else None

    def _block(self, name: str, stream: int) -> TransformerBlock:
        w, a, levels = self.widths, self.arguments, self.arguments["levels"]
        heads = Heads(a["num_heads"], int(a["sr_ratios"]) * a["embed_dim"][2] // a["num_heads"])
        attention = Attention(
            stream,
            mid={x: w[f"{name}.attn.{x}_conv.mid"] for x in ("q", "k", "v", "proj")},
            qk=w[f"{name}.attn.qk"],
            v=w[f"{name}.attn.v"],
            heads=heads,
            levels=levels,
        )
        mlp = MLP(stream, w[f"{name}.mlp.hidden"], levels)
        rep_mid = w.get(f"{name}.rep_conv.mid")
        return TransformerBlock(attention, mlp, stream=stream, rep_mid=rep_mid, levels=levels)

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but heads, levels, time steps and image size."""
        block = "block3.0"
        needed = {
            *(f"{down}.encode_conv.weight" for down, _ in STAGES.values()),
            *(f"{block}.{x}" for x in ("layer_scale1", "mlp.fc1_conv.weight")),
            f"{block}.attn.v_conv.0.conv2.0.weight",
            "head.weight",
        }
        if needed - shapes.keys():
            return None
        widths = [shapes[f"{down}.encode_conv.weight"][0] for down, _ in STAGES.values()][1:]
        return {
            "in_channels": shapes["downsample1_1.encode_conv.weight"][1],
            "num_classes": shapes["head.weight"][0],
            "embed_dim": widths,
            "mlp_ratios": ratio(shapes[f"{block}.mlp.fc1_conv.weight"][0], widths[2]),
            "depths": count_blocks(shapes, "block3"),
            "sr_ratios": ratio(shapes[f"{block}.attn.v_conv.0.conv2.0.weight"][0], widths[2]),
            "choice": "base" if f"{block}.rep_conv.conv1.0.weight" in shapes else "large",
            "kd": "head_kd.weight" in shapes,
        }

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of heads, levels, time steps and image size."""
        levels = (Option(4, "weights named 1x4"), Option(8, "weights named 1x8"))
        return (
            heads_choice([size["embed_dim"][2]], (8,)),
            Choice("levels", levels),
            time_steps_choice((1,)),
            image_size_choice((224, 384)),
        )

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution, the second layer of every projection, and the head."""
        second = [n for n, _ in self.named_modules() if n.endswith("conv2.0") and "block3" in n]
        return {"downsample1_1.encode_conv": 1, **dict.fromkeys((*second, "head"), self.T)}

    def spike_unit(self, layer: str) -> int:
        """Return 1 for the distillation head, whose neuron has norm 1; otherwise the levels."""
        return 1 if layer == "head_kd" else int(self.arguments["levels"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (with ``kd``, the mean of both heads)."""
        x = self.downsample1_1(x)
        if self.T > 1:
            x = repeat_over_time(x, self.T).flatten(0, 1)  # (T * B, C, H, W)
        for layer in (*self.ConvBlock1_1, self.downsample1_2, *self.ConvBlock1_2):
            x = layer(x)
        for layer in (self.downsample2, *self.ConvBlock2_1, *self.ConvBlock2_2):
            x = layer(x)
        x = self.downsample3(x).flatten(2)  # (rows, C, N)
        for block in self.block3:
            x = block(x)
        f = x.mean(dim=2)
        spikes = self.lif(f)  # computed without kd too, as published
        logits = self._over_time(self.head(f))  # reads real values
        if self.head_kd is None:
            return logits
        return (logits + self._over_time(self.head_kd(spikes))) / 2

    def _over_time(self, logits: Tensor) -> Tensor:
        """Return the mean over time steps of (T * B, num_classes)."""
        return logits if self.T == 1 else logits.unflatten(0, (self.T, -1)).mean(dim=0)


class ESpikeFormerLargeBase(ESpikeFormerLarge):
    """The 83M model, with a linear branch in every block."""

    family = "sdt_v3_large_base"
    alias_of = "sdt_v3_large"
    title = "E-SpikeFormer Large, base choice (SDT v3)"
    default_choice = "base"


class ESpikeFormerLarge8(ESpikeFormerLarge):
    """Either model with 8 levels, for weights named 1x8."""

    family = "sdt_v3_large_d8"
    alias_of = "sdt_v3_large"
    title = "E-SpikeFormer Large, 8 levels (SDT v3)"
    default_levels = 8


def _check_arguments(a: Mapping[str, Any]) -> None:
    """Raise ``ModelError`` for widths, ratios or a choice that no model has."""
    widths, num_heads, choice = a["embed_dim"], a["num_heads"], a["choice"]
    if len(widths) != 3 or widths[2] % num_heads or widths[0] % 2:
        raise ModelError(
            f"embed_dim needs three widths, the first even, the last a multiple of "
            f"num_heads={num_heads}; got {widths}."
        )
    if choice not in ("large", "base"):
        raise ModelError(f"choice must be 'large' or 'base'; got {choice!r}.")
    if a["levels"] not in (4, 8):
        raise ModelError(f"levels must be 4 or 8; got {a['levels']!r}.")
    for name in ("mlp_ratios", "sr_ratios"):
        if a[name] != int(a[name]) or a[name] < 1:
            raise ModelError(f"{name} must be a whole number of at least 1; got {a[name]!r}.")


def _neuron(levels: int, norm: int | None = None) -> IntegerLIF:
    return IntegerLIF(norm=levels if norm is None else norm, levels=levels, half_up=True)


def _conv_bn(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out))


def _linear_bn(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(c_in, c_out, 1, bias=False), nn.BatchNorm1d(c_out))


def _projection(c_in: int, mid: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(Projection(c_in, mid, c_out), nn.BatchNorm1d(c_out))
