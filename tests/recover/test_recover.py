"""Recovery without training: exact statistics, least squares never worse, inputs unchanged."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from psvit_core import load_model, save_pruned
from psvit_core.callbacks import keep_going
from psvit_core.data import EvalSet
from psvit_core.errors import CancelledError, DataError, InvalidPlanError, UnknownNameError
from psvit_core.groups import COMPUTE_LAYERS, find_groups, plan_from_kept
from psvit_core.records import RECOVERIES, LayerRefit, PrunePlan, RecoveryReport, n_pruned
from psvit_core.recover import _split, recover
from psvit_core.recover.lockstep import DEFAULT_MEMORY, Halt, lockstep
from psvit_core.recover.norms import reestimate_norms
from psvit_core.recover.readers import Fit, _columns, pruned_readers, refit_readers
from psvit_core.recover.stages import refit_stages
from psvit_core.recover.streams import trace_outputs
from psvit_core.recover.teacher import Teacher, can_refit
from psvit_core.runtime import Run
from psvit_core.selection import remaining_positions
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import BNAndPad
from tests.tiny import NAMES, tiny_data, tiny_model

RUN = Run(batch=3, precision="float64")
MEMORY = DEFAULT_MEMORY


def calib(name: str, n_images: int = 8) -> EvalSet:
    return dataclasses.replace(tiny_data(name, n_images), split="calib")


def taught(original: SpikingModel, data: EvalSet, run: Run = RUN) -> Teacher:
    return Teacher(original, data, data, run)


def plan_without_a_third(model: SpikingModel, ratio: float = 0.34) -> PrunePlan:
    """Return a plan that removes the first third of each group's units (of each head)."""
    kept = {}
    for g in find_groups(model):
        heads = g.heads or 1
        width, removed = g.n_units // heads, n_pruned(ratio, g.n_units, g.heads) // heads
        kept[g.group_id] = [i for i in range(g.n_units) if i % width >= removed]
    return plan_from_kept(model, kept)


def pair(name: str) -> tuple[SpikingModel, PrunePlan, SpikingModel]:
    original = tiny_model(name, torch.float64)
    plan = plan_without_a_third(original)
    return original, plan, apply_plan(original, plan)


