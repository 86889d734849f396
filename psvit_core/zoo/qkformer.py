"""QKFormer, in its two published flavours: ImageNet and CIFAR.

Source:
    Zhou et al. 2024, QKFormer: Hierarchical Spiking Transformer using Q-K Attention, NeurIPS,
    arXiv 2403.16552. State-dict keys are those of the official checkpoints. Neurons close every
    branch, so the residual stream carries small integers.

In the official code one neuron of every stage-3 attention runs over the merged time and batch axis,
so an image's logits depend on the batch around it; the released weights were trained and evaluated
that way. ``batch_coupled`` (the default) reproduces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.zoo.base import (
    UNUSED_ARGUMENTS,
    GroupSpec,
    SpikingModel,
    accept_unused,
    prefixed,
)
from psvit_core.zoo.layers import HeadSum, SpikeProduct, over_time, repeat_over_time
from psvit_core.zoo.spikformer import attention_specs

_SCALE = 0.125  # the published constant, whatever the head width


class ConvBNLIF(nn.Module):
    """Mixin of the patch embeddings: convolution, BatchNorm, pooling of real values, neuron."""

    def add(self, name: str, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        """Register ``NAME_conv``, ``NAME_bn`` and ``NAME_lif``."""
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.add_module(f"{name}_conv", conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))
        self.add_module(f"{name}_lif", LIF())

    def current(self, name: str, x: Tensor, pool: bool) -> Tensor:
        """Input current of the neuron, (rows, C, H, W)."""
        x = getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1) if pool else x

    def spikes(self, name: str, x: Tensor, pool: bool = False) -> Tensor:
        """Spikes of (T, B, C, H, W)."""
        current = self.current(name, x.flatten(0, 1), pool).unflatten(0, x.shape[:2])
        out: Tensor = getattr(self, f"{name}_lif")(current)
        return out


class FirstPatchEmbed(ConvBNLIF):
    """Patch embedding of the image, with a deformed shortcut.

    Args:
        in_channels: Of the images.
        first, mid, out: Present widths (``mid`` only in the ImageNet flavour).
        imagenet: Whether it pools (stride 4) or not (stride 1).
    """

    def __init__(self, in_channels: int, first: int, mid: int, out: int, imagenet: bool) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.add("proj", in_channels, first)
        self.add("proj1", first, mid if imagenet else out)
        if imagenet:
            self.add("proj2", mid, out)
        self.add("proj_res", first, out, kernel=1, stride=2 if imagenet else 1)

    def forward(self, x: Tensor, T: int) -> Tensor:
        """Integer stream (T, B, C, h, w) of images (B, C, H, W) or frames (T, B, C, H, W)."""
        if x.dim() == 4:  # the first convolution sees the same image at every step: do it once
            current = repeat_over_time(self.current("proj", x, self.imagenet), T)
            f = self.get_submodule("proj_lif")(current)
        else:
            f = self.spikes("proj", x, pool=self.imagenet)
        a = self.spikes("proj1", f, pool=self.imagenet)
        if self.imagenet:
            a = self.spikes("proj2", a)
        return a + self.spikes("proj_res", f)


class PatchEmbed(ConvBNLIF):
    """Patch embedding between stages: halves the resolution, with a deformed shortcut.

    Args:
        c_in, mid, out: Present widths.
        imagenet: Whether the first or the second convolution pools.
    """

    def __init__(self, c_in: int, mid: int, out: int, imagenet: bool) -> None:
        super().__init__()
        self.imagenet = imagenet
        self.add("proj3", c_in, mid)
        self.add("proj4", mid, out)
        self.add("proj_res", c_in, out, kernel=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, C, H, W) to (T, B, C', H/2, W/2)."""
        a = self.spikes("proj3", x, pool=self.imagenet)
        return self.spikes("proj4", a, pool=not self.imagenet) + self.spikes("proj_res", x)


