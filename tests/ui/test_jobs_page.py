"""The Jobs page in a browser: the queue, ended jobs, files to download."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from psvit_core.jobs import client, queue, workers
from psvit_core.jobs.client import Job
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import memory_saving
from psvit_core.records import FinetuneSettings, PrunePlan, Subject, SweepSettings
from psvit_core.records.jobs import (
    ExportRequest,
    FinetuneRequest,
    JobRequest,
    MeasureRequest,
    SweepRequest,
)
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.ui.conftest import OpenPage, Server
from tests.ui.example import summary
from tests.ui.test_compare import measured
from ui.model import formats, saved_plans

MODEL = "e_spikeformer_digits"
TITLE = "E-SpikeFormer (SDT v3), digits"
SUBJECT = Subject(model=MODEL, limit=64)
PLAN = PrunePlan(model=MODEL, weights_hash="", criterion="l2", kept={})
REQUESTS: dict[str, JobRequest] = {
    "sweep": SweepRequest(settings=SweepSettings(ratios=(0.5,))),
    "measure": MeasureRequest(plan=PLAN),
    "export": ExportRequest(plan=PLAN, file_name="small.safetensors"),
    "finetune": FinetuneRequest(settings=FinetuneSettings(), file_name="t.safetensors", plan=PLAN),
}


def put(store: Store, job_id: str, task: str, state: str, **changed: Any) -> Job:
    """Store a job as a worker would."""
    params = {"subject": SUBJECT.to_dict(), **REQUESTS[task].to_dict()}
    job = Job(
        id=job_id,
        task=task,
        title=f"{task} of a test",
        params=params,
        state=state,
        **{"created": time.time(), **changed},
    )
    return client.save(store, job)


def written(store: Store, job_id: str) -> Path:
    """Store a finished export with its file."""
    path = store.place("exports", job_id, "small.safetensors")
    path.write_bytes(bytes(range(256)) * 4000)
    result = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    put(store, job_id, "export", "done", ended=time.time(), result=result)
    return path


def section(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def test_empty(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/jobs")
    expect(page.get_by_text("No jobs are running or waiting")).to_be_visible()
    expect(page.get_by_text("No jobs have ended yet")).to_be_visible()
    expect(page.get_by_text("No files yet")).to_be_visible()


def test_files(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    path = written(server.store, "file")
    page = open_page(f"{server.url}/jobs")
    expect(page.get_by_text("1,024,000 bytes")).to_be_visible()
    expect(page.get_by_text(hashlib.sha256(path.read_bytes()).hexdigest())).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download small.safetensors").click()
    waiting.value.save_as(tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == path.read_bytes()

    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("button", name="Remove the file").click()
    expect(page.get_by_text("Removed small.safetensors")).to_be_visible()
    expect(page.get_by_text("No files yet")).to_be_visible()
    assert not path.exists()


def test_ended_jobs(server: Server, open_page: OpenPage) -> None:
    store = server.store
    put(store, "full", "export", "failed", ended=time.time(), error="[Errno 28] No space left.")
    put(store, "half", "sweep", "cancelled", ended=time.time(), done=40, total=100)
    put(store, "gone", "finetune", "running", pid=2**22 - 1, pid_started=1.0, done=1, total=9)
    workers.log_path(store, "cpu").write_text("first line\nlast line\n")
    page = open_page(f"{server.url}/jobs")
    section(page, "Ended")
    expect(page.get_by_text("The disk is full")).to_be_visible()
    expect(page.get_by_text(re.compile(r"40\s% done"))).to_be_visible()
    expect(page.get_by_text("Its worker process ended")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_have_count(1)
    expect(page.get_by_role("button", name="Resume")).to_have_count(2)
    page.get_by_text("Log of the worker on cpu").click()
    expect(page.get_by_text("last line")).to_be_visible()


@pytest.mark.slow
def test_jobs_name_their_plan_and_lead_to_the_result(server: Server, open_page: OpenPage) -> None:
    store, model = server.store, summary(MODEL)
    ratios = {g.group_id: 0.5 for g in model.groups[:9]}
    plan = replace(plan_from_ratios(model, ratios, criterion="l2"), policy="psvit")
    saving = formats.percent(memory_saving(model, plan)).replace(formats.NBSP, " ")
    result = {"measurement": measured(plan).to_dict()}
    job = put(store, "named", "measure", "done", ended=time.time(), result=result)
    params = {"subject": SUBJECT.to_dict(), "plan": plan.to_dict(), "profile": False}
    client.save(store, replace(job, params=params))
    page = open_page(f"{server.url}/jobs")
    row = row_of(page)
    expect(row).to_contain_text(f"PSViT · saves {saving}")
    row.get_by_role("button", name="Show on Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare")
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value(TITLE)
    chosen = page.get_by_label("Plan", exact=True)
    expect(chosen).to_have_value(re.compile(rf"Measured: PSViT, saves {saving[:-2]}"))
    expect(page).to_have_url(re.compile("/compare.*images=64"))

    saved_plans.save_plan(store, model, plan, "Half of nine")  # then it is named, and picked still
    page = open_page(f"{server.url}/jobs")
    expect(row_of(page)).to_contain_text("Half of nine · PSViT · saves")
    row_of(page).get_by_role("button", name="Show on Compare").click()
    expect(page.get_by_label("Plan", exact=True)).to_have_value(re.compile("^Half of nine"))


def row_of(page: Page) -> Locator:
    return page.locator(".st-key-ended-row-named")


@pytest.mark.slow
def test_a_running_job_is_followed_cancelled_and_resumed(
    server: Server, open_page: OpenPage
) -> None:
    store = server.store
    job = Workspace(SUBJECT, store).start_sweep(SweepSettings(ratios=(0.25, 0.5, 0.75)))
    page = open_page(f"{server.url}/jobs")
    progress = page.get_by_text(re.compile(r"Sweep: \d+\s%"))
    expect(progress).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("No jobs are running or waiting")).to_be_visible()
    ended = client.find_job(store, job.id)
    assert (ended.state, ended.done < ended.total) == ("cancelled", True)
    row = page.locator(f".st-key-ended-row-{job.id}")
    expect(row).to_contain_text(TITLE)
    row.get_by_role("button", name="Resume").click()
    expect(progress).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("No jobs are running or waiting")).to_be_visible()


def queued(server: Server, *ratios: float) -> list[str]:
    """Queue sweeps whose worker does not start; return their ids."""
    workspace = Workspace(SUBJECT, server.store)
    return [workspace.start_sweep(SweepSettings(ratios=(ratio,))).id for ratio in ratios]


@pytest.mark.slow
def test_waiting_jobs_are_moved(fresh_server: Server, open_page: OpenPage) -> None:
    store = fresh_server.store
    with workers.worker_lock(store, "cpu") as free:
        assert free
        a, b, c = queued(fresh_server, 0.25, 0.5, 0.75)
        page = open_page(f"{fresh_server.url}/jobs")
        row = page.locator(f".st-key-queue-{c}")
        expect(row).to_contain_text("number 3 of 3 that wait")
        row.get_by_role("button", name="Up").click()
        expect(row).to_contain_text("number 2 of 3 that wait")
        row.get_by_role("button", name="First").click()
        expect(row).to_contain_text("number 1 of 3 that wait")
        expect(row.get_by_role("button", name="First")).to_be_disabled()
        assert [job.id for job in queue.waiting(store, "cpu")] == [c, a, b]
        for job_id in (a, b, c):
            client.cancel(store, job_id)


#: A browser that grants notifications, and keeps what it was to show. Headless ones show nothing.
NOTIFICATIONS = """
window.told = [];
window.Notification = class {
  static permission = sessionStorage.permission ?? 'default';
  static async requestPermission() {
    return (this.permission = sessionStorage.permission = 'ANSWER');
  }
  constructor(title, options) { window.told.push([title, options.body, options.tag]); }
  close() {}
};
"""


def running(store: Store, job_id: str, task: str = "sweep") -> Job:
    """Store a job that this process seems to run, since three minutes."""
    own = {"pid": os.getpid(), "pid_started": workers.process_started(os.getpid())}
    return put(store, job_id, task, "running", started=time.time() - 180, total=9, **own)


@pytest.mark.slow
@pytest.mark.parametrize("permission", ["granted", "denied"])
def test_the_end_of_a_job_is_told(
    permission: str, fresh_server: Server, open_page: OpenPage, browser: Browser
) -> None:
    store = fresh_server.store
    job = running(store, "long")
    page = open_page(f"{fresh_server.url}/jobs")
    page.context.add_init_script(NOTIFICATIONS.replace("ANSWER", permission))
    page.reload()
    switch = page.get_by_role("switch", name="Notify me in this browser when a job ends")
    expect(switch).not_to_be_checked()
    switch.click()
    if permission == "granted":
        expect(switch).to_be_checked()
    else:
        expect(page.get_by_text("Allow them beside its address")).to_be_visible()
        expect(switch).not_to_be_checked()
    page.get_by_role("link", name="Compare").click()  # it is told on every page
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare")
    expect(page.get_by_text("Running: sweep")).to_be_attached()

    client.save(store, replace(job, state="failed", ended=time.time(), error="No **images**."))
    message = page.get_by_test_id("stToast")
    if permission == "granted":
        page.wait_for_function("() => told.length")
        assert page.evaluate("() => told.map(n => n.slice(0, 2))") == [
            [f"Sweep failed after 3{formats.NBSP}min", f"{TITLE}: No **images**."]
        ]
        expect(message).to_have_count(0)
    else:
        expect(message).to_contain_text("Sweep failed after 3")
        expect(message).to_contain_text("No **images**.")
        assert page.evaluate("() => told") == []
    short = running(store, "short", "measure")
    page.wait_for_timeout(3500)  # seen by the page, which looks every 3 s
    client.save(store, replace(short, state="done", started=time.time(), ended=time.time()))
    page.wait_for_timeout(3500)
    assert len(page.evaluate("() => told")) == (permission == "granted")  # nobody waits for it


@pytest.mark.slow
def test_logs_and_other_versions(fresh_server: Server, open_page: OpenPage) -> None:
    store = fresh_server.store
    log = workers.log_path(store, "cpu")
    log.write_text("before\nRuntimeError: <b>![x](http://h.example/p)</b>\nafter\n")
    put(store, "bad", "sweep", "failed", ended=time.time(), error="E", log_from=7, log_to=53)
    known = client.find_job(store, "bad").to_dict()
    strange = {**known, "id": "newer", "state": "queued", "speed": 3, "program": "9.0"}
    store.put("job/newer", {**strange, "title": "![x](http://h.example/p)"})
    page = open_page(f"{fresh_server.url}/jobs")
    page.get_by_text("Log of this job").click()
    own = page.get_by_test_id("stExpander").filter(has_text="Log of this job")
    expect(own.get_by_text("RuntimeError: <b>![x](http://h.example/p)</b>").first).to_be_visible()
    expect(own.get_by_text("before")).to_have_count(0)
    expect(own.get_by_text("psvit jobs log bad")).to_be_visible()
    section(page, "Of other versions")
    expect(page.locator("strong", has_text="![x](http:")).to_be_visible()
    expect(page.get_by_text("version 9.0 · queued")).to_contain_text("['speed']")
    page.get_by_role("button", name="Remove this job").click()
    expect(page.get_by_text("version 9.0")).to_have_count(0)
    assert store.get("job/newer") is None
    expect(page.get_by_text("No jobs are running or waiting")).to_be_visible()
