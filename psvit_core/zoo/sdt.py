"""Spike-driven Transformer v1.

Source:
    Yao et al. 2023, Spike-driven Transformer, NeurIPS, arXiv 2307.01694. State-dict keys are those
    of the official checkpoints. The residual stream is real-valued (membrane shortcut); neurons sit
    at the branch inputs; attention is elementwise, so heads do not matter numerically.
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
from psvit_core.zoo.layers import MaskedKeySum, halve, over_time
from psvit_core.zoo.stem import STREAM_IN, STREAM_OUT, StemLayers, stem_specs


class PatchEmbed(StemLayers):
    """Spiking patch splitting; the last stage pools the real map, before its neuron.

    Args:
        in_channels: Of the images.
        widths: Present widths of the four stages.
        pooling: For each stage, "1" where it halves the resolution.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], pooling: str) -> None:
        super().__init__(in_channels, widths)
        self.pooling = tuple(flag == "1" for flag in pooling)

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Real-valued stream (T, B, C, h, w) of images (B, C, H, W) or frames (T, B, C, H, W)."""
        x = self._pool(self.proj_lif(self.first(x, T)), 0)
        x = over_time(self.proj_bn1, over_time(self.proj_conv1, x))
        x = self._pool(self.proj_lif1(x), 1)
        x = over_time(self.proj_bn2, over_time(self.proj_conv2, x))
        x = self._pool(self.proj_lif2(x), 2)
        x = over_time(self.proj_bn3, over_time(self.proj_conv3, x))
        u = self._pool(x, 3)
        return over_time(self.rpe_bn, over_time(self.rpe_conv, self.proj_lif3(u))) + u

    def _pool(self, x: Tensor, stage: int) -> Tensor:
        return halve(x) if self.pooling[stage] else x


class SpikeDrivenAttention(nn.Module):
    """Spike-driven self-attention (SDSA-1): masks and column sums, no matrix product."""

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
        # In the checkpoints and never called; kept so that they load strictly.
        self.talking_heads = nn.Conv1d(num_heads, num_heads, 1, bias=False)
        self.talking_heads_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Conv2d(inner, stream, 1)
        self.proj_bn = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, H, W) in and out."""
        s = self.shortcut_lif(x)
        q = self.q_lif(over_time(self.q_bn, over_time(self.q_conv, s)))
        k = self.k_lif(over_time(self.k_bn, over_time(self.k_conv, s)))
        v = self.v_lif(over_time(self.v_bn, over_time(self.v_conv, s)))
        gate = self.talking_heads_lif(self.gate(k, v))
        return over_time(self.proj_bn, over_time(self.proj_conv, q * gate))


class MLP(nn.Module):
    """Two 1x1 convolutions, a neuron before each."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.fc1_lif = LIF()
        self.fc1_conv = nn.Conv2d(stream, hidden, 1)
        self.fc1_bn = nn.BatchNorm2d(hidden)
        self.fc2_lif = LIF()
        self.fc2_conv = nn.Conv2d(hidden, stream, 1)
        self.fc2_bn = nn.BatchNorm2d(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, H, W) in and out."""
        h = over_time(self.fc1_bn, over_time(self.fc1_conv, self.fc1_lif(x)))
        return over_time(self.fc2_bn, over_time(self.fc2_conv, self.fc2_lif(h)))


