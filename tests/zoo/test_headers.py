"""Headers of pruned files: what loading refuses is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psvit_core.errors import CheckpointError, ModelError
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model, weights_hash
from psvit_core.zoo.header import METADATA_KEY
from psvit_core.zoo.pruned import check_arguments, save_pruned
from psvit_core.zoo.registry import build_model
from tests.tiny import NAMES, tiny_model
from tests.zoo.test_checkpoint import half, header_of

RATIO_NAMES = [n for n in NAMES if "mlp_ratios" in tiny_model(n).arguments]


@pytest.mark.parametrize("name", RATIO_NAMES)
@pytest.mark.parametrize("ratio", [4.0, 2.5, np.int64(4), np.float32(4)], ids=repr)
def test_ratios_of_any_type_can_be_read_back(name: str, ratio: Any, tmp_path: Path) -> None:
    """An integral float is an integer; other ratios depend on the family, as in published code."""
    tiny = tiny_model(name)
    arguments = {**tiny.arguments, "mlp_ratios": ratio}
    if ratio == 2.5 and name in ("sdt_v2", "sdt_v2_kd", "sdt_v3"):
        with pytest.raises(ModelError, match=r"mlp_ratios must be"):
            build_model(tiny.family, **arguments)
        return
    try:
        model = randomized(build_model(tiny.family, **arguments))
    except ModelError:
        assert ratio == 2.5
        assert name.startswith("sdt_v3_large")  # the published class multiplies a width by it
        return
    assert model.arguments["mlp_ratios"] == ratio
    assert type(model.arguments["mlp_ratios"]) is (float if ratio == 2.5 else int)
    small = half(model)
    loaded = load_model(save_pruned(small, tmp_path / "small.safetensors"))
    assert loaded.arguments == small.arguments
    assert weights_hash(loaded) == weights_hash(small)


def randomized(model: SpikingModel) -> SpikingModel:
    for name, tensor in model.named_buffers():
        if "firing_rate" in name:
            tensor.fill_(0.2)
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size_h": 4096, "img_size_w": 4096}, "img_size_h must be .* to 2,048; got 4096"),
        ({"num_classes": 100_001}, "num_classes must be .* to 100,000; got 100001"),
        ({"T": 1_001}, "T must be .* to 1,000; got 1001"),
        ({"in_channels": 1_001}, "in_channels must be .* to 1,000; got 1001"),
    ],
)
def test_what_loading_refuses_is_not_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save_pruned(half(tiny_model("sdt_v1_cifar")), tmp_path / "small.safetensors")
    header = header_of(path)
    header["arguments"].update(arguments)
    save_file(load_file(path), tmp_path / "b.safetensors", {METADATA_KEY: json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "b.safetensors")
    small = half(build_model("sdt_v1", **{**tiny_model("sdt_v1_cifar").arguments, **arguments}))
    with pytest.raises(CheckpointError, match=message):
        save_pruned(small, tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()
    with pytest.raises(CheckpointError, match=message):
        check_arguments(small)


def test_largest_arguments_can_be_read_back(tmp_path: Path) -> None:
    tiny = tiny_model("sdt_v1_cifar")
    most = {"img_size_h": 2_048, "img_size_w": 2_048, "num_classes": 100_000, "T": 1_000}
    small = half(build_model("sdt_v1", **{**tiny.arguments, "embed_dims": 16, **most}))
    loaded = load_model(save_pruned(small, tmp_path / "small.safetensors"))
    assert loaded.arguments == small.arguments


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_loading_refuses_are_not_written(value: float, tmp_path: Path) -> None:
    small = half(tiny_model("spikformer_cifar"))
    with torch.no_grad():
        small.get_parameter("head.weight")[0, 0] = value
    with pytest.raises(CheckpointError, match=r"head\.weight contains NaN or infinite"):
        save_pruned(small, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()
    empty = small.resized(small.widths)
    empty.provenance = small.provenance
    with pytest.raises(CheckpointError, match="has no values"):
        save_pruned(empty, tmp_path / "small.safetensors")
