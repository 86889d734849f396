"""Shipped results: reproducible, small, behind the user's own, and ignored if they do not fit."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from psvit_core.records import (
    DEFAULT_MODEL,
    Measurement,
    ModelSummary,
    SensitivityTable,
    Subject,
    sweep_recovery,
)
from psvit_core.sensitivity.spec import SweepSpec, load_spec, read_table, row_of, sweep_keys
from psvit_core.storage import shipped
from psvit_core.storage.predictions import Outcome, add_outcome, load_outcome, save_outcome
from psvit_core.storage.shipped import (
    DemoStore,
    bundle_path,
    read_bundle,
    shipped_bundles,
    write_bundle,
)
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.tasks.unpruned import shipped_measurement_key
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import shipped_summary

LARGEST = {"sdt_v1_digits": 1_500_000, "sdt_v1_cifar10": 15_000_000}  # bytes of all bundles
CIFAR = "sdt_v1_cifar10"


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(shipped.SWITCH_ENV, "1")
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


def swept(
    store: Store, recovery: str = "none", model: str = DEFAULT_MODEL
) -> tuple[SweepSpec, SensitivityTable]:
    specs = [load_spec(store, key) for key in sweep_keys(store)]
    specs = [spec for spec in specs if spec.summary.model == model]
    (spec,) = [spec for spec in specs if spec.conditions.recovery == recovery]
    table = read_table(store, spec)
    assert table is not None
    return spec, table


def test_bundles_are_small_and_complete(store: DemoStore) -> None:
    for model, most in LARGEST.items():
        files = shipped.FOLDER.glob(f"{model}*.npz")
        assert 0 < sum(path.stat().st_size for path in files) < most
    assert {path.name.split(".")[0] for path in shipped.FOLDER.glob("*.npz")} == set(LARGEST)
    _, table = swept(store)
    assert table.finished
    assert (len(table.ratios), table.conditions.n_images) == (9, 750)
    assert table.summary.weights_hash == summary().weights_hash
    archive = Workspace(Subject(), store).archive()
    assert archive is not None and archive.knee() is not None
    policies = {way.policy for point in archive.points for way in point.made}
    assert policies == {"uniform", "psvit", "prime", "optimal"}
    assert all(point.value("peak") for point in archive.points)
    assert not any(point.value("latency") for point in archive.points)  # of another machine
    assert "latency_ms" in archive.to_csv()


def test_the_recovered_sweep_is_shipped_too(store: DemoStore) -> None:
    spec, table = swept(store, "lsq")
    plain_spec, plain = swept(store)
    assert table.finished
    assert (table.ratios, table.summary, len(table.rows)) == (
        plain.ratios,
        plain.summary,
        len(plain.rows),
    )
    assert spec.ids == plain_spec.ids
    assert table.baseline_accuracy == plain.baseline_accuracy
    assert sum(row.kl for row in table.rows) < 0.6 * sum(row.kl for row in plain.rows)
    for recovery, expected in (("none", plain_spec), ("auto", spec)):
        assert Workspace(Subject(recovery=recovery), store).sweep_key() == expected.key


@pytest.mark.parametrize("recovery", ["none", "auto"])
@pytest.mark.parametrize("data", [None, "cifar10-jpeg:/somewhere"])
def test_the_cifar_demo_opens_without_its_pictures(
    store: DemoStore, recovery: str, data: str | None
) -> None:
    subject = Subject(model=CIFAR, recovery=recovery, data=data)
    workspace = Workspace(subject, store)
    spec, table = swept(store, sweep_recovery(recovery), CIFAR)
    assert workspace.sweep_key() == spec.key
    assert table.finished
    assert (table.conditions.data, table.conditions.n_images) == ("cifar10-jpeg", 5000)
    assert 0.80 < table.baseline_accuracy.value < 0.83
    archive = workspace.archive()
    assert archive is not None and archive.data == "cifar10-jpeg"
    policies = {way.policy for point in archive.points for way in point.made}
    assert policies == {"uniform", "psvit", "prime", "optimal"}
    assert all(p.measurement.conditions.recovery == recovery for p in archive.points)
    text = json.dumps([bundle.entries for bundle in shipped_bundles()])
    assert "cifar10-jpeg:" not in text  # no path of the machine that measured


def test_results_on_the_original_pixels_stand_beside_the_shipped_ones(store: DemoStore) -> None:
    workspace = Workspace(Subject(model=CIFAR, data="cifar10:/somewhere"), store)
    assert workspace.archive() is None
    assert workspace.sweep_key() is None


@pytest.mark.slow
def test_random_cells_and_a_plan_are_reproducible(store: DemoStore, tmp_path: Path) -> None:
    """Three cells and one plan, computed again in an empty store.

    On another processor float32 sums may have another order and flip a spike, so a few images may
    differ.
    """
    from psvit_core.sensitivity.sweep import run_spec
    from psvit_core.tasks.evaluate import evaluate

    spec, table = swept(store)
    dice = random.Random(2026)
    ratio, groups = dice.choice(spec.ratios), dice.sample(spec.summary.groups, 3)
    some = dataclasses.replace(
        spec, ratios=(ratio,), summary=dataclasses.replace(spec.summary, groups=tuple(groups))
    )
    bare = Store(tmp_path / "bare")
    session = Session(Subject(), bare)
    run_spec(some, session.model, session.data, run=session.run, store=bare)
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
        stored = table.cells[cell.group.group_id, ratio]
        assert (row.n_pruned, row.size) == (stored.n_pruned, stored.size)
        assert row.drop.value == pytest.approx(stored.drop.value, abs=0.5)

    archive = Workspace(Subject(), store).archive()
    assert archive is not None
    point = dice.choice(archive.points)
    measured, known = evaluate(session, point.plan), point.measurement
    assert measured.accuracy.value == pytest.approx(known.accuracy.value, abs=0.005)
    assert measured.size == known.size
    assert measured.sops == pytest.approx(known.sops, rel=1e-3)
    bare.close()


def test_stored_results_come_before_shipped_ones(store: DemoStore) -> None:
    spec, _ = swept(store)
    cell = next(spec.cells())
    shipped = load_outcome(store, cell.key)
    assert shipped is not None
    own = Outcome(
        ids=shipped.ids[:2],
        labels=shipped.labels[:2],
        predictions=shipped.labels[:2],
        kl=np.zeros(2),
        sops=np.ones(2),
    )
    save_outcome(store, cell.key, own)
    found = load_outcome(store, cell.key)
    assert found is not None and len(found) == len(shipped)
    ids = shipped.ids.tolist()
    np.testing.assert_equal(vars(found.select(ids[:2])), vars(own))
    np.testing.assert_equal(vars(found.select(ids[2:])), vars(shipped.select(ids[2:])))
    plain = Store(store.folder)
    assert load_outcome(plain, spec.baseline_key) is None, "a bundle was written into the folder"
    assert list(plain.keys("")) == []
    store.put(
        spec.key, {"spec": dataclasses.replace(spec, mode="progressive").to_dict(), "saved": 1.0}
    )
    assert sweep_keys(store)[0] == spec.key
    assert load_spec(store, spec.key).mode == "progressive"


def test_a_small_stored_sweep_leaves_the_shipped_one_finished(store: DemoStore) -> None:
    """The stored sweep has the same baseline and cells, on some of the images."""
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


def test_bundles_of_other_versions_or_weights_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, weights = bundle_path(DEFAULT_MODEL), summary().weights_hash
    assert read_bundle(path, weights) is not None
    assert read_bundle(path, "other weights") is None
    monkeypatch.setattr(shipped, "ENGINE_VERSION", -1)
    assert read_bundle(path, weights) is None
    assert shipped_bundles() == ()
    assert sweep_keys(DemoStore(tmp_path)) == []


def test_switched_off(store: DemoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shipped.SWITCH_ENV, "0")
    shipped_bundles.cache_clear()
    assert sweep_keys(store) == []
    assert Workspace(Subject(), store).archive() is None


def test_bundle_of_different_images_is_refused(tmp_path: Path) -> None:
    def outcome(*ids: str) -> Outcome:
        n = len(ids)
        zeros = np.zeros(n)
        return Outcome(
            ids=np.array(ids),
            labels=zeros.astype(int),
            predictions=zeros.astype(int),
            kl=zeros,
            sops=zeros,
        )

    with pytest.raises(ValueError, match="same images"):
        write_bundle(tmp_path / "b.npz", "w", {}, {"a": outcome("1", "2"), "b": outcome("1", "3")})


def test_shipped_baseline(store: DemoStore) -> None:
    weights = summary().weights_hash
    baseline = Measurement.from_dict(store.get(shipped_measurement_key(weights)))
    assert baseline.weights_hash == weights and baseline.plan is None
    assert baseline.accuracy == swept(store)[1].baseline_accuracy
