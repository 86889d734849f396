"""Spikformer in its two published variants: ImageNet (maps) and CIFAR (tokens).

Source:
    Zhou et al. 2023, Spikformer: When Spiking Neural Network Meets Transformer, ICLR,
    arXiv 2209.15425. State-dict keys match the official checkpoints. Every branch ends
    in a neuron, so the residual stream carries small integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from psvit_core.zoo.layers import ATTENTION_SCALE, over_time
from psvit_core.zoo.products import Heads, SpikeProduct
from psvit_core.zoo.sizing import (
    Choice,
    Shapes,
    count_blocks,
    heads_choice,
    image_size_choice,
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
    """Spiking patch splitting (SPS), with max-pooling of spikes; arguments as for the stem."""

    def __init__(self, in_channels: int, widths: Sequence[int], pooling: Sequence[bool]) -> None:
        super().__init__(in_channels, widths, pooling)
        self.rpe_lif = LIF()

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Map images (B, C, H, W) or frames (T, B, C, H, W) to integers (T, B, C, h, w)."""
        z = self.pool(self.proj_lif3(self.convolve(x, T)), 3)
        return self.rpe_lif(over_time(self.rpe_bn, over_time(self.rpe_conv, z))) + z


class Tokens(nn.Linear):
    """Linear layer applied to each token of (rows, C, N), as in the CIFAR variant."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, C, N) to (rows, C', N)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention (SSA): ``(q k^T) v`` of spikes, without softmax.

    Args:
        stream, qk, v: Present widths.
        heads: The heads.
        layer: ``conv`` (Conv1d, ImageNet variant) or ``linear`` (CIFAR variant).
    """

    def __init__(self, stream: int, qk: int, v: int, heads: Heads, layer: str) -> None:
        super().__init__()
        self.layer = layer
        for name, width in (("q", qk), ("k", qk), ("v", v)):
            project = Tokens(stream, width) if layer == "linear" else _conv1d(stream, width)
            self.add_module(f"{name}_{layer}", project)
            self.add_module(f"{name}_bn", nn.BatchNorm1d(width))
            self.add_module(f"{name}_lif", LIF())
        self.product = SpikeProduct(heads, ATTENTION_SCALE, keys_first=layer == "conv")
        self.attn_lif = LIF(v_threshold=0.5)
        proj = Tokens(v, stream) if layer == "linear" else nn.Conv1d(v, stream, 1)
        self.add_module(f"proj_{layer}", proj)
        self.proj_bn = nn.BatchNorm1d(stream)
        self.proj_lif = LIF()

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, N) in and out."""
        q, k, v = (self._spikes(name, x).flatten(0, 1) for name in "qkv")
        o = self.product(q, k, v).unflatten(0, x.shape[:2])  # (T, B, Cv, N)
        return self._spikes("proj", self.attn_lif(o))

    def _spikes(self, name: str, x: Tensor) -> Tensor:
        project, bn, lif = (getattr(self, f"{name}_{part}") for part in (self.layer, "bn", "lif"))
        spikes: Tensor = lif(over_time(bn, over_time(project, x)))
        return spikes


def _conv1d(c_in: int, c_out: int) -> nn.Conv1d:
    return nn.Conv1d(c_in, c_out, 1, bias=False)


class MLP(nn.Module):
    """Two layers, each followed by BatchNorm and a neuron.

    Args:
        stream, hidden: Present widths.
        layer: ``conv`` (Conv2d 1x1, ImageNet variant) or ``linear`` (CIFAR variant).
    """

    def __init__(self, stream: int, hidden: int, layer: str) -> None:
        super().__init__()
        self.layer = layer
        maps = layer == "conv"
        norm = nn.BatchNorm2d if maps else nn.BatchNorm1d
        for name, c_in, c_out in (("fc1", stream, hidden), ("fc2", hidden, stream)):
            self.add_module(
                f"{name}_{layer}", nn.Conv2d(c_in, c_out, 1) if maps else Tokens(c_in, c_out)
            )
            self.add_module(f"{name}_bn", norm(c_out))
            self.add_module(f"{name}_lif", LIF())

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, N) in and out."""
        if self.layer == "conv":
            x = x.unsqueeze(4)  # a map of N x 1 gives the same numbers as one of H x W
        for name in ("fc1", "fc2"):
            project, bn, lif = (getattr(self, f"{name}_{p}") for p in (self.layer, "bn", "lif"))
            x = lif(over_time(bn, over_time(project, x)))
        return x.squeeze(4) if self.layer == "conv" else x


