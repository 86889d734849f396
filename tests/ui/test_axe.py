"""axe-core on every page, light and dark, with content and empty: nothing serious or critical."""

from __future__ import annotations

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

from psvit_core.demo import SWITCH_ENV, DemoStore, shipped_bundles
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import Subject
from psvit_core.records import EpochRecord, FinetuneReport, FinetuneSettings, Interval, PrunePlan
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import CONDITIONS, summary
from ui import drafts, kept

MODEL = summary("sdt_v1_digits")
OTHER = "?model=Meta-SpikeFormer+(SDT+v2),+digits"  # ships without results
PAGES = ("", "sensitivity", "tune", "compare", "finetune", "export", "jobs", "open")
THEMES = ("light", "dark")
BAD = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shows the shipped results; someone has worked with it."""
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
    """A draft, kept plans, jobs in every state, files: something on each page."""
    first, second, *_ = shipped_plans(store)
    drafts.save_draft(store, MODEL, drafts.draft_of(MODEL, first, (MODEL.groups[3].group_id,)))
    kept.keep_plan(store, MODEL, first, "Small")
    kept.keep_plan(store, MODEL, second, "Smaller")
    trained(store, first)
    for state, more in (
        ("failed", {"error": "[Errno 28] No space left."}),
        ("cancelled", {"done": 40, "total": 100}),
        ("queued", {}),
        ("running", {"pid": os.getpid(), "pid_started": client.process_started(os.getpid()),
                     "done": 30, "total": 100, "what": "Block 1"}),
    ):  # fmt: skip
        ended = time.time() if state in ("failed", "cancelled") else None
        put(store, state, "sweep", state, model="e_spikeformer_digits", ended=ended, **more)
    client.log_path(store, "cpu").write_text("first line\nlast line\n", encoding="utf-8")


def shipped_plans(store: Store) -> list[PrunePlan]:
    """The measured plans of PSViT's policy that ship with the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH_ENV, "1")
        shipped_bundles.cache_clear()
        archive = Workspace(Subject(), DemoStore(store.folder)).archive()
    shipped_bundles.cache_clear()
    assert archive is not None
    return [p.plan for p in archive.chosen().points if p.plan.policy == "psvit"]


def put(store: Store, job_id: str, task: str, state: str, *, model: str, **more: Any) -> Job:
    """A job as a worker would leave it."""
    params = {"subject": Subject(model=model).to_dict(), **more.pop("params", {})}
    job = Job(
        id=job_id, task=task, title="of a test", params=params, state=state, created=time.time(),
        **more,
    )  # fmt: skip
    return client.save(store, job)


def trained(store: Store, plan: PrunePlan) -> None:
    """A finished fine-tuning and a finished export with their files."""
    settings = FinetuneSettings(epochs=2)
    epochs = tuple(
        EpochRecord(
            step=25 * at, epoch=float(at), lr=1e-3, seconds=9.0 * at,
            train_loss=1 / (1 + at) if at else None, val_loss=0.5 / (1 + at),
            val_accuracy=Interval(value=a, low=a - 0.02, high=a + 0.01),
        )
        for at, a in enumerate((0.91, 0.95, 0.94))
    )  # fmt: skip
    report = FinetuneReport(
        model=MODEL.model, settings=settings, conditions=CONDITIONS, teacher=MODEL.model,
        best_epoch=1, epochs=epochs,
    )  # fmt: skip
    curve = store.place("exports", "curve.jsonl")
    curve.write_text("".join(json.dumps(e.to_dict()) + "\n" for e in epochs), encoding="utf-8")
    for task, result in (
        ("export", {}),
        ("finetune", {"report": report.to_dict(), "recovery": None, "records": str(curve)}),
    ):
        path = store.place("exports", task, f"{task}.safetensors")
        path.write_bytes(bytes(range(256)) * 400)
        file = {
            "path": str(path), "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }  # fmt: skip
        params = {"plan": plan.to_dict(), "settings": settings.to_dict()}
        put(store, task, task, "done", model=MODEL.model, ended=time.time(), params=params,
            result={**result, **file})  # fmt: skip


def violations(page: Page) -> list[str]:
    """What axe finds that is serious or critical: the rule, where, and why."""
    settled(page)
    page.wait_for_timeout(700)  # charts draw themselves, expanders open
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{v['id']} at {node['target']}: {node['failureSummary']}"
        for v in found["violations"]
        if v["impact"] in BAD
        for node in v["nodes"]
    ]


@pytest.mark.parametrize("theme", [THEMES[0], pytest.param(THEMES[1], marks=pytest.mark.slow)])
def test_pages_with_content(server: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(server.url, color_scheme=theme)
    found = {}
    for name in PAGES:
        page.goto(f"{server.url}/{name}")
        found[name] = violations(page)
    assert found == dict.fromkeys(PAGES, [])


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_empty_pages(empty: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(empty.url, color_scheme=theme)
    found = {}
    for name in PAGES:
        page.goto(f"{empty.url}/{name}{OTHER}")
        found[name] = violations(page)
    assert found == dict.fromkeys(PAGES, [])


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
def test_what_opens_on_a_page(server: Server, open_page: OpenPage, theme: str) -> None:
    page = open_page(server.url, color_scheme=theme)
    found = {}
    acts: dict[str, Act] = {
        "": latency, "sensitivity": coupled, "tune": table, "tune#": bytes_wide,
        "compare": popovers, "finetune": settings, "jobs": log, "open": folder,
    }  # fmt: skip
    for name, act in acts.items():
        page.goto("about:blank")
        page.goto(f"{server.url}/{name}")
        settled(page)
        act(page)
        found[name] = violations(page)
    assert found == dict.fromkeys(acts, [])
