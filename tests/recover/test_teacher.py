"""What is kept of the unpruned model: the same refits as with it running along, and its bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from psvit_core.callbacks import keep_going
from psvit_core.groups import find_groups, plan_from_kept
from psvit_core.records import PrunePlan
from psvit_core.recover import prepare, recover, teacher
from psvit_core.recover.lockstep import DEFAULT_MEMORY
from psvit_core.recover.stages import refit_stages
from psvit_core.recover.teacher import Teacher
from psvit_core.runtime import Run
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from tests.recover.test_recover import RUN, calib, pair, plan_without_a_third
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    teacher._teachers.clear()
    yield
    teacher._teachers.clear()


@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v2", "sdt_v3", "spikformer_cifar"])
def test_kept_outputs_give_the_refits_of_a_model_that_runs_along(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, plan, small = pair(name)
    models, run = [], Run(batch=8, precision="float64")  # one batch either way
    for kept_bytes in (0, 1 << 30):
        monkeypatch.setattr(teacher, "KEPT_BYTES", kept_bytes)
        unpruned = Teacher(original, calib(name), calib(name), run)
        models.append(apply_plan(original, plan))
        refit_stages(models[-1], unpruned, plan, norms=True, memory=DEFAULT_MEMORY, tick=keep_going)
        assert (unpruned._values is None) == (kept_bytes == 0)
    along, kept = (model.state_dict() for model in models)
    # Equal but for the order of sums: kept outputs may lie differently in memory.
    for key, tensor in along.items():
        torch.testing.assert_close(kept[key], tensor, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(tensor, along[key]) for key, tensor in small.state_dict().items())


def other_plan(model: SpikingModel) -> PrunePlan:
    first = find_groups(model)[-1]
    heads = first.heads or 1
    width = first.n_units // heads
    return plan_from_kept(
        model, {first.group_id: [i for i in range(first.n_units) if i % width != 0]}
    )


def test_further_plans_do_not_run_the_unpruned_model() -> None:
    original, data = tiny_model("sdt_v1", torch.float64), calib("sdt_v1")
    runs: list[int] = []
    handle = original.register_forward_hook(lambda module, inputs, output: runs.append(1))
    plan = plan_without_a_third(original)
    recover(apply_plan(original, plan), original, plan, data, run=RUN)
    assert runs
    runs.clear()
    plan = other_plan(original)
    small = apply_plan(original, plan)
    again, report = recover(small, original, plan, data, run=RUN)
    assert not runs
    handle.remove()
    teacher._teachers.clear()
    fresh, expected = recover(small, original, plan, data, run=RUN)
    assert report.kl == expected.kl
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in fresh.state_dict().items())


def test_a_prepared_model_does_not_run_again() -> None:
    original, data = tiny_model("sdt_v1", torch.float64), calib("sdt_v1")
    plan = plan_without_a_third(original)
    small = apply_plan(original, plan)
    fresh, expected = recover(small, original, plan, data, run=RUN)
    teacher._teachers.clear()
    prepare(original, data, RUN)
    runs: list[int] = []
    handle = original.register_forward_hook(lambda module, inputs, output: runs.append(1))
    again, report = recover(small, original, plan, data, run=RUN)
    handle.remove()
    assert not runs
    assert report.kl == expected.kl
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in fresh.state_dict().items())


def test_other_weights_and_other_images_have_their_own_teacher() -> None:
    original = tiny_model("sdt_v1", torch.float64)
    plan = plan_without_a_third(original)
    small = apply_plan(original, plan)
    _, first = recover(small, original, plan, calib("sdt_v1"), method="none", run=RUN)
    _, other = recover(small, original, plan, calib("sdt_v1", 12), method="none", run=RUN)
    assert len(teacher._teachers) == 2
    with torch.no_grad():
        next(p for n, p in original.named_parameters() if n.startswith("head")).mul_(-1)
    plan = plan_without_a_third(original)
    _, changed = recover(small, original, plan, calib("sdt_v1"), method="none", run=RUN)
    assert len({first.kl["none"], other.kl["none"], changed.kl["none"]}) == 3


def test_the_process_keeps_few_models_and_bounded_values(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tiny_model("sdt_v1", torch.float64)
    plan = plan_without_a_third(original)
    small = apply_plan(original, plan)
    for n_images in range(8, 16):
        recover(small, original, plan, calib("sdt_v1", n_images), method="lsq", run=RUN)
    assert len(teacher._teachers) == teacher._MOST_KEPT
    newest = next(reversed(teacher._teachers.values()))
    monkeypatch.setattr(teacher, "KEPT_BYTES", 2 * newest.value_bytes)
    recover(small, original, plan, calib("sdt_v1", 15), method="lsq", run=RUN)
    recover(small, original, plan, calib("sdt_v1", 8), method="lsq", run=RUN)
    kept = sum(t.value_bytes for t in teacher._teachers.values() if t._values is not None)
    assert 0 < kept <= teacher.KEPT_BYTES
