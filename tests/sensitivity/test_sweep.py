"""Sweeps: equal to the naive loop, resumable by cell, incremental over images and ratios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core import evaluate
from psvit_core.errors import CancelledError, DataError, InvalidRatioError, StoreError
from psvit_core.evaluate import Baseline, Prediction, measure
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.incremental import executor
from psvit_core.incremental.graph import GraphError
from psvit_core.metrics.spikes import count_spikes
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import SensitivityTable
from psvit_core.runtime import Run
from psvit_core.sensitivity.buffer import SweepBaseline
from psvit_core.sensitivity.spec import check_ratios, read_table, save_spec, sweep_keys
from psvit_core.sensitivity.sweep import make_spec, sweep
from psvit_core.storage.baselines import load_outputs, outputs_key
from psvit_core.storage.predictions import (
    as_run,
    kl_divergence,
    load_outcome,
    ran_with,
    save_outcome,
)
from psvit_core.storage.store import Store, digest
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import build_model
from tests.tiny import NAMES, tiny_data, tiny_model
from ui.model.sweeps import sweep_view

RATIOS = (0.25, 0.5)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], int]]:
    """(group, kept units, number of images) of every cell that runs."""
    seen: list[tuple[str, tuple[int, ...], int]] = []
    run_cell = executor.IncrementalExecutor._run_cell

    def watched(self: Any, found: Any, task: Any, *rest: Any) -> Any:
        seen.append((found.group.group_id, task.kept, len(task.images)))
        return run_cell(self, found, task, *rest)

    monkeypatch.setattr(executor.IncrementalExecutor, "_run_cell", watched)
    return seen


def images_of(runs: list[tuple[str, tuple[int, ...], int]]) -> int:
    return sum(n for _, _, n in runs)


@pytest.mark.parametrize(
    "name",
    # The naive loop over 69 groups is slow.
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith("sdt_v2") else n for n in NAMES],
)
def test_equal_to_the_naive_loop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit_core.sensitivity.prepare._NATIVE_BATCHES", 1)
    monkeypatch.setattr(executor, "_MOST_PER_RUN", 2)  # images per native run
    model, data = tiny_model(name, torch.float64), tiny_data(name, 7)
    run = Run(batch=3, precision="float64")  # incomplete last batches and runs
    ratios = RATIOS if len(model.channel_groups()) < 30 else RATIOS[1:]
    table = sweep(model, data, ratios=ratios, criterion="l2", run=run, store=Store(tmp_path))
    summary = summarize(model, {"l2": rank(model, "l2")})
    labels = np.array(data.labels)

    def logits_of(m: SpikingModel) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([m(x) for x in data.batches(3, torch.float64)]).numpy()

    base = logits_of(model)
    assert [(r.group_id, r.prune_ratio) for r in table.rows] == [
        (g.group_id, ratio) for g in summary.groups for ratio in ratios
    ]
    rows = table.rows if len(table.rows) < 50 else table.rows[::5]  # the naive loop is slow
    for row in rows:
        plan = plan_from_ratios(summary, {row.group_id: row.prune_ratio}, criterion="l2")
        logits = logits_of(apply_plan(model, plan))
        correct = logits.argmax(1) == labels
        assert row.accuracy.value == pytest.approx(correct.mean())
        assert row.drop.value == pytest.approx(
            100 * ((base.argmax(1) == labels).mean() - correct.mean())
        )
        assert row.agreement == pytest.approx((logits.argmax(1) == base.argmax(1)).mean())
        assert row.kl == pytest.approx(kl_divergence(base, logits).mean(), abs=1e-9)
        assert row.size == plan_size(summary, plan)
        assert row.n_images == 7


def test_a_stopped_sweep_resumes(
    tmp_path: Path, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit_core.sensitivity.prepare._NATIVE_BATCHES", 1)
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6), Store(tmp_path)
    calls = 0

    def stop_in_second_batch() -> None:
        nonlocal calls
        calls += 1
        if calls == 25:  # one batch with its 16 cells, and a part of the second batch
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        sweep(model, data, ratios=RATIOS, store=store, run=Run(batch=4), tick=stop_in_second_batch)
    first = images_of(runs)
    assert 16 * 4 < first < 16 * 6
    spec = make_spec(model, data, ratios=RATIOS)
    so_far = read_table(store, spec)
    assert so_far is not None
    assert not so_far.finished
    assert {row.n_images for row in so_far.rows} == {4, 6}
    resumed = sweep(model, data, ratios=RATIOS, store=store, run=Run(batch=4))
    assert images_of(runs) == 16 * 6  # no image twice
    assert resumed.finished
    assert resumed == sweep(model, data, ratios=RATIOS, run=Run(batch=4))


def test_other_images_and_ratios_reuse_cells(tmp_path: Path, runs: Any) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 10), Store(tmp_path)
    sweep(model, data.limit(4), ratios=RATIOS, store=store)
    assert images_of(runs) == 4 * 16
    assert not list(tmp_path.rglob("cells-*"))  # the locks of its groups
    sweep(model, data, ratios=RATIOS, store=store)  # six more images
    assert images_of(runs) == 10 * 16
    sweep(model, data, ratios=(0.25, 0.5, 0.75), store=store)  # one more ratio
    assert images_of(runs) == 10 * 24
    # 0.26 removes as many units as 0.25, except in the 128-wide MLPs (33 instead of 32).
    sweep(model, data, ratios=(0.26,), store=store)
    assert images_of(runs) == 10 * (24 + 2)


def test_a_table_names_the_run_of_its_cells(tmp_path: Path) -> None:
    """The conditions are those that the cells ran with, not those of the last request."""
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 8), Store(tmp_path)
    first = sweep(model, data, ratios=(0.5,), run=Run(batch=4), store=store)
    assert (first.conditions.batch, first.conditions.device) == (4, "cpu")
    again = sweep(model, data, ratios=(0.5,), run=Run(batch=2), store=store)
    assert again == first
    more = sweep(model, data, ratios=(0.25, 0.5), run=Run(batch=2), store=store)
    assert (more.conditions.batch, more.conditions.device) == (0, "cpu")
    assert sweep(model, data, ratios=(0.5,), run=Run(batch=2), store=store) == first

    conditions = replace(first.conditions, batch=9)  # old results do not name their run
    assert as_run(conditions, set()) == conditions
    both = {ran_with("cpu", 9).item(), ran_with("cuda:1", 9).item()}
    assert as_run(conditions, both) == replace(conditions, device="mixed")


def test_a_measurement_shows_a_baseline_with_another_batch(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 8), Store(tmp_path)
    plan = plan_from_ratios(
        summarize(model, {"l2": rank(model, "l2")}), {"stream": 0.5}, criterion="l2"
    )
    for batch, shown in ((4, 4), (2, 0), (4, 4)):
        found = measure(model, data, plan, run=Run(batch=batch), store=store)
        assert found.conditions.batch == shown
        assert measure(model, data, run=Run(batch=batch), store=store).conditions.batch == batch


def test_cells_that_remove_nothing_are_not_run(tmp_path: Path, runs: Any) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4)
    table = sweep(model, data, ratios=(0.1,), store=Store(tmp_path))
    nothing = [row for row in table.rows if row.n_pruned == 0]
    assert {row.group_id for row in nothing} == {"stem0", "stem1"}  # 4 and 8 units
    assert all(row.drop.value == 0 and row.kl == 0 for row in nothing)
    assert images_of(runs) == 4 * (8 - 2)


def test_partial_tables_can_be_read_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4), Store(tmp_path)
    monkeypatch.setattr("psvit_core.sensitivity.buffer._WORK_PER_WRITE", 0.0)  # write every result
    spec = make_spec(model, data, ratios=RATIOS)
    assert read_table(store, spec) is None
    seen: list[int] = []

    def check(done: int, total: int, what: str) -> None:
        table = read_table(Store(tmp_path), spec)
        assert table is not None
        assert table.finished == (len(table.rows) == 16)
        seen.append(len(table.rows))

    sweep(model, data, ratios=RATIOS, store=store, progress=check)
    assert sorted(set(seen)) == list(range(1, 17))
    assert seen == sorted(seen)


def test_progress_is_the_share_of_the_work(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6), Store(tmp_path)
    reported: list[tuple[int, int]] = []
    sweep(
        model,
        data,
        ratios=RATIOS,
        store=store,
        run=Run(batch=2),
        progress=lambda done, total, what: reported.append((done, total)),
    )
    assert {total for _, total in reported} == {16 * 6}
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert reported[-1][0] == 16 * 6
    reported.clear()
    sweep(
        model,
        data,
        ratios=RATIOS,
        store=store,
        progress=lambda done, total, what: reported.append((done, total)),
    )
    assert reported == [(16 * 6, 16 * 6)]  # nothing left to run


def test_a_network_that_cannot_be_recorded_runs_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 5)
    run = Run(batch=3, precision="float64")
    fast = sweep(model, data, ratios=RATIOS, run=run)

    def refuse(*_: Any) -> None:
        raise GraphError("it writes in place")

    monkeypatch.setattr("psvit_core.sensitivity.prepare.record_network", refuse)
    plain = sweep(model, data, ratios=RATIOS, run=run)
    for a, b in zip(fast.rows, plain.rows, strict=True):
        assert replace(a, kl=0.0) == replace(b, kl=0.0)
        assert a.kl == pytest.approx(b.kl, abs=1e-12)


@pytest.mark.parametrize("T", [1, 4])
def test_time_steps(T: int) -> None:
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 3)
    model.set_time_steps(T)
    table = sweep(model, data, ratios=(0.5,), criterion="l2", run=Run(precision="float64"))
    summary = summarize(model, {"l2": rank(model, "l2")})
    (x,) = data.batches(3, torch.float64)
    for row in table.rows[::2]:
        plan = plan_from_ratios(summary, {row.group_id: 0.5}, criterion="l2")
        small = apply_plan(model, plan)
        with torch.no_grad(), count_spikes(small) as count:
            kl = kl_divergence(model(x).numpy(), small(x).numpy())
        assert row.kl == pytest.approx(kl.mean(), abs=1e-9)
        assert row.sops == pytest.approx(float(torch.cat(count.sops).mean()))


def test_table_round_trip_and_keys(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4), Store(tmp_path / "store")
    table = sweep(model, data, ratios=RATIOS, store=store)
    assert SensitivityTable.load(table.save(tmp_path / "s.json")) == table
    spec = make_spec(model, data, ratios=(0.5,))
    save_spec(store, spec)
    assert sweep_keys(store)[0] == spec.key
    assert len(sweep_keys(store)) == 2


def test_the_app_reads_the_same_table(tmp_path: Path) -> None:
    """Including the seed of a random ranking."""
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4), Store(tmp_path)
    options: dict[str, Any] = {"ratios": (0.5,), "criterion": "random", "seed": 3}
    table = sweep(model, data, store=store, **options)
    (key,) = sweep_keys(store)
    assert table.seed == 3
    assert sweep_view(store, key).table == table


def test_the_test_split_is_refused() -> None:
    data = replace(tiny_data("sdt_v1", 4), split="test")
    with pytest.raises(DataError, match="never use the test split"):
        sweep(tiny_model("sdt_v1"), data, ratios=RATIOS)


def test_ratios_are_checked() -> None:
    assert check_ratios((0.5, 0.25, 0.5)) == (0.25, 0.5)
    for bad in ((1.0,), (-0.1,), (float("nan"),), ()):
        with pytest.raises(InvalidRatioError):
            check_ratios(bad)


def test_a_damaged_cell_names_its_file(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4), Store(tmp_path)
    sweep(model, data, ratios=(0.5,), store=store)
    spec = make_spec(model, data, ratios=(0.5,))
    key = next(spec.cells()).key
    path = tmp_path / "arrays" / key[:2] / f"{key}.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=f"{key}.npz is damaged.*Delete it"):
        sweep(model, data, ratios=(0.5,), store=store)
    path.unlink()
    assert len(sweep(model, data, ratios=(0.5,), store=store).rows) == 8


def test_measuring_a_plan(tmp_path: Path) -> None:
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 9), Store(tmp_path)
    summary = summarize(model, {"l2": rank(model, "l2")})
    plan = plan_from_ratios(summary, {g.group_id: 0.4 for g in summary.groups}, criterion="l2")
    result = measure(model, data, plan, store=store)
    alone = measure(apply_plan(model, plan), data)
    assert result.accuracy == alone.accuracy
    assert (result.size, result.sops) == (alone.size, alone.sops)
    assert result.memory_saving == pytest.approx(alone.memory_saving)
    assert result.baseline_accuracy == measure(model, data).accuracy
    assert alone.drop is None
    assert result.drop is not None
    assert result.drop.low < result.drop.value < result.drop.high
    model.register_forward_hook(lambda *_: pytest.fail("the model ran again"))
    assert measure(model, data, plan, store=store) == result


def test_two_processes_share_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process starts and finishes while this one runs its images."""
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 9)
    ours, theirs = data.take(range(6)), data.take(range(3, 9))
    started: list[bool] = []
    run_images = evaluate.predict

    def interrupted(*arguments: Any, **options: Any) -> Prediction:
        if not started:
            started.append(True)
            Baseline(model, theirs, Run(), Store(tmp_path))
        return run_images(*arguments, **options)

    monkeypatch.setattr(evaluate, "predict", interrupted)
    Baseline(model, ours, Run(), Store(tmp_path))

    def fail(*arguments: Any, **options: Any) -> Prediction:
        raise AssertionError("the store has all results")

    monkeypatch.setattr(evaluate, "predict", fail)
    for images in (ours, theirs, data):
        base = Baseline(model, images, Run(), Store(tmp_path))
        assert base.logits(images).argmax(axis=1).tolist() == base.outcome.predictions.tolist()


