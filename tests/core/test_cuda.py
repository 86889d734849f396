"""Every command's engine on an accelerator: on a pretended one always, on CUDA where there is one.

The pretended device finds mixed devices and wrong results, but computes on the processor. It has no
backward pass, so training is run on a real device only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from psvit_core.data import EvalSet
from psvit_core.data.ahead import Upcoming
from psvit_core.evaluate import measure, place, predict
from psvit_core.finetune import finetune
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.kernels import lif
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import FinetuneSettings, PrunePlan
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.sensitivity import prepare
from psvit_core.sensitivity.sweep import sweep
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from tests.pretend_cuda import PretendedTensor, pretended_cuda
from tests.tiny import tiny_data, tiny_model

NAME = "sdt_v1"
Made = TypeVar("Made")
#: Contexts in which ``cuda`` is a device.
DEVICES: list[Callable[[], AbstractContextManager[None]]] = [pretended_cuda]
if torch.cuda.is_available():
    DEVICES.append(nullcontext)

on_each_device = pytest.mark.parametrize(
    "device", DEVICES, ids=["pretended", "cuda"][: len(DEVICES)]
)


@pytest.fixture(autouse=True)
def neurons_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes seconds, and a pretended tensor cannot be compiled for."""
    # Teachers of recoveries are kept by the device's name.
    monkeypatch.setattr("psvit_core.recover.teacher._teachers", OrderedDict())
    monkeypatch.setattr(lif._mode, "fused", False)
    monkeypatch.setattr(lif, "_fused_kernel_agrees", lambda kind: False)


def subject() -> tuple[SpikingModel, EvalSet, PrunePlan]:
    model = tiny_model(NAME, torch.float64)
    summary = summarize(model, {"l2": rank(model, "l2")})
    half = {group.group_id: 0.5 for group in summary.groups}
    return model, tiny_data(NAME, 7), plan_from_ratios(summary, half, criterion="l2")


def run_on(device: str) -> Run:
    return Run(device=device, batch=3, precision="float64")


def both(
    device: Callable[[], AbstractContextManager[None]], work: Callable[[Run], Made]
) -> tuple[Made, Made]:
    """Return the result on the processor and on the device."""
    expected = work(run_on("cpu"))
    with device():
        return expected, work(run_on("cuda"))


@on_each_device
def test_measurements(device: Any) -> None:
    model, data, plan = subject()
    for chosen in (None, plan):
        expected, found = both(device, lambda run: measure(model, data, chosen, run=run))  # noqa: B023
        assert found.accuracy == expected.accuracy
        assert found.sops == expected.sops
        assert found.firing == expected.firing
        assert found.conditions == replace(expected.conditions, device="cuda")


@pytest.mark.slow
@on_each_device
def test_sweeps_plain_and_recovered(device: Any) -> None:
    model, data, _ = subject()
    calib = replace(tiny_data(NAME, 8, seed=1), split="train")
    for images in (None, calib):
        expected, found = both(
            device,
            lambda run: sweep(model, data, ratios=(0.5,), run=run, recovery_images=images),  # noqa: B023
        )
        for a, b in zip(found.rows, expected.rows, strict=True):
            assert replace(a, kl=0.0) == replace(b, kl=0.0)
            assert a.kl == pytest.approx(b.kl, abs=1e-9)
        assert len(found.joint) == len(expected.joint)


@on_each_device
def test_recoveries(device: Any) -> None:
    model, _, plan = subject()
    calib = replace(tiny_data(NAME, 8, seed=1), split="train")
    small = apply_plan(model, plan)
    for method in ("bn", "lsq"):
        expected, found = both(
            device,
            lambda run: recover(small, model, plan, calib, method=method, run=run),  # noqa: B023
        )
        for key, tensor in expected[0].state_dict().items():
            torch.testing.assert_close(found[0].state_dict()[key], tensor, atol=1e-9, rtol=1e-9)


@on_each_device
def test_a_batch_is_halved_when_the_device_is_out_of_memory(
    device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, _ = subject()
    seen: list[int] = []

    def fail_above_two(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("injected")

    wanted = predict(model, data, Run(batch=5, precision="float64"))
    with device():
        run = Run(device="cuda", batch=5, precision="float64")
        placed = place(model, run)
        assert place(placed, run) is placed  # cuda is cuda:0
        placed.register_forward_hook(fail_above_two)
        found = predict(placed, data, run)
    assert seen == [5, 3, 2, 2, 1, 2]
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(found.sops, wanted.sops)
    assert found.firing == wanted.firing


@on_each_device
def test_batches_are_prepared_ahead(device: Any) -> None:
    _, data, _ = subject()
    loaded: list[int] = []

    def load(i: int) -> torch.Tensor:
        loaded.append(i)
        return data.load(i)

    watched = replace(data, load=load)
    with device():
        upcoming = Upcoming(watched, run_on("cuda"))
        parts = [upcoming.images([0], [2, 3]), upcoming.images([1], [2, 3])]  # a halved batch
        parts.append(upcoming.images([2, 3], [4]))
        parts.append(upcoming.images([5]))  # nobody said so before
        upcoming.close()
    assert loaded.count(4) <= 1  # dropped
    assert sorted(set(loaded) - {4}) == [0, 1, 2, 3, 5]
    assert len(loaded) == len(set(loaded))
    (wanted,) = data.batches(7, torch.float64)
    assert torch.equal(torch.cat(parts), wanted[[0, 1, 2, 3, 5]])
    assert not any(isinstance(x, PretendedTensor) for x in parts)


def test_cuda_stacks_cells() -> None:
    assert prepare._STACKED_DEVICES == ("cuda",)


@pytest.mark.parametrize("device", [d for d in ("cpu", "cuda") if d == "cpu" or len(DEVICES) > 1])
def test_training(device: str) -> None:
    model, data, plan = subject()
    train = replace(tiny_data(NAME, 8, seed=1), split="train")
    settings = FinetuneSettings(epochs=1, batch=4, autocast="off", augment="none")
    done = finetune(
        apply_plan(model, plan), train, data, teacher=model, settings=settings, run=run_on(device)
    )
    assert done.records[-1].train_loss is not None
    assert next(done.model.parameters()).device.type == "cpu"
