"""Spike-driven Transformer v1.

Source:
    Yao et al. 2023, Spike-driven Transformer, NeurIPS, arXiv 2307.01694. State-dict keys match the
    official checkpoints. The residual stream is real-valued (membrane shortcut), and
    every branch starts with a neuron. Attention is elementwise, so heads change no number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.zoo.base import (
    UNUSED_ARGUMENTS,
    GroupSpec,
    SpikingModel,
    check_unused_arguments,
    prefixed,
)
from psvit_core.zoo.layers import MaskedKeySum, over_time
from psvit_core.zoo.sizing import (
    Choice,
    Shapes,
    count_blocks,
    image_size_choice,
    pooling_choice,
    ratio,
    time_steps_choice,
)
from psvit_core.zoo.stem import (
    STREAM_READER,
    STREAM_WRITERS,
    StemLayers,
    stem_specs,
    stream_spec,
)


class PatchEmbed(StemLayers):
    """Spiking patch splitting; the last stage pools real values, before its neuron."""

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Map images (B, C, H, W) or frames (T, B, C, H, W) to real values (T, B, C, h, w)."""
        u = self.pool(self.convolve(x, T), 3)
        return over_time(self.rpe_bn, over_time(self.rpe_conv, self.proj_lif3(u))) + u


class SpikeDrivenAttention(nn.Module):
    """Spike-driven self-attention (SDSA-1): masks and column sums instead of matrix products."""

    def __init__(self, stream: int, inner: int, num_heads: int) -> None:
        super().__init__()
        self.shortcut_lif = LIF()
        self.q_conv = nn.Conv2d(stream, inner, 1, bias=False)
        self.q_bn = nn.BatchNorm2d(inner)
        self.q_lif = LIF()
        self.k_conv = nn.Conv2d(stream, inner, 1, bias=False)
        self.k_bn = nn.BatchNorm2d(inner)
        self.k_lif = LIF()
        self.v_conv = nn.Conv2d(stream, inner, 1, bias=False)
        self.v_bn = nn.BatchNorm2d(inner)
        self.v_lif = LIF()
        self.gate = MaskedKeySum()
        # Never called, but part of the checkpoints, which are loaded strictly.
        self.talking_heads = nn.Conv1d(num_heads, num_heads, 1, bias=False)
        self.talking_heads_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Conv2d(inner, stream, 1)
        self.proj_bn = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        s = self.shortcut_lif(x)
        q = self.q_lif(over_time(self.q_bn, over_time(self.q_conv, s)))
        k = self.k_lif(over_time(self.k_bn, over_time(self.k_conv, s)))
        v = self.v_lif(over_time(self.v_bn, over_time(self.v_conv, s)))
        gate = self.talking_heads_lif(self.gate(k, v))
        return over_time(self.proj_bn, over_time(self.proj_conv, q * gate))


