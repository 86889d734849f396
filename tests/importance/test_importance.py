"""The contract of all importance criteria, and independent computations of each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.data import EvalSet, load_data
from psvit_core.errors import CancelledError, DataError, UnknownNameError
from psvit_core.groups import find_groups, summarize
from psvit_core.importance import CRITERIA, all_scores, criterion, rank
from psvit_core.importance._base import WeightCriterion
from psvit_core.importance._readers import Inputs, ProductReader, Reader, ScoresReader, find_readers
from psvit_core.plan.build import kept_units, plan_from_ratios
from psvit_core.records import IMAGE_CRITERIA, WEIGHT_CRITERIA, Subject, SweepSettings
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import load_spec
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage.store import Store
from psvit_core.surgery import silencing_edits
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo import cards
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.qkformer import SelfAttention
from tests import own_models
from tests.tiny import NAMES, tiny_data, tiny_model

cards._custom_cards.clear()  # other tests go over all registered models


def uncoupled(name: str, dtype: torch.dtype = torch.float32) -> SpikingModel:
    """Return a tiny model whose logits do not depend on the batch."""
    model = tiny_model(name, dtype)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.batch_coupled = False
    return model


@cache
def family(name: str) -> tuple[SpikingModel, EvalSet]:
    return uncoupled(name), tiny_data(name)


def scores_of(name: str, model_name: str, batch: int = 7) -> dict[str, Tensor]:
    model, data = family(model_name)
    return all_scores(model, name, calib=data, run=Run(batch=batch), seed=3)


# ---- the contract ----------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", NAMES)
@pytest.mark.parametrize("name", CRITERIA)
def test_contract(name: str, model_name: str) -> None:
    model, data = family(model_name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = scores_of(name, model_name)
    assert list(scores) == [g.group_id for g in find_groups(model)]
    for group in find_groups(model):
        own = scores[group.group_id]
        assert own.shape == (group.n_units,)
        assert own.dtype == torch.float64
        assert torch.isfinite(own).all()
        assert (own >= 0).all()
    differing = [g for g, own in scores.items() if own.max() > own.min()]
    assert len(differing) >= len(scores) - 1  # a head's sum may consist of a single query
    if name in IMAGE_CRITERIA:
        for group_id, other in scores_of(name, model_name, batch=3).items():
            torch.testing.assert_close(other, scores[group_id], rtol=1e-4, atol=1e-9)
    ranking = rank(model, name, calib=data, run=Run(batch=7), seed=3)
    for group_id, order in ranking.items():
        expected = torch.sort(scores[group_id], descending=True, stable=True).indices
        assert order == tuple(expected.tolist())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("model_name", NAMES)
def test_silenced_units_have_no_importance_for_readers(model_name: str) -> None:
    model, data = uncoupled(model_name), family(model_name)[1]
    groups = find_groups(model)
    summary = summarize(model, {"l2": rank(model, "l2")})
    plan = plan_from_ratios(summary, {g.group_id: 0.5 for g in groups}, criterion="l2")
    model.load_state_dict({**model.state_dict(), **silencing_edits(model, plan)})
    for name in (*IMAGE_CRITERIA, "bn_scale"):
        scores = all_scores(model, name, calib=data)
        for group_id, kept in plan.kept.items():
            removed = sorted(set(range(len(scores[group_id]))) - set(kept))
            assert scores[group_id][removed].abs().max() < 1e-9, (name, group_id)


def test_training_model_is_scored_in_evaluation_mode() -> None:
    model, data = tiny_model("sdt_v1").train(), tiny_data("sdt_v1")
    block = model.get_submodule("block.0").eval()
    model.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name in IMAGE_CRITERIA:
        expected = scores_of(name, "sdt_v1")
        for group_id, own in all_scores(model, name, calib=data).items():
            torch.testing.assert_close(own, expected[group_id])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert not any(module.training for module in block.modules())


def test_equal_scores_stay_in_index_order() -> None:
    model = tiny_model("sdt_v1")
    with torch.no_grad():
        model.get_parameter("patch_embed.proj_bn.weight").fill_(1.0)
    n = model.widths["stem0"]
    assert rank(model, "bn_scale")["stem0"] == tuple(range(n))


def test_frames_of_one_image_are_scored_like_the_image() -> None:
    model, data = family("sdt_v1")
    frames = dataclasses.replace(
        data, load=lambda i: data.load(i).expand(model.T, -1, -1, -1), time_steps=model.T
    )
    for name in IMAGE_CRITERIA:
        own = all_scores(model, name, calib=frames)
        for group_id, expected in scores_of(name, "sdt_v1").items():
            torch.testing.assert_close(own[group_id], expected, rtol=1e-3, atol=1e-9)


# ---- independent computations ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("l1", [3.0, 4.0]), ("l2", [5**0.5, 8**0.5])])
def test_norms_concatenate_tied_filters(name: str, expected: list[float]) -> None:
    model = tiny_model("sdt_v1")
    with torch.no_grad():
        for part, values in (("q", (2.0, 2.0)), ("k", (-1.0, 0.0)), ("v", (0.0, -2.0))):
            weight = model.get_parameter(f"block.0.attn.{part}_conv.weight")
            weight.zero_()
            weight[0, 0], weight[1, 1] = values
    assert all_scores(model, name)["block.0.attn.qkv"][:2].tolist() == pytest.approx(expected)
    grouped = all_scores(model, "l2_group")["block.0.attn.qkv"].square()
    reader = model.get_parameter("block.0.attn.proj_conv.weight").double().flatten(1)
    written = all_scores(model, "l2")["block.0.attn.qkv"].square()
    torch.testing.assert_close(grouped, written + reader.square().sum(0))


def test_fpgm_scores_the_median_filter_lowest() -> None:
    model = tiny_model("sdt_v1")
    with torch.no_grad():
        weight = model.get_parameter("patch_embed.proj_conv1.weight")
        weight.zero_()
        weight[:, 0, 0, 0] = torch.arange(len(weight))
    scores = all_scores(model, "fpgm")["stem1"]
    at = torch.arange(len(scores)).double()
    torch.testing.assert_close(scores, (at.unsqueeze(0) - at.unsqueeze(1)).abs().sum(1))
    assert int(scores.argmin()) in ((len(scores) - 1) // 2, len(scores) // 2)


def test_bn_scale_is_the_mean_of_tied_gammas() -> None:
    model = tiny_model("sdt_v1")
    with torch.no_grad():
        for part, value in (("q", 1.0), ("k", -2.0), ("v", 6.0)):
            model.get_parameter(f"block.0.attn.{part}_bn.weight")[0] = value
    assert float(all_scores(model, "bn_scale")["block.0.attn.qkv"][0]) == pytest.approx(3.0)


def test_random_depends_only_on_the_seed() -> None:
    model = tiny_model("sdt_v1")
    first, again, other = (rank(model, "random", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    alike = [g.group_id for g in find_groups(model) if g.kind == "mlp"]
    assert len({first[g] for g in alike}) == len(alike)  # groups do not share scores


Calls = dict[Reader, list[tuple[Inputs, Tensor]]]


@cache
def recorded_calls(model_name: str) -> tuple[SpikingModel, dict[str, list[Reader]], Calls]:
    """Return the inputs and outputs of every reader of a model, in float64."""
    model, data = uncoupled(model_name, torch.float64), tiny_data(model_name)
    readers = find_readers(model)
    calls: Calls = {}
    for reader in (r for found in readers.values() for r in found):
        reader.module.register_forward_hook(
            lambda _m, inputs, out, r=reader: calls.setdefault(r, []).append((inputs, out))
        )
    with torch.no_grad():
        model(torch.stack([data.load(i) for i in range(len(data))]).double())
    for module in model.modules():
        module._forward_hooks.clear()
    return model, readers, calls


def without(reader: Reader, inputs: Inputs, unit: int) -> Tensor:
    """Return the reader's output without one unit of its input."""
    x = inputs[0].clone()
    x.select(2 if x.shape[1] != reader.n_units else 1, unit).zero_()
    with torch.no_grad():
        return reader.module(x, *inputs[1:])


