"""The report on the Export page: asked for, followed and downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from psvit_core.jobs import client
from psvit_core.records.jobs import ReportRequest
from psvit_core.storage.store import Store
from tests.patience import JOB_MS, PATIENCE
from tests.ui.conftest import OpenPage, Server, start_server
from ui.model import loaders

#: The Export page, with what the frame of all pages does before: it acts on the last click.
SCRIPT = """
from ui.model import state
from ui.panels.export import export_page

state.run_postponed()
export_page()
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_workers: None) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    loaders.open_store.clear()
    yield Store(tmp_path)
    loaders.open_store.clear()


def export_page() -> AppTest:
    app = AppTest.from_string(SCRIPT, default_timeout=PATIENCE).run()
    assert not app.exception
    return app


def test_a_report_is_asked_for_and_offered(store: Store) -> None:
    app = export_page()
    app.button(key="report-start").click().run()
    assert not app.exception
    [job] = [job for job in client.list_jobs(store) if job.task == "report"]
    assert job.request == ReportRequest(
        plan=None, file_name="sdt_v1_digits.report.html", recovery="none"
    )
    assert export_page().button(key="report-start").disabled

    client.save(store, dataclasses.replace(job, state="failed", error="no *page* for it"))
    app = export_page()
    assert not app.button(key="report-start").disabled
    assert any("Report failed." in error.value for error in app.error)

    file = store.place("exports", job.id, "sdt_v1_digits.report.html")
    file.write_text("<p>1</p>", encoding="utf-8")
    result = {"path": str(file), "bytes": 8, "sha256": "e" * 64, "missing": ["test split"]}
    client.save(store, dataclasses.replace(job, state="done", result=result, ended=1.0))
    app = export_page()
    assert any("Download report" in str(element.proto) for element in app.get("html"))
    assert any("were not measured: test split." in caption.value for caption in app.caption)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    yield server
    server.kill()
    server.end_workers()


@pytest.mark.slow
def test_the_button_writes_a_report(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/export")
    page.get_by_role("button", name="Write report").click()
    link = page.get_by_role("link", name="Download report")
    expect(link).to_be_visible(timeout=JOB_MS)
    with page.expect_download() as waiting:
        link.click()
    assert waiting.value.suggested_filename == "sdt_v1_digits.report.html"
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert "<h1>Spike-driven Transformer v1, digits</h1>" in text
