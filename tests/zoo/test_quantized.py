"""Weights in fewer bits: the numbers, the file, and what makes them float again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from psvit_core.errors import CheckpointError, ModelError, UnknownNameError
from psvit_core.groups import plan_from_kept, summarize
from psvit_core.importance import rank
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.quantize import int8_of, packed, unpacked
from psvit_core.records import STORED_WEIGHTS
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model, weights_hash
from psvit_core.zoo.header import METADATA_KEY, QUANTIZED_FORMAT
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.quantized import (
    layer_weights,
    quantize_weights,
    stored_state,
    weights_bytes,
    weights_kind,
)
from tests.tiny import QUICK_NAMES, tiny_input, tiny_model
from tests.zoo.test_checkpoint import half, header_of

FILES = Path(__file__).parent / "files"
VECTOR = "sdt_v1_cifar"


# ---- numbers -------------------------------------------------------------------------------------


def test_numbers_and_scales_by_hand() -> None:
    weight = torch.tensor([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0], [-254.0, 1.0, 3.0]])
    numbers, scale = int8_of(weight)
    # 1/127 of the largest magnitude: 1 and 2 need no rounding; ties go to the even number.
    assert numbers.tolist() == [[127, -63, 1], [0, 0, 0], [-127, 0, 2]]
    assert scale.tolist() == [1.0, 2.0**-120, 2.0]
    assert numbers.dtype == torch.int8


def random_weight() -> Tensor:
    random = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-30, 10, 60).view(-1, 1, 1, 1)
    return torch.randn(60, 7, 3, 3, generator=random) * sizes


def test_every_weight_is_within_half_a_step() -> None:
    weight = random_weight()
    numbers, scale = int8_of(weight)
    assert numbers.abs().flatten(1).amax(1).eq(127).all()
    step = scale.double().view(-1, 1, 1, 1)
    assert ((numbers.double() * step - weight.double()).abs() <= step / 2).all()
    least = weight.abs().flatten(1).amax(1).double() / 127
    assert (scale.double() >= least).all()
    assert (scale.double() <= least * (1 + 2.0**-16)).all()


def test_products_are_exact_and_quantizing_again_changes_nothing() -> None:
    weight = torch.cat([random_weight(), torch.full((1, 7, 3, 3), 2.0**-118)])
    stored = packed({"w": weight}, ["w"], "int8")
    plain = unpacked(stored)["w"]
    exact = stored["w"].double() * stored["w.scale"].double().view(-1, 1, 1, 1)
    assert torch.equal(plain.double(), exact)
    again = packed({"w": plain}, ["w"], "int8")
    assert torch.equal(again["w"], stored["w"])
    assert torch.equal(again["w.scale"], stored["w.scale"])


def test_halves_are_those_of_ieee() -> None:
    weight = random_weight()[35:50]  # from 1e-6 to 1e4
    stored = packed({"w": weight}, ["w"], "float16")
    assert np.array_equal(stored["w"].numpy(), weight.numpy().astype(np.float16))
    bits = packed({"w": weight}, ["w"], "bfloat16")["w"].float().numpy().view(np.int32)
    assert not (bits & 0xFFFF).any()
    apart = np.abs(bits.view(np.float32) - weight.numpy()) / np.abs(weight.numpy())
    assert apart.max() <= 2.0**-8


def test_other_weights_are_refused() -> None:
    with pytest.raises(ModelError, match=r"magnitude 7e\+04; float16 ends at 6.55e\+04. Use"):
        packed({"w": torch.full((1, 1), 7e4)}, ["w"], "float16")
    with pytest.raises(ModelError, match=r"w is float64. Convert"):
        packed({"w": torch.ones(1, 1, dtype=torch.float64)}, ["w"], "int8")
    model = tiny_model(VECTOR)
    with pytest.raises(UnknownNameError, match="int4"):
        quantize_weights(model, "int4")
    with pytest.raises(ModelError, match=r"are int8 already. Quantize the float32 file"):
        quantize_weights(quantize_weights(model, "int8"), "float16")


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_bytes_of_every_family_are_those_of_arithmetic(name: str) -> None:
    """One byte per weight, a scale per output channel; ``plan.size`` counts from shapes alone."""
    model = tiny_model(name)
    summary = summarize(model, {"l2": rank(model, "l2")})
    assert weights_bytes(model) == plan_size(summary, None).bytes
    ratios = {group.group_id: 0.3 for group in summary.groups}
    plan = plan_from_ratios(summary, ratios, criterion="l2")
    pruned = apply_plan(model, plan)
    small = quantize_weights(model, "int8")
    assert weights_bytes(small) == plan_size(summary, None, "int8").bytes
    for kind, counted in (("int8", "int8"), ("bfloat16", "float16")):
        less = weights_bytes(quantize_weights(pruned, kind))
        assert less == plan_size(summary, plan, counted).bytes < weights_bytes(model)
    weights = {t.name for t in summary.shapes.tensors if t.role == "weight"}
    assert weights <= set(layer_weights(model)) <= weights | set(model.unused)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "int8") for name in QUICK_NAMES), (VECTOR, "float16"), (VECTOR, "bfloat16")],
)
def test_a_file_computes_what_its_numbers_say(name: str, kind: str, tmp_path: Path) -> None:
    """Read by NumPy, the file's weights in a float model give the same bits of logits."""
    model = tiny_model(name)
    small = apply_plan(model, plan_from_kept(model, {}))
    path = save_pruned(quantize_weights(small, kind), tmp_path / "q.safetensors")
    loaded, raw = load_model(path), load_file(path)
    assert weights_kind(loaded) == header_of(path)["weights"] == kind
    state = dict(small.state_dict())
    for weight in layer_weights(small):
        numbers = raw[weight].double().numpy()
        if kind == "int8":
            rows = raw[f"{weight}.scale"].numpy().astype(np.float64)
            numbers = numbers * rows.reshape(-1, *[1] * (numbers.ndim - 1))
        state[weight] = torch.from_numpy(numbers.astype(np.float32))
    small.load_state_dict(state)
    x = tiny_input(name)
    with torch.no_grad():
        assert torch.equal(small(x), loaded(x))
        assert (model(x) - loaded(x)).abs().max() > 0
    assert weights_hash(small) == weights_hash(loaded)
    assert loaded.provenance["quantized"] == [kind]


