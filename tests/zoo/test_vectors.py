"""Models agree with the published ones, and can be pruned along their declared groups."""

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
from psvit_core.zoo.registry import FAMILIES, build_model
from tests.tiny import NAMES, REFERENCE, Vector, build_tiny, tiny_model, vector

MANIFESTS = sorted(
    path.stem
    for path in (REFERENCE / "manifests").glob("*.json")
    if path.stem.split("__")[0] in FAMILIES
)
TOLERANCE = 1e-4


def read_json(folder: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((REFERENCE / folder / f"{name}.json").read_text())
    return data


@dataclass
class Recorded:
    """One forward pass, with statistics of each neuron's output."""

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
    # a silent or saturated network would pass any comparison
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
def test_model_properties(name: str) -> None:
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
        assert group.maps == {k: tuple(v) for k, v in other.get("maps", {}).items()}
        assert group.local == {k: v["conv_groups"] for k, v in other.get("local", {}).items()}
        assert group.label


def pruned_weights(
    full: dict[str, Tensor], groups: list[dict[str, Any]], keep: dict[str, list[int]]
) -> dict[str, Tensor]:
    """Select the kept channels as the reference format describes it, apart from our own code."""
    lost: dict[tuple[str, int], set[int]] = {}
    local: dict[str, list[list[int]]] = {}  # tensor -> local input channels by conv group
    for group in groups:
        kept = set(keep.get(group["name"], range(group["size"])))
        for tensor, axis in map(tuple, (*group["write"], *group["read"])):
            key = f"{tensor}:{axis}"
            if key in group.get("local", {}):
                size = group["local"][key]["group_size"]
                n = group["local"][key]["conv_groups"]
                local[tensor] = [
                    [i - g * size for i in sorted(kept) if i // size == g] for g in range(n)
                ]
                continue
            positions = group.get("maps", {}).get(key, range(group["size"]))
            gone = {p for i, p in enumerate(positions) if i not in kept}
            lost.setdefault((tensor, axis), set()).update(gone)
    weights = dict(full)
    for (tensor, axis), gone in lost.items():
        rest = [i for i in range(full[tensor].shape[axis]) if i not in gone]
        weights[tensor] = weights[tensor].index_select(axis, torch.tensor(rest))
    for tensor, inputs in local.items():
        rows = weights[tensor].chunk(len(inputs))
        weights[tensor] = torch.cat([r[:, i] for r, i in zip(rows, inputs, strict=True)])
    return weights


@pytest.mark.parametrize("name", NAMES)
def test_pruned_network_is_built_directly(name: str) -> None:
    model, reference = loaded(name)
    pruned = vector(f"{name}.pruned")
    keep = pruned.meta["keep"]
    weights = pruned_weights(reference.weights, read_json("groups", name)["groups"], keep)
    widths = {group_id: len(units) for group_id, units in keep.items()}
    small = build_tiny(name, widths)
    small.load_state_dict(weights, strict=True)
    logits = record(small, reference.tensors["input"]).logits
    assert largest(logits - pruned.tensors["logits"]) < TOLERANCE
    assert largest(logits - reference.tensors["logits"]) > 1e-2  # the plan has an effect
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


def test_all_manifests_are_found() -> None:
    assert len(MANIFESTS) == 63
    assert len(NAMES) == 24
    assert len({name.split("__")[0] for name in MANIFESTS}) == len(FAMILIES) - 2  # base and d8


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
