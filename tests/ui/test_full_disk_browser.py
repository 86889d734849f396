"""The app on a full disk: it starts, says so on every page, shows what is stored, frees space."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import expect

from psvit_core.jobs import client
from psvit_core.records import Subject
from psvit_core.records.jobs import SummaryRequest
from psvit_core.storage.store import Store
from tests.full_disk import ROOT, command_on_full
from tests.made import make_job
from tests.patience import JOB_MS, PATIENCE, PATIENCE_MS
from tests.ui.conftest import OpenPage, settled

pytestmark = pytest.mark.slow
SUBJECT = Subject(model="sdt_v1_digits")


def filled(folder: Path) -> Path:
    """Return a closed store with an ended job, one that waits, and an upload."""
    store = Store(folder)
    client.save(store, make_job(id="ended", state="done"))
    request = {"subject": SUBJECT.to_dict(), **SummaryRequest().to_dict()}
    client.save(store, make_job(id="waits", task="summary", state="queued", params=request))
    store.place("uploads", "uploaded.pth").write_bytes(bytes(1_000_000))
    store.close()
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Start the app on a full disk; return its address."""
    started: list[subprocess.Popen[bytes]] = []

    def run(way: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        app = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
        app += ["--server.port", str(port)]
        command, folder = command_on_full(way, filled(tmp_path / "cache"), app)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "PSVIT_CACHE": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **quiet))  # type: ignore[call-overload]  # mypy sees only the dict
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and started[-1].poll() is None:
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=2)
                return url
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.05)
        raise TimeoutError(f"no answer from {url}, {started[-1].poll()}")

    yield run
    for process in started:
        process.kill()
        process.wait()
    for worker in psutil.process_iter(["cmdline"]):
        if any(part.startswith(str(tmp_path)) for part in worker.info["cmdline"] or []):
            worker.kill()


@pytest.mark.parametrize("way", ["bytes", "limit"])
def test_the_app_on_a_full_disk(start: Callable[[str], str], open_page: OpenPage, way: str) -> None:
    url = start(way)
    page = open_page(f"{url}/jobs")
    reason = "No space left on device" if way == "bytes" else "File too large"
    line = page.get_by_text("Cannot write to the store in").first
    expect(line).to_contain_text(reason)
    expect(line).to_contain_text("still be read")
    expect(page.get_by_text("waits").or_(page.get_by_text("queued")).first).to_be_visible()
    expect(page.get_by_role("heading", name="Ended", exact=True)).to_be_visible()
    for name in ("Overview", "Tune", "Open"):
        page.get_by_role("link", name=name, exact=True).first.click()
        settled(page)
        expect(line).to_contain_text(reason)
    page.get_by_role("link", name="Jobs", exact=True).first.click()
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("button", name="Remove the file").click()
    expect(page.get_by_text("Removed uploaded.pth.")).to_be_visible()
    if way == "bytes":  # there is space again: the line goes, and the job that waited runs
        expect(line).not_to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_text("No jobs are running or waiting")).to_be_visible(timeout=JOB_MS)
        expect(page.get_by_text("failed")).to_have_count(0)