@contextmanager
def watched(
    model: SpikingModel, names: list[str], see: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda layer, inputs, out, name=name: see(name, layer, inputs[0], out)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_over(model: SpikingModel, data: EvalSet, run: Run = RUN) -> None:
    with torch.no_grad():
        for x in data.batches(run.batch, run.dtype):
            model(x)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_the_evaluated_network(name: str) -> None:
    _, _, small = pair(name)
    data, seen = calib(name), dict[str, list[Tensor]]()
    reestimate_norms(small, data, RUN, memory=MEMORY, tick=keep_going)
    norms = [n for n, m in small.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    padded = [
        n for n, m in small.named_modules() if isinstance(m, BNAndPad)
    ]  # these apply their BatchNorm themselves

    def see(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        seen.setdefault(f"{name}.bn" if name in padded else name, []).append(x)

    with watched(small, [*norms, *padded], see):
        run_over(small, data)
    assert set(seen) == set(norms)
    for norm, parts in seen.items():
        x = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)
        layer = small.get_submodule(norm)
        torch.testing.assert_close(layer.running_mean, x.mean(1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(layer.running_var, x.var(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_refit_layers_get_closer_to_the_original(name: str) -> None:
    """Compare the reported errors with plain forwards of the finished model."""
    original, plan, small = pair(name)
    before = apply_plan(original, plan)
    data = calib(name)
    groups = find_groups(original)
    done = refit_readers(small, taught(original, data), plan, memory=MEMORY, tick=keep_going)
    names = [layer.layer for layer in done.layers]
    assert set(names) == {n for n in pruned_readers(groups, plan) if can_refit(original, n)}
    wished: dict[str, list[Tensor]] = {}
    found: dict[str, list[Tensor]] = {}
    old: dict[str, list[Tensor]] = {}

    def see_original(layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        key = f"{layer}.weight:0"
        lost = {
            group.maps.get(key, range(group.n_units))[unit]
            for group in groups
            if (f"{layer}.weight", 0) in group.writers
            for unit in set(range(group.n_units)) - set(plan.kept[group.group_id])
        }
        wished.setdefault(layer, []).append(y[:, [i for i in range(y.shape[1]) if i not in lost]])

    def see_small(layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        found.setdefault(layer, []).append(y)
        old.setdefault(layer, []).append(before.get_submodule(layer).forward(x))

    with watched(original, names, see_original):
        run_over(original, data)
    with watched(small, names, see_small):
        run_over(small, data)
    for refit in done.layers:
        target, now, then = (torch.cat(d[refit.layer]) for d in (wished, found, old))
        energy = float(target.square().sum()) or 1.0
        assert refit.after <= refit.before
        assert float((target - then).square().sum()) / energy == pytest.approx(refit.before)
        assert float((target - now).square().sum()) / energy == pytest.approx(
            refit.after, rel=1e-6, abs=1e-9
        )
    assert sum(refit.kept for refit in done.layers) > len(names) / 2
    assert done.statistics_bytes > 0


SHORTCUTS = {  # number of branches that are added to a stream as real values
    "sdt_v1": 5,
    "sdt_v3": 32,
    "spikingformer_cifar": 4,
    "ms_qkformer_cifar": 8,
    "spikingresformer_cifar": 9,
    "spikformer_cifar": 0,  # adds spikes
    "qkformer_cifar": 0,
}


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize("norms", [False, True])
def test_stages_correct_the_streams(name: str, norms: bool) -> None:
    """Compare the reported errors with plain forwards of the finished model."""
    original, plan, small = pair(name)
    data, groups = calib(name), find_groups(original)
    teacher = taught(original, data)
    done = refit_stages(small, teacher, plan, norms=norms, memory=MEMORY, tick=keep_going)
    additions = trace_outputs(original, original.input_shape).additions
    assert len(additions) == SHORTCUTS[name]
    seen: dict[str, list[Tensor]] = {}

    def see(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        seen.setdefault(f"{name} in", []).append(x)
        seen.setdefault(f"{name} out", []).append(y)

    def streams(model: SpikingModel) -> dict[str, Tensor]:
        seen.clear()
        names = [n for a in additions.values() for n in (a.layer, a.before)]
        with watched(model, list(dict.fromkeys(names)), see):
            run_over(model, data)
        found = {}
        for a in additions.values():
            found[f"{a.layer} out"] = torch.cat([y.flatten(2) for y in seen[f"{a.layer} out"]])
            both = zip(seen[f"{a.before} in"], seen[f"{a.layer} out"], strict=True)
            found[f"{a.layer} before"] = torch.cat([x.reshape(*y.shape[:2], -1) for x, y in both])
        return found

    if additions:
        wished, found = streams(original), streams(small)
    for refit in done.layers:
        assert refit.after <= refit.before
        if refit.layer not in additions or norms:
            continue
        rows = remaining_positions(f"{refit.layer}.weight", 0, groups, plan)
        z, stream = wished[f"{refit.layer} out"], wished[f"{refit.layer} before"]
        if rows is not None:
            z, stream = z[:, rows], stream[:, rows]
        norm = small.get_submodule(additions[refit.layer].norm)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).sqrt() / norm.weight
        scale = scale.detach()
        limit = 10 * scale.abs().median()
        error = stream - found[f"{refit.layer} before"]
        target = z + error * scale.clamp(-limit, limit)[:, None]
        missed = (target - found[f"{refit.layer} out"]).square().sum() / target.square().sum()
        assert float(missed) == pytest.approx(refit.after, rel=1e-6, abs=1e-9)
    assert sum(refit.kept for refit in done.layers) > len(done.layers) / 2


def test_stages_with_little_memory() -> None:
    original, plan, small = pair("sdt_v1")
    run = Run(batch=1, precision="float64")
    for memory in (2_000_000, 1):
        model = copy.deepcopy(small)
        teacher = taught(original, calib("sdt_v1"), run)
        refit_stages(model, teacher, plan, norms=True, memory=memory, tick=keep_going)
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


LAYERS = {
    "strided 3x3": nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
    "1x1 with bias": nn.Conv2d(3, 4, 1),
    "strided 1x1": nn.Conv2d(3, 4, 1, stride=2, bias=False),
    "tokens": nn.Conv1d(3, 4, 1),
    "linear": nn.Linear(3, 4),
    "grouped": nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("n_rows", [1, 2, 50])
def test_least_squares_are_never_worse(kind: str, n_rows: int) -> None:
    """Include fewer equations than weights, and a target that is already met."""
    layer = copy.deepcopy(LAYERS[kind])
    assert isinstance(layer, COMPUTE_LAYERS)
    before = layer.weight.detach().clone()
    random = torch.Generator().manual_seed(n_rows)
    places: tuple[int, ...] = {"linear": (), "tokens": (5,)}.get(kind, (6, 6))
    n_groups = getattr(layer, "groups", 1)
    n_channels = layer.weight.shape[1] * n_groups
    x = (torch.rand(n_rows, n_channels, *places, generator=random) > 0.6).float()
    with torch.no_grad():
        output = layer(x)
        right, noise = Fit(layer), torch.randn(output.shape, generator=random)
        right.add(Halt("", layer, x, output), output)
        assert right.solve("") == LayerRefit(layer="", before=0.0, after=0.0, kept=False)
        assert torch.equal(layer.weight, before)
        target = output + noise
        fit = Fit(layer)
        for part in torch.arange(n_rows).split(7):
            fit.add(Halt("", layer, x[part], output[part]), target[part])
        result = fit.solve("")
        error = float((layer(x) - target).double().square().sum())
    assert result.kept
    assert result.after < result.before
    energy = float(target.double().square().sum())
    assert error / energy == pytest.approx(result.after, rel=1e-4, abs=1e-6)
    assert result.before == pytest.approx(float(noise.double().square().sum()) / energy, rel=1e-4)
    if n_rows == 50:  # the ridge costs little compared with the optimum
        optimum = 0.0
        inputs = _columns(layer, x).double().chunk(n_groups)
        outputs = target.double().transpose(0, 1).flatten(1).chunk(n_groups)
        for columns, wanted in zip(inputs, outputs, strict=True):
            if layer.bias is not None:
                columns = torch.cat([columns, torch.ones_like(columns[:1])])
            best = torch.linalg.lstsq(columns.T, wanted.T).solution.T @ columns
            optimum += float((best - wanted).square().sum()) / energy
        assert optimum - 1e-6 <= result.after <= optimum + 0.01 * result.before


@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_imagenet"])
def test_recover_is_deterministic_and_keeps_its_inputs(name: str) -> None:
    original = tiny_model(name)
    plan = plan_without_a_third(original)
    small = apply_plan(original, plan)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (original, small)]
    run, data = Run(batch=3), calib(name)
    first, report = recover(small, original, plan, data, method="both", run=run)
    second, again = recover(small, original, plan, data, method="both", run=run)
    for state, model in zip(before, (original, small), strict=True):
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not small.provenance.get("recoveries")
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert any(not torch.equal(v, small.state_dict()[k]) for k, v in first.state_dict().items())
    assert next(first.parameters()).dtype == torch.float32
    assert dataclasses.replace(report, seconds={}) == dataclasses.replace(again, seconds={})
    assert RecoveryReport.from_dict(report.to_dict()) == report
    assert (report.n_fit, report.n_held_out) == (6, 2)
    assert set(report.kl) == {"none", "lsq", "both"} and report.used == "both"


def test_auto_selects_the_lowest_kl_or_none() -> None:
    name = "sdt_v3"
    original, plan, small = pair(name)
    data = calib(name, 12)
    model, report = recover(small, original, plan, data, method="auto", run=RUN)
    assert set(report.kl) == set(RECOVERIES) - {"auto", "bn"}
    assert report.kl_after == min(report.kl.values())
    assert model.provenance["recoveries"] == [report.to_dict()]
    fixed, _ = recover(small, original, plan, data, method=report.used, run=RUN)
    assert all(torch.equal(v, fixed.state_dict()[k]) for k, v in model.state_dict().items())

    whole = plan_from_kept(original, {})  # nothing is pruned: any change hurts
    same, intact = recover(apply_plan(original, whole), original, whole, data, run=RUN)
    assert intact.used == "none"
    assert intact.kl["none"] == 0.0
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in original.state_dict().items())


def test_less_memory_runs_fewer_batches_at_once() -> None:
    name = "sdt_v2"
    original, plan, small = pair(name)
    names = taught(original, calib(name)).layers
    counts = []
    for memory in (MEMORY, 2_000_000, 1):
        steps = lockstep(
            (small, original),
            names,
            calib(name),
            Run(batch=1, precision="float64"),
            memory=memory,
            tick=keep_going,
        )
        counts.append([len(met) for met in steps])
    assert set(counts[0]) == {8}
    assert set(counts[2]) == {1}
    assert 1 <= min(counts[1]) < max(counts[1]) <= 8
    model, _ = recover(small, original, plan, calib(name), method="both", run=RUN, memory=1)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_another_job_may_run_the_model_between_two_steps() -> None:
    original, _, small = pair("sdt_v1")
    data = calib("sdt_v1")
    expected = original(next(iter(data.batches(8, torch.float64))))
    steps = lockstep(
        (small, original), taught(original, data).layers, data, RUN, memory=MEMORY, tick=keep_going
    )
    next(steps)
    with torch.no_grad():
        found = original(next(iter(data.batches(8, torch.float64))))
    steps.close()
    assert torch.equal(found, expected)


def test_recovers_a_model_that_was_pruned_before(tmp_path: Path) -> None:
    name = "sdt_v1"
    original, plan, small = pair(name)
    data = calib(name)
    once, first = recover(small, original, plan, data, method="lsq", run=RUN)
    again = plan_without_a_third(once)
    twice = apply_plan(once, again)
    assert twice.provenance["recoveries"] == [first.to_dict()]
    model, second = recover(twice, once, again, data, method="bn", run=RUN)
    assert model.provenance["recoveries"] == [first.to_dict(), second.to_dict()]
    path = save_pruned(model.float(), tmp_path / "twice.safetensors")
    loaded = load_model(path)
    assert loaded.provenance["recoveries"] == [first.to_dict(), second.to_dict()]
    assert loaded.provenance["recoveries"][1]["conditions"]["n_images"] == 8


def test_misuse_is_refused() -> None:
    original, plan, small = pair("sdt_v1")
    data = calib("sdt_v1")
    with pytest.raises(UnknownNameError, match="Unknown recovery 'all'"):
        recover(small, original, plan, data, method="all")
    for split in ("val", "test"):
        with pytest.raises(DataError, match=f"cannot use the {split} split"):
            recover(small, original, plan, dataclasses.replace(data, split=split))
    with pytest.raises(InvalidPlanError, match="does not have the widths"):
        recover(original, original, plan, data)
    with pytest.raises(InvalidPlanError, match="Create a plan for this model"):
        recover(small, tiny_model("sdt_v3", torch.float64), plan, data)


def test_few_images_fit_and_judge() -> None:
    data = calib("sdt_v1", 3)
    fit, held_out = _split(data)
    assert fit is data and held_out is data
    fit, held_out = _split(calib("sdt_v1", 8))
    assert len(fit) == 6
    assert not set(fit.ids) & set(held_out.ids)


def test_stopping_leaves_no_thread_and_no_hook() -> None:
    name = "sdt_v1"
    original, plan, small = pair(name)
    ticks = 0

    def stop() -> None:
        nonlocal ticks
        ticks += 1
        if ticks > 20:
            raise CancelledError("stop")

    before, teacher = threading.active_count(), taught(original, calib(name))
    with pytest.raises(CancelledError):
        refit_readers(small, teacher, plan, memory=MEMORY, tick=stop)
    wrong = dataclasses.replace(calib(name), load=lambda i: torch.zeros(5, 8, 8))
    with pytest.raises(RuntimeError, match="channels"):
        refit_readers(small, taught(original, wrong), plan, memory=MEMORY, tick=keep_going)
    assert threading.active_count() == before
    assert not any(m._forward_hooks for model in (small, original) for m in model.modules())