class TokenAttention(nn.Module):
    """Q-K token attention: the queries of a head decide which tokens of its keys pass.

    Args:
        stream, q, k: Present widths.
        heads: Number of heads.
    """

    def __init__(self, stream: int, q: int, k: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_conv = nn.Conv1d(stream, q, 1, bias=False)
        self.q_bn = nn.BatchNorm1d(q)
        self.q_lif = LIF()
        self.k_conv = nn.Conv1d(stream, k, 1, bias=False)
        self.k_bn = nn.BatchNorm1d(k)
        self.k_lif = LIF()
        self.sum = HeadSum(heads)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Conv1d(k, stream, 1)
        self.proj_bn = nn.BatchNorm1d(stream)
        self.proj_lif = LIF()

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, N) in and out."""
        q = self.q_lif(over_time(self.q_bn, over_time(self.q_conv, x)))
        k = self.k_lif(over_time(self.k_bn, over_time(self.k_conv, x)))
        gate = self.attn_lif(self.sum(q))  # (T, B, heads, 1, N)
        o = (gate * k.unflatten(2, (self.heads, -1))).flatten(2, 3)  # (T, B, Ck, N)
        return self.proj_lif(over_time(self.proj_bn, over_time(self.proj_conv, o)))


class SelfAttention(nn.Module):
    """Spiking self-attention of stage 3, with the neuron that couples a batch.

    Args:
        stream, qk, v: Present widths.
        heads: Number of heads.
        batch_coupled: Run the last neuron over the merged time and batch axis, as published.
    """

    def __init__(self, stream: int, qk: int, v: int, heads: int, batch_coupled: bool) -> None:
        super().__init__()
        self.batch_coupled = batch_coupled
        self.q_conv = nn.Conv1d(stream, qk, 1, bias=False)
        self.q_bn = nn.BatchNorm1d(qk)
        self.q_lif = LIF()
        self.k_conv = nn.Conv1d(stream, qk, 1, bias=False)
        self.k_bn = nn.BatchNorm1d(qk)
        self.k_lif = LIF()
        self.v_conv = nn.Conv1d(stream, v, 1, bias=False)
        self.v_bn = nn.BatchNorm1d(v)
        self.v_lif = LIF()
        self.product = SpikeProduct(heads, _SCALE)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Conv1d(v, stream, 1)
        self.proj_bn = nn.BatchNorm1d(stream)
        self.proj_lif = LIF()

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, N) in and out."""
        q = self.q_lif(over_time(self.q_bn, over_time(self.q_conv, x)))
        k = self.k_lif(over_time(self.k_bn, over_time(self.k_conv, x)))
        v = self.v_lif(over_time(self.v_bn, over_time(self.v_conv, x)))
        o = self.product(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        o = self.attn_lif(o.unflatten(0, x.shape[:2]))
        current = over_time(self.proj_bn, over_time(self.proj_conv, o))
        if not self.batch_coupled:
            return self.proj_lif(current)
        return self.proj_lif(current.flatten(0, 1)).unflatten(0, x.shape[:2])


class MLP(nn.Module):
    """Two 1x1 convolutions, each followed by BatchNorm and a neuron.

    Args:
        stream, hidden: Present widths.
        names: Of the two layers: fc1, fc2 (ImageNet flavour) or mlp1, mlp2 (CIFAR flavour).
    """

    def __init__(self, stream: int, hidden: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        for name, c_in, c_out in zip(names, (stream, hidden), (hidden, stream), strict=True):
            self.add_module(f"{name}_conv", nn.Conv2d(c_in, c_out, 1))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))
            self.add_module(f"{name}_lif", LIF())

    def forward(self, x: Tensor) -> Tensor:
        """Branch output, (T, B, C, H, W) in and out."""
        for name in self.names:
            conv, bn, lif = (getattr(self, f"{name}_{part}") for part in ("conv", "bn", "lif"))
            x = lif(over_time(bn, over_time(conv, x)))
        return x


