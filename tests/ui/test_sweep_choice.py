"""Of several sweeps the pages use the best or the chosen one, never silently the newest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from psvit_core.records import counting_of
from psvit_core.sensitivity.spec import save_spec
from psvit_core.storage.store import Store
from tests.patience import PATIENCE
from tests.ui.example import RATIOS, put_sweep, summary
from ui.model import loaders, sweeps
from ui.model.sweeps import SweepView

MODEL = summary("sdt_v1_digits")
ROOT = Path(__file__).parents[2]
NINE = tuple(n / 10 for n in range(1, 10))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Store:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    st.session_state.clear()
    return Store(tmp_path)


def views(store: Store) -> list[SweepView]:
    return sweeps.list_sweeps(store, MODEL)


def test_a_quick_sweep_does_not_replace_a_better_one(store: Store) -> None:
    full = put_sweep(store, MODEL, NINE, n_images=100)
    assert sweeps.best_sweep(views(store)).key == full.key  # type: ignore[union-attr]
    put_sweep(store, MODEL, NINE, n_images=40)
    put_sweep(store, MODEL, (0.25, 0.5, 0.75), n_images=100)
    put_sweep(store, MODEL, RATIOS, n_images=200, only=[MODEL.groups[0].group_id])  # unfinished
    found = views(store)
    assert found[0].key != full.key
    assert sweeps.best_sweep(found).key == full.key  # type: ignore[union-attr]
    larger = put_sweep(store, MODEL, RATIOS, n_images=120)
    assert sweeps.best_sweep(views(store)).key == larger.key  # type: ignore[union-attr]


def test_the_random_control_is_the_last_resort(store: Store) -> None:
    spec = put_sweep(store, MODEL, RATIOS, n_images=40)
    (few,) = views(store)
    control = dataclasses.replace(
        few,
        key="sweep/x",
        criterion="random",
        ratios=NINE,
        rows=few.rows * 3,
        conditions=dataclasses.replace(spec.conditions, n_images=400),
    )
    assert control.complete
    assert sweeps.best_sweep([control, few]) is few
    assert sweeps.best_sweep([control]) is control
    assert sweeps.best_sweep([]) is None
    other = dataclasses.replace(
        few,
        key="sweep/y",
        ratios=NINE,
        rows=few.rows * 3,
        conditions=dataclasses.replace(spec.conditions, data="npz:/a.npz", n_images=400),
    )
    assert sweeps.best_sweep([other, few]) is other
    assert sweeps.best_sweep([other, few], "digits") is few
    assert sweeps.best_sweep([other, few], "npz") is other


def test_the_choice_applies_to_all_pages(store: Store) -> None:
    full = put_sweep(store, MODEL, NINE)
    quick = put_sweep(store, MODEL, (0.25, 0.5, 0.75))
    st.session_state["sweep-chosen"] = quick.key
    assert sweeps.current_sweep(views(store)).key == quick.key  # type: ignore[union-attr]
    sweeps.forget_choice()
    assert sweeps.current_sweep(views(store)).key == full.key  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("tune", "Heat and predictions"),
        pytest.param("overview", "Predictions", marks=pytest.mark.slow),
    ],
)
def test_pages_name_the_sweep_they_use(store: Store, page: str, what: str) -> None:
    put_sweep(store, MODEL, NINE, n_images=50)
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=PATIENCE)
    app.run()
    assert not app.exception
    line = "l2 · 9 ratios · 50 images"
    assert f"{what}: {line}" in [caption.value for caption in app.caption]
    quick = put_sweep(store, MODEL, RATIOS, n_images=20)
    app.run()
    choice = app.selectbox(key=f"{page}-sweep")
    assert choice.label == what
    assert len(choice.options) == 2 and line in choice.options
    assert choice.value != quick.key
    choice.select(quick.key).run()
    assert app.session_state["sweep-chosen"] == quick.key
    assert app.selectbox(key=f"{page}-sweep").value == quick.key


def test_the_sensitivity_page_names_the_sweep_of_the_others(store: Store) -> None:
    full = put_sweep(store, MODEL, NINE, n_images=50)
    quick = put_sweep(store, MODEL, RATIOS, n_images=50)
    app = AppTest.from_file(str(ROOT / "pages" / "sensitivity.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    shown = app.selectbox(key="view-sweep")
    assert shown.value == quick.key  # the newest, to show the sweep just finished
    others = "The other pages use l2 · 9 ratios · 50 images"
    assert any(caption.value.startswith(others) for caption in app.caption)
    shown.select(full.key).run()
    assert app.session_state["sweep-chosen"] == full.key
    assert not any(caption.value.startswith(others) for caption in app.caption)


def test_plans_of_random_units_show_a_warning(store: Store) -> None:
    put_sweep(store, MODEL, RATIOS, n_images=20, criterion="random")
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    assert any("random units" in warning.value for warning in app.warning)


def test_sweeps_counted_by_an_older_rule_are_marked(store: Store) -> None:
    """Before, attention of Meta-SpikeFormer was counted in another order."""
    model = summary("meta_spikeformer_digits")
    older = put_sweep(store, model, RATIOS, n_images=40)
    assert sweeps.list_sweeps(store, model) == []
    assert sweeps.count_older_sweeps(store, model) == 1
    now = dataclasses.replace(older.conditions, counting=counting_of(model.family))
    newer = dataclasses.replace(older, conditions=now)
    assert newer.key != older.key
    save_spec(store, newer)
    (view,) = sweeps.list_sweeps(store, model)
    assert view.key == newer.key
    assert sweeps.count_older_sweeps(store, model) == 1
    assert sweeps.count_older_sweeps(store, MODEL) == 0
