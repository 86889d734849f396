"""Latency of the Tune page in Chromium, compared with the same page made of ``st.slider``.

    python benchmarks/ui.py [--quick] [--json]

Local redraw: time from a pointer move to the figure that it changes, in frames of the browser and
in milliseconds. Answer: time from the pointer's release to the server's figures. Both pages compute
the same figures of the same plan with the same functions. The sweeps are invented (no model runs):
one for the 69 groups of Meta-SpikeFormer 15M, one for the same model with more blocks, 120 groups.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks._report import options, report
from benchmarks._ui_cases import MODEL, RATIOS, ROOT, SLIDERS, put_model, served
from psvit_core.storage.store import Store
from tests.browser import chromium_path

SIZES = (69, 120)  # channel groups
DRAGS, LOADS = 30, 5
QUIET = 450  # milliseconds without a change after which a figure counts as final
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]

#: Records in the page when the pointer moves and when the figures' text changes. Streamlit may
#: replace a metric's element, so the whole app is observed for figures outside of components.
WATCH = """
target => {
  const app = target.closest('[data-testid=stApp]');
  const read = () => app
    ? [...app.querySelectorAll('[data-testid=stMetricValue]')].map(e => e.textContent).join()
    : target.textContent;
  const w = window.watched = { moves: [], up: 0, changes: [], frame: 0, text: read() };
  const frame = () => { w.frame++; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  addEventListener('pointermove', e => w.moves.push([performance.now(), w.frame]), true);
  addEventListener('pointerup', e => { w.up = performance.now(); }, true);
  new MutationObserver(() => {
    const text = read();
    if (text !== w.text) w.changes.push([performance.now(), w.frame, w.text = text]);
  }).observe(app ?? target, { subtree: true, childList: true, characterData: true });
}
"""

TITLES = ("Sensitivity", "Tune", "Compare", "Fine-tune", "Export", "Jobs", "Open", "Overview")
CLICKED = """
() => addEventListener('click', () => { window.clicked = performance.now(); },
                       { capture: true, once: true })
"""
#: Begins a function that counts elements, also inside components.
SEEN = """() => {
  const roots = root => [root, ...[...root.querySelectorAll('*')]
    .filter(e => e.shadowRoot).flatMap(e => roots(e.shadowRoot))];
  const count = what => roots(document).reduce((n, r) => n + r.querySelectorAll(what).length, 0);
  const drawn = title => document.querySelector('h1')?.textContent === title
    && document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'
"""


def main() -> None:
    """Measure both pages at both sizes, then all pages on the demo."""
    chosen = options(__doc__ or "")
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Store(folder)
        paths = [put_model(store, n) for n in (SIZES[:1] if chosen.quick else SIZES)]
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        for n, path in paths:
            script = Path(folder) / f"sliders{n}.py"
            script.write_text(SLIDERS.format(root=str(ROOT), path=path), encoding="utf-8")
            query = f"?model=Open+a+pruned+file&file={quote(path)}"
            for page in (Equalizer(f"/tune{query}", f"/{query}"), Sliders("/", "/other")):
                main_script = script if isinstance(page, Sliders) else ROOT / "app.py"
                store.delete(f"draft/{n:064d}")
                with served(main_script, folder) as url:
                    row = {"page": page.name, "groups": n}
                    rows.append(row | measure(browser, url, page, quick=chosen.quick))
                    print(rows[-1], file=sys.stderr)
        about = {
            "model": MODEL,
            "ratios": len(RATIOS),
            "cpus": os.cpu_count(),
            "streamlit": version("streamlit"),
            "chromium": browser.version,
            "drags": DRAGS,
            "loads": LOADS,
        }
        with served(ROOT / "app.py", f"{folder}/demo") as url:
            rows += pages(browser, url, 1 if chosen.quick else LOADS)
        browser.close()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    report("ui", [{name: row.get(name, "") for name in columns} for row in rows], about, chosen)


# ---- pages -------------------------------------------------------------------------------------


class Equalizer:
    """The Tune page."""

    name = "equalizer"
    control = "[role=slider]"
    figure = ".figure.predicted .value"
    other, own = "Open", "Tune"

    def __init__(self, path: str, other_path: str) -> None:
        self.path, self.other_path = path, other_path

    def spot(self, page: Page, at: int, percent: float) -> tuple[float, float]:
        """Return the position of a control's percentage on the page."""
        column = page.get_by_role("slider").nth(at)
        column.evaluate("e => e.scrollIntoView({ block: 'nearest', inline: 'nearest' })")
        box = column.locator(".well").bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] * (1 - percent / 100)

    def answered(self, text: str) -> bool:
        """Return whether a figure's text comes from the server."""
        return "≈" not in text


class Sliders(Equalizer):
    """The page of sliders."""

    name = "st.slider"
    control = "[data-testid=stSlider]"
    figure = "[data-testid=stMetric]:has-text('Parameters') [data-testid=stMetricValue]"
    other, own = "Other", "Sliders"

    def spot(self, page: Page, at: int, percent: float) -> tuple[float, float]:
        slider = page.get_by_test_id("stSlider").nth(at)
        slider.evaluate("e => e.scrollIntoView({ block: 'center' })")  # not below the header
        track = slider.bounding_box()
        assert track is not None
        y = track["y"] + track["height"] * 0.72
        return track["x"] + 6 + (track["width"] - 12) * percent / 95, y

    def answered(self, text: str) -> bool:
        return True


def idle(page: Page) -> None:
    """Wait until the script has run."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')


def measure(browser: Browser, url: str, kind: Equalizer, *, quick: bool) -> dict[str, Any]:
    """Return the row of one page."""
    loads = [load(browser, url, kind) for _ in range(2 if quick else LOADS + 1)][1:]
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto(url + kind.path)
    page.locator(kind.control).first.wait_for()
    idle(page)
    switches = [switch(page, kind) for _ in range(3 if quick else LOADS)]
    frames, local, answers = drags(page, kind, 8 if quick else DRAGS)
    context.close()
    answers.sort()
    return {
        "local redraw (frames, max)": max(frames) if frames else "none",
        "local redraw (ms, p50)": round(statistics.median(local), 1) if local else "none",
        "answer p50 (ms)": round(statistics.median(answers)),
        "answer p95 (ms)": round(answers[min(len(answers) - 1, int(0.95 * len(answers)))]),
        "page switch (ms)": round(statistics.median(switches)),
        "page switch, first (ms)": round(switches[0]),
        "first paint (ms)": round(statistics.median(first for first, _ in loads)),
        "controls (ms)": round(statistics.median(ready for _, ready in loads)),
    }


def load(browser: Browser, url: str, kind: Equalizer) -> tuple[float, float]:
    """Return milliseconds to the first contentful paint and the first control in a new browser."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url + kind.path, wait_until="commit")
    page.locator(kind.control).first.wait_for()
    ready = 1000 * (time.perf_counter() - start)
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
    first = float(page.evaluate(paint))
    context.close()
    return first, ready


def switch(page: Page, kind: Equalizer) -> float:
    """Return milliseconds from the click on the page's link to its last control."""
    n = page.locator(kind.control).count()
    page.get_by_role("link", name=kind.other, exact=True).click()
    page.locator(kind.control).first.wait_for(state="detached")
    return go(page, kind.own, f"count({kind.control!r}) >= {n}")


def go(page: Page, title: str, done: str) -> float:
    """Return milliseconds from the click on a page's link until ``done`` (JavaScript) is true."""
    idle(page)
    page.wait_for_timeout(1500)  # until the previous page is completely drawn
    page.evaluate(CLICKED)
    page.get_by_role("link", name=title, exact=True).click()
    return float(
        page.wait_for_function(
            f"{SEEN}; return {done} && performance.now() - clicked; }}"
        ).json_value()
    )


def pages(browser: Browser, url: str, rounds: int) -> list[dict[str, Any]]:
    """Return one row per page on the demo: time from the click until its script has run."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto(url)
    page.get_by_role("heading", level=1).wait_for()
    found: dict[str, list[float]] = {title: [] for title in TITLES}
    for _ in range(rounds + 1):
        for title, times in found.items():
            times.append(go(page, title, f"drawn({title!r})"))
    context.close()
    return [
        {
            "page": f"{title}, demo",
            "groups": 16,
            "page switch (ms)": round(statistics.median(times[1:])),
            "page switch, first (ms)": round(times[0]),
        }
        for title, times in found.items()
    ]


def drags(page: Page, kind: Equalizer, count: int) -> tuple[list[int], list[float], list[float]]:
    """Return frames and milliseconds from moves to figures, and milliseconds to the server's."""
    page.locator(kind.figure).first.wait_for()
    element = page.locator(kind.figure).first
    element.evaluate(WATCH)
    frames: list[int] = []
    local: list[float] = []
    answers: list[float] = []
    total = page.locator(kind.control).count()
    for turn in range(count):
        at = 12 + (turn * 7) % (total - 12)
        low, high = (20, 55) if turn % 2 else (60, 30)
        page.mouse.move(*kind.spot(page, at, 0 if turn < total else low))
        page.mouse.down()
        page.mouse.move(*kind.spot(page, at, low))
        page.wait_for_timeout(60)
        page.evaluate("() => { watched.moves = []; watched.changes = []; watched.up = 0; }")
        page.mouse.move(*kind.spot(page, at, high))
        page.wait_for_timeout(80)
        seen = page.evaluate("() => watched")
        if seen["moves"] and seen["changes"]:
            (moved, frame), (changed, painted, _) = seen["moves"][-1], seen["changes"][0]
            local.append(changed - moved)
            frames.append(painted - frame)
        page.evaluate("() => { watched.changes = []; }")
        page.mouse.move(*kind.spot(page, at, high + 6))
        page.mouse.up()
        answers.append(answer(page, kind))
    return frames, local, answers


def answer(page: Page, kind: Equalizer) -> float:
    """Return milliseconds from the pointer's release to the server's last figure."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        page.wait_for_timeout(QUIET)
        seen, now = page.evaluate("() => [watched, performance.now()]")
        after = [
            moment - seen["up"]
            for moment, _, text in seen["changes"]
            if seen["up"] and moment > seen["up"] and kind.answered(text)
        ]
        if after and now - seen["up"] - after[-1] >= QUIET:
            return float(after[-1])
    raise TimeoutError("the figures did not change")


if __name__ == "__main__":
    main()
