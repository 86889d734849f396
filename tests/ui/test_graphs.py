"""ONNX files on the Export page: asked for, followed, compared and downloaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from playwright.sync_api import Locator, expect
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Subject
from psvit_core.records.jobs import ExportRequest, GraphRequest
from psvit_core.storage.store import Store
from tests.patience import JOB_MS, PATIENCE
from tests.ui.conftest import OpenPage, Server, start_server
from tests.ui.example import summary
from ui.model import loaders

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def put_export(store: Store) -> Path:
    """Put a finished export of the demo model into a store; return its checkpoint."""
    model = summary("sdt_v1_digits")
    plan = plan_from_ratios(model, {"block.0.mlp.hidden": 0.5}, criterion="l2")
    request = ExportRequest(plan=plan, file_name="small.safetensors")
    path = store.place("exports", "job1", request.file_name)
    path.write_bytes(b"1")
    params = {"subject": Subject(recovery="none").to_dict(), **request.to_dict()}
    result = {"path": str(path), "bytes": 1, "sha256": "f" * 64}
    job = Job(id="job1", task="export", title="Export", params=params, state="done", created=1.0)
    client.save(store, dataclasses.replace(job, result=result))
    return path


def export_page() -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "export.py"), default_timeout=PATIENCE).run()
    assert not app.exception
    return app


def test_an_onnx_file_is_asked_for_and_reported(store: Store) -> None:
    path = put_export(store)
    app = export_page()
    app.button(key="file-job1-graph").click().run()
    assert not app.exception
    [job] = [job for job in client.list_jobs(store) if job.task == "graph"]
    assert job.request == GraphRequest(path=str(path), file_name="small.onnx")
    assert job.active
    assert export_page().button(key="file-job1-graph").disabled

    client.save(store, dataclasses.replace(job, state="failed", error="no *graph* for it"))
    app = export_page()
    assert not app.button(key="file-job1-graph").disabled
    assert any("ONNX export failed." in error.value for error in app.error)

    file = store.place("exports", job.id, "small.onnx")
    file.write_bytes(b"22")
    result = {"path": str(file), "bytes": 2, "sha256": "e" * 64, "report": "0 differ\n1 *ms*"}
    client.save(store, dataclasses.replace(job, state="done", result=result))
    app = export_page()
    assert [b for b in app.button if b.key == "file-job1-graph"] == []
    assert any("ONNX: 0 differ; 1 \\*ms\\*." in caption.value for caption in app.caption)
    file.unlink()
    assert not export_page().button(key="file-job1-graph").disabled


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    yield server
    server.kill()
    server.end_workers()


@pytest.mark.slow
def test_four_clicks_to_an_onnx_file(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/?recovery=none")
    clicks = 0

    def click(target: Locator) -> None:
        nonlocal clicks
        clicks += 1
        target.click()

    click(page.get_by_role("button", name="Prune and download"))
    expect(page.get_by_role("link", name=re.compile("^Download .*safetensors"))).to_be_visible(
        timeout=JOB_MS
    )
    click(page.get_by_role("link", name="Export", exact=True))
    click(page.get_by_role("button", name="Write ONNX"))
    link = page.get_by_role("link", name="ONNX file", exact=True)
    expect(link).to_be_visible(timeout=JOB_MS)
    with page.expect_download() as waiting:
        click(link)
    assert clicks == 4
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    assert file.suffix == ".onnx"
    facts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert facts["model"].startswith("sdt_v1_digits: ")
    assert "by policy" in facts["pruned"]
    expect(
        page.get_by_text(
            re.compile("ONNX: checked with onnxruntime on 16 images \\(digits, val\\)")
        )
    ).to_be_visible()
    assert server.process is not None
    maps = Path(f"/proc/{server.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()
