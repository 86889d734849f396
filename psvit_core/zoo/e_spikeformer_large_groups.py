"""Channel groups of E-SpikeFormer Large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit_core.zoo.base import GroupSpec, prefixed

#: Stage -> (its downsampling, its conv blocks).
STAGES = {
    "stage1a": ("downsample1_1", ("ConvBlock1_1.0",)),
    "stage1b": ("downsample1_2", ("ConvBlock1_2.0",)),
    "stage2": ("downsample2", ("ConvBlock2_1.0", "ConvBlock2_2.0")),
    "stage3": ("downsample3", ()),
}

_PROJECTION_WRITERS = ("0.conv2.0", "0.conv2.1", "1")  # write a projection's output


def group_specs(a: Mapping[str, Any]) -> list[GroupSpec]:
    """Return all groups in network order, given the model's arguments."""
    stages = list(STAGES)
    widths = dict(zip(stages, (a["embed_dim"][0] // 2, *a["embed_dim"]), strict=True))
    specs = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        specs.append(_stream_spec(stage, following, widths[stage], a))
        for block in STAGES[stage][1]:
            writers = prefixed(block, ("conv1.0.0", "conv1.0.1"))
            title = f"Conv {block.removeprefix('ConvBlock').removesuffix('.0').replace('_', '.')}"
            hidden, group_id = int(a["mlp_ratios"] * widths[stage]), f"{block}.channelconv.hidden"
            reader, shown = (f"{block}.conv2.0.0",), "channel conv hidden"
            specs.append(GroupSpec(group_id, "channelconv", hidden, title, shown, writers, reader))
    for i in range(a["depths"]):
        specs += _block_specs(f"block3.{i}", f"Block 3.{i + 1}", a)
    return specs


def _stream_spec(stage: str, following: str | None, width: int, a: Mapping[str, Any]) -> GroupSpec:
    down, conv_blocks = STAGES[stage]
    writers = [f"{down}.encode_conv", f"{down}.encode_bn"]
    readers: list[str] = []
    for block in conv_blocks:
        writers += prefixed(block, ("conv2.0.0", "conv2.0.1"))
        readers.append(f"{block}.conv1.0.0")
    for i in range(a["depths"] if following is None else 0):
        block = f"block3.{i}"
        if a["choice"] == "base":
            writers += prefixed(block, ("rep_conv.conv2.0", "rep_conv.conv2.1"))
            readers.append(f"{block}.rep_conv.conv1.0")
        writers += prefixed(f"{block}.attn.proj_conv", _PROJECTION_WRITERS)
        writers += prefixed(block, ("mlp.fc2_conv", "mlp.fc2_bn", "layer_scale1", "layer_scale2"))
        readers += prefixed(block, [f"attn.{x}_conv.0.conv1.0" for x in "qkv"])
        readers.append(f"{block}.mlp.fc1_conv")
    heads = ["head", "head_kd"] if a["kd"] else ["head"]
    readers += heads if following is None else [f"{STAGES[following][0]}.encode_conv"]
    return GroupSpec(
        group_id=f"{stage}.stream",
        kind="residual",
        width=width,
        block=stage.replace("stage", "Stage "),
        title="residual stream",
        writers=tuple(writers),
        readers=tuple(readers),
    )


def _block_specs(name: str, title: str, a: Mapping[str, Any]) -> list[GroupSpec]:
    width, heads, attn = a["embed_dim"][2], a["num_heads"], f"{name}.attn"
    values = int(a["sr_ratios"] * width)
    specs = []
    if a["choice"] == "base":
        specs.append(_mid_spec(f"{name}.rep_conv", f"{name}.rep_conv", width, title, "linear"))
    for x in ("q", "k", "v", "proj"):
        mid, path = int(1.5 * (values if x == "proj" else width)), f"{attn}.{x}_conv"
        specs.append(_mid_spec(path, f"{path}.0", mid, title, f"projection {x}"))
    qk = (
        *prefixed(f"{attn}.q_conv", _PROJECTION_WRITERS),
        *prefixed(f"{attn}.k_conv", _PROJECTION_WRITERS),
    )
    v, proj = prefixed(f"{attn}.v_conv", _PROJECTION_WRITERS), (f"{attn}.proj_conv.0.conv1.0",)
    fc1, fc2 = prefixed(name, ("mlp.fc1_conv", "mlp.fc1_bn")), (f"{name}.mlp.fc2_conv",)
    hidden = int(a["mlp_ratios"] * width)
    return [
        *specs,
        GroupSpec(f"{attn}.qk", "qk", width, title, "attention q, k", qk, (), heads),
        GroupSpec(f"{attn}.v", "v", values, title, "attention v", v, proj, heads),
        GroupSpec(f"{name}.mlp.hidden", "mlp", hidden, title, "MLP hidden", fc1, fc2),
    ]


def _mid_spec(group: str, path: str, width: int, title: str, what: str) -> GroupSpec:
    writers, readers = prefixed(path, ("conv1.0", "conv1.1")), (f"{path}.conv2.0",)
    return GroupSpec(
        f"{group}.mid", "repconv_mid", width, title, f"{what} middle", writers, readers
    )
