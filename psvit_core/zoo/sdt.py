"""Spike-driven Transformer v1.

Source:
    Yao et al. 2023, Spike-driven Transformer, NeurIPS, arXiv 2307.01694. State-dict keys are those
    of the official checkpoints. The residual stream is real-valued (membrane shortcut); neurons sit
    at the branch inputs; attention is elementwise, so heads do not matter numerically.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.zoo.base import (
    GroupSpec,
    SpikingModel,
    accept_unused,
    over_time,
    prefixed,
    repeat_over_time,
)


class PatchEmbed(nn.Module):
    """Spiking patch splitting: four convolutions and a position convolution."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int], pooling: str) -> None:
        super().__init__()
        self.pooling = tuple(flag == "1" for flag in pooling)
        c0, c1, c2, c3 = widths
        self.proj_conv = nn.Conv2d(in_channels, c0, 3, padding=1, bias=False)
        self.proj_bn = nn.BatchNorm2d(c0)
        self.proj_lif = LIF()
        self.proj_conv1 = nn.Conv2d(c0, c1, 3, padding=1, bias=False)
        self.proj_bn1 = nn.BatchNorm2d(c1)
        self.proj_lif1 = LIF()
        self.proj_conv2 = nn.Conv2d(c1, c2, 3, padding=1, bias=False)
        self.proj_bn2 = nn.BatchNorm2d(c2)
        self.proj_lif2 = LIF()
        self.proj_conv3 = nn.Conv2d(c2, c3, 3, padding=1, bias=False)
        self.proj_bn3 = nn.BatchNorm2d(c3)
        self.proj_lif3 = LIF()
        self.rpe_conv = nn.Conv2d(c3, c3, 3, padding=1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(c3)

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Real-valued stream (T, B, C, h, w) of images (B, C, H, W) or frames (T, B, C, H, W)."""
        if x.dim() == 4:  # the first convolution sees the same image at every step: do it once
            x = repeat_over_time(self.proj_bn(self.proj_conv(x)), T)
        else:
            x = over_time(self.proj_bn, over_time(self.proj_conv, x))
        x = self._pool(self.proj_lif(x), 0)
        x = over_time(self.proj_bn1, over_time(self.proj_conv1, x))
        x = self._pool(self.proj_lif1(x), 1)
        x = over_time(self.proj_bn2, over_time(self.proj_conv2, x))
        x = self._pool(self.proj_lif2(x), 2)
        x = over_time(self.proj_bn3, over_time(self.proj_conv3, x))
        u = self._pool(x, 3)  # the last stage pools the real map, before its neuron
        return over_time(self.rpe_bn, over_time(self.rpe_conv, self.proj_lif3(u))) + u

    def _pool(self, x: Tensor, stage: int) -> Tensor:
        if not self.pooling[stage]:
            return x
        pooled = F.max_pool2d(x.flatten(0, 1), kernel_size=3, stride=2, padding=1)
        return pooled.unflatten(0, x.shape[:2])


class SpikeGate(nn.Module):
    """Column sum of the masked keys: what SDSA accumulates, (T, B, C, 1, 1).

    A module of its own, so that its spikes can be counted.
    """

    def forward(self, k: Tensor, v: Tensor) -> Tensor:
        """Sum over all tokens of ``k * v``; both (T, B, C, H, W)."""
        return (k * v).sum(dim=(3, 4), keepdim=True)


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
        self.gate = SpikeGate()
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
    image_fed = ("patch_embed.proj_conv",)

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

    def forward(self, x: Tensor) -> Tensor:
        """Logits, mean over the time steps."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed(x, self.T)
        for block in self.block:
            x = block(x)
        spikes = self.head_lif(x.mean(dim=(3, 4)))  # (T, B, C)
        logits: Tensor = self.head(spikes).mean(dim=0)
        return logits


_UNUSED: dict[str, Any] = {
    "patch_size": ...,
    "qkv_bias": ...,
    "qk_scale": ...,
    "drop_rate": ...,
    "attn_drop_rate": ...,
    "drop_path_rate": ...,
    "norm_layer": ...,
    "sr_ratios": ...,
    "spike_mode": "lif",
    "attn_mode": "direct_xor",
    "get_embed": False,
    "dvs_mode": False,
    "TET": False,
    "cml": False,
    "pretrained": False,
    "pretrained_cfg": None,
}


def _group_specs(embed_dims: int, mlp_ratios: int, depths: int) -> list[GroupSpec]:
    blocks = [f"block.{i}" for i in range(depths)]
    stream_out = [*prefixed("patch_embed", ("proj_conv3", "proj_bn3", "rpe_conv", "rpe_bn"))]
    stream_in = ["patch_embed.rpe_conv"]
    for b in blocks:
        stream_out += prefixed(b, ("attn.proj_conv", "attn.proj_bn", "mlp.fc2_conv", "mlp.fc2_bn"))
        stream_in += prefixed(b, ("attn.q_conv", "attn.k_conv", "attn.v_conv", "mlp.fc1_conv"))
    specs = [
        GroupSpec(
            f"stem{i}",
            "conv",
            embed_dims >> (3 - i),
            "Stem",
            f"conv {i + 1}",
            prefixed("patch_embed", (f"proj_conv{i or ''}", f"proj_bn{i or ''}")),
            (f"patch_embed.proj_conv{i + 1}",),
        )
        for i in range(3)
    ]
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
