"""The pages without a browser: empty states, layers, and no torch in the interface."""

from __future__ import annotations

import ast
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

from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import Interval, Measurement, ModelSummary, Subject
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.header import METADATA_KEY
from tests import made
from tests.patience import JOB, PATIENCE
from tests.ui.example import put_sweep, summary
from ui.model import drafts, loaders, open_files, provenance, saved_plans
from ui.model.editing import DEFAULT_SAVING
from ui.panels.job import progress_text, running_title, task_text

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))


@pytest.fixture(autouse=True)
def empty_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None
) -> Iterator[None]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield
    loaders.open_store.clear()


@pytest.mark.parametrize("page", PAGES)
def test_empty_state(page: str) -> None:
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    assert not app.error


def test_main_shows_the_overview() -> None:
    app = AppTest.from_file(str(ROOT / "ui" / "shell" / "main.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    assert app.selectbox(key="model").value == "sdt_v1_digits"
    assert any("Nothing has been measured for this model yet" in info.value for info in app.info)


def test_tune_fits_nothing_without_a_sweep() -> None:
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=PATIENCE).run()
    assert app.button(key="tune-fit").disabled
    assert app.button(key="tune-undo").disabled
    assert any("need a finished sweep" in info.value for info in app.info)


def test_tune_fits_a_plan_and_undoes_it() -> None:
    model = summary("sdt_v1_digits")
    put_sweep(Store(), model)
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=PATIENCE).run()
    app.button(key="tune-fit").click().run()
    assert not app.exception and not app.error
    draft = drafts.load_draft(Store(), model)
    assert draft is not None and memory_saving(model, draft.plan) >= DEFAULT_SAVING
    app.button(key="tune-undo").click().run()
    assert drafts.load_draft(Store(), model) == drafts.empty_draft(model)
    app.button(key="tune-redo").click().run()
    assert drafts.load_draft(Store(), model) == draft


def test_an_edit_that_changes_nothing_is_no_step_of_undo() -> None:
    model = summary("sdt_v1_digits")
    put_sweep(Store(), model)
    app = AppTest.from_file(str(ROOT / "pages" / "tune.py"), default_timeout=PATIENCE).run()
    app.button(key="tune-fit").click().run()
    app.button(key="tune-fit").click().run()  # the same budget, so the same plan
    app.button(key="tune-undo").click().run()
    assert drafts.load_draft(Store(), model) == drafts.empty_draft(model)
    assert app.button(key="tune-undo").disabled and not app.button(key="tune-redo").disabled


def test_a_second_tab_does_not_lose_the_plan_of_the_first() -> None:
    model = summary("sdt_v1_digits")
    put_sweep(Store(), model)
    page = str(ROOT / "pages" / "tune.py")
    one, two = (AppTest.from_file(page, default_timeout=PATIENCE).run() for _ in range(2))
    one.button(key="tune-fit").click().run()
    first = drafts.load_draft(Store(), model)
    assert first is not None and not one.toast
    two.number_input(key=f"tune-percent/{model.weights_hash[:8]}").set_value(60.0).run()
    two.button(key="tune-fit").click().run()
    assert not two.exception and not two.error
    now = drafts.load_draft(Store(), model)
    assert now is not None and now != first
    (saved,) = saved_plans.list_plans(Store(), model)
    assert (saved.name, saved.plan) == ("From another tab", first.plan)
    assert ["From another tab" in toast.value for toast in two.toast] == [True]
    two.button(key="tune-undo").click().run()  # no change from another tab since then
    assert len(saved_plans.list_plans(Store(), model)) == 1 and not two.toast


def test_uploads_with_the_same_name_are_separate_files() -> None:
    store = Store()
    first = open_files.save_upload(store, "same.safetensors", io.BytesIO(b"first"))
    app = AppTest.from_file(str(ROOT / "pages" / "open.py"), default_timeout=PATIENCE)
    app.session_state["models-source"] = "upload"
    app.run()
    assert [box.value for box in app.selectbox if "model file" in box.label] == [str(first)]
    second = open_files.save_upload(store, "same.safetensors", io.BytesIO(b"second"))
    assert (first.name, second.name) == ("same.safetensors", "same-2.safetensors")
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    app.session_state["open-upload-kept"] = str(second)  # as the uploader's callback does
    app.run()
    assert not app.exception
    assert [box.value for box in app.selectbox if "model file" in box.label] == [str(second)]


def test_uploads_are_listed_and_removed() -> None:
    file = open_files.save_upload(Store(), "own.pth", io.BytesIO(b"12345"))
    app = AppTest.from_file(str(ROOT / "pages" / "jobs.py"), default_timeout=PATIENCE).run()
    assert any("own.pth" in text.value and "5 bytes" in text.value for text in app.markdown)
    next(button for button in app.button if button.label == "Remove the file").click().run()
    assert not app.exception and not file.exists()
    assert [message.value for message in app.success] == ["Removed own.pth."]
    assert not any("own.pth" in text.value for text in app.markdown)


