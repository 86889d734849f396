"""Spikformer, in its two published flavours: ImageNet (maps) and CIFAR (tokens).

Source:
    Zhou et al. 2023, Spikformer: When Spiking Neural Network Meets Transformer, ICLR,
    arXiv 2209.15425. State-dict keys are those of the official checkpoints. Neurons close every
    branch, so the residual stream carries small integers.
"""

from __future__ import annotations

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
from psvit_core.zoo.layers import SpikeProduct, halve, over_time
from psvit_core.zoo.stem import STREAM_IN, STREAM_OUT, StemLayers, stem_specs

_SCALE = 0.125  # the published constant, whatever the head width


class PatchEmbed(StemLayers):
    """Spiking patch splitting (SPS); max-pools act on spikes.

    Args:
        in_channels: Of the images.
        widths: Present widths of the four stages.
        pooling: For each stage, whether it halves the resolution.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], pooling: Sequence[bool]) -> None:
        super().__init__(in_channels, widths)
        self.pooling = tuple(pooling)
        self.rpe_lif = LIF()

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Integer stream (T, B, C, h, w) of images (B, C, H, W) or frames (T, B, C, H, W)."""
        x = self._pool(self.proj_lif(self.first(x, T)), 0)
        x = over_time(self.proj_bn1, over_time(self.proj_conv1, x))
        x = self._pool(self.proj_lif1(x), 1)
        x = over_time(self.proj_bn2, over_time(self.proj_conv2, x))
        x = self._pool(self.proj_lif2(x), 2)
        x = over_time(self.proj_bn3, over_time(self.proj_conv3, x))
        z = self._pool(self.proj_lif3(x), 3)
        return self.rpe_lif(over_time(self.rpe_bn, over_time(self.rpe_conv, z))) + z

    def _pool(self, x: Tensor, stage: int) -> Tensor:
        return halve(x) if self.pooling[stage] else x


