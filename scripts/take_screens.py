"""Takes the screenshots of every page, light and dark: docs/screens/PAGE-THEME.png.

    python scripts/take_screens.py [--phone] [--out FOLDER]

Starts the app on a free port over a store of its own, with the results that ship with the demo and
some work that is done before (three kept plans, an export, a short fine-tuning, all real; a few
minutes), and looks at it in Chromium at 1440 px (390 px with --phone). With --empty as a new user
finds a model without results.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from psvit_core.demo import DemoStore
from psvit_core.jobs import client
from psvit_core.jobs.engine import RecoverySettings, Subject
from psvit_core.records import FinetuneSettings
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from tests.browser import chromium_path
from ui import drafts, kept

PAGES = ("overview", "sensitivity", "tune", "compare", "finetune", "export", "jobs", "open")
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
EMPTY = "?model=Meta-SpikeFormer+(SDT+v2),+digits"  # ships without results
TALL = 2600  # pixels
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--full", action="store_true", help="whole pages, not the first screen")
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    chosen = parser.parse_args()
    width, height = (390, 844) if chosen.phone else (1440, 900)
    height = TALL if chosen.full else height  # the page scrolls inside the window
    chosen.out.mkdir(parents=True, exist_ok=True)
    with served() as (url, store), sync_playwright() as playwright:
        if not chosen.empty:
            work(store)
        query = EMPTY if chosen.empty else ""
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        for theme in THEMES:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme
            )
            page = context.new_page()
            for name in PAGES:
                page.goto(f"{url}/{'' if name == 'overview' else name}{query}")
                settle(page)
                page.screenshot(path=chosen.out / f"{name}-{theme}.png")
            context.close()
        browser.close()


def work(store: Store) -> None:
    """What someone may have done with the demo: keep plans, write one, train one."""
    workspace = Workspace(Subject(), store)
    summary, archive = workspace.summary(), workspace.archive()
    assert summary is not None
    assert archive is not None
    plans = {
        name: next(
            p.plan for p in archive.chosen().points
            if p.made[0].policy == policy and p.made[0].target == f"memory saving {saving}"
        )
        for name, policy, saving in (
            ("Optimal, half", "optimal", 0.5), ("PSViT, half", "psvit", 0.5),
            ("Uniform, a third", "uniform", 0.35),
        )
    }  # fmt: skip
    for name, plan in plans.items():
        kept.keep_plan(store, summary, plan, name)
    chosen = plans["PSViT, half"]
    drafts.save_draft(store, summary, drafts.draft_of(summary, chosen))
    settings = FinetuneSettings(epochs=4, train_images=1000)
    jobs = [
        workspace.export(plans["Optimal, half"], "sdt_v1_digits-half.safetensors"),
        workspace.start_finetune(
            chosen,
            settings,
            "sdt_v1_digits-half-tuned.safetensors",
            RecoverySettings(method="auto"),
        ),
    ]  # fmt: skip
    for job in jobs:
        while (now := client.find_job(store, job.id)).active:
            time.sleep(1)
        assert now.state == "done", now.error


def settle(page: Page) -> None:
    """Wait until the page has been drawn."""
    page.get_by_role("heading", level=1).wait_for(timeout=60_000)
    page.locator(IDLE).wait_for(timeout=60_000)
    page.wait_for_timeout(1500)  # charts draw themselves after the script
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=60_000)
    page.wait_for_timeout(1500)
    page.locator(IDLE).wait_for(timeout=60_000)


@contextmanager
def served() -> Iterator[tuple[str, Store]]:
    """The app over a store of its own; its address and the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
        environment = {**os.environ, "PSVIT_CACHE": cache, "PSVIT_WARM": "0"}
        app = subprocess.Popen(
            [*command, "--server.headless", "true"], cwd=ROOT, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}", DemoStore(cache)
        finally:
            app.terminate()
            app.wait()
            for process in psutil.process_iter(["cmdline"]):  # workers stay with their model
                if cache in (process.info["cmdline"] or []):
                    process.kill()


def wait_for(address: str) -> None:
    """Wait until an address answers, a minute at most."""
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.25)
    raise TimeoutError(f"no answer from {address}")


if __name__ == "__main__":
    main()
