"""Sweeps are read while a worker writes them: whatever is read first, nothing is missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from psvit_core.outcomes import Outcome, load_outcome, save_outcome
from psvit_core.sensitivity.table import read_table
from psvit_core.store import Store
from tests.ui.example import put_sweep, summary
from ui import loaders, sweep_views

MODEL = summary()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def first(outcome: Outcome, n: int) -> Outcome:
    return outcome.select(outcome.ids.tolist()[:n])


def test_a_cell_may_be_ahead_of_the_baseline_that_was_read(store: Store) -> None:
    spec = put_sweep(store, MODEL, (0.5,), n_images=40)
    whole = load_outcome(store, spec.baseline_key)
    assert whole is not None
    save_outcome(store, spec.baseline_key, first(whole, 16))
    view = sweep_views.sweep_view(store, spec.key)
    assert {row.n_images for row in view.rows} == {16}
    assert not view.complete
    table = read_table(store, spec)
    assert table is not None and {row.n_images for row in table.rows} == {16}

    save_outcome(store, spec.baseline_key, whole)
    view = sweep_views.sweep_view(store, spec.key)
    assert {row.n_images for row in view.rows} == {40}
    assert view.complete
    assert view.rows == read_table(store, spec).rows  # type: ignore[union-attr]
    assert sweep_views.sweep_view(store, spec.key) is view  # read no more
