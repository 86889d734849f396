"""A link alone reads no file: the user is asked first. Bad names in it are refused as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from psvit_core.errors import RecordError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import Subject
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import list_models, model_card
from tests.patience import PATIENCE
from tests.ui.example import opened, put_sweep, summary
from ui.model import drafts, loaders, open_files, state

ROOT = Path(__file__).parents[2]
NO_WEIGHTS = next(name for name in list_models() if model_card(name).weights is None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    """Return a store in which no worker starts."""
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "store"))
    loaders.open_store.clear()
    yield Store()
    loaders.open_store.clear()


def weights(tmp_path: Path) -> str:
    path = tmp_path / "some.safetensors"
    save_file({"a": np.zeros(1)}, path)
    return str(path)


def requests(store: Store) -> list[str]:
    return [job.task for job in client.list_jobs(store)] + [*store.keys("warm-up/")]


@pytest.mark.parametrize("field", ["file", "checkpoint"])
def test_a_file_in_a_link_is_read_when_asked(field: str, store: Store, tmp_path: Path) -> None:
    path = weights(tmp_path)
    titles = loaders.model_titles(store)
    model = titles[loaders.OPEN_FILE if field == "file" else NO_WEIGHTS]
    app = opened(**{"model": model, field: path})
    assert not app.exception
    assert [button.label for button in app.button if button.key == "consent"] == ["Read this file"]
    assert any(path in info.value for info in app.info)
    assert requests(store) == []
    app.button(key="consent").click().run()
    assert not app.exception and requests(store) == ["summary"]


def test_a_typed_file_is_read_at_once(store: Store, tmp_path: Path) -> None:
    app = opened(model=loaders.model_titles(store)[loaders.OPEN_FILE])
    app.text_input(key=state.FILE).set_value(weights(tmp_path)).run()
    assert not app.exception and requests(store) == ["summary"]


@pytest.mark.parametrize("known", [False, True])
def test_images_in_a_link_are_not_prepared(
    known: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PSVIT_WARM", raising=False)
    monkeypatch.setenv("PSVIT_DRAG", "1")
    model = summary("sdt_v1_digits")
    put_sweep(store, model)
    draft = drafts.with_ratio(drafts.empty_draft(model), model, model.groups[0].group_id, 0.5, "l2")
    drafts.save_draft(store, model, draft)
    if known:  # a job used them before, so that a reload asks nothing
        used = Subject(model=model.model, data="npz:/x.npz").to_dict()
        client.save(store, Job(id="a", task="check_data", title="", params={"subject": used}))
    before = len(requests(store))
    app = opened("tune", data="npz:/x.npz")
    assert not app.exception
    assert (len(requests(store)) > before) == known
    assert any("come from a link" in caption.value for caption in app.caption) != known


# ---- names that are no names ---------------------------------------------------------------------


@pytest.mark.parametrize("field", ["file", "checkpoint", "data", "entry", "arguments"])
@pytest.mark.parametrize("value", ["a" * 5000, "/" + "a/" * 2500, "a\0b"])
@pytest.mark.parametrize("page", ["", "open"])
def test_bad_names_in_a_link(field: str, value: str, page: str, store: Store) -> None:
    titles = loaders.model_titles(store)
    value = f"folder:{value}" if field == "data" else value
    model = {"file": loaders.OPEN_FILE, "checkpoint": NO_WEIGHTS}.get(field, "sdt_v1_digits")
    app = opened(page, **{"model": titles[model], field: value})
    assert not app.exception
    assert not any("Something went wrong" in error.value for error in app.error)


def test_long_names_of_uploads_and_folders(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb+") as content:
        path = open_files.save_upload(store, "x" * 300 + ".pth", content)
        assert open_files.save_upload(store, "\u00e9" * 300 + ".pth", content) != path
    assert path.is_file() and path.suffix == ".pth"
    app = AppTest.from_file(str(ROOT / "pages" / "open.py"), default_timeout=PATIENCE)
    app.session_state["models-source"] = "folder"
    app.session_state["models-folder"] = "a" * 5000
    app.run()
    assert not app.exception and len(app.error) == 1


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_nested_plan_files(text: str | bytes) -> None:
    with pytest.raises(RecordError, match="not a JSON document"):
        drafts.read_plan(summary("sdt_v1_digits"), text)
