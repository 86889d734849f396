"""Which of several sweeps decides: never silently the newest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from psvit_core.store import Store
from tests.ui.example import RATIOS, put_sweep, summary
from ui import loaders, sweep_choice, sweep_views
from ui.sweep_views import SweepView

MODEL = summary("sdt_v1_digits")
ROOT = Path(__file__).parents[2]
NINE = tuple(n / 10 for n in range(1, 10))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    st.session_state.clear()
    return Store(tmp_path)


def views(store: Store) -> list[SweepView]:
    return sweep_views.sweeps(store, MODEL)


def test_a_quick_sweep_displaces_no_better_one(store: Store) -> None:
    full = put_sweep(store, MODEL, NINE, n_images=100)
    assert sweep_choice.best(views(store)).key == full.key  # type: ignore[union-attr]
    put_sweep(store, MODEL, NINE, n_images=40)
    put_sweep(store, MODEL, (0.25, 0.5, 0.75), n_images=100)
    put_sweep(store, MODEL, RATIOS, n_images=200, only=[MODEL.groups[0].group_id])  # unfinished
    found = views(store)
    assert found[0].key != full.key
    assert sweep_choice.best(found).key == full.key  # type: ignore[union-attr]
    larger = put_sweep(store, MODEL, RATIOS, n_images=120)
    assert sweep_choice.best(views(store)).key == larger.key  # type: ignore[union-attr]


def test_the_random_control_only_where_there_is_no_other(store: Store) -> None:
    spec = put_sweep(store, MODEL, RATIOS, n_images=40)
    (few,) = views(store)
    control = dataclasses.replace(
        few, key="sweep/x", criterion="random", ratios=NINE,
        rows=few.rows * 3, conditions=dataclasses.replace(spec.conditions, n_images=400),
    )  # fmt: skip
    assert control.complete
    assert sweep_choice.best([control, few]) is few
    assert sweep_choice.best([control]) is control
    assert sweep_choice.best([]) is None
    other = dataclasses.replace(
        few, key="sweep/y", ratios=NINE, rows=few.rows * 3,
        conditions=dataclasses.replace(spec.conditions, data="npz:/a.npz", n_images=400),
    )  # fmt: skip
    assert sweep_choice.best([other, few]) is other
    assert sweep_choice.best([other, few], "digits") is few
    assert sweep_choice.best([other, few], "npz") is other


def test_the_choice_of_the_session_holds_everywhere(store: Store) -> None:
    full = put_sweep(store, MODEL, NINE)
    quick = put_sweep(store, MODEL, (0.25, 0.5, 0.75))
    st.session_state["sweep-chosen"] = quick.key
    assert sweep_choice.current(views(store)).key == quick.key  # type: ignore[union-attr]
    sweep_choice.forget()
    assert sweep_choice.current(views(store)).key == full.key  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("page", "what"), [("tune", "Heat and predictions"), ("overview", "Predictions")]
)
def test_pages_name_the_sweep_that_they_use(store: Store, page: str, what: str) -> None:
    put_sweep(store, MODEL, NINE, n_images=50)
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=60)
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


def test_the_sensitivity_page_says_what_others_use(store: Store) -> None:
    full = put_sweep(store, MODEL, NINE, n_images=50)
    quick = put_sweep(store, MODEL, RATIOS, n_images=50)
    app = AppTest.from_file(str(ROOT / "pages" / "sensitivity.py"), default_timeout=60).run()
    assert not app.exception
    shown = app.selectbox(key="view-sweep")
    assert shown.value == quick.key  # the newest, to see what a sweep just found
    others = "The other pages use l2 · 9 ratios · 50 images"
    assert any(caption.value.startswith(others) for caption in app.caption)
    shown.select(full.key).run()
    assert app.session_state["sweep-chosen"] == full.key
    assert not any(caption.value.startswith(others) for caption in app.caption)


def test_random_units_are_warned_of(store: Store) -> None:
    put_sweep(store, MODEL, RATIOS, n_images=20, criterion="random")
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=60).run()
    assert not app.exception
    assert any("random units" in warning.value for warning in app.warning)
