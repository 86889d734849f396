"""A click acts on what the page shows then, even if another choice came with it.

A quick user chooses a file and presses a button before the page has answered. Streamlit then runs
the script once for both, and callbacks get the values of the run before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.records.jobs import InspectRequest
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import WEIGHTS, shipped_summary
from tests.patience import PATIENCE
from ui.model import drafts, loaders, saved_plans

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "ui" / "shell" / "main.py"
MODEL = "sdt_v1_digits"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[None]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    loaders.open_store.clear()
    yield
    loaders.open_store.clear()


def counting_page() -> None:
    """Draw a button that notes what was chosen; its first run may be interrupted."""
    import streamlit as st

    from ui.model import state
    from ui.panels.widgets import action_button

    state.run_postponed()
    chosen = st.selectbox("Chosen", ["a", "b"], key="chosen")
    if st.session_state.pop("interrupted", False):
        st.stop()
    hidden = st.checkbox("Hidden", key="hidden")
    if not hidden:
        taken = st.session_state.setdefault("taken", [])
        action_button("Take", taken.append, chosen, key="take", disabled=chosen == "c")
    state.forget_click()


def page() -> AppTest:
    return AppTest.from_function(counting_page, default_timeout=PATIENCE).run()


def test_a_click_takes_the_choice_that_came_with_it() -> None:
    app = page()
    app.selectbox(key="chosen").set_value("b")
    app.button(key="take").click()
    app.run()
    assert app.session_state["taken"] == ["b"]
    app.run()
    assert app.session_state["taken"] == ["b"]  # once


def test_a_click_survives_an_interrupted_run() -> None:
    app = page()
    app.session_state["interrupted"] = True
    app.button(key="take").click().run()
    assert app.session_state["taken"] == []
    app.run()
    assert app.session_state["taken"] == ["a"]


def test_a_click_on_a_button_that_is_gone_does_nothing() -> None:
    app = page()
    app.checkbox(key="hidden").check()
    app.button(key="take").click()
    app.run()
    app.checkbox(key="hidden").uncheck().run()
    assert app.session_state["taken"] == []


def opened(**values: object) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=PATIENCE)
    for key, value in values.items():
        app.session_state[key.replace("_", "-")] = value
    return app.run()


def test_inspect_reads_the_file_that_was_just_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(WEIGHTS / f"{MODEL}.safetensors", folder / "a.safetensors")
    torch.save({"a": torch.zeros(1)}, folder / "b.pth")
    app = opened(models_source="folder", models_folder=str(folder))
    app.switch_page(str(ROOT / "pages" / "open.py")).run()
    (files,) = [box for box in app.selectbox if "model files" in box.label]
    files.set_value(str(folder / "b.pth"))
    app.button(key="open-folder-look").click()
    app.run()
    assert not app.exception
    requests = [job.request for job in client.list_jobs(Store())]
    read = [Path(r.path).name for r in requests if isinstance(r, InspectRequest)]
    assert read == ["b.pth"]
    (files,) = [box for box in app.selectbox if "model files" in box.label]
    assert files.value == str(folder / "b.pth")


def test_delete_spares_the_plan_that_was_just_chosen() -> None:
    store, model = Store(), shipped_summary(MODEL)
    assert model is not None
    empty = drafts.empty_draft(model)
    first, second = model.groups[:2]
    plans = []
    for name, group in (("One", first), ("Two", second)):
        draft = drafts.with_ratio(empty, model, group.group_id, 0.5, next(iter(model.rankings)))
        plans.append(saved_plans.save_plan(store, model, draft.plan, name))
    one, two = plans
    app = opened()
    app.switch_page(str(ROOT / "pages" / "compare.py")).run()
    (delete,) = [b for b in app.button if b.label == "Delete"]
    shown, other = (one, two) if (delete.key or "").endswith(one.id) else (two, one)
    (box,) = [b for b in app.selectbox if b.value == shown.id]
    box.set_value(other.id)
    delete.click()
    app.run()
    assert not app.exception
    assert len(saved_plans.list_plans(store, model)) == 2  # the screen showed the other plan
    (delete,) = [b for b in app.button if b.label == "Delete"]
    delete.click().run()
    assert [plan.id for plan in saved_plans.list_plans(store, model)] == [shown.id]


def test_check_reads_the_images_that_were_just_named(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    app = opened(data_choice_kind="folder")
    app.switch_page(str(ROOT / "pages" / "open.py")).run()
    place = app.text_input(key="data-choice-place-folder")
    place.set_value(str(folders[0])).run()
    app.text_input(key="data-choice-place-folder").set_value(str(folders[1]))
    app.button(key="data-choice-check").click()
    app.run()
    assert not app.exception
    (job,) = [job for job in client.list_jobs(Store()) if job.task == "check_data"]
    assert job.subject is not None and job.subject.data == f"folder:{folders[1]}"
