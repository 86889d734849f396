"""The macro layout that Meta-SpikeFormer (SDT v2) and E-SpikeFormer (SDT v3) share.

Stages 1 and 2 have four convolution blocks, stage 3 six transformer blocks and stage 4 two. Each
stage has its own residual stream, because downsampling convolutions separate the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from psvit_core.errors import ModelError
from psvit_core.zoo.base import GroupSpec, SpikingModel, prefixed
from psvit_core.zoo.sizing import Shapes, ratio

#: Conv block -> stage.
CONV_BLOCKS = {
    "ConvBlock1_1.0": "stage1a",
    "ConvBlock1_2.0": "stage1b",
    "ConvBlock2_1.0": "stage2",
    "ConvBlock2_2.0": "stage2",
}
#: Transformer block -> stage.
TRANSFORMER_BLOCKS = {
    **{f"block3.{i}": "stage3" for i in range(6)},
    **{f"block4.{i}": "stage4" for i in range(2)},
}
#: Stage -> the downsampling before it.
DOWNSAMPLING = {
    "stage1a": "downsample1_1",
    "stage1b": "downsample1_2",
    "stage2": "downsample2",
    "stage3": "downsample3",
    "stage4": "downsample4",
}


@dataclass(frozen=True)
class StreamModules:
    """Names of the modules that write and read the residual stream inside a family's blocks."""

    conv_writers: tuple[str, ...]
    conv_readers: tuple[str, ...]
    transformer_writers: tuple[str, ...]
    transformer_readers: tuple[str, ...]


class Metaformer(SpikingModel):
    """Base class of both families: builds and runs the stages."""

    def _transformer_block(self, name: str, stream: int) -> nn.Module:
        """Build the transformer block of this name for a stream of this width."""
        raise NotImplementedError

    def full_width(self, block: str) -> int:
        """Return the unpruned stream width of a transformer block."""
        return int(self.arguments["embed_dim"][2 if block.startswith("block3") else 3])

    def _build_stages(
        self,
        downsample: Callable[[int, int, int, int, bool], nn.Module],
        conv_block: Callable[[int, int, int], nn.Module],
    ) -> None:
        """Add all blocks in network order.

        Args:
            downsample: Takes input channels, output channels, kernel, stride, and True if a neuron
                comes first.
            conv_block: Takes the widths of the stream, of the separable convolution and of the
                channel convolution.
        """
        w = self.widths
        s1a, s1b, s2, s3, s4 = (w[f"{stage}.stream"] for stage in DOWNSAMPLING)

        def conv(name: str, stream: int) -> nn.ModuleList:
            hidden = (w[f"{name}.0.Conv.hidden"], w[f"{name}.0.channelconv.hidden"])
            return nn.ModuleList([conv_block(stream, *hidden)])

        def transformer(name: str, stream: int, depth: int) -> nn.ModuleList:
            names = [f"{name}.{i}" for i in range(depth)]
            return nn.ModuleList(self._transformer_block(block, stream) for block in names)

        self.downsample1_1 = downsample(int(self.arguments["in_channels"]), s1a, 7, 2, False)
        self.ConvBlock1_1 = conv("ConvBlock1_1", s1a)
        self.downsample1_2 = downsample(s1a, s1b, 3, 2, True)
        self.ConvBlock1_2 = conv("ConvBlock1_2", s1b)
        self.downsample2 = downsample(s1b, s2, 3, 2, True)
        self.ConvBlock2_1 = conv("ConvBlock2_1", s2)
        self.ConvBlock2_2 = conv("ConvBlock2_2", s2)
        self.downsample3 = downsample(s2, s3, 3, 2, True)
        self.block3 = transformer("block3", s3, 6)
        self.downsample4 = downsample(s3, s4, 3, 1, True)
        self.block4 = transformer("block4", s4, 2)

    def _run_stages(self, x: Tensor) -> Tensor:
        """Run everything from the first conv block to the last transformer block."""
        for layer in (*self.ConvBlock1_1, self.downsample1_2, *self.ConvBlock1_2):
            x = layer(x)
        for layer in (self.downsample2, *self.ConvBlock2_1, *self.ConvBlock2_2):
            x = layer(x)
        for layer in (self.downsample3, *self.block3, self.downsample4, *self.block4):
            x = layer(x)
        return x


