"""Partial results: representative prefixes, valid intervals, unchanged final numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from psvit_core import estimates
from psvit_core.data.evalset import visiting_order
from psvit_core.evaluate import measure, place, predict
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Measurement, Partial, PrunePlan
from psvit_core.runtime import Run
from psvit_core.storage.store import Store
from psvit_core.zoo.base import SpikingModel
from tests.tiny import tiny_data, tiny_model


@pytest.fixture(autouse=True)
def report_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report every batch, however soon after the last one."""
    monkeypatch.setattr(estimates, "_PARTIAL_SECONDS", 0.0)
    monkeypatch.setattr(estimates.time, "monotonic", _Clock())  # type: ignore[attr-defined]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1000.0 * (1.0 + self.now)  # each step is much longer than the one before
        return self.now


def halved(model: SpikingModel) -> PrunePlan:
    summary = summarize(model, {"l2": rank(model, "l2")})
    return plan_from_ratios(summary, {g.group_id: 0.5 for g in summary.groups}, criterion="l2")


def test_prefixes_are_the_subsets_of_a_limit() -> None:
    data = tiny_data("sdt_v1", 60)
    data = data.take(np.argsort(data.labels, kind="stable").tolist())  # like most data sets
    order = visiting_order(data, None)
    assert sorted(order) == list(range(60))
    for n in (1, 10, 25):
        assert {data.ids[i] for i in order[:n]} == set(data.limit(n).ids)
    seen = [data.labels[i] for i in order[: len(set(data.labels))]]
    assert len(set(seen)) == len(seen)  # each class once before any repeats


def test_coupled_batches_stay_together() -> None:
    data = tiny_data("qkformer_cifar", 14)
    order = visiting_order(data, 4)
    batches = [order[low : low + 4] for low in range(0, 14, 4)]
    assert sorted(map(tuple, batches)) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13)]
    assert batches[-1] == [12, 13]
    assert batches[:3] != [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v3", "qkformer_cifar"])
def test_partial_results_lead_to_the_final_one(name: str, tmp_path: Path) -> None:
    model, data, run = tiny_model(name), tiny_data(name, 14), Run(batch=4)
    plan, told = halved(model), list[Partial]()
    result = measure(model, data, plan, run=run, store=Store(tmp_path), partial=told.append)
    baseline = [p for p in told if p.accuracy is None]
    assert [p.done for p in baseline] == [4, 8, 12, 14]
    assert {p.total for p in told} == {28}
    estimates = [p for p in told if p.accuracy is not None]
    assert [p.n_images for p in estimates] == [4, 8, 12]
    assert [p.done for p in estimates] == [18, 22, 26]
    for p in estimates:
        assert p.accuracy is not None
        assert p.drop is not None
        assert 0 <= p.accuracy.low <= p.accuracy.value <= p.accuracy.high <= 1
        assert p.drop.low <= p.drop.value <= p.drop.high
    assert Partial.from_dict(estimates[0].to_dict()) == estimates[0]

    # The first estimate equals a measurement of its images alone.
    first = data.take(visiting_order(data, 4 if model.batch_coupled else None)[:4])
    alone = measure(model, first, plan, run=run)
    assert estimates[0].accuracy is not None
    assert estimates[0].accuracy.value == alone.accuracy.value
    assert estimates[0].drop is not None
    assert alone.drop is not None
    assert estimates[0].drop.value == alone.drop.value

    assert result.per_class is not None
    images, correct, before = (sum(x) for x in zip(*result.per_class.values(), strict=True))
    assert result.baseline_accuracy is not None
    assert images == 14
    assert correct / 14 == result.accuracy.value
    assert before / 14 == result.baseline_accuracy.value
    assert [result.per_class[data.classes[y]][0] for y in sorted(set(data.labels))] == [
        data.labels.count(y) for y in sorted(set(data.labels))
    ]
    assert Measurement.from_dict(result.to_dict()) == result
    old = {k: v for k, v in result.to_dict().items() if k != "per_class"}
    assert Measurement.from_dict(old).per_class is None

    assert measure(model, data, plan, run=run) == result  # the same result without the callback
    in_order = predict(place(model, run), data, run).logits.argmax(axis=1)
    whole = measure(model, data, run=run).accuracy.value
    assert whole == (in_order == np.array(data.labels)).mean()
    repeated = list[Partial]()
    measure(model, data, plan, run=run, store=Store(tmp_path), partial=repeated.append)
    assert repeated == []  # from the store


def test_partial_results_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_PARTIAL_SECONDS", 0.5)
    monkeypatch.setattr(estimates.time, "monotonic", lambda: 7.0)  # type: ignore[attr-defined]
    told = list[Partial]()
    measure(tiny_model("sdt_v3"), tiny_data("sdt_v3", 12), run=Run(batch=2), partial=told.append)
    assert [p.n_images for p in told] == [
        2
    ]  # the first at once; the next is due after half a second
    assert told[0].drop is None
