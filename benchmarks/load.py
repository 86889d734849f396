"""Many people at one app: answers, errors, waiting, memory, and whose plan is shown to whom.

    python benchmarks/load.py [--quick] [--json]

20 tabs without a browser (``_load_client`` speaks Streamlit's websocket protocol) and one Chromium
beside them browse, edit and measure the demo for two minutes, on one app with one worker. Then one
tab runs its page 2,000 times. A full run takes about seven minutes on an idle machine, stores the
result, and rewrites the section in ``docs/performance.md``.

An answer is the time until an edit's figures have come from the server, or a page is complete.
Waiting of measurements is counted apart: from the request to the moment when the worker begins.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from argparse import Namespace
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import psutil
from playwright.sync_api import sync_playwright

from benchmarks._load_page import NEXT, memory_rows, row, section
from benchmarks._load_people import (
    QUERY_IMAGES,
    Crowd,
    Memory,
    measurements,
    megabytes,
    memory_of,
    pool_for,
    rank,
    server_of,
    waits,
)
from benchmarks._report import options, replace_section, report, stored
from benchmarks._ui_cases import ROOT, served
from benchmarks.drag import is_warm, wait_for
from benchmarks.ui import FLAGS, Equalizer, drags, idle
from psvit_core.jobs import client, workers
from psvit_core.records import DEFAULT_MODEL, ModelSummary
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import model_card, shipped_summary
from tests.browser import chromium_path

TABS, SECONDS, RERUNS = 20, 120.0, 2000
TTL = 10  # seconds after which the app forgets a closed session; Streamlit's default is 120
_GRACE = TTL + 10  # seconds after closing until it has
_SAMPLES = 8  # looks at the memory during the reruns
_BROWSING_PAUSE = 3000  # milliseconds between two drags in the browser


@dataclass
class Browsing:
    """What the real browser saw."""

    answers: list[float] = field(default_factory=list)  # ms from a pointer's release to figures
    errors: list[str] = field(default_factory=list)


def main() -> None:
    """Measure both parts, and rewrite the documentation."""
    chosen = options(__doc__ or "")
    os.environ["PSVIT_PLANS"] = "own"  # as where several people reach the app
    model = shipped_summary(DEFAULT_MODEL)
    assert model is not None
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = crowd_rows(Path(folder) / "crowd", model, quick=chosen.quick)
        rows += rerun_rows(Path(folder) / "one", model, 100 if chosen.quick else RERUNS)
    about = {
        "model": DEFAULT_MODEL,
        "images": QUERY_IMAGES,
        "tabs": tabs(chosen),
        "cpus": os.cpu_count(),
        "load before": round(load, 1),
        "session kept (s)": TTL,
        "streamlit": version("streamlit"),
    }
    report("load", rows, about, chosen)
    if not chosen.quick:
        replace_section(ROOT / "docs/performance.md", section(stored("load")), NEXT)


def tabs(chosen: Namespace) -> int:
    """Return the number of tabs without a browser."""
    return 4 if chosen.quick else TABS


# ---- many tabs -------------------------------------------------------------------------------


def crowd_rows(cache: Path, model: ModelSummary, *, quick: bool) -> list[dict[str, Any]]:
    """Return the figures of many tabs and a browser at one app."""
    cache.mkdir()
    store, count = Store(cache), 4 if quick else TABS
    arguments = ("--server.disconnectedSessionTTL", str(TTL))
    with (
        served(ROOT / "app.py", str(cache), warm=True, measures=True, arguments=arguments) as url,
        pool_for(count) as pool,
    ):
        wait_for(lambda: is_warm(store))
        crowd = Crowd(url, model, count, pool)
        browsing = Browsing()
        try:
            memory, of_workers = asyncio.run(
                _crowd(crowd, browsing, store, seconds=15.0 if quick else SECONDS)
            )
        finally:
            end_jobs(store)
    crowd.found.errors += browsing.errors
    rows = _answer_rows(crowd, browsing) + _measuring_rows(crowd, store)
    return rows + memory_rows(memory, count, _GRACE, of_workers)


async def _crowd(
    crowd: Crowd, browsing: Browsing, store: Store, *, seconds: float
) -> tuple[dict[str, Memory], float]:
    """Let everybody work; return the memory of the app at some moments, and the worker's, MB."""
    server = server_of(crowd.url)
    first = Crowd(crowd.url, crowd.model, 1, crowd.pool)
    await first.open()  # what the first session loads stays loaded
    await first.tabs[0].visit("compare")
    await first.close()
    await asyncio.sleep(_GRACE)
    memory = {"before": memory_of(server)}
    await crowd.open()
    memory["opened"] = memory_of(server)
    over = threading.Event()
    thread = threading.Thread(target=browse, args=(crowd.url, browsing, over))
    thread.start()
    await crowd.work(seconds)
    memory["worked"] = memory_of(server)
    of_workers = sum(megabytes(process) for process in workers_of(store))
    over.set()
    await asyncio.to_thread(thread.join)
    await crowd.close()
    memory["closed"] = memory_of(server)
    end_jobs(store)
    await asyncio.sleep(_GRACE)
    memory["after"] = memory_of(server)
    again = Crowd(crowd.url, crowd.model, crowd.count, crowd.pool)
    await again.open()
    await again.work(seconds)
    await again.close()
    crowd.found.errors += again.faults(store)
    end_jobs(store)
    await asyncio.sleep(_GRACE)
    memory["again"] = memory_of(server)
    return memory, of_workers


