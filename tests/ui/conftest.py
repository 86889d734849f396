"""Fixtures of the browser tests: Chromium, and the app on a free port with its own store.

Tests find elements as a user does, by roles, labels and texts. The fixture ``open_page`` checks at
the end that no page has sent a request to another host.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from psvit_core.jobs import client, workers
from psvit_core.storage.store import Store
from tests.patience import JOB, PATIENCE, PATIENCE_MS

# Pages without a browser start with an empty store, and measure nothing by themselves.
os.environ.setdefault("PSVIT_DEMO", "0")
os.environ.setdefault("PSVIT_DRAG", "0")
os.environ.setdefault("PSVIT_RECOVER", "none")  # tests/ui/test_recovery.py has it on
ROOT = Path(__file__).parents[2]
expect.set_options(timeout=PATIENCE_MS)
OpenPage = Callable[..., Page]
T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread: the session's browser has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@dataclass
class Server:
    """The app as a user starts it, and its store."""

    cache: Path
    port: int
    warm: bool = False  # start a worker at once; this takes a core for seconds
    demo: bool = False  # show the shipped results
    drag: bool = False  # measure every edit on the Tune page; each starts a worker
    script: str = "app.py"
    options: tuple[str, ...] = ()  # of ``streamlit run``
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> Store:
        return Store(self.cache)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "streamlit", "run", self.script]
        with (self.cache / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*command, "--server.port", str(self.port), "--server.headless", "true"),
                    *self.options,
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PSVIT_CACHE": str(self.cache),
                    "PSVIT_WARM": str(int(self.warm)),
                    "PSVIT_DEMO": str(int(self.demo)),
                    "PSVIT_DRAG": str(int(self.drag)),
                    **self.environment,
                },
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.cache / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2)
                return
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.05)
        raise TimeoutError(f"no answer from {self.url}")

    def kill(self) -> None:
        """Kill the server, like a crash."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def end_workers(self) -> None:
        """Kill the workers of this store; they would keep their model loaded for a while."""
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "psvit_core.jobs.worker" in command and str(self.cache) in command:
                process.kill()


def start_server(
    cache: Path,
    *,
    warm: bool = False,
    demo: bool = False,
    drag: bool = False,
    script: str = "app.py",
    options: tuple[str, ...] = (),
    **environment: str,
) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(
        cache=cache,
        port=port,
        warm=warm,
        demo=demo,
        drag=drag,
        script=script,
        options=options,
        environment=environment,
    )
    server.start()
    return server


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[Server]:
    """Start a server that has not received any request."""
    server = start_server(tmp_path)
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no worker: pages drawn without a server would leave theirs behind, models loaded."""
    for module in (client, workers):
        monkeypatch.setattr(module, "ensure_worker", lambda *_, **__: None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one server for the tests of a module."""
    server = start_server(tmp_path_factory.mktemp("store"))
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open pages, each in a new context.

    Checks at the end that all requests were local, and that the app's own policy of content refused
    nothing.
    """
    contexts: list[BrowserContext] = []
    requests: list[str] = []
    refused: list[str] = []

    def hear(text: str) -> None:
        if "Content Security Policy" in text:
            refused.append(text)

    def open_it(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        context.on("console", lambda message: hear(message.text))
        page = context.new_page()
        page.goto(url)
        settled(page)
        return page

    yield open_it
    for context in contexts:
        context.close()
    hosts = {urlsplit(u).hostname for u in requests if not u.startswith(("data:", "blob:"))}
    assert hosts <= {"127.0.0.1"}
    assert refused == []


def settled(page: Page) -> None:
    """Wait until the page's script has finished, and does not start again.

    A click's or a drag's run of the script starts some time after the click, so a script that is
    not running now may not have begun.
    """
    page.get_by_role("heading", level=1).wait_for()
    script_ended(page)


def script_ended(page: Page) -> None:
    """Wait until the page's script stays idle; a dialog may be open over the page."""
    idle = '[data-testid="stApp"][data-test-script-state="notRunning"]'
    quiet = 0
    for _ in range(100):
        page.wait_for_timeout(100)
        quiet = quiet + 1 if page.locator(idle).count() else 0
        if quiet == 5:
            return
    page.wait_for_selector(idle)  # a page that follows a job runs again and again


def wait_for_job(store: Store, task: str, timeout: float = JOB) -> client.Job:
    """Wait until the newest job of a task has ended, and return it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        jobs = [job for job in client.list_jobs(store) if job.task == task]
        if jobs and not jobs[0].active:
            return jobs[0]
        time.sleep(0.1)
    raise TimeoutError(f"no {task} ended within {timeout} s")
