"""axe-core on every page, light and dark, with content and empty: no serious or critical issue."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect

from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.records import (
    EpochRecord,
    FinetuneReport,
    FinetuneSettings,
    Interval,
    PrunePlan,
    Subject,
)
from psvit_core.records.jobs import FitsRequest, FitsResult
from psvit_core.storage.shipped import SWITCH_ENV, DemoStore, shipped_bundles
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import CONDITIONS, fit_report, summary
from ui.model import drafts, saved_plans

MODEL = summary("sdt_v1_digits")
OTHER = "?model=Meta-SpikeFormer+(SDT+v2),+digits"  # ships without results
PAGES = ("", "sensitivity", "tune", "compare", "finetune", "export", "jobs", "open")
THEMES = ("light", "dark")
BAD = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the shipped results and some work done in it."""
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    work(server.store)
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("empty"), demo=True)
    yield server
    server.kill()
    server.end_workers()


def work(store: Store) -> None:
    """Store a draft, saved plans, jobs in every state and files: content for each page."""
    first, second, *_ = shipped_plans(store)
    drafts.save_draft(store, MODEL, drafts.draft_of(MODEL, first, (MODEL.groups[3].group_id,)))
    saved_plans.save_plan(store, MODEL, first, "Small")
    saved_plans.save_plan(store, MODEL, second, "Smaller")
    trained(store, first)
    counted(store, first)
    for state, more in (
        ("failed", {"error": "[Errno 28] No space left."}),
        ("cancelled", {"done": 40, "total": 100}),
        ("queued", {}),
        (
            "running",
            {
                "pid": os.getpid(),
                "pid_started": workers.process_started(os.getpid()),
                "done": 30,
                "total": 100,
                "what": "Block 1",
            },
        ),
    ):
        ended = time.time() if state in ("failed", "cancelled") else None
        put(store, state, "sweep", state, model="e_spikeformer_digits", ended=ended, **more)
    workers.log_path(store, "cpu").write_text("first line\nlast line\n", encoding="utf-8")


