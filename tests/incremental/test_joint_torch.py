"""Whole plans in torch without building a network: the numbers of the pruned network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from psvit_core import evaluate
from psvit_core.callbacks import keep_going
from psvit_core.data import EvalSet
from psvit_core.errors import DeviceError
from psvit_core.evaluate import Prediction, measure, place, predict, predict_plan
from psvit_core.evaluate.inference import ignore_batch, place_once
from psvit_core.groups import find_groups, summarize
from psvit_core.incremental import joint_torch
from psvit_core.incremental.graph import run_node
from psvit_core.incremental.joint_torch import TorchRunner
from psvit_core.incremental.recorded import firing_rates, recorded_network, sops_of
from psvit_core.kernels import lif
from psvit_core.records import PrunePlan
from psvit_core.runtime import Run
from psvit_core.sensitivity import joint as joint_plans
from psvit_core.sensitivity import joint_run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from tests.incremental.test_joint import made_plan, with_other_weights
from tests.pretend_cuda import pretended_cuda
from tests.tiny import QUICK_NAMES, tiny_data, tiny_model

RUN = Run(batch=4, precision="float64")


@pytest.fixture(autouse=True)
def neurons_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended tensor cannot be compiled for."""
    monkeypatch.setattr(lif._mode, "fused", False)
    monkeypatch.setattr(lif, "_fused_kernel_agrees", lambda kind: False)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a network was built")


def in_torch(
    model: SpikingModel, data: EvalSet, plan: PrunePlan, new: SpikingModel | None = None
) -> Prediction:
    """Run a plan as on an accelerator, on the processor."""
    (x,) = data.take([0]).batches(1)
    runner = TorchRunner(model, recorded_network(model, tuple(x.shape[1:])), RUN)
    parts = runner.run_plan(find_groups(model), plan, data, RUN, keep_going, ignore_batch, new)
    logits = torch.cat([torch.from_numpy(part.logits) for part in parts]).numpy()
    return Prediction(logits, sops_of(parts, model, plan), firing_rates(parts))


@pytest.mark.parametrize(
    "name",
    [n if n == "sdt_v1" else pytest.param(n, marks=pytest.mark.slow) for n in QUICK_NAMES],
)
def test_numbers_are_those_of_the_pruned_network(name: str) -> None:
    model, data = tiny_model(name, torch.float64), tiny_data(name, 6)
    plan = made_plan(model, 1.0)
    small = apply_plan(model, plan)
    other = with_other_weights(apply_plan(model, plan))
    for network, new in ((small, None), (other, other)):
        found, expected = in_torch(model, data, plan, new), predict(network, data, RUN)
        assert abs(found.logits - expected.logits).max() < 1e-9
        assert (found.sops == expected.sops).all()
        assert found.firing == pytest.approx(expected.firing, rel=1e-12)
    unpruned = predict(model, data, RUN)
    assert abs(unpruned.logits - predict(small, data, RUN).logits).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_imagenet"])
def test_on_a_device_nothing_is_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model(name, torch.float64), tiny_data(name, 7)
    plan = made_plan(model, 1.0)
    expected = measure(model, data, plan, run=RUN)
    monkeypatch.setattr(evaluate, "apply_plan", refuse)
    with pretended_cuda():
        found = measure(model, data, plan, run=replace(RUN, device="cuda"))
    assert found.conditions == replace(expected.conditions, device="cuda")
    assert found.kl == pytest.approx(expected.kl, abs=1e-9)
    assert found.firing == pytest.approx(expected.firing, rel=1e-12)
    chosen = ("accuracy", "drop", "sops", "macs_real", "agreement", "per_class")
    for field in chosen:
        assert getattr(found, field) == getattr(expected, field)


@pytest.mark.slow
def test_less_memory_means_fewer_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 7)
    plan = made_plan(model, 1.0)
    expected = in_torch(model, data, plan)
    sizes: list[int] = []

    def run(most: int, node: Any, values: Any, weights: Any, batch: int, device: Any) -> None:
        sizes.append(batch)
        if batch > most:
            raise torch.OutOfMemoryError("injected")
        run_node(node, values, weights, batch, device)

    monkeypatch.setattr(joint_torch, "run_node", lambda *arguments: run(2, *arguments))
    found = in_torch(model, data, plan)
    assert sorted(set(sizes)) == [1, 2, 4]
    assert abs(found.logits - expected.logits).max() < 1e-9
    assert (found.sops == expected.sops).all()
    monkeypatch.setattr(joint_torch, "run_node", lambda *arguments: run(0, *arguments))
    with pytest.raises(DeviceError, match=r"batches of 4\. Use a smaller --batch"):
        in_torch(model, data, plan)


@pytest.mark.slow
def test_joint_plans_of_a_sweep_share_its_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_plans, "n_joint_plans", lambda *sizes: 2)
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 5)
    expected = sweep(model, data, ratios=(0.5,), criterion="l2", run=RUN).joint
    monkeypatch.setattr(joint_run, "apply_plan", refuse)
    monkeypatch.setattr(joint_run, "predict", refuse)  # silenced, in torch
    monkeypatch.setattr("psvit_core.incremental.joint.recorded_network", refuse)
    with pretended_cuda():
        run = replace(RUN, device="cuda")
        found = sweep(model, data, ratios=(0.5,), criterion="l2", run=run).joint
    assert [row.kl for row in found] == pytest.approx([row.kl for row in expected], abs=1e-9)
    assert [row.drop for row in found] == [row.drop for row in expected]


def test_a_copy_on_the_device_is_made_once() -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4)
    hashed = summarize(model, {}).weights_hash
    assert place_once(model, Run(), hashed) is model
    copied = place_once(model, RUN, hashed)
    assert copied is not model
    assert place_once(model, RUN, hashed) is copied
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    changed = place_once(model, RUN, summarize(model, {}).weights_hash)
    assert changed is not copied
    assert torch.equal(next(changed.parameters()), next(model.parameters()).double())
    model.set_time_steps(model.T + 1)
    assert place_once(model, RUN, summarize(model, {}).weights_hash).T == model.T
    assert predict_plan(model, data, made_plan(model, 0.5), RUN) is not None
    assert place(model, RUN) is not changed
