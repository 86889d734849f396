"""STAtten: spatial-temporal attention on the layers of SDT v1.

Source:
    Lee et al. 2025, Spiking Transformer with Spatial-Temporal Attention, CVPR, arXiv 2409.19764.
    State-dict keys match the official code, and those of SDT v1: a file does not show which of the
    two it belongs to.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.zoo.base import GroupSpec, check_unused_arguments
from psvit_core.zoo.layers import over_time
from psvit_core.zoo.products import ChunkProduct
from psvit_core.zoo.sdt import UNUSED, SDTLayout, SpikeDrivenAttention, gate_specs
from psvit_core.zoo.sizing import (
    Choice,
    Option,
    image_size_choice,
    pooling_choice,
    time_steps_choice,
)
from psvit_core.zoo.spikformer import attention_specs

_MODES = ("STAtten", "SDT")


class ChunkAttention(nn.Module):
    """Attention over the tokens of several time steps, earlier and later ones alike.

    Args:
        stream, qk, v: Present widths.
        heads: Number of heads.
        chunk_size: Time steps of a chunk.
    """

    def __init__(self, stream: int, qk: int, v: int, *, heads: int, chunk_size: int) -> None:
        super().__init__()
        self.shortcut_lif = LIF()
        for name, width in (("q", qk), ("k", qk), ("v", v)):
            self.add_module(f"{name}_conv", nn.Conv2d(stream, width, 1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(width))
            self.add_module(f"{name}_lif", LIF())
        self.product = ChunkProduct(heads, chunk_size)
        self.attn_lif = LIF(v_threshold=0.5)
        # Never called, but part of the checkpoints, which are loaded strictly.
        self.talking_heads = nn.Conv1d(heads, heads, 1, bias=False)
        self.proj_conv = nn.Conv2d(v, stream, 1)
        self.proj_bn = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        s = self.shortcut_lif(x)
        q, k, v = (self._spikes(name, s) for name in "qkv")
        o = self.attn_lif(self.product(q, k, v, x.shape[3]).unflatten(3, x.shape[3:]))
        return over_time(self.proj_bn, over_time(self.proj_conv, o))

    def _spikes(self, name: str, s: Tensor) -> Tensor:
        conv, bn, lif = (getattr(self, f"{name}_{part}") for part in ("conv", "bn", "lif"))
        spikes: Tensor = lif(over_time(bn, over_time(conv, s)))
        return spikes.flatten(3)  # (T, B, C, N)


class STAtten(SDTLayout):
    """STAtten: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that the model is built for.
        num_classes: Length of the logits.
        embed_dims: Unpruned width of the residual stream.
        num_heads: Number of heads.
        mlp_ratios: MLP hidden width divided by ``embed_dims``; at least 2.
        depths: Number of blocks.
        T: Time steps; a multiple of ``chunk_size``.
        chunk_size: Consecutive time steps whose tokens attend to each other.
        pooling_stat: For each of the four stem stages, "1" if it halves the resolution; None takes
            the family's.
        attention_mode: "STAtten", or "SDT" for the attention of SDT v1.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect.
    """

    family = "statten"
    title = "STAtten"
    hashed_arguments: ClassVar[Mapping[str, Any]] = {
        "pooling_stat": "1111",
        "num_heads": 8,
        "chunk_size": 2,
        "attention_mode": "STAtten",
    }
    default_pooling: ClassVar[str] = "1111"
    published_sides: ClassVar[tuple[int, ...]] = (224, 288, 32)

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
        chunk_size: int = 2,
        pooling_stat: str | None = None,
        attention_mode: str = "STAtten",
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        check_unused_arguments(self.family, unused, UNUSED)
        if attention_mode not in _MODES:
            raise ModelError(f"attention_mode is {' or '.join(_MODES)}; got {attention_mode!r}.")
        if embed_dims % num_heads:
            raise ModelError(
                f"embed_dims must be a multiple of num_heads={num_heads}; got {embed_dims}."
            )
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
            "chunk_size": chunk_size,
            "pooling_stat": pooling_stat or self.default_pooling,
            "attention_mode": attention_mode,
        }
        _check_chunks(arguments, T)
        specs = (
            functools.partial(gate_specs, width=embed_dims)
            if attention_mode == "SDT"
            else functools.partial(_attention_specs, width=embed_dims, heads=num_heads)
        )
        self._start(arguments, specs, widths)

    def _attention(self, name: str) -> nn.Module:
        w, a = self.widths, self.arguments
        if a["attention_mode"] == "SDT":
            return SpikeDrivenAttention(w["stream"], w[f"{name}.attn.qkv"], a["num_heads"])
        qk, v = w[f"{name}.attn.qk"], w[f"{name}.attn.v"]
        heads, chunk_size = a["num_heads"], a["chunk_size"]
        return ChunkAttention(w["stream"], qk, v, heads=heads, chunk_size=chunk_size)

    def set_time_steps(self, T: int) -> None:
        """Set the number of time steps of static images.

        Raises:
            ModelError: If ``T`` is not a multiple of the chunk size.
        """
        _check_chunks(self.arguments, T)
        super().set_time_steps(T)

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of pooling, time steps, chunks and image size."""
        return (
            pooling_choice(),
            time_steps_choice(),
            Choice("chunk_size", (Option(2, "published for this family"),), open_ended=True),
            image_size_choice(cls.published_sides),
        )


class STAttenCifar(STAtten):
    """The CIFAR variant: stride 4."""

    family = "statten_cifar"
    alias_of = "statten"
    title = "STAtten, CIFAR"
    default_pooling = "0011"


def _check_chunks(arguments: Mapping[str, Any], T: int) -> None:
    chunk_size = arguments["chunk_size"]
    if arguments["attention_mode"] == "STAtten" and (chunk_size < 1 or T % chunk_size):
        raise ModelError(
            f"STAtten needs time steps in chunks of {chunk_size}; got T={T}. Use a multiple of "
            f"{chunk_size}, or another chunk_size."
        )


def _attention_specs(block: str, title: str, *, width: int, heads: int) -> list[GroupSpec]:
    return attention_specs(f"{block}.attn", width, heads, title)
