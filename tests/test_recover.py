"""Recovery without training: exact statistics, least squares that never lose, inputs untouched."""

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
from psvit_core.data import EvalSet
from psvit_core.errors import CancelledError, DataError, InvalidPlanError, UnknownNameError
from psvit_core.groups import COMPUTE_LAYERS, axis_groups, find_groups, plan_from_kept
from psvit_core.records import LayerRefit, PrunePlan, RecoveryReport, n_pruned
from psvit_core.recover import _split, recover
from psvit_core.recover.lockstep import DEFAULT_MEMORY, Halt, lockstep
from psvit_core.recover.norms import reestimate_norms
from psvit_core.recover.readers import _columns, _Fit, pruned_readers, refit_readers
from psvit_core.runtime import Run
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import BNAndPad
from tests.tiny import NAMES, tiny_data, tiny_model

RUN = Run(batch=3, precision="float64")
MEMORY = DEFAULT_MEMORY


def go_on() -> None:
    pass


def calib(name: str, n_images: int = 8) -> EvalSet:
    return dataclasses.replace(tiny_data(name, n_images), split="calib")


def third_gone(model: SpikingModel, ratio: float = 0.34) -> PrunePlan:
    """A plan that removes the first third of every group's units (of every head)."""
    kept = {}
    for g in find_groups(model):
        heads = g.heads or 1
        width, gone = g.n_units // heads, n_pruned(ratio, g.n_units, g.heads) // heads
        kept[g.group_id] = [i for i in range(g.n_units) if i % width >= gone]
    return plan_from_kept(model, kept)