def shipped_plans(store: Store) -> list[PrunePlan]:
    """Return the measured plans of PSViT's policy that ship with the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH_ENV, "1")
        shipped_bundles.cache_clear()
        archive = Workspace(Subject(), DemoStore(store.folder)).archive()
    shipped_bundles.cache_clear()
    assert archive is not None
    return [p.plan for p in archive.chosen().points if p.plan.policy == "psvit"]


def put(store: Store, job_id: str, task: str, state: str, *, model: str, **more: Any) -> Job:
    """Store a job as a worker would."""
    params = {"subject": Subject(model=model).to_dict(), **more.pop("params", {})}
    job = Job(
        id=job_id,
        task=task,
        title="of a test",
        params=params,
        state=state,
        created=time.time(),
        **more,
    )
    return client.save(store, job)


def counted(store: Store, plan: PrunePlan) -> None:
    """Store what the network needs to run, unpruned and pruned."""
    result = FitsResult(
        unpruned=fit_report(300_000, state=90_000), pruned=fit_report(100_000, state=50_000)
    )
    params = FitsRequest(plan=plan).to_dict()
    job = put(store, "fits", "fits", "done", model=MODEL.model, params=params)
    client.save(store, dataclasses.replace(job, result=result.to_dict()))


def trained(store: Store, plan: PrunePlan) -> None:
    """Store a finished fine-tuning run and a finished export, with their files."""
    settings = FinetuneSettings(epochs=2)
    epochs = tuple(
        EpochRecord(
            step=25 * at,
            epoch=float(at),
            lr=1e-3,
            seconds=9.0 * at,
            train_loss=1 / (1 + at) if at else None,
            val_loss=0.5 / (1 + at),
            val_accuracy=Interval(value=a, low=a - 0.02, high=a + 0.01),
        )
        for at, a in enumerate((0.91, 0.95, 0.94))
    )
    report = FinetuneReport(
        model=MODEL.model,
        settings=settings,
        conditions=CONDITIONS,
        teacher=MODEL.model,
        best_epoch=1,
        epochs=epochs,
    )
    curve = store.place("exports", "curve.jsonl")
    curve.write_text("".join(json.dumps(e.to_dict()) + "\n" for e in epochs), encoding="utf-8")
    trained = {"report": report.to_dict(), "recovery": None, "records": str(curve)}
    for task, more, result in (
        ("export", {}, {}),
        ("finetune", {"settings": settings.to_dict()}, trained),
    ):
        path = store.place("exports", task, f"{task}.safetensors")
        path.write_bytes(bytes(range(256)) * 400)
        file = {
            "path": str(path),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        params = {"plan": plan.to_dict(), "file_name": path.name, **more}
        put(
            store,
            task,
            task,
            "done",
            model=MODEL.model,
            ended=time.time(),
            params=params,
            result={**result, **file},
        )


def violations(page: Page) -> list[str]:
    """Return axe's serious and critical findings: rule, element, reason.

    While a part of the page is drawn again, Streamlit fades what it will replace. So a finding
    counts only if it is there in three looks.
    """
    found = look(page)
    for _ in range(2):
        if found:
            found = look(page)
    return found


def look(page: Page) -> list[str]:
    """Return what axe finds now."""
    settled(page)
    page.wait_for_timeout(700)  # until charts are drawn and expanders are open
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{v['id']} at {node['target']}: {node['failureSummary']}"
        for v in found["violations"]
        if v["impact"] in BAD
        for node in v["nodes"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_pages_with_content(server: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(server.url, color_scheme=theme)
    found = {}
    for name in PAGES:
        page.goto(f"{server.url}/{name}")
        found[name] = violations(page)
    assert found == {name: [] for name in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_empty_pages(empty: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(empty.url, color_scheme=theme)
    found = {}
    for name in PAGES:
        page.goto(f"{empty.url}/{name}{OTHER}")
        found[name] = violations(page)
    assert found == {name: [] for name in PAGES}


Act = Callable[[Page], None]


def table(page: Page) -> None:
    page.get_by_role("radio", name="Table").check(force=True)
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()


def bytes_wide(page: Page) -> None:
    page.get_by_role("button", name="Width: share of bytes").click()
    expect(page.get_by_text("hatched area")).to_be_visible()


def latency(page: Page) -> None:
    page.get_by_role("radio", name="Latency").check(force=True)
    expect(page.get_by_text("Latency: not measured yet")).to_be_visible()


def coupled(page: Page) -> None:
    page.get_by_text(re.compile("^Coupled: ")).click()
    page.get_by_text(re.compile("measured cells as a table")).click()


def settings(page: Page) -> None:
    page.get_by_text("More: learning rate").click()


def popovers(page: Page) -> None:
    page.get_by_role("button", name="Open a plan file").click()
    expect(page.locator("input[type=file]")).to_be_attached()


def needs(page: Page) -> None:
    page.get_by_text("Weights by layer, activations by position").click()
    expect(page.get_by_text("the 12 largest of 83")).to_be_visible()


def log(page: Page) -> None:
    page.get_by_text("Log of the worker on cpu").click()
    expect(page.get_by_text("last line")).to_be_visible()


def folder(page: Page) -> None:
    page.get_by_role("radio", name="From a folder").check(force=True)
    page.get_by_label("Folder with models", exact=True).fill("/no/such/folder")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Cannot read /no/such/folder")).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_expanded_parts_of_pages(server: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(server.url, color_scheme=theme)
    found = {}
    acts: dict[str, Act] = {
        "": latency,
        "sensitivity": coupled,
        "tune": table,
        "tune#": bytes_wide,
        "compare": popovers,
        "finetune": settings,
        "export": needs,
        "jobs": log,
        "open": folder,
    }
    for name, act in acts.items():
        page.goto("about:blank")
        page.goto(f"{server.url}/{name}")
        settled(page)
        act(page)
        found[name] = violations(page)
    assert found == {name: [] for name in acts}
