"""Sweeps are read while a worker writes them; no result is missed in any order of reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from psvit_core.sensitivity.spec import read_table, save_spec
from psvit_core.storage.predictions import Outcome, load_outcome, save_outcome
from psvit_core.storage.store import Store
from tests.ui.example import put_sweep, summary
from ui.model import loaders, sweeps

MODEL = summary()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def first(outcome: Outcome, n: int) -> Outcome:
    return outcome.select(outcome.ids.tolist()[:n])


def test_a_cell_may_be_ahead_of_the_baseline(store: Store) -> None:
    spec = put_sweep(store, MODEL, (0.5,), n_images=40)
    complete = load_outcome(store, spec.baseline_key)
    assert complete is not None
    save_outcome(store, spec.baseline_key, first(complete, 16))
    view = sweeps.sweep_view(store, spec.key)
    assert {row.n_images for row in view.rows} == {16}
    assert not view.complete
    table = read_table(store, spec)
    assert table is not None and {row.n_images for row in table.rows} == {16}

    save_outcome(store, spec.baseline_key, complete)
    view = sweeps.sweep_view(store, spec.key)
    assert {row.n_images for row in view.rows} == {40}
    assert view.complete
    assert view.rows == read_table(store, spec).rows  # type: ignore[union-attr]
    assert sweeps.sweep_view(store, spec.key) is view  # final, so it is not read again


def test_the_table_of_a_view_is_the_engine_s(store: Store) -> None:
    spec = dataclasses.replace(put_sweep(store, MODEL, (0.5,), n_images=16), seed=3)
    save_spec(store, spec)
    table = sweeps.sweep_view(store, spec.key).table
    assert table is not None and table.seed == 3
    assert table == read_table(store, spec)
