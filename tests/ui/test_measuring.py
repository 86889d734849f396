"""Measuring while dragging in a browser: order, priority, no button, dropped runs.

Servers here have no worker: each test starts it when it is wanted, so that nothing depends on time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, expect

from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.records import Measurement, PrunePlan, Subject, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import model_card
from tests.patience import JOB, JOB_MS, PATIENCE
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import put_sweep, summary
from tests.ui.test_equalizer_browser import MLP, QKV, drag

pytestmark = pytest.mark.slow
MODEL = summary("sdt_v1_digits")
SUBJECT = Subject(model="sdt_v1_digits", limit=64)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with a sweep of the demo, whose jobs wait until ``work`` starts a worker."""
    server = start_server(tmp_path, drag=True)
    put_sweep(server.store, MODEL)
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture
def held(server: Server) -> Iterator[Callable[[], None]]:
    """Hold the worker's lock, so that no worker starts; the fixture's value lets go of it."""
    lock = workers.worker_lock(server.store, "cpu")
    assert lock.__enter__()
    gone: list[bool] = []

    def release() -> None:
        if not gone:
            gone.append(True)
            lock.__exit__(None, None, None)
            workers.ensure_worker(server.store)

    yield release
    if not gone:
        lock.__exit__(None, None, None)


def tune(server: Server, open_page: OpenPage, query: str = "?images=64") -> Page:
    page = open_page(f"{server.url}/tune{query}")
    expect(page.get_by_role("slider").first).to_be_attached()
    return page


def measured(page: Page) -> Locator:
    return page.locator(".figure.measured")


def drag_switch(page: Page) -> Locator:
    name = "Measure as I drag"
    return page.get_by_role("switch", name=name).or_(page.get_by_role("checkbox", name=name))


def jobs(store: Store, *states: str) -> list[Job]:
    return [j for j in client.list_jobs(store) if j.task == "measure" and j.state in states]


def wait_for(page: Page, store: Store, is_there: Callable[[list[Job]], bool]) -> list[Job]:
    """Wait until the measurements that wait or run fulfil a condition, and return them."""
    found: list[Job] = []
    for _ in range(20 * PATIENCE):  # an edit reaches the queue some time after the screen
        found = jobs(store, "queued", "running")
        if is_there(found):
            return found
        page.wait_for_timeout(50)
    raise AssertionError(f"these measurements wait: {found}")


def kept(page: Page, store: Store, groups: int = 1) -> Job:
    """Wait until the only measurement is of a plan that prunes ``groups`` groups."""
    (found,) = wait_for(
        page,
        store,
        lambda waiting: [len(j.plan.kept) for j in waiting if j.plan is not None] == [groups],
    )
    return found


def test_an_edit_is_measured_without_a_button(server: Server, open_page: OpenPage) -> None:
    page = tune(server, open_page)
    expect(page.get_by_role("button", name="Measure", exact=True)).to_have_count(0)
    assert jobs(server.store, "queued", "running", "done") == []  # an empty plan needs none
    drag(page, MLP, 50)
    expect(measured(page).locator(".note")).to_have_text(re.compile("^95 %"), timeout=JOB_MS)
    expect(
        page.get_by_text(re.compile("Measured on digits, val split · 64 images"))
    ).to_be_visible()
    (done,) = jobs(server.store, "done")
    assert done.measurement is not None

    drag(page, QKV, 30)
    expect(page.get_by_role("button", name="Restore")).to_have_count(2, timeout=JOB_MS)
    page.get_by_role("button", name="Undo").click()
    expect(measured(page).locator(".note")).to_have_text(re.compile("^95 %"))  # at once
    settled(page)
    assert len(jobs(server.store, "queued", "running", "done")) == 2  # nothing ran again
    page.get_by_role("link", name="Compare", exact=True).click()
    expect(page.get_by_text("Mean spikes per neuron")).to_be_visible()  # only of measured plans
    expect(page.get_by_role("button", name="Measure", exact=True)).to_have_count(0)


def test_a_new_edit_drops_the_old_run(
    server: Server, open_page: OpenPage, held: Callable[[], None]
) -> None:
    page = tune(server, open_page)
    drag(page, MLP, 40)
    first = kept(page, server.store)
    expect(measured(page)).to_contain_text("measuring")
    drag(page, QKV, 30)
    expect(page.get_by_role("slider", name=QKV, exact=True)).to_have_attribute(
        "aria-valuenow", "30"
    )
    settled(page)
    second = kept(page, server.store, groups=2)
    assert second.id != first.id
    with pytest.raises(Exception, match="no job"):
        client.find_job(server.store, first.id)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("slider", name=QKV, exact=True)).to_have_attribute("aria-valuenow", "0")
    settled(page)
    third = kept(page, server.store)
    assert third.plan == first.plan
    page.get_by_role("button", name="Undo").click()  # nothing is removed: nothing to measure
    expect(measured(page)).to_contain_text("not measured")
    wait_for(page, server.store, lambda waiting: not waiting)


