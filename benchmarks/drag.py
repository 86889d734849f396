"""Time from the release of a handle on the Tune page to its measured drop, in Chromium.

    python benchmarks/drag.py [--quick] [--json]

On each demo, all validation images, with a loaded worker: handles are dragged, and the browser's
own clock gives the time from the pointer's release to the first measured figure, to the result on
all images as pruned, and to the one after recovery (``auto``, which the demos have). The rows with
``sweep`` repeat it while a long sweep of the same model runs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks._report import options, report
from benchmarks._ui_cases import ROOT, served
from benchmarks.ui import FLAGS, Equalizer, idle
from psvit_core.jobs import client, workers
from psvit_core.records import Subject, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import model_card
from tests.browser import chromium_path

MODELS = ("sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits")
DRAGS = 20
LONG = tuple(i / 40 for i in range(1, 39))  # ratios of a sweep that outlasts the drags
FIGURES = {"first figure": "first", "all images": "all", "recovered": "last"}
LIMIT = 120_000  # milliseconds for one measurement

#: Notes the time of the last release, of the first figure after it, of the first on all images, and
#: of the final one.
WATCH = """
() => {
  const roots = root => [root, ...[...root.querySelectorAll('*')]
    .filter(e => e.shadowRoot).flatMap(e => roots(e.shadowRoot))];
  const w = window.dragged = { up: 0, first: 0, all: 0, last: 0 };
  addEventListener('pointerup', () => {
    Object.assign(w, { up: performance.now(), first: 0, all: 0, last: 0 });
  }, true);
  const look = () => {
    for (const root of roots(document)) {
      const note = root.querySelector('.figure.measured .note')?.textContent ?? '';
      const figure = /images$/.test(note), final = /^95 %/.test(note);
      if (!w.up || !(figure || final)) continue;
      if (w.settled !== w.up) continue;
      w.first ||= performance.now();
      if (final || /(\\b\\d+) of \\1 images$/.test(note)) w.all ||= performance.now();
      if (final) w.last ||= performance.now();
    }
    requestAnimationFrame(look);
  };
  // The figure of the plan before stays until the browser has drawn the release.
  addEventListener('pointerup', () => requestAnimationFrame(() => requestAnimationFrame(
    () => { w.settled = w.up; })), true);
  look();
}
"""


def main() -> None:
    """Measure all demos, each without and with a sweep in the background."""
    chosen = options(__doc__ or "")
    rows: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        for model in MODELS[:1] if chosen.quick else MODELS:
            cache = Path(folder) / model
            with served(ROOT / "app.py", str(cache), warm=True, measures=True) as url:
                rows += demo(browser, url, Store(cache), model, chosen)
        about = {
            "drags": drags(chosen),
            "cpus": os.cpu_count(),
            "load before": round(load, 1),
            "streamlit": version("streamlit"),
            "chromium": browser.version,
        }
        browser.close()
    report("drag", rows, about, chosen)


def drags(chosen: Namespace) -> int:
    """Return the number of drags of a row."""
    return 5 if chosen.quick else DRAGS


def demo(
    browser: Browser, url: str, store: Store, model: str, chosen: Namespace
) -> list[dict[str, Any]]:
    """Return the rows of one demo; its worker ends at the end."""
    kind = Equalizer(f"/tune?model={quote(model_card(model).title)}", "/")
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.goto(url + kind.path)
    page.get_by_role("slider").first.wait_for()
    idle(page)
    page.evaluate(WATCH)
    workspace = Workspace(Subject(model=model), store)
    rows = []
    try:
        wait_for(partial(is_warm, store))
        release(page, kind, 6, 50)  # loads the model, measures the baseline, records the pass
        for turn, background in enumerate(("nothing", "sweep")):
            job = None
            if background == "sweep":
                job = workspace.start_sweep(SweepSettings(criterion="l1", ratios=LONG))
                wait_for(partial(has_begun, store, job.id))
            found = [release(page, kind, at, 20 + 20 * turn + at) for at in range(drags(chosen))]
            rows.append(row(model, background, found))
            print(rows[-1], file=sys.stderr)
            if job is not None:
                running = client.find_job(store, job.id).active
                rows[-1]["the sweep still ran"] = "yes" if running else "no"
    finally:
        page.close()
        for job in client.list_jobs(store):
            if job.active:
                client.cancel(store, job.id)
    return rows


def is_warm(store: Store) -> bool:
    """Return whether the worker has prepared the model that the app starts with."""
    log = workers.log_path(store, "cpu")
    return log.exists() and "warm-up: baseline" in log.read_text(encoding="utf-8")


def has_begun(store: Store, job_id: str) -> bool:
    """Return whether a job has done a step."""
    return client.find_job(store, job_id).done > 0


def wait_for(done: Callable[[], bool]) -> None:
    """Wait until a function returns a true value."""
    deadline = time.monotonic() + LIMIT / 1000
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the worker does not get on")
        time.sleep(0.05)


def release(page: Page, kind: Equalizer, at: int, percent: float) -> tuple[float, ...]:
    """Drag a handle; return milliseconds from its release to the figures named in ``FIGURES``."""
    column = page.get_by_role("slider").nth(at % page.get_by_role("slider").count())
    now = float(column.get_attribute("aria-valuenow") or 0)
    spot = at % page.get_by_role("slider").count()
    page.mouse.move(*kind.spot(page, spot, now))
    page.mouse.down()
    page.mouse.move(*kind.spot(page, spot, percent % 60), steps=3)
    page.mouse.up()
    page.wait_for_function("() => dragged.last > dragged.up", timeout=LIMIT)
    page.wait_for_timeout(300)  # as a person, who looks at the figure
    w = page.evaluate("() => dragged")
    return tuple(w[moment] - w["up"] for moment in FIGURES.values())


def row(model: str, background: str, found: list[tuple[float, ...]]) -> dict[str, Any]:
    """Return the row of some drags."""
    cells: dict[str, Any] = {"model": model, "meanwhile": background}
    for name, unsorted in zip(FIGURES, zip(*found, strict=True), strict=True):
        times = sorted(unsorted)
        cells[f"{name} p50 (ms)"] = round(statistics.median(times))
        cells[f"{name} p95 (ms)"] = round(times[min(len(times) - 1, int(0.95 * len(times)))])
    return cells | {"the sweep still ran": ""}


if __name__ == "__main__":
    main()