class Block(nn.Module):
    """Attention and MLP with residual adds of spikes.

    Args:
        key: Name of the attention in the checkpoints: ``tssa``, ``attn`` or ``ssa``.
        attention: The attention.
        mlp: The MLP.
    """

    def __init__(self, key: str, attention: nn.Module, mlp: MLP) -> None:
        super().__init__()
        self.key = key
        self.add_module(key, attention)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this block, (T, B, C, H, W)."""
        branch = getattr(self, self.key)(x.flatten(3))
        x = x + branch.unflatten(3, x.shape[3:])
        return x + self.mlp(x)


class QKFormer(SpikingModel):
    """QKFormer; images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the images that it is made for; square.
        num_classes: Length of the logits.
        embed_dims: Stream width of stage 3, before pruning; stages 1 and 2 have a quarter and half.
        num_heads: Number of heads; always 8 in the CIFAR flavour.
        mlp_ratios: MLP hidden width over the stream's.
        depths: Number of blocks of all stages.
        T: Time steps.
        batch_coupled: The official behaviour: logits depend on the batch and its order.
        widths: Present group widths where they differ from the original ones.
        unused: Official arguments without effect here.
    """

    unseen = {"num_heads": 6, "batch_coupled": True}
    imagenet = True

    def __init__(
        self,
        *,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 384,
        num_heads: int = 6,
        mlp_ratios: int = 4,
        depths: int = 10,
        T: int = 4,
        batch_coupled: bool = True,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        accept_unused(self.family, unused, UNUSED_ARGUMENTS)
        heads = num_heads if self.imagenet else 8
        if embed_dims % (4 * heads) or img_size_h != img_size_w:
            raise ModelError(
                f"embed_dims must be a multiple of 4 x heads ({4 * heads}) and images square; "
                f"got {embed_dims} and {img_size_h} x {img_size_w}."
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
            "batch_coupled": batch_coupled,
        }
        blocks = _stage_blocks(depths, self.imagenet)
        specs = _group_specs(embed_dims, mlp_ratios, heads, blocks, self.imagenet)
        super().__init__(arguments, specs, widths)
        self.batch_coupled = batch_coupled
        w = self.widths
        s1, s2, s3 = (w[f"stage{s}.stream"] for s in (1, 2, 3))
        self.patch_embed1 = FirstPatchEmbed(
            in_channels, w["pe1.first"], w.get("pe1.mid", 0), s1, self.imagenet
        )
        self.patch_embed2 = PatchEmbed(s1, w["pe2.mid"], s2, self.imagenet)
        self.patch_embed3 = PatchEmbed(s2, w["pe3.mid"], s3, self.imagenet)
        self.stage1 = nn.ModuleList(self._block(b, s1, heads, batch_coupled) for b in blocks[1])
        self.stage2 = nn.ModuleList(self._block(b, s2, heads, batch_coupled) for b in blocks[2])
        self.stage3 = nn.ModuleList(self._block(b, s3, heads, batch_coupled) for b in blocks[3])
        self.head = nn.Linear(s3, num_classes)

    def _block(self, name: str, stream: int, heads: int, batch_coupled: bool) -> Block:
        w = self.widths
        mlp = MLP(stream, w[f"{name}.mlp.hidden"], _mlp_names(self.imagenet))
        if not name.startswith("stage3"):
            q, k = w[f"{name}.tssa.q"], w[f"{name}.tssa.k"]
            return Block("tssa", TokenAttention(stream, q, k, heads), mlp)
        key = _attention_key(self.imagenet)
        qk, v = w[f"{name}.{key}.qk"], w[f"{name}.{key}.v"]
        return Block(key, SelfAttention(stream, qk, v, heads, batch_coupled), mlp)

    def real_fed(self) -> dict[str, int]:
        """The first convolution, and the head, which reads a mean over positions and time."""
        return {"patch_embed1.proj_conv": 1, "head": 1}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the mean over positions and time."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed1(x, self.T)
        for layer in (*self.stage1, self.patch_embed2, *self.stage2, self.patch_embed3):
            x = layer(x)
        for block in self.stage3:
            x = block(x)
        return self.head(x.mean(dim=(3, 4)).mean(dim=0))


class QKFormerImageNet(QKFormer):
    """The ImageNet flavour: strides 4, 8, 16; stages of 1, 2 and depths - 3 blocks."""

    family = "qkformer_imagenet"


class QKFormerCifar(QKFormer):
    """The CIFAR flavour: strides 1, 2, 4; stages of 1, 1 and depths - 2 blocks; always 8 heads."""

    family = "qkformer_cifar"
    imagenet = False


def _mlp_names(imagenet: bool) -> tuple[str, str]:
    return ("fc1", "fc2") if imagenet else ("mlp1", "mlp2")


def _attention_key(imagenet: bool) -> str:
    return "attn" if imagenet else "ssa"


def _stage_blocks(depths: int, imagenet: bool) -> dict[int, list[str]]:
    second = 2 if imagenet else 1
    counts = {1: 1, 2: second, 3: depths - 1 - second}
    return {s: [f"stage{s}.{i}" for i in range(n)] for s, n in counts.items()}


def _group_specs(
    embed_dims: int, mlp_ratios: int, heads: int, blocks: dict[int, list[str]], imagenet: bool
) -> list[GroupSpec]:
    specs = _patch_specs(embed_dims, imagenet)
    for stage in (1, 2, 3):
        width = embed_dims >> (3 - stage)
        for index, name in enumerate(blocks[stage]):
            title = f"Block {stage}.{index + 1}"
            specs += _block_specs(name, width, mlp_ratios, heads, title, imagenet)
        specs.append(_stream_spec(stage, width, blocks[stage], imagenet))
    return specs


def _patch_specs(embed_dims: int, imagenet: bool) -> list[GroupSpec]:
    def inner(name: str, layer: str, width: int, into: tuple[str, ...]) -> GroupSpec:
        number = name[2]
        place, title = f"patch_embed{number}", f"Patch embed {number}"
        out = prefixed(place, (f"{layer}_conv", f"{layer}_bn"))
        what = "first conv" if name.endswith("first") else "middle conv"
        return GroupSpec(name, "conv", width, title, what, out, prefixed(place, into))

    e1, e2, e3 = embed_dims // 4, embed_dims // 2, embed_dims
    specs = [inner("pe1.first", "proj", e1 // 2, ("proj1_conv", "proj_res_conv"))]
    if imagenet:
        specs.append(inner("pe1.mid", "proj1", e1, ("proj2_conv",)))
    specs.append(inner("pe2.mid", "proj3", e2, ("proj4_conv",)))
    specs.append(inner("pe3.mid", "proj3", e3, ("proj4_conv",)))
    return specs


def _stream_spec(stage: int, width: int, blocks: list[str], imagenet: bool) -> GroupSpec:
    first, second = _mlp_names(imagenet)
    last = {1: "proj2" if imagenet else "proj1"}.get(stage, "proj4")
    patch = (f"{last}_conv", f"{last}_bn", "proj_res_conv", "proj_res_bn")
    out = list(prefixed(f"patch_embed{stage}", patch))
    into: list[str] = []
    attn, readers = (_attention_key(imagenet), "qkv") if stage == 3 else ("tssa", "qk")
    for b in blocks:
        out += prefixed(b, (f"{attn}.proj_conv", f"{attn}.proj_bn"))
        out += prefixed(b, (f"mlp.{second}_conv", f"mlp.{second}_bn"))
        into += prefixed(b, [*(f"{attn}.{x}_conv" for x in readers), f"mlp.{first}_conv"])
    if stage == 3:
        into.append("head")
    else:
        into += prefixed(f"patch_embed{stage + 1}", ("proj3_conv", "proj_res_conv"))
    title = f"Stage {stage}"
    return GroupSpec(
        f"stage{stage}.stream", "residual", width, title, "residual stream", tuple(out), tuple(into)
    )


def _block_specs(
    name: str, width: int, mlp_ratios: int, heads: int, title: str, imagenet: bool
) -> list[GroupSpec]:
    first, second = _mlp_names(imagenet)
    hidden = GroupSpec(
        f"{name}.mlp.hidden",
        "mlp",
        width * mlp_ratios,
        title,
        "MLP hidden",
        prefixed(name, (f"mlp.{first}_conv", f"mlp.{first}_bn")),
        (f"{name}.mlp.{second}_conv",),
    )
    if name.startswith("stage3"):
        attn = f"{name}.{_attention_key(imagenet)}"
        return [*attention_specs(attn, width, heads, title), hidden]
    attn = f"{name}.tssa"
    q, k = (prefixed(attn, (f"{x}_conv", f"{x}_bn")) for x in "qk")
    proj = (f"{attn}.proj_conv",)
    return [
        GroupSpec(f"{attn}.q", "qktoken_q", width, title, "Q-K attention q", q, (), heads),
        GroupSpec(f"{attn}.k", "qktoken_k", width, title, "Q-K attention k", k, proj, heads),
        hidden,
    ]
