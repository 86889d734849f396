"""Latency of the Tune page in Chromium, beside the same page made of ``st.slider``.

    python benchmarks/ui.py [--quick] [--json]

Local redraw: from the pointer's move to the figure that it changes, in frames of the browser and in
milliseconds. Answer: from letting go to the server's figures. Both pages show the same figures of
the same plan from the same functions; the page of sliders is made here and thrown away. The tables
are made up (no model runs): Meta-SpikeFormer 15M's shapes with its 69 groups, and the same with
more blocks for 120.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks._report import options, report
from psvit_core.jobs import client
from psvit_core.jobs.engine import Subject
from psvit_core.records import ModelSummary, ShapeTable
from psvit_core.store import Store
from psvit_core.zoo.cards import model_card
from tests.browser import chromium_path
from tests.ui.example import put_sweep

ROOT = Path(__file__).resolve().parents[1]
MODEL = "meta_spikeformer_15m"
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAGS, LOADS = 30, 5
QUIET = 450  # milliseconds without a change after which a figure counts as the last one
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]

SLIDERS = """
import sys
sys.path.insert(0, {root!r})
import streamlit as st
from psvit_core.size import plan_size
from ui import drafts, loaders, predict, state, words, sweep_views
from ui.loaders import Choice

def sliders():
    store = loaders.open_store()
    summary = Choice(model={path!r}, limit=None).describer(store).summary()
    view = next(v for v in sweep_views.sweeps(store, summary) if v.complete)
    predictor = predict.predictor(view.table)
    draft = state.draft(store, summary)
    base, size = plan_size(summary, None), plan_size(summary, draft.plan)
    st.title("Sliders")
    tiles = st.columns(4)
    tiles[0].metric("Memory", words.megabytes(size.bytes))
    tiles[1].metric("Parameters", f"{{size.params:,}}")
    tiles[2].metric("MACs a time step", words.count(size.macs))
    tiles[3].metric("Predicted drop", words.drop(predictor.drop(draft.plan)))
    for column, at in zip(st.columns(4), range(4)):
        for group in summary.groups[at::4]:
            name = "s/" + group.group_id
            def move(group_id=group.group_id, name=name):
                new = drafts.with_ratio(state.draft(store, summary), summary, group_id,
                                        st.session_state[name] / 100)
                state.set_draft(store, summary, new)
            with column:
                st.slider(group.label, 0, 95, key=name, on_change=move, persist_state="session")

def other():
    st.title("Other")

st.set_page_config(layout="wide")
pages = [st.Page(sliders, title="Sliders", default=True), st.Page(other, title="Other")]
st.navigation(pages, position="top").run()
"""

#: Times in the page itself: the pointer's events, and the changes of the figures' text. Streamlit
#: may draw a metric anew, so the whole app is watched where the figure is not in a component.
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


TITLES = (
    "Sensitivity", "Tune", "Compare", "Fine-tune", "Export", "Jobs", "Open", "Overview",
)  # fmt: skip
CLICKED = """
() => addEventListener('click', () => { window.clicked = performance.now(); },
                       { capture: true, once: true })
