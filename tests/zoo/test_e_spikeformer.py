"""E-SpikeFormer at other ratios: the conv blocks' channel convolution uses the ratio too."""

from __future__ import annotations

import pytest
import torch

from psvit_core.errors import ModelError
from psvit_core.groups import find_groups, plan_from_kept
from psvit_core.surgery import apply_plan
from psvit_core.zoo.registry import build_model


def parameters(e: list[int], ratio: int, classes: int, channels: int = 3) -> int:
    """Count the parameters by the published layout."""

    def sepconv(c: int, kernel: int) -> int:
        return 2 * c * c + 4 * c + 2 * c * kernel**2 + 4 * c + 2 * c * c + 2 * c

    def conv_block(c: int) -> int:
        return sepconv(c, 7) + 2 * 9 * c * ratio * c + 2 * ratio * c + 2 * c

    def downsample(c_in: int, c_out: int, kernel: int) -> int:
        return c_in * c_out * kernel**2 + 3 * c_out

    def block(c: int) -> int:
        attention = 2 * (c * c + 2 * c) + (4 * c * c + 8 * c) + (4 * c * c + 2 * c)
        mlp = 2 * ratio * c * c + 3 * ratio * c + 3 * c
        return sepconv(c, 3) + attention + mlp

    stages = downsample(channels, e[0] // 2, 7) + conv_block(e[0] // 2)
    stages += downsample(e[0] // 2, e[0], 3) + conv_block(e[0])
    stages += downsample(e[0], e[1], 3) + 2 * conv_block(e[1])
    stages += downsample(e[1], e[2], 3) + 6 * block(e[2])
    stages += downsample(e[2], e[3], 3) + 2 * block(e[3])
    return stages + e[3] * classes + classes


@pytest.mark.parametrize(
    ("embed_dim", "ratio", "classes"),
    [
        ([16, 24, 32, 48], 2, 10),
        ([16, 24, 32, 48], 1, 10),
        ([16, 32, 48, 64], 3, 7),
        ([32, 64, 128, 192], 4, 1000),
    ],
)
def test_parameters_at_any_ratio(embed_dim: list[int], ratio: int, classes: int) -> None:
    with torch.device("meta"):
        model = build_model(
            "sdt_v3",
            embed_dim=embed_dim,
            num_heads=4,
            mlp_ratios=ratio,
            num_classes=classes,
            img_size_h=64,
            img_size_w=64,
        )
    assert sum(p.numel() for p in model.parameters()) == parameters(embed_dim, ratio, classes)
    if (ratio, classes) == (2, 10):
        assert parameters(embed_dim, ratio, classes) == 302_706
    widths = {g.group_id: g.n_units for g in find_groups(model)}
    assert widths["ConvBlock2_1.0.channelconv.hidden"] == ratio * embed_dim[1]
    assert widths["block3.0.mlp.hidden"] == ratio * embed_dim[2]


def test_pruned_at_another_ratio() -> None:
    model = build_model(
        "sdt_v3", embed_dim=[16, 24, 32, 48], num_heads=4, mlp_ratios=2, num_classes=10
    )
    small = apply_plan(model, plan_from_kept(model, {"ConvBlock1_1.0.channelconv.hidden": [0, 3]}))
    assert small.get_parameter("ConvBlock1_1.0.conv1.weight").shape[0] == 2
    assert model.get_parameter("ConvBlock1_1.0.conv1.weight").shape[0] == 16


def test_fractions_are_refused_as_in_the_published_class() -> None:
    with pytest.raises(ModelError, match=r"mlp_ratios must be a whole number.*2\.5"):
        build_model("sdt_v3", embed_dim=[16, 24, 32, 48], num_heads=4, mlp_ratios=2.5)