class MLP(nn.Module):
    """Two 1x1 convolutions, each after a neuron."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.fc1_lif = LIF()
        self.fc1_conv = nn.Conv2d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm2d(hidden)
        self.fc2_lif = LIF()
        self.fc2_conv = nn.Conv2d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        h = over_time(self.fc1_bn, over_time(self.fc1_conv, self.fc1_lif(x)))
        return over_time(self.fc2_bn, over_time(self.fc2_conv, self.fc2_lif(h)))


class Block(nn.Module):
    """Attention and MLP, each with a membrane shortcut."""

    def __init__(self, attention: nn.Module, stream: int, hidden: int) -> None:
        super().__init__()
        self.attn = attention
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (T, B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class SDTLayout(SpikingModel):
    """Base class of SDT v1 and of STAtten, which differ only in their attention."""

    def _attention(self, name: str) -> nn.Module:
        """Build the attention of the block of this name."""
        raise NotImplementedError

    def _start(
        self,
        arguments: Mapping[str, Any],
        attention_specs: Callable[[str, str], list[GroupSpec]],
        widths: Mapping[str, int] | None,
    ) -> None:
        """Check the arguments and add all modules.

        Args:
            arguments: The constructor's arguments.
            attention_specs: Takes a block's name and title; returns the groups of its attention.
            widths: As for ``SpikingModel``.
        """
        pooling, depths = arguments["pooling_stat"], arguments["depths"]
        if len(pooling) != 4 or set(pooling) - {"0", "1"}:
            raise ModelError(
                f"pooling_stat must be four digits 0 or 1, e.g. '1111'; got {pooling!r}."
            )
        if arguments["mlp_ratios"] < 2:
            raise ModelError(f"mlp_ratios must be at least 2; got {arguments['mlp_ratios']!r}.")
        embed_dims = arguments["embed_dims"]
        hidden = int(embed_dims * arguments["mlp_ratios"])
        super().__init__(
            arguments, _group_specs(embed_dims, hidden, depths, attention_specs), widths
        )
        self._build()
        self.unused = tuple(f"block.{i}.attn.talking_heads.weight" for i in range(depths))

    def _build(self) -> None:
        w, a = self.widths, self.arguments
        stem = (w["stem0"], w["stem1"], w["stem2"], w["stream"])
        self.patch_embed = PatchEmbed(
            a["in_channels"], stem, [flag == "1" for flag in a["pooling_stat"]]
        )
        self.block = nn.ModuleList(
            Block(self._attention(name), w["stream"], w[f"{name}.mlp.hidden"])
            for name in (f"block.{i}" for i in range(a["depths"]))
        )
        self.head_lif = LIF()
        self.head = nn.Linear(w["stream"], a["num_classes"])

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but pooling, time steps and image size; unused tensors show heads."""
        first, heads = "patch_embed.proj_conv.weight", "block.0.attn.talking_heads.weight"
        hidden = "block.0.mlp.fc1_conv.weight"
        if {first, heads, hidden, "head.weight"} - shapes.keys():
            return None
        num_classes, embed_dims = shapes["head.weight"]
        return {
            "in_channels": shapes[first][1],
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "num_heads": shapes[heads][0],
            "mlp_ratios": ratio(shapes[hidden][0], embed_dims),
            "depths": count_blocks(shapes, "block"),
        }

    @classmethod
    def cautions(cls, size: Mapping[str, Any]) -> tuple[str, ...]:
        """Warn of weights for event data, which load but compute something else."""
        if size["in_channels"] != 2:
            return ()
        text = (
            "These weights take 2 channels, as for event data. If they were trained with "
            "dvs_mode=True, they load here but compute something else: dvs_mode is not supported."
        )
        return (text,)

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution, which runs once for a static image."""
        return {"patch_embed.proj_conv": 1}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, averaged over time steps."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed(x, self.T)
        for block in self.block:
            x = block(x)
        spikes = self.head_lif(x.mean(dim=(3, 4)))  # (T, B, C)
        return over_time(self.head, spikes).mean(dim=0)


class SpikeDrivenTransformer(SDTLayout):
    """SDT v1: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that the model is built for.
        num_classes: Length of the logits.
        embed_dims: Unpruned width of the residual stream.
        num_heads: Affects only the shape of the unused ``talking_heads`` weights.
        mlp_ratios: MLP hidden width divided by ``embed_dims``; at least 2.
        depths: Number of blocks.
        T: Time steps.
        pooling_stat: For each of the four stem stages, "1" if it halves the resolution.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect.
    """

    family = "sdt_v1"
    title = "Spike-driven Transformer v1"
    hashed_arguments: ClassVar[Mapping[str, Any]] = {"pooling_stat": "1111"}

    def __init__(  # noqa: PLR0913  # the official names
        self,
        *,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 512,
        num_heads: int = 8,
        mlp_ratios: float = 4,
        depths: int = 8,
        T: int = 4,
        pooling_stat: str = "1111",
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        check_unused_arguments(self.family, unused, UNUSED)
        arguments = {
            "img_size_h": img_size_h,
            "img_size_w": img_size_w,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "num_heads": num_heads,
            "mlp_ratios": mlp_ratios,
            "depths": depths,
            "T": T,
            "pooling_stat": pooling_stat,
        }
        self._start(arguments, functools.partial(gate_specs, width=embed_dims), widths)

    def _attention(self, name: str) -> nn.Module:
        w = self.widths
        return SpikeDrivenAttention(
            w["stream"], w[f"{name}.attn.qkv"], int(self.arguments["num_heads"])
        )

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of pooling, time steps and image size."""
        return (pooling_choice(), time_steps_choice(), image_size_choice((224, 288, 32)))


#: Official arguments of SDT v1 and STAtten that change no number, or have one supported value.
UNUSED: dict[str, Any] = {
    **UNUSED_ARGUMENTS,
    "spike_mode": "lif",
    "attn_mode": "direct_xor",
    "get_embed": False,
    "dvs_mode": False,
    "TET": False,
    "cml": False,
}


def _group_specs(
    embed_dims: int,
    hidden: int,
    depths: int,
    attention_specs: Callable[[str, str], list[GroupSpec]],
) -> list[GroupSpec]:
    writers = list(prefixed("patch_embed", STREAM_WRITERS))
    readers = [f"patch_embed.{STREAM_READER}"]
    inner: list[GroupSpec] = []
    for i in range(depths):
        block, title = f"block.{i}", f"Block {i + 1}"
        writers += prefixed(block, ("attn.proj_conv", "attn.proj_bn", "mlp.fc2_conv", "mlp.fc2_bn"))
        readers += prefixed(block, ("attn.q_conv", "attn.k_conv", "attn.v_conv", "mlp.fc1_conv"))
        fc1, fc2 = prefixed(block, ("mlp.fc1_conv", "mlp.fc1_bn")), (f"{block}.mlp.fc2_conv",)
        inner += attention_specs(block, title)
        inner.append(GroupSpec(f"{block}.mlp.hidden", "mlp", hidden, title, "MLP hidden", fc1, fc2))
    stream = stream_spec(embed_dims, writers, readers)
    return [*stem_specs(embed_dims), stream, *inner]


def gate_specs(block: str, title: str, *, width: int) -> list[GroupSpec]:
    """Return the group of SDSA-1: q, k and v of a channel belong together."""
    qkv = prefixed(block, [f"attn.{x}_{y}" for x in "qkv" for y in ("conv", "bn")])
    proj, group_id = (f"{block}.attn.proj_conv",), f"{block}.attn.qkv"
    return [GroupSpec(group_id, "qkv_elementwise", width, title, "SDSA q, k, v", qkv, proj)]