class Block(nn.Module):
    """Attention and MLP with residual connections that add spikes.

    Args:
        stream, qk, v, hidden: Present widths.
        heads: The heads.
        layer: ``conv`` or ``linear``.
    """

    def __init__(self, stream: int, qk: int, v: int, hidden: int, heads: Heads, layer: str) -> None:
        super().__init__()
        # Never called, but part of the checkpoints, which are loaded strictly.
        self.norm1 = nn.LayerNorm(stream)
        self.attn = SpikingSelfAttention(stream, qk, v, heads, layer)
        self.norm2 = nn.LayerNorm(stream)
        self.mlp = MLP(stream, hidden, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (T, B, C, N)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class SpikformerLayout(SpikingModel):
    """Base class of Spikformer and Spikingformer: a stem, blocks on tokens, the mean of both."""

    hashed_arguments: ClassVar[Mapping[str, Any]] = {"num_heads": 8}
    published_heads: ClassVar[tuple[int, ...]] = (8,)
    published_sides: ClassVar[tuple[int, ...]] = (224,)
    patch_embed: nn.Module
    block: nn.ModuleList
    head: nn.Linear

    def _add_block(self, name: str) -> nn.Module:
        """Build the block of this name."""
        raise NotImplementedError

    def _stem(self) -> nn.Module:
        """Build the stem."""
        raise NotImplementedError

    def _build(self) -> None:
        self.patch_embed = self._stem()
        names = [f"block.{i}" for i in range(self.arguments["depths"])]
        self.block = nn.ModuleList(self._add_block(name) for name in names)
        self.head = nn.Linear(self.widths["stream"], self.arguments["num_classes"])

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of heads, time steps and image size."""
        return (
            heads_choice([size["embed_dims"]], cls.published_heads),
            time_steps_choice(),
            image_size_choice(cls.published_sides),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean over tokens and time."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed(x, self.T).flatten(3)  # (T, B, C, N)
        for block in self.block:
            x = block(x)
        return self.head(x.mean(dim=3).mean(dim=0))


def unused_norms(depths: int) -> tuple[str, ...]:
    """Return the names of the blocks' tensors that no computation reads."""
    norms = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    return tuple(f"block.{i}.{norm}" for i in range(depths) for norm in norms)


def check_heads(embed_dims: int, num_heads: int) -> None:
    """Check that the stem and the heads can divide the width.

    Raises:
        ModelError: If they cannot.
    """
    if embed_dims % num_heads or embed_dims % 8:
        raise ModelError(
            f"embed_dims must be a multiple of 8 and of num_heads={num_heads}; got {embed_dims}."
        )


class Spikformer(SpikformerLayout):
    """Spikformer: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that the model is built for.
        num_classes: Length of the logits.
        embed_dims: Unpruned width of the residual stream.
        num_heads: Number of heads.
        mlp_ratios: MLP hidden width divided by ``embed_dims``.
        depths: Number of blocks.
        T: Time steps.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect.
    """

    layer = "conv"
    pooling = (True, True, True, True)

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
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        check_unused_arguments(self.family, unused, UNUSED_ARGUMENTS)
        check_heads(embed_dims, num_heads)
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
        }
        hidden = int(embed_dims * mlp_ratios)
        specs = _group_specs(embed_dims, hidden, depths, num_heads, self.layer)
        super().__init__(arguments, specs, widths)
        self._build()
        self.unused = unused_norms(depths)

    def _stem(self) -> PatchEmbed:
        w = self.widths
        stem = (w["stem0"], w["stem1"], w["stem2"], w["stream"])
        return PatchEmbed(self.arguments["in_channels"], stem, self.pooling)

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but heads, time steps and image size."""
        first, hidden = "patch_embed.proj_conv.weight", f"block.0.mlp.fc1_{cls.layer}.weight"
        if {first, hidden, "block.0.norm1.weight", "head.weight"} - shapes.keys():
            return None
        num_classes, embed_dims = shapes["head.weight"]
        return {
            "in_channels": shapes[first][1],
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "mlp_ratios": ratio(shapes[hidden][0], embed_dims),
            "depths": count_blocks(shapes, "block"),
        }

    def _add_block(self, name: str) -> Block:
        w, heads = self.widths, int(self.arguments["num_heads"])
        qk, v, hidden = w[f"{name}.attn.qk"], w[f"{name}.attn.v"], w[f"{name}.mlp.hidden"]
        layout = Heads(heads, int(self.arguments["embed_dims"]) // heads)
        return Block(w["stream"], qk, v, hidden, layout, self.layer)

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution and the head, which reads averages."""
        return {"patch_embed.proj_conv": 1, "head": 1}


