"""The pages without a browser: empty states open without error; nothing of the UI loads torch."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import Subject
from psvit_core.size import memory_saving
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.checkpoint import METADATA_KEY
from tests.ui.example import put_sweep, summary
from ui import drafts, kept, loaders, opening, origins
from ui.panels_job import progress_text, waits_for
from ui.panels_tune import DEFAULT_SAVING

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield
    loaders.open_store.clear()


@pytest.mark.parametrize("page", PAGES)
def test_empty_state(page: str) -> None:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=30).run()
    assert not app.exception
    assert not app.error


def test_main_shows_the_overview() -> None:
    app = AppTest.from_file(str(ROOT / "ui" / "main.py"), default_timeout=30).run()
    assert not app.exception
    assert app.selectbox(key="model").value == "sdt_v1_digits"
    assert any("Nothing was measured of this model yet" in info.value for info in app.info)


def test_tune_fits_nothing_without_a_sweep() -> None:
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=30).run()
    assert app.button(key="tune-fit").disabled
    assert app.button(key="tune-undo").disabled
    assert any("need a finished sweep" in info.value for info in app.info)


def test_tune_fits_a_plan_and_takes_it_back() -> None:
    model = summary("sdt_v1_digits")
    put_sweep(Store(), model)
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=30).run()
    app.button(key="tune-fit").click().run()
    assert not app.exception and not app.error
    draft = drafts.load_draft(Store(), model)
    assert draft is not None and memory_saving(model, draft.plan) >= DEFAULT_SAVING
    app.button(key="tune-undo").click().run()
    assert drafts.load_draft(Store(), model) == drafts.empty_draft(model)
    app.button(key="tune-redo").click().run()
    assert drafts.load_draft(Store(), model) == draft


def test_a_second_tab_does_not_lose_the_plan_of_the_first() -> None:
    model = summary("sdt_v1_digits")
    put_sweep(Store(), model)
    page = str(ROOT / "pages" / "tune.py")
    one, two = (AppTest.from_file(page, default_timeout=30).run() for _ in range(2))
    one.button(key="tune-fit").click().run()
    first = drafts.load_draft(Store(), model)
    assert first is not None and not one.toast
    two.number_input(key=f"tune-percent/{model.weights_hash[:8]}").set_value(60.0).run()
    two.button(key="tune-fit").click().run()
    assert not two.exception and not two.error
    now = drafts.load_draft(Store(), model)
    assert now is not None and now != first
    (saved,) = kept.kept_plans(Store(), model)
    assert (saved.name, saved.plan) == ("From another tab", first.plan)
    assert ["From another tab" in toast.value for toast in two.toast] == [True]
    two.button(key="tune-undo").click().run()  # nothing of another tab since
    assert len(kept.kept_plans(Store(), model)) == 1 and not two.toast


def test_uploads_of_one_name_are_files_of_their_own() -> None:
    store = Store()
    first = opening.keep_upload(store, "same.safetensors", io.BytesIO(b"first"))
    app = AppTest.from_file(str(ROOT / "pages" / "open.py"), default_timeout=30)
    app.session_state["models-source"] = "upload"
    app.run()
    assert [box.value for box in app.selectbox if "model file" in box.label] == [str(first)]
    second = opening.keep_upload(store, "same.safetensors", io.BytesIO(b"second"))
    assert (first.name, second.name) == ("same.safetensors", "same-2.safetensors")
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    app.session_state["open-upload-kept"] = str(second)  # as the uploader's callback does
    app.run()
    assert not app.exception
    assert [box.value for box in app.selectbox if "model file" in box.label] == [str(second)]


def test_uploads_are_listed_and_removed() -> None:
    file = opening.keep_upload(Store(), "own.pth", io.BytesIO(b"12345"))
    app = AppTest.from_file(str(ROOT / "pages" / "jobs.py"), default_timeout=30).run()
    assert any("own.pth" in text.value and "5 bytes" in text.value for text in app.markdown)
    next(button for button in app.button if button.label == "Remove the file").click().run()
    assert not app.exception and not file.exists()
    assert [message.value for message in app.success] == ["own.pth is removed."]
    assert not any("own.pth" in text.value for text in app.markdown)


def test_a_waiting_job_tells_what_it_waits_for() -> None:
    store, pid = Store(), os.getpid()
    one = client.Job(id="one", task="sweep", title="Sweep of all", params={}, created=1.0)
    two = client.Job(id="two", task="plan", title="Plan", params={}, created=2.0)
    client.save(store, two)
    assert waits_for(store, two) == ""
    assert "waiting for the worker to start" in progress_text(two, "Planning")
    running: dict[str, Any] = {
        "state": "running",
        "pid": pid,
        "pid_started": client.process_started(pid),
    }
    client.save(store, dataclasses.replace(one, **running))
    line = progress_text(two, "Planning", before=waits_for(store, two))
    assert line == "Planning waits for: Sweep of all"
    client.save(store, dataclasses.replace(one, **running, device="cuda:0"))
    assert waits_for(store, two) == ""  # another device's worker


def test_a_pruned_file_has_the_images_of_the_model_it_came_from(tmp_path: Path) -> None:
    header = {METADATA_KEY: json.dumps({"provenance": {"origin": "sdt_v1_digits"}})}
    pruned, foreign = str(tmp_path / "pruned.safetensors"), str(tmp_path / "foreign.safetensors")
    save_file({"a": np.zeros(1)}, pruned, metadata=header)
    save_file({"a": np.zeros(1)}, foreign)
    card = origins.source_card(pruned)
    assert card is not None and card.name == "sdt_v1_digits"
    workspaces = [Workspace(Subject(model=name), Store()) for name in (pruned, foreign)]
    assert [opening.data_of(workspace) for workspace in workspaces] == ["digits", ""]
    n_images = [loaders.n_val_images(workspace) for workspace in workspaces]
    assert n_images == [card.training["val_images"], None]
    job = Job(id="j", task="measure", title="", params={"subject": workspaces[0].subject.to_dict()})
    assert loaders.job_images(job) == "digits · all images"
    for nothing in ("", str(tmp_path), str(tmp_path / "gone.safetensors"), "\0"):
        assert origins.source_card(nothing) is None


def test_no_torch_in_the_interface() -> None:
    program = (
        "import json, sys, app, ui.head, ui.panels_export, ui.panels_measure, ui.panels_sweep\n"
        "import ui.panels_tune_measure, ui.panels_jobs, ui.panels_open, ui.panels_overview\n"
        "heavy = {'torch', 'torchvision', 'spikingjelly', 'timm'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == []
