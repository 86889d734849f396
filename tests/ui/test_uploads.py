"""Files of any usual name and date: uploads, folders, inspections that stay current; ``~``."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import DataReport, SplitReport, Subject
from psvit_core.records.jobs import CheckDataResult, InspectRequest, InspectResult
from psvit_core.storage.store import Store
from psvit_core.tasks.fingerprints import file_stamp
from psvit_core.tasks.inspect import inspect_file
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import shipped_summary
from tests.patience import PATIENCE
from ui.model import loaders, open_files
from ui.panels.plan import default_file_name

ROOT = Path(__file__).parents[2]
MODEL = "sdt_v1_digits"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[None]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    loaders.open_store.clear()
    yield
    loaders.open_store.clear()


@pytest.fixture
def store() -> Store:
    return Store()


def open_page(**state: object) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "open.py"), default_timeout=PATIENCE)
    for key, value in state.items():
        app.session_state[key.replace("_", "-")] = value
    return app.run()


# --- names


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("OWN.PTH", "OWN.pth"),
        ("Own.SafeTensors", "Own.safetensors"),
        ("model.ckpt", "model.ckpt"),
        ("pytorch_model.BIN", "pytorch_model.bin"),
        ("checkpoint.PTH.TAR", "checkpoint.PTH.tar"),
        ("größe (1).pt", "größe (1).pt"),
        ("a$HOME;`b`~.pth", "a_HOME_b_.pth"),
    ],
)
def test_usual_suffixes(store: Store, name: str, kept: str) -> None:
    path = open_files.save_upload(store, name, io.BytesIO(b"x"))
    assert path.name == kept
    assert open_files.model_files(path.parent) == [(path, 1)]
    app = open_page(models_source="upload")
    assert not app.exception
    assert [box.value for box in app.selectbox if "model file" in box.label] == [str(path)]


@pytest.mark.parametrize("suffix", [".safetensors", ".PTH", ".tar", ".ckpt"])
@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_as_long_as_a_system_allows(store: Store, suffix: str, letter: str) -> None:
    stem = letter * ((254 - len(suffix)) // len(letter.encode()))
    for content in (b"x", b"xy", b"z"):  # equal names get a number, which needs space, too
        path = open_files.save_upload(store, stem + suffix, io.BytesIO(content))
        assert path.read_bytes() == content
        assert path.suffix == suffix.lower()
    assert len(open_files.model_files(path.parent)) == 3


def test_the_same_file_is_kept_once(store: Store) -> None:
    first = open_files.save_upload(store, "own.pth", io.BytesIO(b"one"))
    assert open_files.save_upload(store, "own.pth", io.BytesIO(b"one")) == first
    for other in (b"two", b"on", b"one more"):
        assert open_files.save_upload(store, "own.pth", io.BytesIO(other)) != first
    assert first.read_bytes() == b"one"
    assert len(open_files.model_files(first.parent)) == 4


def test_results_of_a_long_name_have_names_that_fit() -> None:
    summary = shipped_summary(MODEL)
    assert summary is not None
    long = dataclasses.replace(summary, model=f"/models/{'x' * 242}.safetensors")
    plan = plan_from_ratios(long, {}, criterion=next(iter(long.rankings)))
    assert len(default_file_name(long, plan)) <= 80
    odd = dataclasses.replace(summary, model="/models/größe (1).safetensors")
    assert default_file_name(odd, plan) == "gr_e_1-saves0.safetensors"  # as Export allows it


def test_a_folder_lists_upper_case_suffixes(tmp_path: Path, store: Store) -> None:
    names = ["A.PTH", "b.SafeTensors", "c.ckpt", "d.Bin", "e.pt"]
    for name in (*names, "notes.txt", "bin"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path, _ in open_files.model_files(tmp_path)] == names


# --- dates


@pytest.mark.parametrize("age", [-400 * 86_400, -3600, 0, 3600])
def test_an_inspection_is_current_until_the_file_changes(
    tmp_path: Path, store: Store, age: float
) -> None:
    file = tmp_path / "own.pth"
    file.write_bytes(b"x")
    when = time.time() - age
    os.utime(file, (when, when))
    open_files.inspect_file(store, str(file))
    job = open_files.newest_inspection(store, str(file))
    assert job is not None and isinstance(job.request, InspectRequest)
    assert job.request.stamp == tuple(file_stamp(str(file)))
    os.utime(file, (when + 1, when + 1))
    assert open_files.newest_inspection(store, str(file)) is None
    file.unlink()
    assert open_files.newest_inspection(store, str(file)) is None  # and no error


# --- the home folder


def test_a_tilde_in_fields_and_environment(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / "x.ckpt").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PSVIT_MODELS", "~/models")
    assert open_files.models_folder(store) == tmp_path / "home" / "models"
    assert open_files.data_spec(store, "folder", "~/images") == f"folder:{tmp_path}/home/images"
    app = open_page(models_source="folder", models_folder="~/models")
    assert not app.exception and not app.error
    assert [box.label for box in app.selectbox if "model file" in box.label] == ["1 model file"]
    app = open_page(models_source="folder", models_folder="~nobody_of_this_name")
    assert not app.exception
    assert r"Cannot expand the \~" in app.error[0].value


# --- warnings


def test_warnings_about_images_are_shown(store: Store) -> None:
    spec = "folder:/images"
    text = "folder:/images has 9 classes, but sdt_v1_digits has 10 outputs: check."
    report = DataReport(
        spec=spec,
        model=MODEL,
        splits=(SplitReport(split="val", n_images=3, n_classes=9),),
        n_looked=3,
        shape=(1, 32, 32),
        warnings=(text,),
    )
    workspace = Workspace(Subject(model=MODEL), store)
    open_files.check_data(workspace, spec)
    job = open_files.newest_data_check(workspace, spec)
    assert job is not None
    result = CheckDataResult(report=report).to_dict()
    client.save(store, dataclasses.replace(job, state="done", result=result))
    app = open_page(data_choice_kind="folder")
    [place] = [box for box in app.text_input if "Image folder" in box.label]
    place.set_value("/images").run()
    assert text in [warning.value for warning in app.warning]


def test_old_records_have_no_warnings() -> None:
    old = {"document": "data_report", "version": 1, "spec": "x", "model": "y", "splits": []}
    assert DataReport.from_dict(old).warnings == ()


def test_a_pruned_file_says_what_was_measured_of_it(store: Store) -> None:
    path = str(ROOT / "tests" / "zoo" / "files" / "pruned_format_2.safetensors")
    open_files.inspect_file(store, path)
    (job,) = client.list_jobs(store)
    done = InspectResult(report=inspect_file(path)).to_dict()
    client.save(store, dataclasses.replace(job, state="done", result=done))
    app = open_page(models_source="folder", models_folder=str(Path(path).parent), open_folder=path)
    chosen = next(box for box in app.selectbox if box.label.endswith("model files"))
    chosen.set_value(path).run()
    assert not app.exception
    assert any("A pruned model that this tool wrote" in box.value for box in app.success)
    assert any(
        "The file says: accuracy 0.00" in line.value and "7 images" in line.value
        for line in app.caption
    )
