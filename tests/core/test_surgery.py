"""Exactness: the pruned model computes the same as the full model with those units silent.

Verified in float64, because in float32 another reduction order may flip a spike. A silent network
would pass every comparison, so the tests also check that neurons and removed units fire.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from psvit_core.errors import InvalidPlanError, ModelError
from psvit_core.groups import find_groups, plan_from_kept
from psvit_core.metrics.spikes import count_spikes
from psvit_core.neurons import LIF, NEURONS
from psvit_core.plan.size import plan_widths
from psvit_core.records import ChannelGroup, PrunePlan, n_pruned
from psvit_core.surgery import apply_plan, silenced
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import HeadSum
from psvit_core.zoo.products import AttentionProduct, ChunkProduct
from psvit_core.zoo.registry import build_model
from tests.tiny import NAMES, REFERENCE, tiny_input, tiny_model

TOLERANCE = 1e-9
MODELS = {name: tiny_model(name, torch.float64) for name in NAMES}
INPUTS = {name: tiny_input(name, torch.float64) for name in NAMES}
GROUPS = [(name, g.group_id) for name in NAMES for g in find_groups(MODELS[name])]


def spike_sums(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the logits, and the output sum of every neuron layer."""
    sums: dict[str, float] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: sums.__setitem__(name, float(out.sum()))
        )
        for name, module in model.named_modules()
        if isinstance(module, NEURONS)
    ]
    with torch.no_grad():
        logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, sums


def unit_activity(name: str, group: ChannelGroup) -> Tensor:
    """Return the activity of each unit of a group at the input of its readers, (n_units,)."""
    model = MODELS[name]
    readers = {tensor.removesuffix(".weight") for tensor, _ in group.readers}
    if not readers:  # read by the attention itself
        attention = group.group_id.rpartition(".")[0]
        readers = {f"{attention}.{'sum' if group.kind == 'qktoken_q' else 'product'}"}
    total = torch.zeros(group.n_units, dtype=torch.float64)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for x in inputs[:2] if isinstance(module, AttentionProduct) else inputs:
            timed = isinstance(module, (HeadSum, ChunkProduct))
            rows = x.flatten(0, 1) if timed else x  # (rows, C, ...)
            total.add_(rows.abs().transpose(0, 1).flatten(1).sum(1))

    handles = [model.get_submodule(r).register_forward_pre_hook(hook) for r in readers]
    with torch.no_grad():
        model(INPUTS[name])
    for handle in handles:
        handle.remove()
    return total


