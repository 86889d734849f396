"""Take screenshots of every page, light and dark: docs/screens/PAGE-THEME.png.

``cifar10-THEME.png`` is the Overview of the CIFAR-10 demo, whose images are not there.

    python scripts/take_screens.py [--phone] [--full] [--empty] [--out FOLDER]

Starts the app on a free port with its own store, which contains the results that ship with the demo
and some real work done first (three saved plans, an export, a short fine-tuning run; a few
minutes). Chromium is 1440 px wide, 390 px with --phone. With --empty, the pages show a model
without any results.
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
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from psvit_core.jobs import client
from psvit_core.records import FinetuneSettings, RecoverySettings, Subject
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.browser import chromium_path
from ui.model import drafts, saved_plans

PAGES = {  # name of the picture -> address
    "overview": "",
    **{page: page for page in ("sensitivity", "tune", "compare")},
    **{page: page for page in ("finetune", "export", "jobs", "open")},
}
CIFAR10 = {"cifar10": "?model=Spike-driven+Transformer+v1,+CIFAR-10"}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
EMPTY = "?model=Meta-SpikeFormer+(SDT+v2),+digits"  # ships without results
TALL = 2600  # pixels
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def main() -> None:
    """Take all screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phone", action="store_true")
    parser.add_argument(
        "--full", action="store_true", help="whole pages instead of the first screen"
    )
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    chosen = parser.parse_args()
    width, height = (390, 844) if chosen.phone else (1440, 900)
    height = TALL if chosen.full else height  # a page scrolls inside the window
    chosen.out.mkdir(parents=True, exist_ok=True)
    with served() as (url, store), sync_playwright() as playwright:
        if not chosen.empty:
            work(store)
        addresses = {name: f"{path}{EMPTY}" for name, path in PAGES.items()}
        if not chosen.empty:
            addresses = PAGES | CIFAR10
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        for theme in THEMES:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme
            )
            page = context.new_page()
            for name, path in addresses.items():
                page.goto(f"{url}/{path}")
                settle(page)
                page.screenshot(path=chosen.out / f"{name}-{theme}.png")
            context.close()
        browser.close()


def work(store: Store) -> None:
    """Save plans, export one and fine-tune one, as a user of the demo might."""
    workspace = Workspace(Subject(), store)
    summary, archive = workspace.summary(), workspace.archive()
    assert summary is not None
    assert archive is not None
    plans = {
        name: next(
            p.plan
            for p in archive.chosen().points
            if p.made[0].policy == policy and p.made[0].target == f"memory saving {saving}"
        )
        for name, policy, saving in (
            ("Optimal, half", "optimal", 0.5),
            ("PSViT, half", "psvit", 0.5),
            ("Uniform, a third", "uniform", 0.35),
        )
    }
    for name, plan in plans.items():
        saved_plans.save_plan(store, summary, plan, name)
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
    ]
    for job in jobs:
        while (now := client.find_job(store, job.id)).active:
            time.sleep(1)
        assert now.state == "done", now.error


def settle(page: Page) -> None:
    """Wait until the page is drawn."""
    page.get_by_role("heading", level=1).wait_for(timeout=60_000)
    page.locator(IDLE).wait_for(timeout=60_000)
    page.wait_for_timeout(1500)  # charts are drawn after the script
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=60_000)
    page.wait_for_timeout(1500)
    page.locator(IDLE).wait_for(timeout=60_000)


@contextmanager
def served() -> Iterator[tuple[str, Store]]:
    """Run the app with its own store; yield its address and the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
        environment = {**os.environ, "PSVIT_CACHE": cache, "PSVIT_WARM": "0"}
        app = subprocess.Popen(
            [*command, "--server.headless", "true"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            yield f"http://127.0.0.1:{port}", DemoStore(cache)
        finally:
            app.terminate()
            app.wait()
            for process in psutil.process_iter(["cmdline"]):  # idle workers keep running
                if cache in (process.info["cmdline"] or []):
                    process.kill()


def wait_for(address: str) -> None:
    """Wait until an address answers, for at most a minute."""
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.25)
    raise TimeoutError(f"no answer from {address}")


if __name__ == "__main__":
    main()