class Block(nn.Module):
    """Attention and MLP, each with a membrane shortcut."""

    def __init__(self, stream: int, inner: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.attn = SpikeDrivenAttention(stream, inner, num_heads)
        self.mlp = MLP(stream, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (T, B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class SpikeDrivenTransformer(SpikingModel):
    """SDT v1; images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that it is made for.
        num_classes: Length of the logits.
        embed_dims: Width of the residual stream, before pruning.
        num_heads: Only shapes the unused ``talking_heads`` weights.
        mlp_ratios: MLP hidden width over ``embed_dims``; at least 2.
        depths: Number of blocks.
        T: Time steps.
        pooling_stat: For each of the four stem stages, "1" where it halves the resolution.
        widths: Present group widths where they differ from the original ones.
        unused: Official arguments without effect here.
    """

    family = "sdt_v1"
    unseen = {"pooling_stat": "1111"}

    def __init__(
        self,
        *,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 512,
        num_heads: int = 8,
        mlp_ratios: int = 4,
        depths: int = 8,
        T: int = 4,
        pooling_stat: str = "1111",
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        accept_unused(self.family, unused, _UNUSED)
        if len(pooling_stat) != 4 or set(pooling_stat) - {"0", "1"}:
            raise ModelError(f"pooling_stat is four of 0 and 1, e.g. '1111'; got {pooling_stat!r}.")
        if mlp_ratios < 2:
            raise ModelError(f"mlp_ratios is at least 2 in published models; got {mlp_ratios!r}.")
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
        super().__init__(arguments, _group_specs(embed_dims, mlp_ratios, depths), widths)
        w = self.widths
        stem = (w["stem0"], w["stem1"], w["stem2"], w["stream"])
        self.patch_embed = PatchEmbed(in_channels, stem, pooling_stat)
        self.block = nn.ModuleList(
            Block(w["stream"], w[f"block.{i}.attn.qkv"], w[f"block.{i}.mlp.hidden"], num_heads)
            for i in range(depths)
        )
        self.head_lif = LIF()
        self.head = nn.Linear(w["stream"], num_classes)
        self.unused = tuple(f"block.{i}.attn.talking_heads.weight" for i in range(depths))

    def real_fed(self) -> dict[str, int]:
        """The first convolution, once for a static image."""
        return {"patch_embed.proj_conv": 1}

    def forward(self, x: Tensor) -> Tensor:
        """Logits, mean over the time steps."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed(x, self.T)
        for block in self.block:
            x = block(x)
        spikes = self.head_lif(x.mean(dim=(3, 4)))  # (T, B, C)
        return over_time(self.head, spikes).mean(dim=0)


_UNUSED: dict[str, Any] = {
    **UNUSED_ARGUMENTS,
    "spike_mode": "lif",
    "attn_mode": "direct_xor",
    "get_embed": False,
    "dvs_mode": False,
    "TET": False,
    "cml": False,
}


def _group_specs(embed_dims: int, mlp_ratios: int, depths: int) -> list[GroupSpec]:
    blocks = [f"block.{i}" for i in range(depths)]
    stream_out = list(prefixed("patch_embed", STREAM_OUT))
    stream_in = [f"patch_embed.{STREAM_IN}"]
    for b in blocks:
        stream_out += prefixed(b, ("attn.proj_conv", "attn.proj_bn", "mlp.fc2_conv", "mlp.fc2_bn"))
        stream_in += prefixed(b, ("attn.q_conv", "attn.k_conv", "attn.v_conv", "mlp.fc1_conv"))
    specs = stem_specs(embed_dims)
    specs.append(
        GroupSpec(
            "stream",
            "residual",
            embed_dims,
            "All blocks",
            "residual stream",
            tuple(stream_out),
            (*stream_in, "head"),
        )
    )
    for i, b in enumerate(blocks):
        qkv = [f"attn.{x}_{y}" for x in "qkv" for y in ("conv", "bn")]
        specs += [
            GroupSpec(
                f"{b}.attn.qkv",
                "qkv_elementwise",
                embed_dims,
                f"Block {i + 1}",
                "SDSA q, k, v",
                prefixed(b, qkv),
                (f"{b}.attn.proj_conv",),
            ),
            GroupSpec(
                f"{b}.mlp.hidden",
                "mlp",
                embed_dims * mlp_ratios,
                f"Block {i + 1}",
                "MLP hidden",
                prefixed(b, ("mlp.fc1_conv", "mlp.fc1_bn")),
                (f"{b}.mlp.fc2_conv",),
            ),
        ]
    return specs