def test_an_incomplete_baseline_is_completed(tmp_path: Path) -> None:
    """A stopped process left logits of some images and outcomes of others."""
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6), Store(tmp_path)
    whole = Baseline(model, data, Run(), store)
    save_outcome(store, whole.key, whole.outcome.select(data.ids[:2]))
    logits = {"ids": np.array(data.ids[1:4]), "logits": whole.logits(data)[1:4]}
    store.put_arrays(outputs_key(whole.key), logits)
    again = Baseline(model, data, Run(), store)
    np.testing.assert_allclose(again.logits(data), whole.logits(data), atol=1e-5)
    assert again.outcome.ids.tolist() == list(data.ids)
    stored = load_outcome(store, whole.key)
    assert stored is not None and sorted(stored.ids.tolist()) == sorted(data.ids)


def test_a_sweep_reads_baselines_of_version_0_1(tmp_path: Path, runs: Any) -> None:
    """They were stored under another key, in the same form."""
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6), Store(tmp_path)
    table = sweep(model, data.limit(4), ratios=RATIOS, store=store)
    key = make_spec(model, data).baseline_key
    outputs = load_outputs(store, key)
    assert outputs is not None
    assert set(outputs) == {"ids", "logits", "reached", "readers"}
    store.put_arrays(digest(["answers", key]), outputs)
    path = next((tmp_path / "arrays").glob(f"*/{outputs_key(key)}.npz"))
    path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor.IncrementalExecutor, "run_full_model", lambda *_: pytest.fail("ran"))
        spec = make_spec(model, data.limit(4), ratios=RATIOS)
        baseline = SweepBaseline(spec, store)
        assert not len(baseline.missing(np.arange(4)))
        assert sweep(model, data.limit(4), ratios=RATIOS, store=store) == table
    assert sweep(model, data, ratios=RATIOS, store=store).finished
    assert images_of(runs) == 6 * 16  # two more images in every cell
    added = load_outputs(store, key)
    assert added is not None
    assert sorted(added["ids"].tolist()) == sorted(data.ids)
    assert len(added["logits"]) == len(added["reached"]) == 6


