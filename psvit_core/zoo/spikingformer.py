"""Spikingformer, plain and with CML downsampling, in its ImageNet and CIFAR variants.

Source:
    Zhou et al. 2023, Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking
    Neural Network, arXiv 2304.11954; Zhou et al. 2023, Enhancing the Performance of
    Transformer-based Spiking Neural Networks by SNN-optimized Downsampling with Precise Gradient
    Backpropagation (CML), arXiv 2305.05954. State-dict keys match the official checkpoints. The
    residual stream is real-valued, and every branch starts with a neuron.

CML pools the real values before a neuron instead of the spikes after it. The ImageNet weights have
the same names and shapes in both, and compute different functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.neurons import LIF
from psvit_core.zoo.base import (
    UNUSED_ARGUMENTS,
    GroupSpec,
    check_unused_arguments,
    prefixed,
)
from psvit_core.zoo.layers import ATTENTION_SCALE, max_pool, over_time, repeat_over_time
from psvit_core.zoo.products import Heads, SpikeProduct
from psvit_core.zoo.sizing import (
    Shapes,
    count_blocks,
    ratio,
)
from psvit_core.zoo.spikformer import (
    SpikformerLayout,
    attention_specs,
    check_heads,
    unused_norms,
)
from psvit_core.zoo.stem import stream_spec

_PROJ_NAMES = ("proj", "proj1", "proj2", "proj3", "proj4")
_BLOCK_NAMES = ("block0", "block1", "block2", "block3", "block4")


class PatchEmbed(nn.Module):
    """Five 3x3 convolutions (C/8, C/4, C/2, C, C); a neuron and perhaps pooling between them.

    Args:
        in_channels: Channels of the images.
        widths: Present widths of the five convolutions.
        names: Names of the convolutions in the checkpoints.
        pooled: Convolutions (1 to 4) with max-pooling before them.
        cml: True to pool before the neuron, False to pool its spikes.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        names: Sequence[str],
        pooled: Sequence[int],
        cml: bool,
    ) -> None:
        super().__init__()
        self.names, self.pooled, self.cml = tuple(names), tuple(pooled), cml
        for i, (name, c_in, c_out) in enumerate(
            zip(names, (in_channels, *widths[:-1]), widths, strict=True)
        ):
            if i:
                self.add_module(f"{name}_lif", LIF())
            self.add_module(f"{name}_conv", nn.Conv2d(c_in, c_out, 3, padding=1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Map images (B, C, H, W) or frames (T, B, C, H, W) to real values (T, B, C, h, w)."""
        conv, bn = self._layers(self.names[0])
        n_images = x.shape[-4]
        pools_first = self.cml and 1 in self.pooled
        # the first convolution sees the same image at every step: run it once
        image = x.dim() == 4
        x = bn(conv(x if image else x.flatten(0, 1)))
        if pools_first:
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        x = repeat_over_time(x, T) if image else x.unflatten(0, (-1, n_images))
        for i, name in enumerate(self.names[1:], start=1):
            if self.cml and i in self.pooled and i > 1:
                x = max_pool(x)
            x = getattr(self, f"{name}_lif")(x)
            if not self.cml and i in self.pooled:
                x = max_pool(x)
            conv, bn = self._layers(name)
            x = over_time(bn, over_time(conv, x))
        return x

    def _layers(self, name: str) -> tuple[nn.Module, nn.Module]:
        return getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")


class Attention(nn.Module):
    """Spiking self-attention with a neuron at its input and none at its output.

    Args:
        stream, qk, v: Present widths.
        heads: The heads.
        input_lif: Published name of the neuron at the input.
        keys_first: True if the published model computes ``q (k^T v)``.
    """

    def __init__(
        self,
        stream: int,
        qk: int,
        v: int,
        heads: Heads,
        *,
        input_lif: str = "proj_lif",
        keys_first: bool,
    ) -> None:
        super().__init__()
        self.input_lif = input_lif
        self.add_module(input_lif, LIF())
        for name, width in (("q", qk), ("k", qk), ("v", v)):
            self.add_module(f"{name}_conv", nn.Conv1d(stream, width, 1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm1d(width))
            self.add_module(f"{name}_lif", LIF())
        self.product = SpikeProduct(heads, ATTENTION_SCALE, keys_first)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Conv1d(v, stream, 1)
        self.proj_bn = nn.BatchNorm1d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, N) in and out."""
        s = getattr(self, self.input_lif)(x)
        q, k, v = (self._spikes(name, s).flatten(0, 1) for name in "qkv")
        o = self.attn_lif(self.product(q, k, v).unflatten(0, x.shape[:2]))
        return over_time(self.proj_bn, over_time(self.proj_conv, o))

    def _spikes(self, name: str, s: Tensor) -> Tensor:
        conv, bn, lif = (getattr(self, f"{name}_{part}") for part in ("conv", "bn", "lif"))
        spikes: Tensor = lif(over_time(bn, over_time(conv, s)))
        return spikes


class MLP(nn.Module):
    """Two 1x1 convolutions, each after a neuron."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.mlp1_lif = LIF()
        self.mlp1_conv = nn.Conv2d(stream, hidden, 1)
        self.mlp1_bn = nn.BatchNorm2d(hidden)
        self.mlp2_lif = LIF()
        self.mlp2_conv = nn.Conv2d(hidden, stream, 1)
        self.mlp2_bn = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, N) in and out."""
        x = x.unsqueeze(4)  # a map of N x 1 gives the same numbers as one of H x W
        h = over_time(self.mlp1_bn, over_time(self.mlp1_conv, self.mlp1_lif(x)))
        return over_time(self.mlp2_bn, over_time(self.mlp2_conv, self.mlp2_lif(h))).squeeze(4)


class Block(nn.Module):
    """Attention and MLP, each with a membrane shortcut."""

    def __init__(self, attention: Attention, stream: int, hidden: int) -> None:
        super().__init__()
        # Never called, but part of the checkpoints, which are loaded strictly.
        self.norm1 = nn.LayerNorm(stream)
        self.attn = attention
        self.norm2 = nn.LayerNorm(stream)
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (T, B, C, N)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class Spikingformer(SpikformerLayout):
    """Spikingformer: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

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

    names: ClassVar[tuple[str, ...]] = _PROJ_NAMES
    pooled: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    cml: ClassVar[bool] = False
    #: True if the published model computes ``q (k^T v)`` (ImageNet), False for ``(q k^T) v``.
    keys_first: ClassVar[bool] = True

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
        specs = _group_specs(embed_dims, hidden, depths, num_heads, self.names)
        super().__init__(arguments, specs, widths)
        self._build()
        self.unused = unused_norms(depths)

    def _stem(self) -> PatchEmbed:
        w, in_channels = self.widths, int(self.arguments["in_channels"])
        stem = (*(w[f"stem{i}"] for i in range(4)), w["stream"])
        return PatchEmbed(in_channels, stem, names=self.names, pooled=self.pooled, cml=self.cml)

    def _add_block(self, name: str) -> Block:
        w, heads = self.widths, int(self.arguments["num_heads"])
        layout = Heads(heads, int(self.arguments["embed_dims"]) // heads)
        stream, qk, v = w["stream"], w[f"{name}.attn.qk"], w[f"{name}.attn.v"]
        attention = Attention(stream, qk, v, layout, keys_first=self.keys_first)
        return Block(attention, stream, w[f"{name}.mlp.hidden"])

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but heads, time steps and image size."""
        first, hidden = f"patch_embed.{cls.names[0]}_conv.weight", "block.0.mlp.mlp1_conv.weight"
        last = f"patch_embed.{cls.names[-1]}_conv.weight"
        if {first, last, hidden, "block.0.norm1.weight", "head.weight"} - shapes.keys():
            return None
        num_classes, embed_dims = shapes["head.weight"]
        return {
            "in_channels": shapes[first][1],
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "mlp_ratios": ratio(shapes[hidden][0], embed_dims),
            "depths": count_blocks(shapes, "block"),
        }

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution and the head, which reads real values."""
        return {f"patch_embed.{self.names[0]}_conv": 1, "head": 1}


class SpikingformerImageNet(Spikingformer):
    """The ImageNet variant: stride 16."""

    family = "spikingformer_imagenet"
    title = "Spikingformer, ImageNet"


class SpikingformerCifar(Spikingformer):
    """The CIFAR variant: stride 4."""

    family = "spikingformer_cifar"
    title = "Spikingformer, CIFAR"
    keys_first = False
    names = _BLOCK_NAMES
    pooled = (3, 4)
    published_heads = (12, 8)
    published_sides = (32,)


class SpikingformerCMLImageNet(Spikingformer):
    """The ImageNet variant with CML downsampling."""

    family = "spikingformer_cml_imagenet"
    title = "Spikingformer + CML, ImageNet"
    cml = True
    published_sides = (224, 288)


class SpikingformerCMLCifar(Spikingformer):
    """The CIFAR variant with CML downsampling."""

    family = "spikingformer_cml_cifar"
    title = "Spikingformer + CML, CIFAR"
    keys_first = False
    cml = True
    pooled = (3, 4)
    published_heads = (12, 8)
    published_sides = (32,)


def _group_specs(
    embed_dims: int, hidden: int, depths: int, heads: int, names: Sequence[str]
) -> list[GroupSpec]:
    last = names[-1]
    writers = [f"patch_embed.{last}_conv", f"patch_embed.{last}_bn"]
    readers: list[str] = []
    inner: list[GroupSpec] = []
    for i in range(depths):
        b, title = f"block.{i}", f"Block {i + 1}"
        attn, mlp = ("attn.proj_conv", "attn.proj_bn"), ("mlp.mlp2_conv", "mlp.mlp2_bn")
        writers += prefixed(b, (*attn, *mlp, "norm1", "norm2"))
        readers += prefixed(b, [*(f"attn.{x}_conv" for x in "qkv"), "mlp.mlp1_conv"])
        first, second = prefixed(b, ("mlp.mlp1_conv", "mlp.mlp1_bn")), (f"{b}.mlp.mlp2_conv",)
        inner += attention_specs(f"{b}.attn", embed_dims, heads, title)
        inner.append(
            GroupSpec(f"{b}.mlp.hidden", "mlp", hidden, title, "MLP hidden", first, second)
        )
    stream = stream_spec(embed_dims, writers, readers)
    return [*_stem_specs(embed_dims, names), stream, *inner]


def _stem_specs(embed_dims: int, names: Sequence[str]) -> list[GroupSpec]:
    widths = (embed_dims // 8, embed_dims // 4, embed_dims // 2, embed_dims)
    return [
        GroupSpec(
            group_id=f"stem{i}",
            kind="conv",
            width=width,
            block="Stem",
            title=f"conv {i + 1}",
            writers=prefixed("patch_embed", (f"{names[i]}_conv", f"{names[i]}_bn")),
            readers=(f"patch_embed.{names[i + 1]}_conv",),
        )
        for i, width in enumerate(widths)
    ]