def test_a_queued_job_names_the_job_it_waits_for() -> None:
    store, pid = Store(), os.getpid()
    one = client.Job(id="one", task="sweep", title="Sweep of all", params={}, created=1.0)
    two = client.Job(id="two", task="plan", title="Plan", params={}, created=2.0)
    client.save(store, two)
    text = task_text("plan")
    assert running_title(store, two) == ""
    assert progress_text(two, text) == "Planning is waiting for the worker to start"
    running: dict[str, Any] = {
        "state": "running",
        "pid": pid,
        "pid_started": workers.process_started(pid),
    }
    client.save(store, dataclasses.replace(one, **running))
    line = progress_text(two, text, waits_for=running_title(store, two))
    assert line == "Planning is waiting for Sweep of all"
    client.save(store, dataclasses.replace(one, **running, device="cuda:0"))
    assert running_title(store, two) == ""  # the worker of another device


def test_a_pruned_file_uses_the_images_of_its_original_model(tmp_path: Path) -> None:
    header = {METADATA_KEY: json.dumps({"provenance": {"origin": "sdt_v1_digits"}})}
    pruned, foreign = str(tmp_path / "pruned.safetensors"), str(tmp_path / "foreign.safetensors")
    save_file({"a": np.zeros(1)}, pruned, metadata=header)
    save_file({"a": np.zeros(1)}, foreign)
    card = provenance.source_card(pruned)
    assert card is not None and card.name == "sdt_v1_digits"
    workspaces = [Workspace(Subject(model=name), Store()) for name in (pruned, foreign)]
    assert [open_files.current_data(workspace) for workspace in workspaces] == ["digits", ""]
    n_images = [loaders.n_val_images(workspace) for workspace in workspaces]
    assert n_images == [card.training["val_images"], None]
    job = Job(id="j", task="measure", title="", params={"subject": workspaces[0].subject.to_dict()})
    assert loaders.job_images(job) == "digits · all images"
    for nothing in ("", str(tmp_path), str(tmp_path / "gone.safetensors"), "\0"):
        assert provenance.source_card(nothing) is None


def panel_modules() -> dict[str, Path]:
    """Return the paths of the modules in ``ui.panels`` by dotted name."""
    paths = (ROOT / "ui" / "panels").rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def project_imports(path: Path) -> set[str]:
    """Return the dotted names of the project's modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {
        f"{n.module}.{a.name}"
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    return {name for name in names if name.split(".")[0] in ("ui", "psvit_core", "pages")}


def owner(module: str) -> str | None:
    """Return the page that a panel module belongs to; None for shared panels."""
    parts = module.split(".")
    is_panel = parts[:2] == ["ui", "panels"] and len(parts) > 2
    return parts[2] if is_panel and parts[2] in PAGES else None


@pytest.mark.parametrize("page", PAGES)
def test_pages_import_panels_only(page: str) -> None:
    imported = project_imports(ROOT / "pages" / f"{page}.py")
    assert imported
    assert {name for name in imported if not name.startswith("ui.panels.")} == set()


def test_panels_import_no_other_pages_panels() -> None:
    modules = panel_modules()
    assert {owner(name) for name in modules} == {None, *PAGES}
    wrong = [
        f"{name} imports {other}"
        for name, path in modules.items()
        for other in project_imports(path)
        if owner(other) not in (None, owner(name))
    ]
    assert wrong == []


def test_no_torch_in_the_interface() -> None:
    program = (
        "import importlib, json, sys, app, ui.shell.header\n"
        f"for name in {sorted(panel_modules())!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'torchvision', 'spikingjelly', 'timm'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=JOB,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"jobs"}))
def test_accuracy_at_chance_is_a_warning_on_every_screen(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = summary("sdt_v1_digits"), "npz:/images.npz"
    made_up = measured_baseline(model, images, Interval(value=0.1, low=0.05, high=0.2))
    params = {"subject": Subject(data=images).to_dict(), "plan": None, "profile": False}
    job = Job(id="one", task="measure", title="", params=params, state="done", created=1.0)
    result = {"measurement": made_up.to_dict()}
    client.save(Store(), dataclasses.replace(job, result=result))
    monkeypatch.setattr("ui.shell.header._value", lambda key: images if key == "data" else "")
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    assert sum("no better than guessing" in warning.value for warning in app.warning) == 1


def measured_baseline(model: ModelSummary, data: str, accuracy: Interval) -> Measurement:
    return Measurement(
        model=model.model,
        weights_hash=model.weights_hash,
        conditions=dataclasses.replace(made.CONDITIONS, data=data),
        accuracy=accuracy,
        size=plan_size(model, None),
        sops=1.0,
        macs_real=1.0,
        energy_pj=1.0,
        firing={},
    )
