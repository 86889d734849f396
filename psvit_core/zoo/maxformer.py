"""Max-Former and MS-QKFormer in their ImageNet and CIFAR variants.

Source:
    Fang et al. 2025, Spiking Neural Networks Need High-Frequency Information, NeurIPS,
    arXiv 2505.18608. State-dict keys match the official code; released ImageNet weights may have
    older names in the patch embeddings, which are matched by position. The residual stream is
    real-valued, and every branch starts with a neuron.
"""

from __future__ import annotations

import itertools
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
from psvit_core.zoo.layers import HeadSum, over_time
from psvit_core.zoo.maxformer_embed import EMBEDDINGS, Embedding
from psvit_core.zoo.products import Heads
from psvit_core.zoo.sdt import MLP
from psvit_core.zoo.sizing import Choice, Shapes, image_size_choice, ratio, time_steps_choice
from psvit_core.zoo.spikformer import attention_specs
from psvit_core.zoo.spikingformer import Attention

_CIFAR_HEADS = 8
_HEAD_WIDTH = 64  # ImageNet: one head for each 64 channels of the last stage


class Mixer(nn.Module):
    """Depthwise convolution with bias, between a neuron and a BatchNorm.

    Args:
        stream: Present width.
        kernel: Side of the filters.
        name: Name of the convolution in the checkpoints.
    """

    def __init__(self, stream: int, kernel: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(f"{name}_neuron", LIF())
        conv = nn.Conv2d(stream, stream, kernel, padding=kernel // 2, groups=stream)
        self.add_module(name, conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(stream))

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, H, W) in and out."""
        s = getattr(self, f"{self.name}_neuron")(x)
        return over_time(getattr(self, f"{self.name}_bn"), over_time(getattr(self, self.name), s))


class TokenAttention(nn.Module):
    """Q-K token attention with a neuron at its input and none at its output.

    Args:
        stream, q, k: Present widths.
        heads: Number of heads.
    """

    def __init__(self, stream: int, q: int, k: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.proj_lif = LIF()  # at the input, in spite of its published name
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

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output; (T, B, C, N) in and out."""
        s = self.proj_lif(x)
        q = self.q_lif(over_time(self.q_bn, over_time(self.q_conv, s)))
        k = self.k_lif(over_time(self.k_bn, over_time(self.k_conv, s)))
        gate = self.attn_lif(self.sum(q))  # (T, B, heads, 1, N)
        o = (gate * k.unflatten(2, (self.heads, -1))).flatten(2, 3)  # (T, B, Ck, N)
        return over_time(self.proj_bn, over_time(self.proj_conv, o))


class Block(nn.Module):
    """Mixer or attention, and MLP, each with a membrane shortcut.

    Args:
        mixer: Token mixing on maps, or None.
        attention: Attention on tokens, or None.
        mlp: The MLP.
    """

    def __init__(self, mixer: Mixer | None, attention: nn.Module | None, mlp: MLP) -> None:
        super().__init__()
        if mixer is not None:
            self.mixer = mixer
        if attention is not None:
            self.attn = attention
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (T, B, C, H, W)."""
        if hasattr(self, "mixer"):
            x = x + self.mixer(x)
        if hasattr(self, "attn"):
            x = x + self.attn(x.flatten(3)).unflatten(3, x.shape[3:])
        return x + self.mlp(x)


class MaxFormerLayout(SpikingModel):
    """Base class of both architectures: images or frames (B, T, C, H, W) to logits.

    Args:
        img_size_h, img_size_w: Sides of the images that the model is built for, multiples of the
            last stage's stride; None takes 224 for ImageNet and 32 for CIFAR.
        in_channels: Channels of the images.
        num_classes: Length of the logits.
        embed_dims: Unpruned stream width of stage 3; stages 1 and 2 have a quarter and half of it.
            None takes 512 for ImageNet and 384 for CIFAR.
        mlp_ratios: MLP hidden width divided by the stream width; not 1.
        T: Time steps; published weights exist for 1 and 4.
        widths: Present width of each group that differs from the original.
        unused: Official arguments without effect, among them ``depths``.
    """

    loads_by_position = True
    imagenet: ClassVar[bool] = True
    token_attention: ClassVar[bool] = False  # Q-K token attention in stages 1 and 2
    published_side: ClassVar[int] = 224
    published_width: ClassVar[int] = 512
    stride: ClassVar[int] = 16  # of the last stage

    def __init__(
        self,
        *,
        img_size_h: int | None = None,
        img_size_w: int | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dims: int | None = None,
        mlp_ratios: float = 4,
        T: int = 4,
        widths: Mapping[str, int] | None = None,
        **unused: Any,
    ) -> None:
        check_unused_arguments(self.family, unused, {**UNUSED_ARGUMENTS, "depths": ...})
        embed_dims = self.published_width if embed_dims is None else embed_dims
        sides = [self.published_side if n is None else n for n in (img_size_h, img_size_w)]
        _check_arguments(type(self), embed_dims, mlp_ratios, sides)
        arguments = {
            "img_size_h": sides[0],
            "img_size_w": sides[1],
            "in_channels": in_channels,
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "mlp_ratios": mlp_ratios,
            "T": T,
        }
        super().__init__(arguments, self._group_specs(embed_dims, mlp_ratios), widths)
        self._build()

    @classmethod
    def heads_of(cls, embed_dims: int) -> int:
        """Return the number of heads in every stage with heads."""
        return embed_dims // _HEAD_WIDTH if cls.imagenet else _CIFAR_HEADS

    @classmethod
    def blocks_of(cls, stage: int) -> list[str]:
        """Return the names of a stage's blocks; their number is fixed."""
        count = ((1, 2, 7) if cls.imagenet else (1, 1, 2))[stage - 1]
        return [f"stage{stage}.{i}" for i in range(count)]

    @classmethod
    def mixer_of(cls, stage: int) -> tuple[str, int] | None:
        """Return the name and kernel of a stage's mixers, or None."""
        if cls.token_attention or stage == 3:
            return None
        if stage == 1:
            return ("conv5", 7) if cls.imagenet else None
        return ("conv", 5 if cls.imagenet else 3)

    def _build(self) -> None:
        w, in_channels = self.widths, int(self.arguments["in_channels"])
        streams = [w[f"stage{s}.stream"] for s in (1, 2, 3)]
        first, second, third = EMBEDDINGS[self.family]
        middle = [w["pe1.mid"]] if "pe1.mid" in w else []
        self.patch_embed1 = Embedding(first, [in_channels, w["pe1.first"], *middle, streams[0]])
        self.patch_embed2 = Embedding(second, [streams[0], w["pe2.mid"], streams[1]])
        self.patch_embed3 = Embedding(third, [streams[1], w["pe3.mid"], streams[2]])
        for stage, stream in zip((1, 2, 3), streams, strict=True):
            blocks = (self._block(name, stage, stream) for name in self.blocks_of(stage))
            self.add_module(f"stage{stage}", nn.ModuleList(blocks))
        self.head_lif = LIF()
        self.head = nn.Linear(streams[2], self.num_classes)

    def _block(self, name: str, stage: int, stream: int) -> Block:
        w, embed_dims = self.widths, int(self.arguments["embed_dims"])
        heads = self.heads_of(embed_dims)
        named = self.mixer_of(stage)
        mixer = Mixer(stream, named[1], named[0]) if named else None
        attention: nn.Module | None = None
        if stage == 3:
            qk, v = w[f"{name}.attn.qk"], w[f"{name}.attn.v"]
            layout = Heads(heads, embed_dims // heads)
            attention = Attention(stream, qk, v, layout, input_lif="x_lif", keys_first=True)
        elif self.token_attention:
            attention = TokenAttention(stream, w[f"{name}.attn.q"], w[f"{name}.attn.k"], heads)
        return Block(mixer, attention, MLP(stream, w[f"{name}.mlp.hidden"]))

    @classmethod
    def read_size(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return everything but time steps and image size.

        Names inside the patch embeddings are not used, because released files have older ones.
        """
        hidden = "stage3.0.mlp.fc1_conv.weight"  # the widest shows a fractional ratio best
        if {hidden, "head.weight"} - shapes.keys():
            return None
        num_classes, embed_dims = shapes["head.weight"]
        first = [
            shape
            for name, shape in shapes.items()
            if name.startswith("patch_embed1.") and len(shape) == 4 and shape[0] == embed_dims // 8
        ]
        if len(first) != 1:
            return None
        return {
            "in_channels": first[0][1],
            "num_classes": num_classes,
            "embed_dims": embed_dims,
            "mlp_ratios": ratio(shapes[hidden][0], embed_dims),
        }

    @classmethod
    def choices(cls, size: Mapping[str, Any]) -> tuple[Choice, ...]:
        """Return the choices of time steps and image size."""
        return time_steps_choice((4, 1)), image_size_choice((cls.published_side,))

    def real_fed(self) -> dict[str, int]:
        """Return the first convolution and, in the CIFAR variants, the head, which reads means."""
        first = EMBEDDINGS[self.family][0].first
        assert first is not None
        return {f"patch_embed1.{first.conv}": 1, **({} if self.imagenet else {"head": 1})}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, averaged over time steps."""
        if x.dim() == 5:
            x = x.transpose(0, 1)
        x = self.patch_embed1(x, self.T)
        for stage, embed in ((1, self.patch_embed2), (2, self.patch_embed3), (3, None)):
            for block in self.get_submodule(f"stage{stage}").children():
                x = block(x)
            x = x if embed is None else embed(x)
        spikes = self.head_lif(x.mean(dim=(3, 4)))  # (T, B, C)
        if self.imagenet:
            return over_time(self.head, spikes).mean(dim=0)
        return self.head(spikes.mean(dim=0))

    # ---- channel groups ----------------------------------------------------------------------

    def _group_specs(self, embed_dims: int, mlp_ratios: float) -> list[GroupSpec]:
        specs = self._patch_specs(embed_dims)
        heads = self.heads_of(embed_dims)
        for stage in (1, 2, 3):
            width = embed_dims >> (3 - stage)
            for index, name in enumerate(self.blocks_of(stage)):
                title, hidden = f"Block {stage}.{index + 1}", int(width * mlp_ratios)
                specs += self._attention_specs(name, stage, width, heads, title)
                fc1 = prefixed(name, ("mlp.fc1_conv", "mlp.fc1_bn"))
                fc2, group_id = (f"{name}.mlp.fc2_conv",), f"{name}.mlp.hidden"
                specs.append(GroupSpec(group_id, "mlp", hidden, title, "MLP hidden", fc1, fc2))
            specs.append(self._stream_spec(stage, width))
        return specs

    @classmethod
    def _patch_specs(cls, embed_dims: int) -> list[GroupSpec]:
        specs = []
        for number, names in enumerate(EMBEDDINGS[cls.family], start=1):
            module, width = f"patch_embed{number}", embed_dims >> (3 - number)
            chain = (*((names.first,) if names.first else ()), *names.main)
            for layer, following in itertools.pairwise(chain):
                is_first = layer is names.first
                readers = (following.conv, names.residual.conv) if is_first else (following.conv,)
                specs.append(
                    GroupSpec(
                        group_id=f"pe{number}.{'first' if is_first else 'mid'}",
                        kind="conv",
                        width=width // 2 if is_first else width,
                        block=f"Patch embed {number}",
                        title="first conv" if is_first else "middle conv",
                        writers=prefixed(module, (layer.conv, layer.bn)),
                        readers=prefixed(module, readers),
                    )
                )
        return specs

    def _attention_specs(
        self, name: str, stage: int, width: int, heads: int, title: str
    ) -> list[GroupSpec]:
        attn = f"{name}.attn"
        if stage == 3:
            return attention_specs(attn, width, heads, title)
        if not self.token_attention:
            return []
        q, k = (prefixed(attn, (f"{x}_conv", f"{x}_bn")) for x in "qk")
        proj = (f"{attn}.proj_conv",)
        return [
            GroupSpec(f"{attn}.q", "qktoken_q", width, title, "Q-K attention q", q, (), heads),
            GroupSpec(f"{attn}.k", "qktoken_k", width, title, "Q-K attention k", k, proj, heads),
        ]

    def _stream_spec(self, stage: int, width: int) -> GroupSpec:
        names = EMBEDDINGS[self.family][stage - 1]
        last, residual = names.main[-1], names.residual
        patch = (last.conv, last.bn, residual.conv, residual.bn)
        writers = list(prefixed(f"patch_embed{stage}", patch))
        readers: list[str] = []
        has_attention = stage == 3 or self.token_attention
        inputs = "qkv" if stage == 3 else "qk"
        for block in self.blocks_of(stage):
            if mixer := self.mixer_of(stage):
                writers += prefixed(f"{block}.mixer", (mixer[0], f"{mixer[0]}_bn"))
            if has_attention:
                writers += prefixed(block, ("attn.proj_conv", "attn.proj_bn"))
                readers += prefixed(block, [f"attn.{x}_conv" for x in inputs])
            writers += prefixed(block, ("mlp.fc2_conv", "mlp.fc2_bn"))
            readers.append(f"{block}.mlp.fc1_conv")
        if stage == 3:
            readers.append("head")
        else:
            following = EMBEDDINGS[self.family][stage]
            both = (following.main[0].conv, following.residual.conv)
            readers += prefixed(f"patch_embed{stage + 1}", both)
        return GroupSpec(
            group_id=f"stage{stage}.stream",
            kind="residual",
            width=width,
            block=f"Stage {stage}",
            title="residual stream",
            writers=tuple(writers),
            readers=tuple(readers),
        )


class MaxFormerImageNet(MaxFormerLayout):
    """Max-Former for ImageNet: strides 4, 8, 16; 1, 2 and 7 blocks."""

    family = "max_former_imagenet"
    title = "Max-Former, ImageNet"


class MaxFormerCifar(MaxFormerLayout):
    """Max-Former for CIFAR: strides 1, 2, 4; 1, 1 and 2 blocks; always 8 heads."""

    family = "max_former_cifar"
    title = "Max-Former, CIFAR"
    imagenet = False
    published_side = 32
    published_width = 384
    stride = 4


class MSQKFormerImageNet(MaxFormerLayout):
    """MS-QKFormer for ImageNet, with Q-K token attention in stages 1 and 2."""

    family = "ms_qkformer_imagenet"
    title = "MS-QKFormer, ImageNet"
    token_attention = True


class MSQKFormerCifar(MaxFormerLayout):
    """MS-QKFormer for CIFAR; always 8 heads."""

    family = "ms_qkformer_cifar"
    title = "MS-QKFormer, CIFAR"
    imagenet = False
    published_side = 32
    published_width = 384
    stride = 4
    token_attention = True


def _check_arguments(
    family: type[MaxFormerLayout], embed_dims: int, mlp_ratios: float, sides: Sequence[int]
) -> None:
    """Raise ``ModelError`` for sizes that the published classes or this code cannot build."""
    heads = family.heads_of(embed_dims)
    widths = [embed_dims >> (3 - stage) for stage in (1, 2, 3)]
    split = widths if family.token_attention else widths[2:]
    if heads < 1 or any(width % heads for width in split):
        least = f"of at least {_HEAD_WIDTH} " if family.imagenet else ""
        raise ModelError(
            f"{family.family} needs embed_dims {least}such that the widths of stages with "
            f"attention, {split}, are multiples of the number of heads, {max(heads, 1)}; got "
            f"{embed_dims}."
        )
    if any(int(width * mlp_ratios) == width for width in widths):
        raise ModelError(
            f"mlp_ratios={mlp_ratios!r} makes a hidden width equal to its stream, for which the "
            "published class adds a connection that is not supported. Use another ratio."
        )
    if any(side % family.stride for side in sides):
        raise ModelError(
            f"{family.family} needs image sides that are multiples of {family.stride}; "
            f"got {' x '.join(map(str, sides))}."
        )
