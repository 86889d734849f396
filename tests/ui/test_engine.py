"""The choice of where jobs run, on the Jobs page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from psvit_core.cluster.settings import EngineSettings
from psvit_core.jobs.engines import choose_engine, engine_of_jobs
from psvit_core.storage.store import Store
from tests.ui.example import opened
from ui.model import loaders
from ui.panels import engine


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    for name in ("PSVIT_ENGINE", "PSVIT_ROOTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def jobs_page() -> AppTest:
    page = opened("jobs")
    assert not page.exception
    return page


def texts(page: AppTest) -> str:
    return "\n".join(part.value for part in [*page.markdown, *page.info, *page.warning])


def test_a_cluster_is_chosen_and_given_up(store: Store) -> None:
    page = jobs_page()
    assert "start now run on **this machine**" in texts(page)
    page.button_group(key="engine-name").set_value("ray").run()
    page.text_input(key="engine-address").set_value(" head:6379 ").run()
    page.number_input(key="engine-gpus").set_value(0.5).run()
    page.button(key="engine-use").click().run()
    assert not page.exception
    assert engine_of_jobs(store) == EngineSettings(name="ray", address="head:6379", gpus=0.5)
    assert page.success[0].value == "Jobs that start now run on the Ray cluster head:6379."
    assert "start now run on **the Ray cluster head:6379**" in texts(page)
    page.button_group(key="engine-name").set_value("local").run()
    page.button(key="engine-use").click().run()
    assert engine_of_jobs(store) == EngineSettings()


def test_an_impossible_choice_is_explained(store: Store) -> None:
    page = jobs_page()
    page.button_group(key="engine-name").set_value("ray").run()
    page.number_input(key="engine-gpus").set_value(1.5).run()
    page.button(key="engine-use").click().run()
    assert not page.exception and "a fraction of a GPU up to 1" in page.error[0].value
    assert engine_of_jobs(store) == EngineSettings()


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("PSVIT_ENGINE", "local", "when the app was started"),
        ("PSVIT_ROOTS", "/srv", "only the person who runs it can choose"),
    ],
)
def test_who_may_not_choose_is_told(
    variable: str, value: str, why: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_engine(store, EngineSettings(name="ray"))
    monkeypatch.setenv(variable, value)
    page = jobs_page()
    assert why in texts(page) and "engine-use" not in [button.key for button in page.button]


def test_without_ray_the_way_to_it_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_engine(store, EngineSettings(name="ray"))
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    page = jobs_page()
    assert "pip install 'psvit-explorer[cluster]'" in texts(page)
    page.button(key="engine-use").click().run()  # the way back
    assert engine_of_jobs(store) == EngineSettings()


def test_a_damaged_choice_is_a_warning(store: Store) -> None:
    store.put("settings/engine", {"name": "spark"})
    page = jobs_page()
    assert "Choose again" in page.warning[0].value
    page.button(key="engine-use").click().run()
    assert engine_of_jobs(store) == EngineSettings()