class SpikformerImageNet(Spikformer):
    """The ImageNet variant: convolutions on maps, stride 16."""

    family = "spikformer_imagenet"
    title = "Spikformer, ImageNet"


class SpikformerCifar(Spikformer):
    """The CIFAR variant: linear layers on tokens, stride 4."""

    family = "spikformer_cifar"
    title = "Spikformer, CIFAR"
    layer = "linear"
    pooling = (False, False, True, True)
    published_heads = (12,)
    published_sides = (32,)


def attention_specs(
    attn: str, width: int, heads: int, title: str, layer: str = "conv"
) -> list[GroupSpec]:
    """Return groups ``qk`` and ``v`` of a spiking self-attention."""

    def writers(*names: str) -> tuple[str, ...]:
        return prefixed(attn, [f"{n}_{part}" for n in names for part in (layer, "bn")])

    proj = (f"{attn}.proj_{layer}",)
    return [
        GroupSpec(f"{attn}.qk", "qk", width, title, "SSA q, k", writers("q", "k"), (), heads),
        GroupSpec(f"{attn}.v", "v", width, title, "SSA v", writers("v"), proj, heads),
    ]


def _group_specs(
    embed_dims: int, hidden: int, depths: int, heads: int, layer: str
) -> list[GroupSpec]:
    writers = list(prefixed("patch_embed", STREAM_WRITERS))
    readers = [f"patch_embed.{STREAM_READER}"]
    inner: list[GroupSpec] = []
    for i in range(depths):
        b, title = f"block.{i}", f"Block {i + 1}"
        attn = (f"attn.proj_{layer}", "attn.proj_bn")
        writers += prefixed(b, (*attn, f"mlp.fc2_{layer}", "mlp.fc2_bn", "norm1", "norm2"))
        readers += prefixed(b, [*(f"attn.{x}_{layer}" for x in "qkv"), f"mlp.fc1_{layer}"])
        fc1, fc2 = prefixed(b, (f"mlp.fc1_{layer}", "mlp.fc1_bn")), (f"{b}.mlp.fc2_{layer}",)
        inner += attention_specs(f"{b}.attn", embed_dims, heads, title, layer)
        inner.append(GroupSpec(f"{b}.mlp.hidden", "mlp", hidden, title, "MLP hidden", fc1, fc2))
    stream = stream_spec(embed_dims, writers, readers)
    return [*stem_specs(embed_dims), stream, *inner]
