"""The shipped results: true, small, beneath one's own, and gone when engine or weights differ."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from psvit_core import demo
from psvit_core.demo import DemoStore, bundle_path, read_bundle, shipped_bundles, write_bundle
from psvit_core.jobs.engine import Engine, Subject
from psvit_core.outcomes import Outcome, add_outcome, load_outcome, save_outcome
from psvit_core.records import Measurement, ModelSummary, SensitivityTable
from psvit_core.sensitivity.table import SweepSpec, load_spec, read_table, row_of, sweep_keys
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import DEFAULT_MODEL, shipped_summary

LARGEST = 1_500_000  # bytes of all bundles


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(demo.SWITCH_ENV, "1")
    shipped_bundles.cache_clear()
    yield
    shipped_bundles.cache_clear()


@pytest.fixture
def store(tmp_path: Path) -> DemoStore:
    return DemoStore(tmp_path)


def summary() -> ModelSummary:
    found = shipped_summary(DEFAULT_MODEL)
    assert found is not None
    return found


def swept(store: Store) -> tuple[SweepSpec, SensitivityTable]:
    (key,) = sweep_keys(store)
    spec = load_spec(store, key)
    table = read_table(store, spec)
    assert table is not None
    return spec, table


def test_bundles_are_small_and_complete(store: DemoStore) -> None:
    assert sum(path.stat().st_size for path in demo.FOLDER.glob("*.npz")) < LARGEST
    spec, table = swept(store)
    assert table.finished
    assert (len(table.ratios), table.conditions.n_images) == (9, 750)
    assert table.summary.weights_hash == summary().weights_hash
    archive = Workspace(Subject(), store).archive()
    assert archive is not None and archive.knee() is not None
    policies = {way.policy for point in archive.points for way in point.made}
    assert policies == {"uniform", "psvit", "prime", "optimal"}
    assert all(point.value("peak") for point in archive.points)
    assert not any(point.value("latency") for point in archive.points)  # of no other machine
    assert "latency_ms" in archive.to_csv()


def test_random_cells_and_a_plan_again(store: DemoStore, tmp_path: Path) -> None:
    """Three cells and one plan from scratch, in a store that knows nothing.

    Elsewhere another order of float32 sums may flip a spike, so a few images may differ.
    """
    from psvit_core.jobs.tasks import evaluate
    from psvit_core.sensitivity.sweep import run_spec

    spec, table = swept(store)
    dice = random.Random(2026)
    ratio, groups = dice.choice(spec.ratios), dice.sample(spec.summary.groups, 3)
    some = dataclasses.replace(
        spec, ratios=(ratio,), summary=dataclasses.replace(spec.summary, groups=tuple(groups))
    )
    bare = Store(tmp_path / "bare")
    engine = Engine(Subject(), bare)
    run_spec(some, engine.model, engine.data, run=engine.run, store=bare)
    baseline = load_outcome(bare, spec.baseline_key)
    assert baseline is not None
    for cell in some.cells():
        again, shipped = load_outcome(bare, cell.key), load_outcome(store, cell.key)
        assert again is not None and shipped is not None
        again = again.select(spec.ids)
        assert (again.predictions != shipped.predictions).sum() <= 3
        assert np.median(np.abs(again.kl - shipped.kl)) < 1e-5
        np.testing.assert_allclose(again.sops.mean(), shipped.sops.mean(), rtol=1e-4)
        row = row_of(spec, cell, again, baseline)
        told = table.cells[cell.group.group_id, ratio]
        assert (row.n_pruned, row.size) == (told.n_pruned, told.size)
        assert row.drop.value == pytest.approx(told.drop.value, abs=0.5)

    archive = Workspace(Subject(), store).archive()
    assert archive is not None
    point = dice.choice(archive.points)
    measured, told_of = evaluate(engine, point.plan), point.measurement
    assert measured.accuracy.value == pytest.approx(told_of.accuracy.value, abs=0.005)
    assert measured.size == told_of.size
    assert measured.sops == pytest.approx(told_of.sops, rel=1e-3)
    bare.close()


def test_ones_own_comes_first(store: DemoStore) -> None:
    spec, _ = swept(store)
    cell = next(spec.cells())
    shipped = load_outcome(store, cell.key)
    assert shipped is not None
    own = Outcome(
        ids=shipped.ids[:2], labels=shipped.labels[:2], predictions=shipped.labels[:2],
        kl=np.zeros(2), sops=np.ones(2),
    )  # fmt: skip
    save_outcome(store, cell.key, own)
    found = load_outcome(store, cell.key)
    assert found is not None and len(found) == len(shipped)
    ids = shipped.ids.tolist()
    np.testing.assert_equal(vars(found.select(ids[:2])), vars(own))
    np.testing.assert_equal(vars(found.select(ids[2:])), vars(shipped.select(ids[2:])))
    plain = Store(store.folder)
    assert load_outcome(plain, spec.baseline_key) is None, "a bundle was written into the folder"
    assert list(plain.keys("")) == []
    store.put(spec.key, {"spec": dataclasses.replace(spec, mode="progressive").to_dict(),
                         "saved": 1.0})  # fmt: skip
    assert sweep_keys(store) == [spec.key]
    assert load_spec(store, spec.key).mode == "progressive"


def test_a_small_sweep_of_ones_own_leaves_the_shipped_one_finished(store: DemoStore) -> None:
    """It has the same baseline and the same cells, on a few of the images."""
    spec, table = swept(store)
    few = spec.ids[:30]
    for key in (spec.baseline_key, *(spec.cell(g, 0.5).key for g in spec.summary.groups)):
        shipped = load_outcome(store, key)
        assert shipped is not None
        add_outcome(Store(store.folder), key, shipped.select(few))
    assert swept(store)[1] == table
    small = dataclasses.replace(spec, ids=few, ratios=(0.5,))
    rows = read_table(store, small)
    assert rows is not None and rows.finished and {row.n_images for row in rows.rows} == {30}


def test_of_another_engine_or_weights_nothing_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, weights = bundle_path(DEFAULT_MODEL), summary().weights_hash
    assert read_bundle(path, weights) is not None
    assert read_bundle(path, "other weights") is None
    monkeypatch.setattr(demo, "ENGINE_VERSION", -1)
    assert read_bundle(path, weights) is None
    assert shipped_bundles() == ()
    assert sweep_keys(DemoStore(tmp_path)) == []


def test_switched_off(store: DemoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(demo.SWITCH_ENV, "0")
    shipped_bundles.cache_clear()
    assert sweep_keys(store) == []
    assert Workspace(Subject(), store).archive() is None


def test_bundle_of_different_images_is_refused(tmp_path: Path) -> None:
    def outcome(*ids: str) -> Outcome:
        n = len(ids)
        zeros = np.zeros(n)
        return Outcome(ids=np.array(ids), labels=zeros.astype(int), predictions=zeros.astype(int),
                       kl=zeros, sops=zeros)  # fmt: skip

    with pytest.raises(ValueError, match="same images"):
        write_bundle(tmp_path / "b.npz", "w", {}, {"a": outcome("1", "2"), "b": outcome("1", "3")})


def test_shipped_baseline(store: DemoStore) -> None:
    weights = summary().weights_hash
    baseline = Measurement.from_dict(store.get(demo.baseline_key(weights)))
    assert baseline.weights_hash == weights and baseline.plan is None
    assert baseline.accuracy == swept(store)[1].baseline_accuracy
