"""The models compute what the published ones compute, and prune as declared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from psvit_core.neurons import NEURONS, eager_neurons
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import build_model
from tests.tiny import NAMES, REFERENCE, Vector, build_tiny, tiny_model, vector

MANIFESTS = sorted(p.stem for p in (REFERENCE / "manifests").glob("*.json"))
TOLERANCE = 1e-4


def read_json(folder: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((REFERENCE / folder / f"{name}.json").read_text())
    return data


@dataclass
class Recorded:
    """One forward pass, with what each neuron put out."""

    logits: Tensor
    order: list[str]
    sums: dict[str, float]
    nonzero: dict[str, float]


@torch.no_grad()
def record(model: SpikingModel, x: Tensor) -> Recorded:
    order: list[str] = []
    sums: dict[str, float] = {}
    nonzero: dict[str, float] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, Any, Tensor], None]:
        def keep(module: torch.nn.Module, args: Any, out: Tensor) -> None:
            order.append(name)
            sums[name] = float(out.double().sum())
            nonzero[name] = float((out != 0).double().mean())

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, NEURONS)
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return Recorded(logits, order, sums, nonzero)


def loaded(name: str) -> tuple[SpikingModel, Vector]:
    return tiny_model(name), vector(name)


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_spikes(name: str) -> None:
    model, reference = loaded(name)
    got = record(model, reference.tensors["input"])
    assert got.order == reference.meta["neuron_calls_in_order"]
    assert got.sums == reference.meta["neuron_output_sum"]
    assert largest(got.logits - reference.tensors["logits"]) < TOLERANCE
    # a net that is silent, or saturated, would pass anything
    assert min(got.nonzero.values()) > 0.02
    assert max(got.nonzero.values()) < 0.98


@pytest.mark.parametrize("name", NAMES)
def test_forward_leaves_no_state(name: str) -> None:
    model, reference = loaded(name)
    x = reference.tensors["input"]
    with torch.no_grad():
        first = model(x)
        assert torch.equal(model(x), first)
        model(x[:1])
        assert torch.equal(model(x), first)
        with eager_neurons():
            assert torch.equal(model(x), first)


@pytest.mark.parametrize("name", NAMES)
def test_precision_of_the_reference(name: str) -> None:
    model, reference = loaded(name)
    with torch.no_grad():
        logits = model.double()(reference.tensors["input"].double())
    assert largest(logits - reference.tensors["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_model_knows_its_facts(name: str) -> None:
    model, reference = loaded(name)
    constructor = reference.meta["constructor"]
    assert reference.meta["T"] == model.T
    assert model.num_classes == constructor["num_classes"]
    assert model.input_shape == tuple(reference.tensors["input"].shape[1:])
    assert sum(p.numel() for p in model.parameters()) == reference.meta["total_params"]


@pytest.mark.parametrize("name", NAMES)
def test_channel_groups(name: str) -> None:
    model, _ = loaded(name)
    with torch.device("meta"):
        assert build_tiny(name).channel_groups() == model.channel_groups()
    expected = [g for g in read_json("groups", name)["groups"] if g["prunable"]]
    groups = model.channel_groups()
    assert [g.group_id for g in groups] == [g["name"] for g in expected]
    for group, other in zip(groups, expected, strict=True):
        assert (group.kind, group.n_units, group.heads) == (
            other["kind"],
            other["size"],
            other["heads"],
        ), group.group_id
        for ours, theirs in ((group.writers, other["write"]), (group.readers, other["read"])):
            assert set(ours) == {tuple(pair) for pair in theirs}, group.group_id
            assert len(ours) == len(set(ours)), group.group_id
        assert group.label


@pytest.mark.parametrize("name", NAMES)
def test_pruned_network_is_built_directly(name: str) -> None:
    model, reference = loaded(name)
    pruned = vector(f"{name}.pruned")
    keep = pruned.meta["keep"]
    weights = dict(reference.weights)
    for group in read_json("groups", name)["groups"]:
        units = torch.tensor(keep.get(group["name"], range(group["size"])))
        for tensor, axis in (*group["write"], *group["read"]):
            weights[tensor] = weights[tensor].index_select(axis, units)
    widths = {group_id: len(units) for group_id, units in keep.items()}
    small = build_tiny(name, widths)
    small.load_state_dict(weights, strict=True)
    logits = record(small, reference.tensors["input"]).logits
    assert largest(logits - pruned.tensors["logits"]) < TOLERANCE
    assert largest(logits - reference.tensors["logits"]) > 1e-2  # the plan changes something
    assert sum(p.numel() for p in small.parameters()) == pruned.meta["params_after"]
    assert {g.group_id: g.n_units for g in small.channel_groups()} == {**model.widths, **widths}


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_manifest(name: str) -> None:
    manifest = read_json("manifests", name)
    with torch.device("meta"):
        model = build_model(manifest["family"], **manifest["constructor"])
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(shapes) == list(manifest["keys"])
    assert shapes == manifest["keys"]
    assert sum(p.numel() for p in model.parameters()) == manifest["total_params"]
    assert set(model.unused) <= set(shapes)


def test_manifests_are_there() -> None:
    assert len(MANIFESTS) == 25


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("qkformer")])
def test_uncoupled_logits(name: str) -> None:
    model, reference = loaded(name)
    free = build_model(model.family, **{**model.arguments, "batch_coupled": False})
    free.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = free(reference.tensors["input"])
        alone = torch.cat([model(image[None]) for image in reference.tensors["input"]])
    assert largest(logits - reference.tensors["logits_single"]) < TOLERANCE
    assert largest(alone - reference.tensors["logits_single"]) < TOLERANCE
    assert largest(logits - reference.tensors["logits"]) > 1e-3