def assert_equal_to_silenced(name: str, plan: PrunePlan, least_change: float) -> None:
    model, x = MODELS[name], INPUTS[name]
    small = apply_plan(model, plan)
    expected, expected_sums = spike_sums(silenced(model, plan), x)
    got, got_sums = spike_sums(small, x)
    with torch.no_grad():
        unpruned = model(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    assert got_sums == {k.removeprefix("model."): v for k, v in expected_sums.items()}
    assert float((got - unpruned).abs().max()) > least_change


def keep_all_but(group: ChannelGroup, removed: Iterable[int]) -> tuple[int, ...]:
    gone = set(removed)
    return tuple(i for i in range(group.n_units) if i not in gone)


def most_active(group: ChannelGroup, activity: Tensor) -> list[int]:
    """Return the most active third of the units (fewer if fewer fire), equally many per head."""
    heads = group.heads or 1
    per_head = activity.view(heads, -1)
    firing = int((per_head > 0).sum(dim=1).min())
    count = max(1, min(per_head.shape[1] // 3, firing))
    chosen = per_head.topk(count, dim=1).indices
    offsets = torch.arange(heads).unsqueeze(1) * per_head.shape[1]
    return (chosen + offsets).flatten().tolist()


@pytest.mark.parametrize("name", NAMES)
def test_every_neuron_layer_fires(name: str) -> None:
    rates: dict[str, float] = {}
    for layer, module in MODELS[name].named_modules():
        if isinstance(module, NEURONS):
            module.register_forward_hook(
                lambda _m, _i, out, layer=layer: rates.__setitem__(
                    layer, float((out != 0).double().mean())
                )
            )
    with torch.no_grad():
        MODELS[name](INPUTS[name])
    assert rates
    assert all(0.02 <= rate <= 0.98 for rate in rates.values()), rates


@pytest.mark.parametrize(("name", "group_id"), GROUPS)
def test_each_group_alone(name: str, group_id: str) -> None:
    model = MODELS[name]
    group = next(g for g in find_groups(model) if g.group_id == group_id)
    if group.heads == group.n_units:  # one unit per head: nothing can be removed
        assert n_pruned(0.99, group.n_units, group.heads) == 0
        return
    activity = unit_activity(name, group)
    removed = most_active(group, activity)
    silent_head = bool((activity.view(group.heads or 1, -1).amax(dim=1) == 0).any())
    assert (activity[removed] > 0).any() if silent_head else (activity[removed] > 0).all()
    plan = plan_from_kept(model, {group_id: keep_all_but(group, removed)})
    assert_equal_to_silenced(name, plan, least_change=1e-3)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 10**6))
def test_random_plans_over_all_groups(name: str, seed: int) -> None:
    model, chance = MODELS[name], random.Random(seed)  # the largest models have 40 groups
    kept = {}
    for group in find_groups(model):
        ratio = chance.choice([0.0, 0.2, 0.4, 0.6])
        count = n_pruned(ratio, group.n_units, group.heads)
        heads = group.heads or 1
        width = group.n_units // heads
        removed = [
            head * width + unit
            for head in range(heads)
            for unit in chance.sample(range(width), count // heads)
        ]
        kept[group.group_id] = keep_all_but(group, removed)
    plan = plan_from_kept(model, kept)
    unpruned = all(len(kept[g.group_id]) == g.n_units for g in find_groups(model))
    assert_equal_to_silenced(name, plan, least_change=-1.0 if unpruned else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_published_logits_after_surgery(name: str) -> None:
    with safe_open(REFERENCE / "vectors" / f"{name}.pruned.safetensors", framework="pt") as file:
        expected = file.get_tensor("logits")
        meta = json.loads(file.metadata()["meta"])
    small = apply_plan(model := tiny_model(name), plan_from_kept(model, meta["keep"]))
    with torch.no_grad():
        got = small(tiny_input(name))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) == meta["params_after"]


@pytest.mark.parametrize("name", NAMES)
def test_sops_of_silenced_and_pruned_are_equal(name: str) -> None:
    model, x = MODELS[name], INPUTS[name]
    kept = {
        g.group_id: keep_all_but(g, most_active(g, torch.arange(g.n_units, dtype=torch.float64)))
        if g.heads != g.n_units
        else tuple(range(g.n_units))
        for g in find_groups(model)
    }
    plan = plan_from_kept(model, kept)
    small = apply_plan(model, plan)
    widths = {g.group_id: len(kept[g.group_id]) for g in find_groups(model)}
    with torch.no_grad(), count_spikes(model, widths) as silent:
        silenced(model, plan)(x)
    with torch.no_grad(), count_spikes(small) as pruned:
        small(x)
    torch.testing.assert_close(torch.cat(silent.sops), torch.cat(pruned.sops), rtol=0, atol=1e-6)
    assert torch.cat(pruned.sops).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_input_model_is_untouched_and_no_state_is_left(name: str) -> None:
    model, x = tiny_model(name), tiny_input(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        first = model(x)
    group = find_groups(model)[-1]
    heads = group.heads or 1
    first_of_each_head = [head * (group.n_units // heads) for head in range(heads)]
    plan = plan_from_kept(model, {group.group_id: keep_all_but(group, first_of_each_head)})
    small = apply_plan(model, plan)
    for parameter in small.parameters():
        parameter.data.zero_()  # shares no memory with the input
    quiet = silenced(model, plan)
    with torch.no_grad():
        quiet(x)
        again = model(x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_model_can_be_pruned_again(name: str) -> None:
    model, x = MODELS[name], INPUTS[name]

    def halve(m: SpikingModel) -> PrunePlan:
        kept = {}
        for g in find_groups(m):
            heads, n = g.heads or 1, n_pruned(0.3, g.n_units, g.heads)
            width = g.n_units // heads
            gone = [h * width + i for h in range(heads) for i in range(n // heads)]
            kept[g.group_id] = keep_all_but(g, gone)
        return plan_from_kept(m, kept)

    once = apply_plan(model, halve(model))
    twice = apply_plan(once, halve(once))
    composed = plan_from_kept(model, twice.provenance["kept"])
    with torch.no_grad():
        torch.testing.assert_close(twice(x), apply_plan(model, composed)(x), rtol=0, atol=TOLERANCE)
    assert plan_widths_of(twice) == {k: len(v) for k, v in composed.kept.items()}
    assert len(twice.provenance["plans"]) == 2


def plan_widths_of(model: SpikingModel) -> dict[str, int]:
    return {g.group_id: g.n_units for g in find_groups(model)}


def test_nothing_removed_is_identity() -> None:
    model = MODELS["sdt_v3"]
    same = apply_plan(model, plan_from_kept(model, {}))
    with torch.no_grad():
        assert torch.equal(same(INPUTS["sdt_v3"]), model(INPUTS["sdt_v3"]))


def test_invalid_plans_are_rejected() -> None:
    model = tiny_model("sdt_v3")
    with pytest.raises(InvalidPlanError, match="no channel group 'nothing'"):
        plan_from_kept(model, {"nothing": [0]})
    with pytest.raises(InvalidPlanError, match="every head must keep the same number"):
        plan_from_kept(model, {"block3.0.attn.qk": range(11)})
    with pytest.raises(InvalidPlanError, match="at least one"):
        plan_from_kept(model, {"stage2.stream": []})
    other = plan_from_kept(tiny_model("sdt_v1"), {})
    for use in (apply_plan, silenced):
        with pytest.raises(InvalidPlanError, match="Create a plan for this model"):
            use(model, other)


def test_neurons_that_fire_without_input_cannot_be_silenced() -> None:
    model = tiny_model("sdt_v1")
    lif = model.get_submodule("head_lif")
    assert isinstance(lif, LIF)
    lif.v_threshold = 0.0
    with pytest.raises(InvalidPlanError, match="head_lif"):
        silenced(model, plan_from_kept(model, {}))


def test_invalid_widths_are_rejected() -> None:
    for widths in ({"stream": 0}, {"stream": 10_000}, {"nothing": 3}):
        with pytest.raises(ModelError):
            build_model("sdt_v1", widths, embed_dims=32, depths=1)
    with pytest.raises(ModelError, match="steps of 8"):
        build_model("sdt_v3", {"block3.0.attn.qk": 9})


def test_plan_widths_matches_surgery() -> None:
    from psvit_core.groups import summarize

    model = tiny_model("sdt_v3")
    plan = plan_from_kept(model, {"stage2.stream": [1, 3, 5]})
    assert plan_widths(summarize(model, {}), plan) == plan_widths_of(apply_plan(model, plan))
