"""Whole plans as native programs: the numbers of the pruned network, without building it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from psvit_core import evaluate
from psvit_core.data.evalset import visiting_order
from psvit_core.evaluate import Prediction, measure, place, predict, prepare_plans
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.incremental import joint
from psvit_core.incremental.joint import JointRun
from psvit_core.kernels import lif
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import PrunePlan
from psvit_core.runtime import Run
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from tests.tiny import NAMES, tiny_data, tiny_model

RUN = Run(batch=4, precision="float64")
COUPLED = "qkformer"  # the published one: images of a batch influence each other


def made_plan(model: SpikingModel, share: float, seed: int = 0) -> PrunePlan:
    """Return a plan that prunes this share of the groups, each by another ratio."""
    summary, chance = summarize(model, {"l2": rank(model, "l2")}), random.Random(seed)
    ratios = {g.group_id: 0.7 * chance.random() for g in summary.groups if chance.random() < share}
    return plan_from_ratios(summary, ratios, criterion="l2")


@pytest.mark.skipif(not lif.runs_natively(torch.zeros(1)), reason="no compiler")
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_pruned_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_model(name), tiny_data(name, 10)
    found: list[Prediction | None] = []
    real = evaluate.predict_plan

    def watch(*arguments: Any) -> Prediction | None:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(evaluate, "predict_plan", watch)
    for share in (0.2, 1.0):
        plan = made_plan(model, share)
        measured = measure(model, data, plan, run=RUN)
        native = found.pop()
        if model.batch_coupled:
            assert native is None
            continue
        assert native is not None
        small = predict(place(apply_plan(model, plan), RUN), data, RUN)
        order = visiting_order(data, None)
        assert abs(native.logits - small.logits[order]).max() < 1e-9
        assert (native.sops == small.sops[order]).all()
        assert native.firing.keys() == small.firing.keys()
        assert native.firing == pytest.approx(small.firing, rel=1e-12)
        assert measured.firing == native.firing
        assert measured.sops == native.sops.mean()
    if model.batch_coupled:
        return
    other = with_other_weights(apply_plan(model, plan))
    again = measure(model, data, plan, result=other, run=RUN)
    native = found.pop()
    assert native is not None
    expected = predict(place(other, RUN), data, RUN)
    assert abs(native.logits - expected.logits[order]).max() < 1e-9
    assert abs(native.logits - small.logits[order]).max() > 1e-3
    assert (native.sops == expected.sops[order]).all()
    assert again.firing == pytest.approx(expected.firing, rel=1e-12)


def with_other_weights(model: SpikingModel) -> SpikingModel:
    """Return the model with all parameters and statistics changed a little, as recovered."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=chance))
    return model


def test_a_model_of_other_arguments_is_not_run_as_the_recorded_one() -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4)
    plan = made_plan(model, 0.5)
    runner = prepare_plans(model, data, Run(batch=4), summarize(model, {}).weights_hash)
    longer = apply_plan(model, plan)
    longer.set_time_steps(model.T + 1)
    if isinstance(runner, joint.JointRunner):  # there is a compiler
        with pytest.raises(UnsupportedError, match="other arguments"):
            runner.weights_of(model.channel_groups(), plan, longer)
    measured = measure(model, data, plan, result=longer, run=RUN)
    expected = predict(place(longer, RUN), data, RUN)
    assert measured.sops == expected.sops.mean()


def test_what_has_no_native_program_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6)
    plan = made_plan(model, 1.0)
    natively = measure(model, data, plan, run=RUN)

    def refuse(*arguments: object) -> None:
        raise UnsupportedError("operation")

    estimates: list[int | None] = []
    with monkeypatch.context() as patch:  # only noticed at the first batch
        patch.setattr(JointRun, "run", refuse)
        late = measure(
            model, data, plan, run=RUN, partial=lambda p: estimates.append(p.n_images or None)
        )
    assert [n for n in estimates if n] == [4]
    with monkeypatch.context() as patch:
        patch.setattr(joint, "first_unsupported", lambda nodes: "operation")
        early = measure(tiny_model("sdt_v1"), data, plan, run=RUN)
    for other in (late, early):
        assert other.accuracy == natively.accuracy
        assert other.sops == natively.sops
        assert other.kl == pytest.approx(natively.kl, abs=1e-9)


def test_the_forward_pass_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4)
    summary = summarize(model, {})
    run = Run(batch=4)
    first = prepare_plans(model, data, run, summary.weights_hash)
    measure(model, data, made_plan(model, 0.5), run=run)
    assert prepare_plans(model, data, run, summary.weights_hash) is first
    changed = made_plan(model, 1.0)
    before = measure(model, data, changed, run=run)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.startswith("head")).mul_(-1)
    after = measure(model, data, made_plan(model, 1.0), run=run)
    assert prepare_plans(model, data, run, summarize(model, {}).weights_hash) is not first
    assert after.kl != before.kl or after.accuracy != before.accuracy


def test_an_empty_plan_has_no_drop(tmp_path: Path) -> None:
    model, data = tiny_model("sdt_v3"), tiny_data("sdt_v3", 8)
    found = measure(model, data, made_plan(model, 0.0), run=RUN)
    assert found.drop is not None
    assert found.drop.value == 0
    assert found.kl == pytest.approx(0, abs=1e-12)
