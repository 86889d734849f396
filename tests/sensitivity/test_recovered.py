"""Recovered sweeps: cells after a refit of the layers that read the pruned group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.callbacks import keep_going
from psvit_core.data import EvalSet
from psvit_core.errors import DataError, InvalidPlanError
from psvit_core.groups import find_groups
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.incremental.graph import GraphError
from psvit_core.records import (
    ChannelGroup,
    PrunePlan,
    Subject,
    SweepSettings,
)
from psvit_core.recover import cells, readers
from psvit_core.recover.cells import CellRefits, input_grams, refitted
from psvit_core.runtime import Run
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.recovered import SweepOptions, recovered
from psvit_core.sensitivity.spec import SweepSpec, load_spec, read_table, sweep_keys
from psvit_core.sensitivity.sweep import make_spec, run_spec, sweep
from psvit_core.storage.predictions import load_outcome
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.plan import check_table
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.base import SpikingModel
from tests.tiny import NAMES, QUICK_NAMES, tiny_data, tiny_model

RUN = Run(batch=4, precision="float64")
RATIO = 0.5

#: The others take seconds each.
QUICK = {*QUICK_NAMES} - {"sdt_v3_large_base", "max_former_cifar", "ms_qkformer_cifar"}


def calib_of(name: str, n_images: int = 6, seed: int = 5) -> EvalSet:
    return replace(tiny_data(name, n_images, seed), split="calib")


def some_groups(groups: tuple[ChannelGroup, ...]) -> list[ChannelGroup]:
    """One group of each kind, and all whose units are not an axis of their own."""
    kinds = {group.kind: group for group in groups}
    odd = [group for group in groups if group.maps or group.local][:2]
    return list({group.group_id: group for group in (*kinds.values(), *odd)}.values())


# ---- against an independent refit ------------------------------------------------------------


def columns_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what every output position of a layer reads: (rows and positions, weights)."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        tokens = type(layer) is not nn.Linear and x.dim() == 3  # (rows, C, N)
        return (x.transpose(1, 2) if tokens else x).flatten(0, -2)
    if isinstance(layer, nn.Conv1d):
        return x.transpose(1, 2).flatten(0, 1)
    height, width = layer.kernel_size
    padding = layer.padding
    assert isinstance(padding, tuple)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    windows = x.unfold(2, height, layer.stride[0]).unfold(3, width, layer.stride[1])
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)


def reference_refit(
    layer: Any, x: Tensor, removed: Mapping[int, list[int]]
) -> tuple[Tensor, Tensor | None]:
    """Refit a layer by least squares on the inputs themselves, with the penalty as more rows.

    Args:
        layer: The layer.
        x: Its input.
        removed: Input channels that are removed, by convolution group.
    """
    groups = getattr(layer, "groups", 1)
    kernel = layer.weight[0, 0].numel()
    all_columns = columns_of(layer, x).unflatten(1, (groups, -1))
    kept = [
        [c for c in range(layer.weight.shape[1]) if c not in removed.get(i, [])]
        for i in range(groups)
    ]
    places = [[c * kernel + k for c in channels for k in range(kernel)] for channels in kept]
    inputs = [all_columns[:, i, places[i]] for i in range(groups)]
    ridge = 3e-2 * np.mean([float((own**2).sum(0).mean()) for own in inputs])
    weights, biases = [], []
    for i, own in enumerate(inputs):
        weight = layer.weight[i * len(layer.weight) // groups :][: len(layer.weight) // groups]
        weight = weight.flatten(1)
        target = all_columns[:, i] @ weight.T - own @ weight[:, places[i]].T
        penalty = np.sqrt(ridge) * torch.eye(own.shape[1], dtype=torch.float64)
        if layer.bias is not None:
            own = torch.cat([own, torch.ones(len(own), 1, dtype=torch.float64)], 1)
            penalty = F.pad(penalty, (0, 1, 0, 1))
            penalty[-1, -1] = np.sqrt(1e-6 * ridge)
        rows = torch.cat([own, penalty])
        wanted = F.pad(target, (0, 0, 0, len(penalty)))
        change = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T
        n_in = len(places[i])
        weights.append(weight[:, places[i]] + change[:, :n_in])
        if layer.bias is not None:
            biases.append(change[:, n_in])
    shape = (len(layer.weight), -1, *layer.weight.shape[2:])
    bias = layer.bias + torch.cat(biases) if biases else None
    return torch.cat(weights).reshape(shape), bias


def inputs_of(model: SpikingModel, data: EvalSet) -> dict[str, Tensor]:
    """Return the inputs over some images of all layers that run once a forward."""
    batches: list[dict[str, list[Tensor]]] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: batches[-1].setdefault(name, []).append(inputs[0])
        )
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear))
    ]
    for x in data.batches(RUN.batch, torch.float64):
        batches.append({})
        model(x)
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat([batch[name][0] for batch in batches])
        for name, calls in batches[0].items()
        if len(calls) == 1
    }


def reference_logits(
    model: SpikingModel,
    group: ChannelGroup,
    plan: PrunePlan,
    inputs: Mapping[str, Tensor],
    x: Tensor,
) -> Tensor:
    """Return the pruned model's logits after a refit of every layer that reads the group."""
    small = apply_plan(model, plan)
    removed = sorted(set(range(group.n_units)) - set(plan.kept[group.group_id]))
    for tensor, axis in group.readers:
        name = tensor.removesuffix(".weight")
        if name == tensor or axis != 1 or name not in inputs:
            continue
        layer: Any = model.get_submodule(name)
        key = f"{tensor}:{axis}"
        size = layer.weight.shape[1]
        lost: dict[int, list[int]] = {}
        for unit in removed:
            place = group.maps[key][unit] if key in group.maps else unit
            lost.setdefault(place // size, []).append(place % size)
        with torch.no_grad():
            weight, bias = reference_refit(layer, inputs[name], lost)
            ours: Any = small.get_submodule(name)
            rows = list(range(len(weight)))
            if (tensor, 0) in group.writers:  # it also writes to the group
                positions = group.maps.get(f"{tensor}:0", rows)
                rows = [r for r in rows if r not in {positions[u] for u in removed}]
            ours.weight.copy_(weight[rows])
            if bias is not None:
                ours.bias.copy_(bias[rows])
    with torch.no_grad():
        return small(x)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
@torch.no_grad()
def test_cells_equal_the_refitted_pruned_network(name: str) -> None:
    model = tiny_model(name, torch.float64).eval()
    data, calib = tiny_data(name, 4), calib_of(name)
    spec = make_spec(model, data, ratios=(RATIO,), ranking=None, run=RUN)
    groups = find_groups(model)
    refits = CellRefits(model, groups, calib, RUN)
    executor, _ = prepare(spec, model, data.take([data.ids.index(i) for i in spec.ids]), RUN)
    inputs = inputs_of(model, calib)
    (x,) = data.batches(4, torch.float64)
    plain = model(x)
    changed = 0.0
    for group in some_groups(groups):
        plan = spec.cell(group, RATIO).plan
        if not plan.kept:
            continue
        layers = refits.of({"it": plan.kept})["it"]
        found: list[CellOutput] = []
        for edits in (refits.tensors(layers), {}):
            task = Task(plan.kept[group.group_id], np.arange(4), found.append, edits)
            executor.run_cells(x, {group.group_id: partial(list, [task])}, keep_going)
        wanted = reference_logits(model, group, plan, inputs, x)
        logits, without = (plain.numpy().copy() for _ in range(2))
        logits[found[0].images] = found[0].logits
        without[found[1].images] = found[1].logits
        assert abs(logits - wanted.numpy()).max() < 1e-9, group.group_id
        changed = max(changed, abs(logits - without).max())
    assert changed > 1e-3


# ---- the sweep -------------------------------------------------------------------------------


def test_a_recovered_table_says_so_and_loses_less(tmp_path: Path) -> None:
    model, data, calib = tiny_model("sdt_v1"), tiny_data("sdt_v1", 24), calib_of("sdt_v1", 24)
    store = Store(tmp_path)
    plain = sweep(model, data, ratios=(0.25, RATIO), run=Run(batch=8), store=store)
    table = sweep(
        model, data, ratios=(0.25, RATIO), run=Run(batch=8), store=store, recovery_images=calib
    )
    assert (plain.conditions.recovery, table.conditions.recovery) == ("none", "lsq")
    assert replace(table.conditions, recovery="none") == plain.conditions
    assert table.baseline_accuracy == plain.baseline_accuracy
    assert sum(r.kl for r in table.rows) < 0.8 * sum(r.kl for r in plain.rows)
    assert [r.size for r in table.rows] == [r.size for r in plain.rows]
    assert type(table).from_dict(table.to_dict()) == table
    keys = sweep_keys(store)
    specs = [load_spec(store, key) for key in keys]
    assert [spec.conditions.recovery for spec in specs] == ["lsq", "none"]
    assert [spec.key for spec in specs] == keys
    assert read_table(store, specs[1]) == plain
    assert read_table(store, specs[0]) == table


def test_a_finished_recovered_sweep_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, calib = tiny_model("sdt_v1"), tiny_data("sdt_v1", 8), calib_of("sdt_v1")
    arguments: dict[str, Any] = {
        "ratios": (RATIO,),
        "run": Run(batch=4),
        "store": Store(tmp_path),
        "recovery_images": calib,
    }
    first = sweep(model, data.limit(4), **arguments)
    assert {row.n_images for row in first.rows} == {4}
    more = sweep(model, data, **arguments)  # four more images
    assert {row.n_images for row in more.rows} == {8}

    def refuse(*_: object) -> None:
        raise AssertionError("a finished sweep collects no Gram matrices")

    monkeypatch.setattr(cells, "input_grams", refuse)
    assert sweep(model, data, **arguments) == more
    progressive = sweep(model, data, mode="progressive", **arguments)
    assert progressive.rows == more.rows


def test_progressive_sweeps_are_recovered_too() -> None:
    model, data, calib = tiny_model("sdt_v1"), tiny_data("sdt_v1", 70), calib_of("sdt_v1", 8)
    exact = sweep(model, data, ratios=(RATIO,), recovery_images=calib)
    table = sweep(model, data, ratios=(RATIO,), recovery_images=calib, mode="progressive")
    assert table.conditions.recovery == "lsq"
    assert all(row.settled for row in table.rows)
    whole = {r.group_id: r for r in exact.rows}
    assert all(row == whole[row.group_id] for row in table.rows if row.n_images == 70)


def test_what_runs_in_full_is_recovered_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, calib = tiny_model("sdt_v1"), tiny_data("sdt_v1", 5), calib_of("sdt_v1")

    def rows() -> list[float]:
        table = sweep(model, data, ratios=(RATIO,), run=RUN, recovery_images=calib)
        return [row.kl for row in table.rows]

    found = rows()

    def refuse(*_: object) -> None:
        raise GraphError("not recorded")

    monkeypatch.setattr("psvit_core.sensitivity.prepare.record_network", refuse)
    assert rows() == pytest.approx(found, abs=1e-9)


def test_other_images_have_other_results(tmp_path: Path) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4)
    plain = make_spec(model, data, ratios=(RATIO,))
    one, other = (recovered(plain, calib_of("sdt_v1", seed=seed)) for seed in (1, 2))
    assert len({spec.key for spec in (plain, one, other)}) == 3
    for cells_of in zip(plain.cells(), one.cells(), other.cells(), strict=True):
        assert len({cell.key for cell in cells_of}) == 3
    assert plain.baseline_key == one.baseline_key == other.baseline_key
    assert SweepSpec.from_dict(one.to_dict()) == one
    with pytest.raises(DataError, match="val split"):
        recovered(plain, data)
    for options in (None, SweepOptions(recovery_images=calib_of("sdt_v1", seed=2))):
        with pytest.raises(DataError, match="recovered cells"):
            run_spec(one, model, data, run=Run(), store=Store(tmp_path), options=options)


