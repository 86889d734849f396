"""Takes the screenshots of every page, light and dark: docs/screens/PAGE-THEME.png.

    python scripts/take_screens.py [--phone] [--out FOLDER]

Starts the app on a free port over an empty store, with the results that ship with the demo, and
looks at it in Chromium at 1440 px (390 px with --phone).
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

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from tests.browser import chromium_path

PAGES = ("overview", "sensitivity", "tune", "compare", "finetune", "export", "jobs", "open")
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    chosen = parser.parse_args()
    width, height = (390, 844) if chosen.phone else (1440, 900)
    chosen.out.mkdir(parents=True, exist_ok=True)
    with served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        for theme in THEMES:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme
            )
            page = context.new_page()
            for name in PAGES:
                page.goto(f"{url}/" if name == "overview" else f"{url}/{name}")
                settle(page)
                page.screenshot(path=chosen.out / f"{name}-{theme}.png")
            context.close()
        browser.close()


def settle(page: Page) -> None:
    """Wait until the page has been drawn."""
    page.get_by_role("heading", level=1).wait_for(timeout=60_000)
    page.locator(IDLE).wait_for(timeout=60_000)
    page.wait_for_timeout(2500)  # charts draw themselves after the script
    page.locator(IDLE).wait_for(timeout=60_000)


@contextmanager
def served() -> Iterator[str]:
    """The app over a store of its own; its address."""
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
            yield f"http://127.0.0.1:{port}"
        finally:
            app.terminate()
            app.wait()


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