def read_stages(shapes: Shapes) -> dict[str, Any]:
    """Return the arguments of both families that follow from the stages' shapes.

    Args:
        shapes: Shapes of all tensors; those of stages, MLP and head must exist.
    """
    widths = [
        shapes[f"{DOWNSAMPLING[stage]}.encode_conv.weight"][0]
        for stage in ("stage1b", "stage2", "stage3", "stage4")
    ]
    return {
        "in_channels": shapes["downsample1_1.encode_conv.weight"][1],
        "num_classes": shapes["head.weight"][0],
        "embed_dim": widths,
        "mlp_ratios": ratio(shapes["block3.0.mlp.fc1_conv.weight"][0], widths[2]),
    }


#: Tensors that ``read_stages`` needs.
STAGE_TENSORS = frozenset(
    {
        *(f"{layer}.encode_conv.weight" for layer in DOWNSAMPLING.values()),
        "head.weight",
        "block3.0.mlp.fc1_conv.weight",
    }
)


def check_embed_dim(embed_dim: Sequence[int], num_heads: int) -> None:
    """Raise ``ModelError`` unless there are four widths that halve and split into heads."""
    if len(embed_dim) != 4 or any(e % num_heads for e in embed_dim[2:]) or embed_dim[0] % 2:
        raise ModelError(
            f"embed_dim needs four widths, the first even, the last two multiples of "
            f"num_heads={num_heads}; got {list(embed_dim)}."
        )


def group_specs(
    embed_dim: Sequence[int],
    modules: StreamModules,
    conv_block: Callable[[str, int, str], list[GroupSpec]],
    transformer_block: Callable[[str, int, str], list[GroupSpec]],
    classifiers: tuple[str, ...] = ("head",),
) -> list[GroupSpec]:
    """Return all groups in network order: each stage's stream, then its blocks' inner groups.

    Args:
        embed_dim: Unpruned widths of the four stages; stage 1 starts at half.
        modules: Modules of the family that write and read the streams.
        conv_block: Takes (block name, stream width, display name) and returns the inner groups of
            a conv block.
        transformer_block: The same for a transformer block.
        classifiers: Modules that read the last stream.
    """
    stages = list(DOWNSAMPLING)
    widths = dict(zip(stages, (embed_dim[0] // 2, *embed_dim), strict=True))
    specs = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        after = (f"{DOWNSAMPLING[following]}.encode_conv",) if following else classifiers
        specs.append(_stream_spec(stage, widths[stage], modules, after))
        for block in _blocks_of(stage, CONV_BLOCKS):
            specs += conv_block(block, widths[stage], _conv_title(block))
        for block in _blocks_of(stage, TRANSFORMER_BLOCKS):
            specs += transformer_block(block, widths[stage], _block_title(block))
    return specs


def channel_conv_spec(name: str, hidden: int, title: str) -> GroupSpec:
    """Return the hidden group of the channel convolution in conv block ``name``."""
    writers, readers = prefixed(name, ("conv1", "bn1")), (f"{name}.conv2",)
    group_id, shown = f"{name}.channelconv.hidden", "channel conv hidden"
    return GroupSpec(group_id, "channelconv", hidden, title, shown, writers, readers)


def mlp_spec(name: str, hidden: int, title: str) -> GroupSpec:
    """Return the hidden group of the MLP in transformer block ``name``."""
    fc1, fc2 = prefixed(name, ("mlp.fc1_conv", "mlp.fc1_bn")), (f"{name}.mlp.fc2_conv",)
    return GroupSpec(f"{name}.mlp.hidden", "mlp", hidden, title, "MLP hidden", fc1, fc2)


def _blocks_of(stage: str, blocks: Mapping[str, str]) -> list[str]:
    return [block for block, home in blocks.items() if home == stage]


def _stream_spec(
    stage: str, width: int, modules: StreamModules, after: tuple[str, ...]
) -> GroupSpec:
    down = DOWNSAMPLING[stage]
    writers = [f"{down}.encode_conv", f"{down}.encode_bn"]
    readers: list[str] = []
    for block in _blocks_of(stage, CONV_BLOCKS):
        writers += prefixed(block, modules.conv_writers)
        readers += prefixed(block, modules.conv_readers)
    for block in _blocks_of(stage, TRANSFORMER_BLOCKS):
        writers += prefixed(block, modules.transformer_writers)
        readers += prefixed(block, modules.transformer_readers)
    return GroupSpec(
        group_id=f"{stage}.stream",
        kind="residual",
        width=width,
        block=stage.replace("stage", "Stage "),
        title="residual stream",
        writers=tuple(writers),
        readers=(*readers, *after),
    )


def _conv_title(block: str) -> str:
    return f"Conv {block.removeprefix('ConvBlock').removesuffix('.0').replace('_', '.')}"


def _block_title(block: str) -> str:
    stage, index = block.removeprefix("block").split(".")
    return f"Block {stage}.{int(index) + 1}"
