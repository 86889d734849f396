"""Typed paths of an app that others can reach stay below a few folders, and tell nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.records import Subject
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import list_models, model_card
from tests.patience import PATIENCE
from tests.ui.example import opened
from ui.model import loaders, open_files, roots, state
from ui.model.roots import OutsideError, check_path, check_spec

ROOT = Path(__file__).parents[2]
NO_WEIGHTS = next(name for name in list_models() if model_card(name).weights is None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    """Return a store in which no worker starts, of an app whose root is the folder ``open``."""
    (tmp_path / "open").mkdir()
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv("PSVIT_ROOTS", f"{tmp_path / 'open'}{os.pathsep}{tmp_path / 'images'}")
    loaders.open_store.clear()
    yield Store()
    loaders.open_store.clear()


def refusal(store: Store, path: str) -> str:
    with pytest.raises(OutsideError, match="is outside the folders") as error:
        check_path(store, path)
    return str(error.value).removeprefix(path[:80])


# ---- paths ---------------------------------------------------------------------------------------


def test_paths_outside_get_one_answer(store: Store, tmp_path: Path) -> None:
    (tmp_path / "open-too").mkdir()
    (tmp_path / "open" / "link").symlink_to("/etc")
    (tmp_path / "open" / "circle").symlink_to(tmp_path / "open" / "circle2")
    (tmp_path / "open" / "circle2").symlink_to(tmp_path / "open" / "circle")
    answers = {
        refusal(store, path)
        for path in (
            "/",
            "/etc/passwd",
            "/etc/no-such-file",
            "/etc/passwd/x",
            "/root/.ssh",
            "~/x",
            "~root",
            "~nobody_of_this_name",
            "relative.pth",
            "..",
            "a\0b",
            "/" + "a" * 5000,
            f"{tmp_path}/open/../x",
            f"{tmp_path}/open/link/passwd",
            f"{tmp_path}/open/link/no-such-file",
            f"{tmp_path}/open/link/../passwd",
            f"{tmp_path}/open-too",
            f"{tmp_path}/store/keys.db",
            f"{tmp_path}/store/arrays",
        )
    }
    assert len(answers) == 1
    assert "Choose a file there, or upload it" in answers.pop()


def test_paths_inside(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")  # a root may be a link
    inside = ("open", "open/x.pth", "open/a/../x", "images/y", "elsewhere/y", "store/uploads/z")
    for path in inside:
        check_path(store, tmp_path / path)
        check_spec(store, f"folder:{tmp_path / path}")
    for nothing in (None, "", "digits", "cifar10:"):
        check_spec(store, nothing)
    monkeypatch.setenv("HOME", str(tmp_path / "open"))
    check_path(store, "~/x.pth")
    with pytest.raises(OutsideError):
        check_spec(store, "npz:/x.npz")


def test_where_paths_are_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PSVIT_ROOTS")
    monkeypatch.setattr(roots, "_enforced", [])
    check_path(store, "/etc/passwd")
    monkeypatch.setenv("PSVIT_MODELS", "/models")
    monkeypatch.setenv("PSVIT_DATA", "/images")
    roots.enforce()  # as an app does that listens beyond this machine
    for path in ("/models/x.pth", "/images"):
        check_path(store, path)
    with pytest.raises(OutsideError):
        check_path(store, "/etc/passwd")


# ---- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["file", "checkpoint", "data"])
@pytest.mark.parametrize("page", ["", "open"])
def test_links_to_what_is_outside(field: str, page: str, store: Store, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    save_file({"a": np.zeros(1)}, there)
    titles = loaders.model_titles(store)
    model = {"file": loaders.OPEN_FILE, "checkpoint": NO_WEIGHTS}.get(field, "sdt_v1_digits")
    said = set()
    for path in (str(there), f"{tmp_path}/nobody.safetensors", "~nobody_of_this_name/x"):
        value = f"folder:{path}" if field == "data" else path
        app = opened(page, **{"model": titles[model], field: value})
        assert not app.exception and "consent" not in [button.key for button in app.button]
        (error,) = app.error
        said.add(re.sub(r"^.*? is outside", "", error.value))
    assert len(said) == 1 and client.list_jobs(store) == []


def test_typed_folders_and_images(store: Store, tmp_path: Path) -> None:
    (tmp_path / "open" / "x.pth").write_bytes(b"x")
    app = AppTest.from_file(str(ROOT / "pages" / "open.py"), default_timeout=PATIENCE)
    app.session_state["models-source"] = "folder"
    app.session_state["models-folder"] = str(tmp_path / "open")
    app.run()
    assert not app.exception and not app.error
    assert any("1 model file" in box.label for box in app.selectbox)
    for folder in ("/", "/no-such-folder", str(tmp_path), "", "~nobody_of_this_name"):
        app.text_input(key="models-folder").set_value(folder).run()
        assert not app.exception
        assert ["is outside the folders" in error.value for error in app.error] == [True]
    app.text_input(key="models-folder").set_value(str(tmp_path / "open")).run()
    app.session_state["data-choice-kind"] = "folder"
    app.run()
    (place,) = [box for box in app.text_input if "Image folder" in box.label]
    place.set_value("/etc").run()
    assert not app.exception and "/etc is outside the folders" in app.error[0].value
    (check,) = [button for button in app.button if button.label == "Check these images"]
    assert check.disabled and client.list_jobs(store) == []


def test_jobs_on_what_is_outside_do_not_start(store: Store) -> None:
    with pytest.raises(OutsideError):
        open_files.inspect_file(store, "/etc/passwd")
    with pytest.raises(OutsideError):
        open_files.check_data(Workspace(Subject(model="sdt_v1_digits"), store), "folder:/etc")
    assert client.list_jobs(store) == []


def test_a_typed_file_outside_is_not_read(store: Store, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    save_file({"a": np.zeros(1)}, there)
    app = opened(model=loaders.model_titles(store)[loaders.OPEN_FILE])
    app.text_input(key=state.FILE).set_value(str(there)).run()
    assert not app.exception and "is outside the folders" in app.error[0].value
    assert client.list_jobs(store) == []
    inside = tmp_path / "open" / "x.safetensors"
    save_file({"a": np.zeros(1)}, inside)
    app.text_input(key=state.FILE).set_value(str(inside)).run()
    assert not app.exception and [job.task for job in client.list_jobs(store)] == ["summary"]