"""
#: Looks for controls in components, too.
SEEN = """() => {
  const roots = root => [root, ...[...root.querySelectorAll('*')]
    .filter(e => e.shadowRoot).flatMap(e => roots(e.shadowRoot))];
  const count = what => roots(document).reduce((n, r) => n + r.querySelectorAll(what).length, 0);
  const drawn = title => document.querySelector('h1')?.textContent === title
    && document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'
"""


def main() -> None:
    """Measure both pages at both sizes."""
    chosen = options(__doc__ or "")
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Store(folder)
        paths = [put_model(store, n) for n in ((69,) if chosen.quick else (69, 120))]
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
            "model": MODEL, "ratios": len(RATIOS), "cpus": os.cpu_count(),
            "streamlit": version("streamlit"), "chromium": browser.version,
            "drags": DRAGS, "loads": LOADS,
        }  # fmt: skip
        with served(ROOT / "app.py", f"{folder}/demo") as url:
            rows += pages(browser, url, 1 if chosen.quick else LOADS)
        with served(ROOT / "app.py", f"{folder}/warm", warm=True) as url:
            rows.append(first_estimates(browser, url, Path(folder) / "warm"))
        browser.close()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    report("ui", [{name: row.get(name, "") for name in columns} for row in rows], about, chosen)


# ---- models and servers ------------------------------------------------------------------------


def put_model(store: Store, n: int) -> tuple[int, str]:
    """A model of ``n`` groups with its description and sweep in the store; a file that names it."""
    path = store.folder / f"model{n}.safetensors"
    path.touch()
    model = grown(full_size(), n)
    model = dataclasses.replace(model, model=str(path), weights_hash=f"{n:064d}")
    put_sweep(store, model, RATIOS, n_images=500)
    job = client.Job(
        id=f"model{n}", task="summary", title="", state="done", created=1.0, ended=1.0,
        params={"subject": Subject(model=str(path)).to_dict()},
        result={"summary": model.to_dict()},
    )  # fmt: skip
    client.save(store, job)
    return n, str(path)


def full_size() -> ModelSummary:
    """The description of the full-size model with random weights."""
    from psvit_core.groups import summarize
    from psvit_core.importance import rank
    from psvit_core.zoo.registry import build_model

    card = model_card(MODEL)
    model = build_model(card.family, **card.arguments)
    return summarize(model, {"l2": rank(model, "l2")})


def grown(model: ModelSummary, n: int) -> ModelSummary:
    """The model with copies of a block's groups, tensors and compute until it has ``n`` groups."""
    block = [g for g in model.groups if g.block == "Block 3.1"]
    groups, shapes = list(model.groups), model.shapes
    tensors, terms = list(shapes.tensors), list(shapes.terms)
    rankings = {criterion: dict(of) for criterion, of in model.rankings.items()}
    for copy in range(1, n):
        taken = block[: n - len(groups)]
        if not taken:
            break
        new = {g.group_id: f"copy{copy}.{g.group_id}" for g in taken}
        for group in taken:
            label = {"group_id": new[group.group_id], "block": f"Block 5.{copy}"}
            groups.append(dataclasses.replace(group, **label))
            for of in rankings.values():
                of[new[group.group_id]] = of[group.group_id]
        for t in shapes.tensors:
            if any(g in new for g in t.groups if g):
                renamed = tuple(new.get(g, g) if g else None for g in t.groups)
                tensors.append(dataclasses.replace(t, name=f"copy{copy}.{t.name}", groups=renamed))
        for c in shapes.terms:
            if any(g in new for g in c.groups):
                renamed = tuple(new.get(g, g) for g in c.groups)
                terms.append(dataclasses.replace(c, layer=f"copy{copy}.{c.layer}", groups=renamed))
    table = ShapeTable(tensors=tuple(tensors), terms=tuple(terms))
    return dataclasses.replace(model, groups=tuple(groups), shapes=table, rankings=rankings)


@contextmanager
def served(script: Path, cache: str, *, warm: bool = False) -> Iterator[str]:
    """A server of a script over a store; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.headless", "true"]
    process = subprocess.Popen(
        [*command, "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "PSVIT_CACHE": cache, "PSVIT_WARM": str(int(warm))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=2)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


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
        """Where a percentage of a control is on the page."""
        column = page.get_by_role("slider").nth(at)
        column.evaluate("e => e.scrollIntoView({ block: 'nearest', inline: 'nearest' })")
        box = column.locator(".well").bounding_box()
        assert box is not None
        return box["x"] + box["width"] / 2, box["y"] + box["height"] * (1 - percent / 100)

    def answered(self, text: str) -> bool:
        """Whether a figure's text is the server's."""
        return "≈" not in text


class Sliders(Equalizer):
    """The page of sliders."""

    name = "st.slider"
    control = "[data-testid=stSlider]"
    figure = "[data-testid=stMetric]:has-text('Parameters') [data-testid=stMetricValue]"
    other, own = "Other", "Sliders"

    def spot(self, page: Page, at: int, percent: float) -> tuple[float, float]:
        slider = page.get_by_test_id("stSlider").nth(at)
        slider.evaluate("e => e.scrollIntoView({ block: 'center' })")  # not under the head
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
    """One row."""
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
    """Milliseconds to the first contentful paint and to the first control, in a new browser."""
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
    """Milliseconds from the click on the page's link to its last control, told by the page."""
    n = page.locator(kind.control).count()
    page.get_by_role("link", name=kind.other, exact=True).click()
    page.locator(kind.control).first.wait_for(state="detached")
    return go(page, kind.own, f"count({kind.control!r}) >= {n}")


def go(page: Page, title: str, done: str) -> float:
    """Milliseconds from the click on a page's link until ``done`` (JavaScript) is true there."""
    idle(page)
    page.wait_for_timeout(1500)  # what the page before still draws belongs to that one
    page.evaluate(CLICKED)
    page.get_by_role("link", name=title, exact=True).click()
    return float(page.wait_for_function(f"{SEEN}; return {done} && performance.now() - clicked; }}")
                 .json_value())  # fmt: skip


def pages(browser: Browser, url: str, rounds: int) -> list[dict[str, Any]]:
    """One row a page of the app on the demo: from the click until its script has run."""
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
            "page": f"{title}, demo", "groups": 16,
            "page switch (ms)": round(statistics.median(times[1:])),
            "page switch, first (ms)": round(times[0]),
        }
        for title, times in found.items()
    ]  # fmt: skip


def first_estimates(browser: Browser, url: str, cache: Path) -> dict[str, Any]:
    """From pressing Measure to the first estimate and to the result, on the demo; two plans."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{url}/tune")
    idle(page)
    log, deadline = cache / "logs" / "worker-cpu.log", time.monotonic() + 60
    while not (log.exists() and "warm: baseline" in log.read_text(encoding="utf-8")):
        if time.monotonic() > deadline:
            raise TimeoutError("the worker does not get warm")
        time.sleep(0.1)
    first, last = [], []
    for column in (6, 9):
        page.get_by_role("slider").nth(column).press("PageUp")
        time.sleep(1)
        idle(page)
        page.get_by_role("button", name="Measure", exact=True).click()
        begin = time.monotonic()
        for text, into in (("So far|the gap is", first), ("the gap is", last)):
            page.get_by_text(re.compile(text)).first.wait_for(timeout=60_000)
            into.append(round(1000 * (time.monotonic() - begin)))
    page.close()
    return {"page": "Tune, demo: Measure", "groups": 16, "first estimate (ms)": max(first),
            "result (ms)": max(last)}  # fmt: skip


def drags(page: Page, kind: Equalizer, count: int) -> tuple[list[int], list[float], list[float]]:
    """Frames and milliseconds from a move to the figure, and milliseconds to the server's."""
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
    """Milliseconds from letting go to the last figure that the server sends for it."""
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
