"""QKFormer in its two published variants: ImageNet and CIFAR.

Source:
    Zhou et al. 2024, QKFormer: Hierarchical Spiking Transformer using Q-K Attention, NeurIPS,
    arXiv 2403.16552. State-dict keys match the official checkpoints. Every branch ends in a
    neuron, so the residual stream carries small integers.

In the official code one neuron of every stage-3 attention runs over the merged time and batch axes.
An image's logits therefore depend on the other images of its batch. The released weights were
trained and evaluated that way; ``batch_coupled`` (the default) reproduces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.neurons import LIF
from psvit_core.records import Choice, Option
from psvit_core.zoo.base import (
    UNUSED_ARGUMENTS,
    GroupSpec,
    SpikingModel,
    check_unused_arguments,
    prefixed,
)
from psvit_core.zoo.layers import ATTENTION_SCALE, HeadSum, over_time
from psvit_core.zoo.products import Heads, SpikeProduct
from psvit_core.zoo.qkformer_embed import FirstPatchEmbed, PatchEmbed
from psvit_core.zoo.sizing import (
    Shapes,
    count_blocks,
    heads_choice,
    image_size_choice,
    ratio,
    time_steps_choice,
)
from psvit_core.zoo.spikformer import attention_specs

_CIFAR_HEADS = 8


class TokenAttention(nn.Module):
    """Q-K token attention: the queries of a head select the tokens of its keys.

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
        """Return the branch output; (T, B, C, N) in and out."""
        q = self.q_lif(over_time(self.q_bn, over_time(self.q_conv, x)))
        k = self.k_lif(over_time(self.k_bn, over_time(self.k_conv, x)))
        gate = self.attn_lif(self.sum(q))  # (T, B, heads, 1, N)
        o = (gate * k.unflatten(2, (self.heads, -1))).flatten(2, 3)  # (T, B, Ck, N)
        return self.proj_lif(over_time(self.proj_bn, over_time(self.proj_conv, o)))


class SelfAttention(nn.Module):
    """Spiking self-attention of stage 3, with the neuron that couples the images of a batch.

    Args:
        stream, qk, v: Present widths.
        heads: The heads.
        batch_coupled: Run the last neuron over the merged time and batch axes, as published.
    """

    def __init__(self, stream: int, qk: int, v: int, heads: Heads, batch_coupled: bool) -> None:
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
        self.product = SpikeProduct(heads, ATTENTION_SCALE, keys_first=True)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj_conv = nn.Conv1d(v, stream, 1)
        self.proj_bn = nn.BatchNorm1d(stream)
        self.proj_lif = LIF()

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, N) in and out."""
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
        names: Names of the two layers: fc1, fc2 (ImageNet) or mlp1, mlp2 (CIFAR).
    """

    def __init__(self, stream: int, hidden: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        for name, c_in, c_out in zip(names, (stream, hidden), (hidden, stream), strict=True):
            self.add_module(f"{name}_conv", nn.Conv2d(c_in, c_out, 1))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))
            self.add_module(f"{name}_lif", LIF())

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        for name in self.names:
            conv, bn, lif = (getattr(self, f"{name}_{part}") for part in ("conv", "bn", "lif"))
            x = lif(over_time(bn, over_time(conv, x)))
        return x


class Block(nn.Module):
    """Attention and MLP with residual connections that add spikes.

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
        """Return the stream after this block, (T, B, C, H, W)."""
        branch = getattr(self, self.key)(x.flatten(3))
        x = x + branch.unflatten(3, x.shape[3:])
        return x + self.mlp(x)


class QKFormer(SpikingModel):
    """QKFormer: images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes).

    Args:
        img_size_h, img_size_w, in_channels: Shape of the model's images; square.
        num_classes: Length of the logits.
        embed_dims: Unpruned stream width of stage 3; stages 1 and 2 have a quarter and half of it.
        num_heads: Number of heads; always 8 in the CIFAR variant.
        mlp_ratios: MLP hidden width divided by the stream width.
        depths: Number of blocks in all stages.
        T: Time steps.
        batch_coupled: Reproduce the official code: logits depend on the batch and its order.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect.
    """

    hashed_arguments: ClassVar[Mapping[str, Any]] = {"num_heads": 6, "batch_coupled": True}
    imagenet = True

    def __init__(  # noqa: PLR0913  # the official names
        self,
        *,
        img_size_h: int = 224,
        img_size_w: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int = 384,
        num_heads: int = 6,
        mlp_ratios: float = 4,
        depths: int = 10,
        T: int = 4,
        batch_coupled: bool = True,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        check_unused_arguments(self.family, unused, UNUSED_ARGUMENTS)
        heads = num_heads if self.imagenet else _CIFAR_HEADS
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
        self._build()

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but heads, time steps, image size and batch coupling."""
        first = "patch_embed1.proj_conv.weight"
        hidden = f"stage1.0.mlp.{_mlp_names(cls.imagenet)[0]}_conv.weight"
        attention = f"stage3.0.{_attention_key(cls.imagenet)}.q_conv.weight"
        needed = {first, hidden, attention, "stage1.0.tssa.q_conv.weight", "head.weight"}
        if needed - shapes.keys():
            return None
        num_classes, embed_dims = shapes["head.weight"]
        stages = (count_blocks(shapes, f"stage{stage}") for stage in (1, 2, 3))
        return {
            "in_channels": shapes[first][1],
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "mlp_ratios": ratio(shapes[hidden][0], shapes[hidden][1]),
            "depths": sum(stages),
        }

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of heads (ImageNet only), time steps, image size and coupling."""
        width = size["embed_dims"]
        heads = (heads_choice([width // 4, width]),) if cls.imagenet else ()
        return (
            *heads,
            time_steps_choice(),
            image_size_choice((224, 288, 384) if cls.imagenet else (32,)),
            _COUPLING,
        )

    def _build(self) -> None:
        w, in_channels = self.widths, int(self.arguments["in_channels"])
        heads = int(self.arguments["num_heads"]) if self.imagenet else _CIFAR_HEADS
        blocks = _stage_blocks(self.arguments["depths"], self.imagenet)
        s1, s2, s3 = (w[f"stage{s}.stream"] for s in (1, 2, 3))
        self.patch_embed1 = FirstPatchEmbed(
            in_channels, w["pe1.first"], w.get("pe1.mid", 0), s1, self.imagenet
        )
        self.patch_embed2 = PatchEmbed(s1, w["pe2.mid"], s2, self.imagenet)
        self.patch_embed3 = PatchEmbed(s2, w["pe3.mid"], s3, self.imagenet)
        self.stage1 = nn.ModuleList(self._block(b, s1, heads) for b in blocks[1])
        self.stage2 = nn.ModuleList(self._block(b, s2, heads) for b in blocks[2])
        self.stage3 = nn.ModuleList(self._block(b, s3, heads) for b in blocks[3])
        self.head = nn.Linear(s3, self.num_classes)

    def _block(self, name: str, stream: int, heads: int) -> Block:
        w = self.widths
        mlp = MLP(stream, w[f"{name}.mlp.hidden"], _mlp_names(self.imagenet))
        if not name.startswith("stage3"):
            q, k = w[f"{name}.tssa.q"], w[f"{name}.tssa.k"]
            return Block("tssa", TokenAttention(stream, q, k, heads), mlp)
        key = _attention_key(self.imagenet)
        qk, v = w[f"{name}.{key}.qk"], w[f"{name}.{key}.v"]
        layout = Heads(heads, int(self.arguments["embed_dims"]) // heads)
        coupled = bool(self.arguments["batch_coupled"])
        return Block(key, SelfAttention(stream, qk, v, layout, coupled), mlp)

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution and the head, which reads averages."""
        return {"patch_embed1.proj_conv": 1, "head": 1}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean over positions and time."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed1(x, self.T)
        for layer in (*self.stage1, self.patch_embed2, *self.stage2, self.patch_embed3):
            x = layer(x)
        for block in self.stage3:
            x = block(x)
        return self.head(x.mean(dim=(3, 4)).mean(dim=0))


