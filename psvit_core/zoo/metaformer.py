"""The macro layout that Meta-SpikeFormer (SDT v2) and E-SpikeFormer (SDT v3) share.

Four convolution blocks in stages 1 and 2, six transformer blocks in stage 3, two in stage 4; the
residual streams are tied inside a stage only, since downsampling convolutions cut them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from psvit_core.errors import ModelError
from psvit_core.zoo.base import GroupSpec, prefixed

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
class BlockNames:
    """Module names inside the blocks of one family."""

    conv_out: tuple[str, ...]  # what writes the stream in a conv block
    conv_in: tuple[str, ...]  # what reads it
    transformer_out: tuple[str, ...]
    transformer_in: tuple[str, ...]


def check_widths(embed_dim: Sequence[int], num_heads: int) -> None:
    """Raise ``ModelError`` unless four widths are given that halve and split into heads."""
    if len(embed_dim) != 4 or any(e % num_heads for e in embed_dim[2:]) or embed_dim[0] % 2:
        raise ModelError(
            f"embed_dim has four widths, the first even, the last two multiples of "
            f"num_heads={num_heads}; got {list(embed_dim)}."
        )


def group_specs(
    embed_dim: Sequence[int],
    names: BlockNames,
    conv_block: Callable[[str, int, str], list[GroupSpec]],
    transformer_block: Callable[[str, int, str], list[GroupSpec]],
    heads: tuple[str, ...] = ("head",),
) -> list[GroupSpec]:
    """All groups in network order: each stage's stream, then its blocks' inner groups.

    Args:
        embed_dim: Unpruned widths of the four stages; stage 1 starts at half.
        names: The family's module names.
        conv_block: (block name, stream width, display name) to the inner groups of a conv block.
        transformer_block: The same for a transformer block.
        heads: Classifiers that read the last stream.
    """
    stages = list(DOWNSAMPLING)
    widths = dict(zip(stages, (embed_dim[0] // 2, *embed_dim), strict=True))
    specs = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        after = (f"{DOWNSAMPLING[following]}.encode_conv",) if following else heads
        specs.append(_stream(stage, widths[stage], names, after))
        for block in _in_stage(CONV_BLOCKS, stage):
            specs += conv_block(block, widths[stage], _conv_title(block))
        for block in _in_stage(TRANSFORMER_BLOCKS, stage):
            specs += transformer_block(block, widths[stage], _block_title(block))
    return specs


def _in_stage(blocks: Mapping[str, str], stage: str) -> list[str]:
    return [block for block, home in blocks.items() if home == stage]


def _stream(stage: str, width: int, names: BlockNames, after: tuple[str, ...]) -> GroupSpec:
    down = DOWNSAMPLING[stage]
    out = [f"{down}.encode_conv", f"{down}.encode_bn"]
    into: list[str] = []
    for block in _in_stage(CONV_BLOCKS, stage):
        out += prefixed(block, names.conv_out)
        into += prefixed(block, names.conv_in)
    for block in _in_stage(TRANSFORMER_BLOCKS, stage):
        out += prefixed(block, names.transformer_out)
        into += prefixed(block, names.transformer_in)
    title = stage.replace("stage", "Stage ")
    readers = (*into, *after)
    return GroupSpec(
        f"{stage}.stream", "residual", width, title, "residual stream", tuple(out), readers
    )


def _conv_title(block: str) -> str:
    return f"Conv {block.removeprefix('ConvBlock').removesuffix('.0').replace('_', '.')}"


def _block_title(block: str) -> str:
    stage, index = block.removeprefix("block").split(".")
    return f"Block {stage}.{int(index) + 1}"