class Tokens(nn.Linear):
    """A linear layer on (rows, C, N): per token, as the CIFAR flavour has it."""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, C, N) to (rows, C', N)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention (SSA): ``(q k^T) v`` of spikes, no softmax.

    Args:
        stream, qk, v: Present widths.
        heads: Number of heads.
        layer: ``conv`` (Conv1d, ImageNet flavour) or ``linear`` (CIFAR flavour).
    """

    def __init__(self, stream: int, qk: int, v: int, heads: int, layer: str) -> None:
        super().__init__()
        self.layer = layer
        for name, width in (("q", qk), ("k", qk), ("v", v)):
            project = Tokens(stream, width) if layer == "linear" else _conv1d(stream, width)
            self.add_module(f"{name}_{layer}", project)
            self.add_module(f"{name}_bn", nn.BatchNorm1d(width))
            self.add_module(f"{name}_lif", LIF())
        self.product = SpikeProduct(heads, _SCALE)
        self.attn_lif = LIF(v_threshold=0.5)
        proj = Tokens(v, stream) if layer == "linear" else nn.Conv1d(v, stream, 1)
        self.add_module(f"proj_{layer}", proj)
        self.proj_bn = nn.BatchNorm1d(stream)
        self.proj_lif = LIF()

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, N) in and out."""
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
        layer: ``conv`` (Conv2d 1x1, ImageNet flavour) or ``linear`` (CIFAR flavour).
    """

    def __init__(self, stream: int, hidden: int, layer: str) -> None:
        super().__init__()
        self.layer = layer
        maps = layer == "conv"
        norm = nn.BatchNorm2d if maps else nn.BatchNorm1d
        for name, c_in, c_out in (("fc1", stream, hidden), ("fc2", hidden, stream)):
            self.add_module(f"{name}_{layer}", nn.Conv2d(c_in, c_out, 1) if maps
                            else Tokens(c_in, c_out))  # fmt: skip
            self.add_module(f"{name}_bn", norm(c_out))
            self.add_module(f"{name}_lif", LIF())

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, N) in and out."""
        if self.layer == "conv":
            x = x.unsqueeze(4)  # a map of N x 1 gives the same numbers as one of H x W
        for name in ("fc1", "fc2"):
            project, bn, lif = (getattr(self, f"{name}_{p}") for p in (self.layer, "bn", "lif"))
            x = lif(over_time(bn, over_time(project, x)))
        return x.squeeze(4) if self.layer == "conv" else x


class Block(nn.Module):
    """Attention and MLP with residual adds of spikes.

    Args:
        stream, qk, v, hidden: Present widths.
        heads: Number of heads.
        layer: ``conv`` or ``linear``.
    """

    def __init__(self, stream: int, qk: int, v: int, hidden: int, heads: int, layer: str) -> None:
        super().__init__()
        # In the checkpoints and never called; kept so that they load strictly.
        self.norm1 = nn.LayerNorm(stream)
        self.attn = SpikingSelfAttention(stream, qk, v, heads, layer)
        self.norm2 = nn.LayerNorm(stream)
        self.mlp = MLP(stream, hidden, layer)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (T, B, C, N)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class Spikformer(SpikingModel):
    """Spikformer; images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that it is made for.
        num_classes: Length of the logits.
        embed_dims: Width of the residual stream, before pruning.
        num_heads: Number of heads.
        mlp_ratios: MLP hidden width over ``embed_dims``.
        depths: Number of blocks.
        T: Time steps.
        widths: Present group widths where they differ from the original ones.
        unused: Official arguments without effect here.
    """

    unseen = {"num_heads": 8}
    layer = "conv"
    pooling = (True, True, True, True)

    def __init__(
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
        accept_unused(self.family, unused, UNUSED_ARGUMENTS)
        if embed_dims % num_heads or embed_dims % 8:
            raise ModelError(
                f"embed_dims must be a multiple of 8 and of num_heads={num_heads}; "
                f"got {embed_dims}."
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
        }
        hidden = int(embed_dims * mlp_ratios)
        specs = _group_specs(embed_dims, hidden, depths, num_heads, self.layer)
        super().__init__(arguments, specs, widths)
        w = self.widths
        stem = (w["stem0"], w["stem1"], w["stem2"], w["stream"])
        self.patch_embed = PatchEmbed(in_channels, stem, self.pooling)
        self.block = nn.ModuleList(
            Block(
                w["stream"],
                w[f"block.{i}.attn.qk"],
                w[f"block.{i}.attn.v"],
                w[f"block.{i}.mlp.hidden"],
                num_heads,
                self.layer,
            )
            for i in range(depths)
        )
        self.head = nn.Linear(w["stream"], num_classes)
        self.unused = tuple(
            f"block.{i}.{norm}.{tensor}"
            for i in range(depths)
            for norm in ("norm1", "norm2")
            for tensor in ("weight", "bias")
        )

    def real_fed(self) -> dict[str, int]:
        """The first convolution, and the head, which reads a mean over tokens and time."""
        return {"patch_embed.proj_conv": 1, "head": 1}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mean over tokens and time."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed(x, self.T).flatten(3)  # (T, B, C, N)
        for block in self.block:
            x = block(x)
        return self.head(x.mean(dim=3).mean(dim=0))


class SpikformerImageNet(Spikformer):
    """The ImageNet flavour: convolutions on maps, stride 16."""

    family = "spikformer_imagenet"


class SpikformerCifar(Spikformer):
    """The CIFAR flavour: linear layers on tokens, stride 4."""

    family = "spikformer_cifar"
    layer = "linear"
    pooling = (False, False, True, True)


def attention_specs(
    attn: str, width: int, heads: int, title: str, layer: str = "conv"
) -> list[GroupSpec]:
    """Groups ``qk`` and ``v`` of a spiking self-attention."""

    def out(*names: str) -> tuple[str, ...]:
        return prefixed(attn, [f"{n}_{part}" for n in names for part in (layer, "bn")])

    proj = (f"{attn}.proj_{layer}",)
    return [
        GroupSpec(f"{attn}.qk", "qk", width, title, "SSA q, k", out("q", "k"), (), heads),
        GroupSpec(f"{attn}.v", "v", width, title, "SSA v", out("v"), proj, heads),
    ]


def _group_specs(
    embed_dims: int, hidden: int, depths: int, heads: int, layer: str
) -> list[GroupSpec]:
    out = list(prefixed("patch_embed", STREAM_OUT))
    into = [f"patch_embed.{STREAM_IN}"]
    inner: list[GroupSpec] = []
    for i in range(depths):
        b, title = f"block.{i}", f"Block {i + 1}"
        out += prefixed(b, (f"attn.proj_{layer}", "attn.proj_bn", f"mlp.fc2_{layer}", "mlp.fc2_bn"))
        out += prefixed(b, ("norm1", "norm2"))
        into += prefixed(b, [*(f"attn.{x}_{layer}" for x in "qkv"), f"mlp.fc1_{layer}"])
        fc1, fc2 = prefixed(b, (f"mlp.fc1_{layer}", "mlp.fc1_bn")), (f"{b}.mlp.fc2_{layer}",)
        inner += attention_specs(f"{b}.attn", embed_dims, heads, title, layer)
        inner.append(GroupSpec(f"{b}.mlp.hidden", "mlp", hidden, title, "MLP hidden", fc1, fc2))
    stream = GroupSpec(
        "stream",
        "residual",
        embed_dims,
        "All blocks",
        "residual stream",
        tuple(out),
        (*into, "head"),
    )
    return [*stem_specs(embed_dims), stream, *inner]