class QKFormerImageNet(QKFormer):
    """The ImageNet variant: strides 4, 8, 16; stages of 1, 2 and depths - 3 blocks."""

    family = "qkformer_imagenet"
    title = "QKFormer, ImageNet"


class QKFormerCifar(QKFormer):
    """The CIFAR variant: strides 1, 2, 4; stages of 1, 1 and depths - 2 blocks; always 8 heads."""

    family = "qkformer_cifar"
    title = "QKFormer, CIFAR"
    imagenet = False


_COUPLING = Choice(
    "batch_coupled",
    (
        Option(True, "as published: images of a batch influence each other"),
        Option(False, "if it was trained with independent images"),
    ),
)


def _mlp_names(imagenet: bool) -> tuple[str, str]:
    return ("fc1", "fc2") if imagenet else ("mlp1", "mlp2")


def _attention_key(imagenet: bool) -> str:
    return "attn" if imagenet else "ssa"


def _stage_blocks(depths: int, imagenet: bool) -> dict[int, list[str]]:
    second = 2 if imagenet else 1
    counts = {1: 1, 2: second, 3: depths - 1 - second}
    return {s: [f"stage{s}.{i}" for i in range(n)] for s, n in counts.items()}


def _group_specs(
    embed_dims: int, mlp_ratios: float, heads: int, blocks: dict[int, list[str]], imagenet: bool
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
    def inner(name: str, layer: str, width: int, readers: tuple[str, ...]) -> GroupSpec:
        number = name[2]
        module, block = f"patch_embed{number}", f"Patch embed {number}"
        writers = prefixed(module, (f"{layer}_conv", f"{layer}_bn"))
        title = "first conv" if name.endswith("first") else "middle conv"
        return GroupSpec(name, "conv", width, block, title, writers, prefixed(module, readers))

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
    writers = list(prefixed(f"patch_embed{stage}", patch))
    readers: list[str] = []
    attn, inputs = (_attention_key(imagenet), "qkv") if stage == 3 else ("tssa", "qk")
    for b in blocks:
        writers += prefixed(b, (f"{attn}.proj_conv", f"{attn}.proj_bn"))
        writers += prefixed(b, (f"mlp.{second}_conv", f"mlp.{second}_bn"))
        readers += prefixed(b, [*(f"{attn}.{x}_conv" for x in inputs), f"mlp.{first}_conv"])
    if stage == 3:
        readers.append("head")
    else:
        readers += prefixed(f"patch_embed{stage + 1}", ("proj3_conv", "proj_res_conv"))
    return GroupSpec(
        group_id=f"stage{stage}.stream",
        kind="residual",
        width=width,
        block=f"Stage {stage}",
        title="residual stream",
        writers=tuple(writers),
        readers=tuple(readers),
    )


def _block_specs(
    name: str, width: int, mlp_ratios: float, heads: int, title: str, imagenet: bool
) -> list[GroupSpec]:
    first, second = _mlp_names(imagenet)
    fc1 = prefixed(name, (f"mlp.{first}_conv", f"mlp.{first}_bn"))
    fc2 = (f"{name}.mlp.{second}_conv",)
    group_id = f"{name}.mlp.hidden"
    hidden = GroupSpec(group_id, "mlp", int(width * mlp_ratios), title, "MLP hidden", fc1, fc2)
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