def browse(url: str, browsing: Browsing, over: threading.Event) -> None:
    """Drag handles in a real browser until it is over."""
    title = quote(model_card(DEFAULT_MODEL).title)
    kind = Equalizer(f"/tune?model={title}&images={QUERY_IMAGES}", "/")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        try:
            page.goto(url + kind.path)
            page.get_by_role("slider").first.wait_for()
            idle(page)
            while not over.is_set():
                browsing.answers += drags(page, kind, 1)[2]
                page.wait_for_timeout(_BROWSING_PAUSE)
        except Exception as error:
            browsing.errors.append(f"browser: {error!r}")
        finally:
            browser.close()


def workers_of(store: Store) -> list[psutil.Process]:
    """Return the processes of a store's workers."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "psvit_core.jobs.worker" in (process.info["cmdline"] or [])
        and str(store.folder) in process.info["cmdline"]
    ]


def end_jobs(store: Store) -> None:
    """Cancel what still waits or runs."""
    for job in client.list_jobs(store):
        if job.active:
            client.cancel(store, job.id)
            workers.ring(store, job.device)


def _answer_rows(crowd: Crowd, browsing: Browsing) -> list[dict[str, Any]]:
    found, rows = crowd.found, []
    answers = found.edits + found.visits
    kinds = {
        "all answers": answers,
        "edits": found.edits,
        "pages": found.visits,
        "browser, edits": [ms / 1000 for ms in browsing.answers],
        "opening a session": found.opened,
    }
    for name, times in kinds.items():
        if times:
            note = f"{len(times)} answers, {crowd.count} tabs"
            note = f"{len(times)} in Chromium" if name.startswith("browser") else note
            rows.append(row(f"{name}, p50", statistics.median(times), "s", note))
            rows.append(row(f"{name}, p95", rank(times, 0.95), "s", note))
    return rows


def _measuring_rows(crowd: Crowd, store: Store) -> list[dict[str, Any]]:
    jobs = measurements(store)
    waited, shown = waits(jobs), crowd.found.measured
    by_owner: dict[str, list[float]] = {}
    for job in jobs:
        by_owner.setdefault(job.owner, []).append((job.started or 0.0) - job.created)
    medians = [statistics.median(times) for times in by_owner.values()]
    faults = crowd.faults(store)
    for fault in faults:
        print(fault, file=sys.stderr)
    own = {job_id for tab in crowd.tabs for job_id in tab.followed}
    dropped = len(crowd.found.edits) - len([job for job in jobs if job.id in own])
    return [
        row("measurement waits for the worker, p50", rank(waited, 0.5), "s", f"{len(jobs)} ran"),
        row("measurement waits for the worker, p95", rank(waited, 0.95), "s"),
        row(
            "median wait of the tab that waits longest", max(medians, default=0.0), "s", "fairness"
        ),
        row("edit to measured result on the page, p50", rank(shown, 0.5), "s", f"{len(shown)}"),
        row("edit to measured result on the page, p95", rank(shown, 0.95), "s"),
        row("edits whose measurement was dropped", dropped, "", "a newer edit took its place"),
        row("errors, and values of other plans", len(faults)),
    ]


# ---- one tab, many runs ----------------------------------------------------------------------


def rerun_rows(cache: Path, model: ModelSummary, count: int) -> list[dict[str, Any]]:
    """Return the memory of the app while one session runs its page again and again."""
    cache.mkdir()
    arguments = ("--server.disconnectedSessionTTL", str(TTL))
    with served(ROOT / "app.py", str(cache), arguments=arguments) as url, pool_for(1) as pool:
        crowd = Crowd(url, model, 1, pool)
        samples, seconds = asyncio.run(_rerun(crowd, count))
        faults = crowd.faults(Store(cache))
    marks = [n * count // _SAMPLES for n in range(_SAMPLES + 1)]
    # The caches of pages have filled up after the first eighth.
    slope = 1000 * (samples[-1] - samples[1]) / (marks[-1] - marks[1])
    return [
        row(
            f"one session, {count} runs",
            seconds / count,
            "s",
            "mean of a run; visits of pages are included",
        ),
        row("app, before them", samples[0], "MB"),
        *(
            row(f"app, after {n} runs", mb, "MB")
            for n, mb in list(zip(marks, samples, strict=True))[1:]
        ),
        row("growth per 1,000 runs", slope, "MB", f"from run {marks[1]} on"),
        row("errors of this session", len(faults)),
    ]


async def _rerun(crowd: Crowd, count: int) -> tuple[list[float], float]:
    await crowd.open()
    rng, samples, seconds = random.Random(0), list[float](), 0.0
    for n in range(count):
        if n % (count // _SAMPLES) == 0:
            samples.append(await _collected(crowd))
        begun = time.perf_counter()
        if n % 20 == 0:
            await crowd.tabs[0].visit("compare")
            await crowd.tabs[0].visit("tune")
        await crowd.edit(0, rng)
        seconds += time.perf_counter() - begun
    samples.append(await _collected(crowd))
    await crowd.close()
    return samples[:_SAMPLES] + samples[-1:], seconds


async def _collected(crowd: Crowd) -> float:
    """Return the app's memory without garbage, MB: it collects when another session has ended."""
    other = Crowd(crowd.url, crowd.model, 1, crowd.pool)
    await other.open()
    await other.close()
    await asyncio.sleep(_GRACE)
    return megabytes(server_of(crowd.url))


if __name__ == "__main__":
    main()
