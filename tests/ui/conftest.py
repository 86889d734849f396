"""Fixtures of the browser tests: a Chromium, the app on a free port with its own store.

A test looks at the page as a user does: by roles, labels and texts. Every page that is opened
through ``open_page`` is checked at the end: nothing was asked of any other host, and no error that
the test did not expect is left on screen.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from psvit_core.jobs import client
from psvit_core.store import Store
from tests.browser import chromium_path

os.environ.setdefault("PSVIT_DEMO", "0")  # pages without a browser: an empty store is empty
ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",  # a container has no user namespaces, and only our own pages are shown
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=20_000)  # the machine may be busy with other things
OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium for the whole session; tests open their own contexts in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Server:
    """The app as a user starts it, and its store."""

    cache: Path
    port: int
    warm: bool = False  # whether a worker gets ready at once; costs a core for seconds
    demo: bool = False  # whether the shipped results are shown
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> Store:
        return Store(self.cache)

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [sys.executable, "-m", "streamlit", "run", "app.py"]
        with (self.cache / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--server.port", str(self.port), "--server.headless", "true"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PSVIT_CACHE": str(self.cache),
                    "PSVIT_WARM": str(int(self.warm)),
                    "PSVIT_DEMO": str(int(self.demo)),
                },
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.cache / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2)
                return
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.05)
        raise TimeoutError(f"no answer from {self.url}")

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def end_workers(self) -> None:
        """End the workers of this store; they would stay for a while with their model loaded."""
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "psvit_core.jobs.worker" in command and str(self.cache) in command:
                process.kill()


def start_server(cache: Path, *, warm: bool = False, demo: bool = False) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(cache=cache, port=port, warm=warm, demo=demo)
    server.start()
    return server


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[Server]:
    """A server that nobody has asked anything yet."""
    server = start_server(tmp_path)
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module."""
    server = start_server(tmp_path_factory.mktemp("store"))
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages, each in a new browser; checks in the end that they stayed on this machine."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []

    def open_it(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        context.set_default_timeout(30_000)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(url)
        settled(page)
        return page

    yield open_it
    for context in contexts:
        context.close()
    hosts = {urlsplit(u).hostname for u in asked if not u.startswith(("data:", "blob:"))}
    assert hosts <= {"127.0.0.1"}


def settled(page: Page) -> None:
    """Wait until the page's script has run."""
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')


def wait_for_job(store: Store, task: str, timeout: float = 90) -> client.Job:
    """The newest job of a task, when it has ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        jobs = [job for job in client.list_jobs(store) if job.task == task]
        if jobs and not jobs[0].active:
            return jobs[0]
        time.sleep(0.1)
    raise TimeoutError(f"no {task} ended within {timeout} s")