@pytest.mark.parametrize("half", ["outcome", "outputs"])
def test_a_sweep_completes_half_a_baseline(half: str, tmp_path: Path) -> None:
    """A stopped process, or a user who deleted a damaged file, left only one of the two entries."""
    model, data, store = tiny_model("sdt_v1"), tiny_data("sdt_v1", 4), Store(tmp_path)
    table = sweep(model, data, ratios=(0.5,), store=store)
    key = make_spec(model, data).baseline_key
    lost = key if half == "outputs" else outputs_key(key)
    (tmp_path / "arrays" / lost[:2] / f"{lost}.npz").unlink()
    assert sweep(model, data, ratios=(0.5,), store=store) == table


def test_more_classes_than_outputs_is_refused() -> None:
    data = replace(tiny_data("sdt_v1", 3), labels=(0, 1, 10))
    with pytest.raises(DataError, match="10 outputs"):
        measure(tiny_model("sdt_v1"), data)


def test_coupled_batches_never_mix(tmp_path: Path, runs: Any) -> None:
    """QKFormer's published neuron couples a batch: results are valid for these batches only."""
    name = "qkformer_cifar"
    model, data, store = tiny_model(name), tiny_data(name, 12), Store(tmp_path)
    assert model.batch_coupled
    measured = {
        batch: measure(model, data, run=Run(batch=batch), store=store) for batch in (12, 4, 3)
    }
    spec_of_4 = make_spec(model, data, ratios=(0.5,), run=Run(batch=4))
    table = sweep(model, data, ratios=(0.5,), run=Run(batch=4), store=store)
    assert table.baseline_accuracy.value == measured[4].accuracy.value
    first = images_of(runs)
    assert sweep(model, data, ratios=(0.5,), run=Run(batch=4), store=store) == table
    assert images_of(runs) == first
    sweep(model, data, ratios=(0.5,), run=Run(batch=3), store=store)
    assert images_of(runs) == 2 * first  # no result of the batches of 4 is reused
    assert spec_of_4.key != make_spec(model, data, ratios=(0.5,), run=Run(batch=3)).key
    # One batch does not show how batches vary; several allow a bootstrap over batches.
    assert (measured[12].accuracy.low, measured[12].accuracy.high) == (0.0, 1.0)
    accuracy = measured[3].accuracy
    assert 0.0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1.0

    free = build_model("qkformer_cifar", **{**model.arguments, "batch_coupled": False})
    free.load_state_dict(model.state_dict())
    one = measure(free, data, run=Run(batch=1)).accuracy
    assert one == measure(free, data, run=Run(batch=12)).accuracy