def test_keys_of_plain_results_are_those_of_earlier_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shipped sweep has the key that it had before cells could be recovered."""
    from psvit_core.storage.shipped import SWITCH_ENV, shipped_bundles

    monkeypatch.delenv(SWITCH_ENV, raising=False)
    shipped_bundles.cache_clear()
    plain = 0
    for bundle in shipped_bundles():
        for key, entry in bundle.entries.items():
            if "spec" not in entry or "recovered_by" in entry["spec"]:
                continue
            spec = SweepSpec.from_dict(entry["spec"])
            assert spec.key == key
            if spec.summary.model == "sdt_v1_digits":
                assert key == "sweep/8fe2a3397dfb9b2a5f87527e4278097c"
            assert spec.to_dict() == entry["spec"]
            assert {spec.baseline_key, *(cell.key for cell in spec.cells())} <= set(bundle.keys)
            plain += 1
    shipped_bundles.cache_clear()
    assert plain == 2


def test_nothing_changes_where_silent_units_are_removed() -> None:
    model = tiny_model("sdt_v1", torch.float64).eval()
    group = next(g for g in find_groups(model) if g.kind == "mlp")
    with torch.no_grad():
        for name, _ in group.writers:
            if "bn" in name and name.endswith(("weight", "bias")):
                model.state_dict()[name][:4] = 0.0
    refits = CellRefits(model, (group,), calib_of("sdt_v1"), RUN)
    cells_of = {
        "silent": {group.group_id: tuple(range(4, group.n_units))},
        "firing": {group.group_id: tuple(range(group.n_units - 4))},
    }
    found = refits.of(cells_of)
    assert not found["silent"]
    assert found["firing"]


def test_little_memory_takes_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("sdt_v1", torch.float64).eval()
    groups = find_groups(model)
    kept = {g.group_id: {g.group_id: tuple(range(g.n_units // 2))} for g in groups if not g.heads}
    passes: list[int] = []
    real = input_grams

    def counted(model: Any, names: Any, *rest: Any) -> Any:
        passes.append(len(names))
        return real(model, names, *rest)

    monkeypatch.setattr(cells, "input_grams", counted)
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 1 << 12)  # also a few rows at a time
    found = [
        CellRefits(model, groups, calib_of("sdt_v1"), RUN, memory).of(kept)
        for memory in (1 << 30, 1 << 16)
    ]
    assert len(passes) > 3
    for key, layers in found[0].items():
        assert layers.keys() == found[1][key].keys()
        for name, layer in layers.items():
            torch.testing.assert_close(layer.values, found[1][key][name].values)


def test_a_linear_layer_of_tokens_is_refitted_on_its_last_axis() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    x = torch.randn(50, 5, 4, dtype=torch.float64)
    x[..., 3] = 2 * x[..., 0] - x[..., 1] + 1  # known from the others and the bias
    gram = torch.zeros(1, 5, 5, dtype=torch.float64)
    cells._add_inputs(gram, layer, x)
    new = refitted(layer, gram, torch.tensor([[False, False, False, True]]))
    assert new is not None
    weight = new.written_to(layer.weight.detach(), 1)
    smaller = F.linear(x[..., :3], weight[:, :3], new.bias)
    error = (smaller - layer(x)).square().mean()
    unfitted = F.linear(x[..., :3], layer.weight[:, :3], layer.bias)
    assert error < 0.05 * (unfitted - layer(x)).square().mean()
    assert torch.equal(weight[:, 3], layer.weight[:, 3])


# ---- sessions --------------------------------------------------------------------------------


def test_sessions_sweep_as_they_recover_and_refuse_other_tables(tmp_path: Path) -> None:
    store = Store(tmp_path)
    settings = SweepSettings(ratios=(0.9,), criterion="l2")
    sessions = {
        method: Session(Subject(recovery=method, limit=4), store) for method in ("none", "auto")
    }
    table = run_sweep(sessions["auto"], settings)
    assert table.conditions.recovery == "lsq"
    plain = replace(table, conditions=replace(table.conditions, recovery="none"))
    for method, good, bad in (("none", plain, table), ("auto", table, plain)):
        check_table(good, sessions[method])
        with pytest.raises(InvalidPlanError, match=f"Sweep again with recovery {method}"):
            check_table(bad, sessions[method])
    spec = load_spec(store, sweep_keys(store)[0])
    outcome = load_outcome(store, next(iter(spec.cells())).key)
    assert outcome is not None
    assert len(outcome) == 4