def test_two_users_wait_in_line_and_measurements_pass_a_sweep(
    server: Server, open_page: OpenPage, held: Callable[[], None]
) -> None:
    sweep = Workspace(SUBJECT, server.store).start_sweep(SweepSettings(ratios=(0.5,)))
    ann, bob = tune(server, open_page), tune(server, open_page)
    drag(ann, MLP, 40)
    replaced = kept(ann, server.store)
    drag(bob, QKV, 40)
    expect(measured(bob)).to_contain_text("measuring")
    wait_for(bob, server.store, lambda waiting: len(waiting) == 2)
    drag(ann, MLP, 70)  # replaces Ann's own, not Bob's
    queued = wait_for(
        ann,
        server.store,
        lambda waiting: len(waiting) == 2 and replaced.id not in {j.id for j in waiting},
    )
    mine = {j.owner: j for j in queued}
    assert len(mine) == 2
    held()
    for page in (ann, bob):
        expect(measured(page).locator(".note")).to_have_text(re.compile("^95 %"), timeout=JOB_MS)
    ended = {j.owner: client.find_job(server.store, j.id) for j in mine.values()}
    assert all(j.state == "done" for j in ended.values())
    long = client.find_job(server.store, sweep.id)
    assert long.active or (long.ended or 0) > max(j.ended or 0 for j in ended.values())


def test_a_measurement_that_was_cancelled_is_not_started_again(
    server: Server, open_page: OpenPage, held: Callable[[], None]
) -> None:
    page = tune(server, open_page)
    drag(page, MLP, 40)
    kept(page, server.store)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    settled(page)
    assert jobs(server.store, "queued", "running") == []


def test_the_switch_is_off_where_measuring_takes_long(
    server: Server, open_page: OpenPage, held: Callable[[], None]
) -> None:
    page = tune(server, open_page)
    switch = drag_switch(page)
    expect(switch).to_be_checked()
    page.get_by_text("Measure as I drag").click()
    expect(switch).not_to_be_checked()
    drag(page, MLP, 40)
    expect(page.get_by_role("button", name="Measure", exact=True)).to_be_visible()
    settled(page)
    assert jobs(server.store, "queued", "running") == []
    page.get_by_text("Measure as I drag").click()
    kept(page, server.store)  # the plan on the screen is measured
    expect(page.get_by_role("button", name="Measure", exact=True)).to_have_count(0)


def test_the_page_is_not_rerun_while_a_measurement_waits(
    server: Server, open_page: OpenPage, held: Callable[[], None]
) -> None:
    page = tune(server, open_page)
    drag(page, MLP, 40)
    kept(page, server.store)
    expect(page.get_by_text(re.compile("waiting for the worker"))).to_be_visible()
    settled(page)
    page.evaluate(
        """() => {
          const app = document.querySelector('[data-testid=stApp]');
          window.reruns = 0;
          window.begun = performance.now();
          const count = () => { window.reruns += app.dataset.testScriptState === 'running'; };
          const watched = { attributeFilter: ['data-test-script-state'] };
          new MutationObserver(count).observe(app, watched);
        }"""
    )
    page.wait_for_timeout(3000)
    before, seconds = page.evaluate(
        "() => [window.reruns, (performance.now() - window.begun) / 1000]"
    )
    assert before <= seconds / 3 + 1  # the navigation's line on running work: every three seconds
    drag(page, QKV, 40)
    page.wait_for_function(f"() => window.reruns > {before}")  # the observer sees reruns


def test_the_command_line_has_the_same_numbers(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    page = tune(server, open_page)
    drag(page, MLP, 60)
    expect(measured(page).locator(".note")).to_have_text(re.compile("^95 %"), timeout=JOB_MS)
    (done,) = jobs(server.store, "done")
    assert done.measurement is not None
    assert done.plan is not None
    alone = dataclasses.replace(done.measurement, predicted=None)  # the app also predicts it
    assert command_line(done.plan, tmp_path) == alone


def command_line(plan: PrunePlan, folder: Path) -> Measurement:
    """Measure a plan by ``psvit evaluate`` with a store of its own."""
    command = [sys.executable, "-m", "psvit_core", "evaluate", SUBJECT.model, "--limit", "64"]
    found = subprocess.run(
        [
            *command,
            *("--recover", "none"),  # as these pages
            *("--plan", str(plan.save(folder / "plan.json")), "--json"),
        ],
        env={**os.environ, "PSVIT_CACHE": str(folder / "other")},
        check=True,
        capture_output=True,
        text=True,
        timeout=JOB,
    )
    return Measurement.from_dict(json.loads(found.stdout))


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("&images=64", "a measurement needs images, which are not included"),
        ("&images=all", "a measurement needs images, which are not included"),
        (f"&data={quote('cifar10-jpeg:/nowhere')}", "one measurement takes about"),
    ],
)
def test_measuring_is_off_by_default(
    server: Server, open_page: OpenPage, query: str, why: str
) -> None:
    title = quote(model_card("sdt_v1_cifar10").title)
    page = tune(server, open_page, f"?model={title}{query}")
    expect(page.get_by_text(f"Off by default: {why}")).to_be_visible()
    expect(drag_switch(page)).not_to_be_checked()
    drag(page, MLP, 30)
    settled(page)
    assert jobs(server.store, "queued", "running", "done") == []