def pair(name: str) -> tuple[SpikingModel, PrunePlan, SpikingModel]:
    original = tiny_model(name, torch.float64)
    plan = third_gone(original)
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
    reestimate_norms(small, data, RUN, memory=MEMORY, tick=go_on)
    norms = [n for n, m in small.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    padded = [n for n, m in small.named_modules() if isinstance(m, BNAndPad)]  # call no BatchNorm

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
def test_refit_layers_come_nearer_to_the_original(name: str) -> None:
    """The reported errors, taken anew by plain forwards of the finished model."""
    original, plan, small = pair(name)
    before = apply_plan(original, plan)
    data = calib(name)
    done = refit_readers(small, original, plan, data, RUN, memory=MEMORY, tick=go_on)
    names = [layer.layer for layer in done.layers]
    assert set(names) == set(pruned_readers(original, plan))
    owners = axis_groups(find_groups(original))
    wished: dict[str, list[Tensor]] = {}
    found: dict[str, list[Tensor]] = {}
    old: dict[str, list[Tensor]] = {}

    def see_original(layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        kept = plan.kept.get(owners.get((f"{layer}.weight", 0), ""))
        wished.setdefault(layer, []).append(y if kept is None else y[:, list(kept)])

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


LAYERS = {
    "strided 3x3": nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
    "1x1 with bias": nn.Conv2d(3, 4, 1),
    "strided 1x1": nn.Conv2d(3, 4, 1, stride=2, bias=False),
    "tokens": nn.Conv1d(3, 4, 1),
    "linear": nn.Linear(3, 4),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("n_rows", [1, 2, 50])
def test_least_squares_are_never_worse(kind: str, n_rows: int) -> None:
    """Also where there are fewer equations than weights, and where nothing can be gained."""
    layer = copy.deepcopy(LAYERS[kind])
    assert isinstance(layer, COMPUTE_LAYERS)
    before = layer.weight.detach().clone()
    random = torch.Generator().manual_seed(n_rows)
    places: tuple[int, ...] = {"linear": (), "tokens": (5,)}.get(kind, (6, 6))
    x = (torch.rand(n_rows, 3, *places, generator=random) > 0.6).float()
    with torch.no_grad():
        output = layer(x)
        right, noise = _Fit(layer), torch.randn(output.shape, generator=random)
        right.add(Halt("", layer, x, output), output)
        assert right.solve("") == LayerRefit(layer="", before=0.0, after=0.0, kept=False)
        assert torch.equal(layer.weight, before)
        target = output + noise
        fit = _Fit(layer)
        for part in torch.arange(n_rows).split(7):
            fit.add(Halt("", layer, x[part], output[part]), target[part])
        result = fit.solve("")
        error = float((layer(x) - target).double().square().sum())
    assert result.kept
    assert result.after < result.before
    energy = float(target.double().square().sum())
    assert error / energy == pytest.approx(result.after, rel=1e-4, abs=1e-6)
    assert result.before == pytest.approx(float(noise.double().square().sum()) / energy, rel=1e-4)
    if n_rows == 50:  # no other weights come nearer than by what the ridge costs
        columns = _columns(layer, x).double().transpose(0, 1).flatten(1)
        if layer.bias is not None:
            columns = torch.cat([columns, torch.ones_like(columns[:1])])
        wanted = target.double().transpose(0, 1).flatten(1)
        best = torch.linalg.lstsq(columns.T, wanted.T).solution.T @ columns
        optimum = float((best - wanted).square().sum()) / energy
        assert optimum - 1e-6 <= result.after <= optimum + 0.01 * result.before


@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_imagenet"])
def test_recover_leaves_its_inputs_alone_and_is_deterministic(name: str) -> None:
    original = tiny_model(name)
    plan = third_gone(original)
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


def test_auto_takes_the_lowest_kl_or_nothing() -> None:
    name = "sdt_v3"
    original, plan, small = pair(name)
    data = calib(name, 12)
    model, report = recover(small, original, plan, data, method="auto", run=RUN)
    assert set(report.kl) == {"none", "bn", "lsq", "both"}
    assert report.kl_after == min(report.kl.values())
    assert model.provenance["recoveries"] == [report.to_dict()]
    fixed, _ = recover(small, original, plan, data, method=report.used, run=RUN)
    assert all(torch.equal(v, fixed.state_dict()[k]) for k, v in model.state_dict().items())

    whole = plan_from_kept(original, {})  # nothing is lost: any change hurts
    same, intact = recover(apply_plan(original, whole), original, whole, data, run=RUN)
    assert intact.used == "none"
    assert intact.kl["none"] == 0.0
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in original.state_dict().items())


def test_little_memory_takes_fewer_images_early() -> None:
    name = "sdt_v2"
    original, plan, small = pair(name)
    names = pruned_readers(original, plan)
    counts = []
    for memory in (MEMORY, 2_000_000, 1):
        steps = lockstep(
            (small, original), names, calib(name), Run(batch=1, precision="float64"),
            memory=memory, tick=go_on,
        )  # fmt: skip
        counts.append([len(met) for met in steps])
    assert set(counts[0]) == {8}
    assert set(counts[2]) == {1}
    assert 1 <= min(counts[1]) < max(counts[1]) <= 8
    model, _ = recover(small, original, plan, calib(name), method="both", run=RUN, memory=1)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_model_pruned_before(tmp_path: Path) -> None:
    name = "sdt_v1"
    original, plan, small = pair(name)
    data = calib(name)
    once, first = recover(small, original, plan, data, method="lsq", run=RUN)
    again = third_gone(once)
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
    with pytest.raises(UnknownNameError, match="No recovery 'all'"):
        recover(small, original, plan, data, method="all")
    for split in ("val", "test"):
        with pytest.raises(DataError, match=f"not to the {split} split"):
            recover(small, original, plan, dataclasses.replace(data, split=split))
    with pytest.raises(InvalidPlanError, match="does not have the widths"):
        recover(original, original, plan, data)
    with pytest.raises(InvalidPlanError, match="Make a plan for this model"):
        recover(small, tiny_model("sdt_v3", torch.float64), plan, data)


def test_few_images_do_both() -> None:
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

    before = threading.active_count()
    with pytest.raises(CancelledError):
        refit_readers(small, original, plan, calib(name), RUN, memory=MEMORY, tick=stop)
    wrong = dataclasses.replace(calib(name), load=lambda i: torch.zeros(5, 8, 8))
    with pytest.raises(RuntimeError, match="channels"):
        refit_readers(small, original, plan, wrong, RUN, memory=MEMORY, tick=go_on)
    assert threading.active_count() == before
    assert not any(m._forward_hooks for model in (small, original) for m in model.modules())