@pytest.mark.parametrize("model_name", NAMES)
def test_reconstruction_is_the_variance_lost_at_readers(model_name: str) -> None:
    model, readers, calls = recorded_calls(model_name)
    scores = all_scores(model, "reconstruction", calib=tiny_data(model_name))
    checked = 0
    for group_id, found in readers.items():
        assert found, group_id  # every group of the registered models has a reader
        for unit in (0, len(scores[group_id]) - 1):
            expected = 0.0
            for reader in found:
                [(inputs, y)] = calls[reader]
                lost = y - without(reader, inputs, unit)
                channel = 2 if reader.outputs(y).shape[:2] != y.shape[:2] else 1
                axes = [i for i in range(y.dim()) if i != channel]
                variance = y.var(axes, correction=0)
                moving = variance > 1e-9 * y.square().mean(axes)
                expected += float((lost.var(axes, correction=0) / variance)[moving].sum())
            assert float(scores[group_id][unit]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
            checked += 1
    assert checked == 2 * len(scores)


@pytest.mark.parametrize("model_name", NAMES)
def test_rates_and_energies_match_the_readers_inputs(model_name: str) -> None:
    model, readers, calls = recorded_calls(model_name)
    rates = all_scores(model, "firing_rate", calib=tiny_data(model_name))
    energies = all_scores(model, "activation_weight", calib=tiny_data(model_name))
    for group_id, found in readers.items():
        rate: list[Tensor] = []
        energy: list[Tensor] = []
        for reader in found:
            [(inputs, _)] = calls[reader]
            values = [v.transpose(0, 1).flatten(1) for v in reader.values(inputs)]
            rate.append(torch.stack([v.abs().mean(1) for v in values]).mean(0))
            if isinstance(reader, ScoresReader):
                s, y, factor = inputs
                width = s.shape[1] // reader.module.heads
                y1 = (y.unflatten(1, (reader.module.heads, -1))[:, :, :width] * factor).flatten(
                    1, 2
                )
                shares = torch.einsum("rcp,rcn->rcpn", y1, s)
                energy.append(shares.square().sum((0, 2, 3)) / (s.shape[0] * s.shape[2]))
            elif isinstance(reader, ProductReader):
                q, k = reader.values(inputs)
                shares = torch.einsum("rcn,rcm->rcnm", q, k)
                energy.append(shares.square().sum((2, 3)).sum(0) / (q.shape[0] * q.shape[2]))
            else:
                weight = getattr(reader.module, "weight", None)
                total: Tensor | float = 1.0
                if weight is not None:  # (outputs, inputs of a convolution's group, taps)
                    parts = weight.detach().chunk(getattr(reader.module, "groups", 1))
                    total = torch.cat([p.transpose(0, 1).flatten(1).square().sum(1) for p in parts])
                energy.append(values[0].square().mean(1) * total)
        torch.testing.assert_close(rates[group_id], torch.stack(rate).mean(0))
        torch.testing.assert_close(energies[group_id], torch.stack(energy).sum(0))
        assert rates[group_id].max() > 0.01, (
            group_id
        )  # a silent network would pass all other checks


@pytest.mark.parametrize("model_name", NAMES)
def test_taylor_is_the_gradient_of_a_gate(model_name: str) -> None:
    """The gradient of a gate on each unit at all its readers' inputs, image by image."""
    model, data = uncoupled(model_name, torch.float64), tiny_data(model_name, n_images=3)
    readers = find_readers(model)
    gates = {g.group_id: torch.ones(g.n_units).double() for g in find_groups(model)}

    def gate(group_id: str, reader: Reader) -> Callable[[nn.Module, Inputs], Inputs]:
        def hook(module: nn.Module, inputs: Inputs) -> Inputs:
            x = inputs[0]
            axis = 2 if x.shape[1] != reader.n_units else 1
            shape = [1] * x.dim()
            shape[axis] = reader.n_units
            return (x * gates[group_id].view(shape), *inputs[1:])

        return hook

    for group_id, found in readers.items():
        gates[group_id].requires_grad_()
        for reader in found:
            reader.module.register_forward_pre_hook(gate(group_id, reader))
    total = {group_id: torch.zeros_like(g) for group_id, g in gates.items()}
    for i in range(len(data)):
        loss = F.cross_entropy(
            model(data.load(i).double()[None]), torch.tensor(data.labels[i:][:1])
        )
        for group_id, gradient in zip(
            gates, torch.autograd.grad(loss, list(gates.values())), strict=True
        ):
            total[group_id] += gradient.abs() / len(data)
    scores = all_scores(uncoupled(model_name, torch.float64), "taylor", calib=data)
    for group_id, expected in total.items():
        torch.testing.assert_close(scores[group_id], expected, rtol=1e-6, atol=1e-12)
        assert expected.max() > 0, group_id


def test_heads_lose_the_same_number_of_units() -> None:
    model = tiny_model("sdt_v3")
    group = next(g for g in find_groups(model) if g.group_id == "block3.0.attn.qk")
    ranking = list(range(12))  # all units of the first head rank above the second's
    assert kept_units(group, ranking, 4) == (0, 1, 2, 3, 6, 7, 8, 9)


# ---- custom models ---------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", ["own_mixed", "own_tokens"])
def test_custom_models(model_name: str) -> None:
    own_models.register()
    model = load_model(model_name)
    cards._custom_cards.clear()
    images = torch.randn(5, *model.input_shape, generator=torch.Generator().manual_seed(0))
    data = dataclasses.replace(
        tiny_data("sdt_v1", n_images=5), labels=(0, 1, 2, 3, 4), load=lambda i: images[i]
    )
    for name in CRITERIA:
        one, two = (all_scores(model, name, calib=data, run=Run(batch=b)) for b in (5, 2))
        assert list(one) == [g.group_id for g in find_groups(model)]
        for group in find_groups(model):
            own = one[group.group_id]
            assert own.shape == (group.n_units,)
            assert torch.isfinite(own).all()
            assert (own >= 0).all()
            assert own.max() > 0
            torch.testing.assert_close(two[group.group_id], own, rtol=1e-4, atol=1e-9)


def test_units_without_known_readers_are_ranked_by_their_filters() -> None:
    class Foreign(nn.Module):
        def __init__(self, product: nn.Module) -> None:
            super().__init__()
            self.inner = [product]  # hidden from named_modules

        def forward(self, *qkv: Tensor) -> Tensor:
            return self.inner[0](*qkv)

    model, data = copy.deepcopy(family("sdt_v3")[0]), tiny_data("sdt_v3")
    attention = model.get_submodule("block3.0.attn")
    attention.product = Foreign(attention.get_submodule("product"))
    for name in IMAGE_CRITERIA:
        scores = all_scores(model, name, calib=data)
        filters = all_scores(model, "l2")["block3.0.attn.qk"]
        assert torch.equal(scores["block3.0.attn.qk"], filters)
        known = scores_of(name, "sdt_v3")["block3.1.attn.qk"]
        torch.testing.assert_close(scores["block3.1.attn.qk"], known)


# ---- images, seeds, errors -------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_CRITERIA)
def test_calibration_images_are_checked(name: str) -> None:
    model, data = family("sdt_v1")
    with pytest.raises(DataError, match="split='calib'"):
        rank(model, name)
    with pytest.raises(DataError, match="must not use the test split"):
        rank(model, name, calib=dataclasses.replace(data, split="test"))
    with pytest.raises(DataError, match="labels up to 99"):
        rank(model, name, calib=dataclasses.replace(data, labels=(99,) * len(data)))

    def stop() -> None:
        raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        rank(model, name, calib=data, tick=stop)


def test_weight_criteria_need_no_images() -> None:
    assert {n for n, c in CRITERIA.items() if not c.needs_images} == set(WEIGHT_CRITERIA)
    model, data = family("sdt_v1")
    for name in WEIGHT_CRITERIA:
        assert rank(model, name) == rank(model, name, calib=data)
        if isinstance(chosen := criterion(name), WeightCriterion):
            for group in find_groups(model):
                own = chosen.scores(model, group)
                assert torch.equal(own, all_scores(model, name)[group.group_id])


def test_rankings_that_use_images_are_cached(tmp_path: Path) -> None:
    model, data = family("sdt_v1")
    store = Store(tmp_path)
    runs: list[int] = []

    def tick() -> None:
        runs.append(1)

    first = rank(model, "taylor", calib=data, store=store, tick=tick)
    assert runs
    runs.clear()
    assert rank(model, "taylor", calib=data, store=store, tick=tick) == first
    assert not runs
    assert rank(model, "firing_rate", calib=data, store=store, tick=tick) != first
    rank(model, "taylor", calib=data.take([0, 1]), store=store, tick=tick)
    assert len(runs) == 2
    store.close()


def test_seeds_choose_the_calibration_images(tmp_path: Path) -> None:
    session = Session(Subject(model="e_spikeformer_digits", limit=4), Store(tmp_path))
    own, one, two, other = (session.calib(n, s) for n, s in ((64, 0), (64, 1), (64, 2), (32, 1)))
    assert set(own.ids) <= set(load_data("digits", split="calib").ids)
    assert len({own.ids, one.ids, two.ids}) == 3
    assert set(other.ids) < set(one.ids)
    assert one.ids == session.calib(64, 1).ids
    taken = {"val", "test"}
    foreign = {i for split in taken for i in load_data("digits", split=split).ids}
    for data in (own, one, two):
        assert data.split not in taken
        assert not set(data.ids) & foreign
        counts = [data.labels.count(digit) for digit in range(10)]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(DataError, match="A seed must be"):
        session.calib(64, -1)


def test_sweep_with_an_image_criterion(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session = Session(Subject(model="e_spikeformer_digits", limit=4), store)
    specs = []

    def started(key: str) -> None:
        specs.append(load_spec(store, key))
        raise CancelledError("before the first cell")

    for seed in (0, 1):
        settings = SweepSettings(criterion="activation_weight", calib_images=20, seed=seed)
        with pytest.raises(CancelledError):
            run_sweep(session, settings, started)
        calib = session.calib(20, seed)
        ranking = rank(session.model, "activation_weight", calib=calib, run=session.run)
        assert specs[-1].summary.rankings == {"activation_weight": ranking}
    assert specs[0].key != specs[1].key
    assert specs[0].summary.rankings != specs[1].summary.rankings


def test_default_criterion_depends_on_the_data(tmp_path: Path) -> None:
    store, warnings = Store(tmp_path), list[str]()
    images = np.random.RandomState(0).randint(0, 256, (6, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(6))
    found: dict[str, str] = {}

    def started(key: str) -> None:
        found[data] = load_spec(store, key).criterion
        raise CancelledError("before the first cell")

    for data in ("digits", f"npz:{tmp_path / 'd.npz'}"):  # .npz files have no calibration images
        subject = Subject(model="e_spikeformer_digits", data=data, limit=4)
        with pytest.raises(CancelledError):
            run_sweep(Session(subject, store, warnings.append), SweepSettings(), started)
    assert list(found.values()) == ["reconstruction", "l2_group"]
    ranked = [text for text in warnings if "ranked by" in text]
    assert len(ranked) == 1
    assert "ranked by l2_group, because there are no calibration images" in ranked[0]
    with pytest.raises(DataError, match="has only the split val"):
        run_sweep(Session(subject, store), SweepSettings(criterion="taylor"), started)
    model, made = family("sdt_v1")
    one = made.take([0])
    assert sweep(model, one, ratios=[0.5]).criterion == "l2_group"
    assert sweep(model, one, ratios=[0.5], calib=made).criterion == "reconstruction"


def test_table_records_the_seed() -> None:
    model, data = family("sdt_v1")
    for name in ("random", "firing_rate"):
        table = sweep(model, data.take([0]), ratios=[0.5], criterion=name, calib=data, seed=3)
        assert (table.criterion, table.seed) == (name, 3)
        assert table.summary.rankings == {name: rank(model, name, calib=data, seed=3)}


def test_unknown_criterion_suggests_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'taylor'"):
        criterion("taylr")