@pytest.mark.parametrize("kind", STORED_WEIGHTS)
def test_a_file_is_written_again_as_it_was(kind: str, tmp_path: Path) -> None:
    path = save_pruned(quantize_weights(half(tiny_model(VECTOR)), kind), tmp_path / "a.safetensors")
    again = save_pruned(load_model(path), tmp_path / "b.safetensors")
    before, after = load_file(path), load_file(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert header_of(path) == header_of(again)


def trained(model: SpikingModel) -> SpikingModel:
    with torch.no_grad():
        model.get_parameter(layer_weights(model)[0]).mul_(1.001)
    return model


@pytest.mark.parametrize("change", [half, trained])
def test_changed_weights_are_float_again(
    change: Callable[[SpikingModel], SpikingModel], tmp_path: Path
) -> None:
    model = tiny_model(VECTOR)
    small = apply_plan(model, plan_from_kept(model, {}))
    path = save_pruned(quantize_weights(small, "int8"), tmp_path / "a.safetensors")
    changed = change(load_model(path))
    assert weights_kind(changed) == "float32"
    again = save_pruned(changed, tmp_path / "b.safetensors")
    assert "weights" not in header_of(again)
    assert {t.dtype for t in load_file(again).values()} == {torch.float32, torch.int64}
    assert load_model(again).provenance["quantized"] == ["int8"]


def test_the_model_stays_as_it_is() -> None:
    model = tiny_model(VECTOR)
    before = weights_hash(model)
    small = quantize_weights(model, "int8")
    assert weights_hash(model) == before != weights_hash(small)
    changed = {
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, small.state_dict()[name])
    }
    assert changed == set(layer_weights(model))


# ---- files ---------------------------------------------------------------------------------------


def test_the_stored_file_of_format_3_opens() -> None:
    """It has the weights of the stored file of format 2, within half a step."""
    path = FILES / "pruned_format_3.safetensors"
    assert header_of(path)["format"] == QUANTIZED_FORMAT
    small, plain = load_model(path), load_model(FILES / "pruned_format_2.safetensors")
    assert weights_kind(small) == "int8"
    with safe_open(path, framework="pt") as file:
        for name, tensor in small.state_dict().items():
            other = plain.state_dict()[name]
            if name in layer_weights(small):
                step = file.get_tensor(f"{name}.scale").view(-1, *[1] * (tensor.dim() - 1))
                assert ((tensor - other).abs() <= step / 2).all()
            else:
                assert torch.equal(tensor, other)


def damaged(tensors: dict[str, Tensor], name: str, how: str) -> dict[str, Tensor]:
    """Return the tensors of a file with one fault."""
    scale = tensors[f"{name}.scale"]
    changes: dict[str, Callable[[], dict[str, Tensor]]] = {
        "float": lambda: {name: tensors[name].float()},
        "half": lambda: {"block.0.mlp.fc1_conv.bias": torch.zeros(4, dtype=torch.float16)},
        "shape": lambda: {f"{name}.scale": scale[1:].clone()},
        "dtype": lambda: {f"{name}.scale": scale.double()},
        "nan": lambda: {f"{name}.scale": scale * torch.nan},
        "negative": lambda: {f"{name}.scale": -scale},
    }
    rest = {k: t for k, t in tensors.items() if how != "missing" or k != f"{name}.scale"}
    return rest | (changes[how]() if how in changes else {})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("float", "is float32, and the header says int8. Quantize the network again"),
        ("half", "is float16, but it is no weight of a layer"),
        ("missing", "has no scales"),
        ("shape", "is not one float32 per output channel"),
        ("dtype", "is not one float32 per output channel"),
        ("nan", "not positive and finite"),
        ("negative", "not positive and finite"),
    ],
)
def test_damaged_tensors_are_refused(how: str, message: str, tmp_path: Path) -> None:
    path = FILES / "pruned_format_3.safetensors"
    tensors = damaged(load_file(path), layer_weights(load_model(path))[0], how)
    text = json.dumps(header_of(path))
    save_file(tensors, tmp_path / "b.safetensors", {METADATA_KEY: text, "format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "int4"}, "its weights are 'int4'"),
        ({"weights": ["int8"]}, "its weights are"),
        ({"weights": None}, "its weights are None"),
        ({"weights": "float16"}, "is int8, and the header says float16"),
    ],
)
def test_damaged_headers_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = FILES / "pruned_format_3.safetensors"
    text = json.dumps({**header_of(path), **change})
    save_file(load_file(path), tmp_path / "b.safetensors", {METADATA_KEY: text, "format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "b.safetensors")


def test_whole_networks_need_an_empty_plan(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="apply a plan first"):
        save_pruned(quantize_weights(tiny_model(VECTOR), "int8"), tmp_path / "a.safetensors")
    assert set(stored_state(tiny_model(VECTOR))) == set(tiny_model(VECTOR).state_dict())
