"""Two tabs of one browser: each has its own plan and undo steps; jobs are visible in both."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from psvit_core.zoo.cards import model_card
from tests.ui.conftest import OpenPage, Server, settled, start_server, wait_for_job
from tests.ui.example import put_sweep, summary
from ui.model import saved_plans

MODEL, OTHER = summary("sdt_v1_digits"), summary("e_spikeformer_digits")
OTHER_URL = "?model=E-SpikeFormer+(SDT+v3),+digits&images=64"
MLP, QKV = "Block 0 · MLP hidden", "Block 0 · SDSA q, k, v"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL)
    put_sweep(server.store, OTHER)
    yield server
    server.kill()
    server.end_workers()


def tab(page: Page, url: str) -> Page:
    """Open another tab of the same browser."""
    other = page.context.new_page()
    other.goto(url)
    settled(other)
    return other


def slider(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def answered(page: Page) -> None:
    expect(page.locator(".figure.predicted .value")).to_have_text(re.compile(r"^\d+\.\d\d\spp$"))
    settled(page)


def press(page: Page, name: str, *keys: str) -> None:
    for key in keys:
        slider(page, name).press(key)
    answered(page)


@pytest.mark.slow
def test_each_tab_has_its_own_plan_and_undo(server: Server, open_page: OpenPage) -> None:
    one = open_page(f"{server.url}/tune?images=64")
    two = tab(one, f"{server.url}/tune?images=64")
    foreign = tab(one, f"{server.url}/tune{OTHER_URL}")
    own = OTHER.groups[5].label
    press(one, MLP, "PageUp", "PageUp")
    press(two, QKV, "PageUp")
    expect(two.get_by_text("The other plan is saved on the Compare page")).to_be_visible()
    (saved,) = saved_plans.list_plans(server.store, MODEL)
    assert (
        saved.name == "From another tab" and MODEL.by_id[next(iter(saved.plan.kept))].label == MLP
    )
    press(foreign, own, "PageUp", "PageUp", "PageUp")
    expect(slider(one, MLP)).to_have_attribute("aria-valuenow", "20")
    expect(slider(one, QKV)).to_have_attribute("aria-valuenow", "0")
    expect(slider(two, MLP)).to_have_attribute("aria-valuenow", "0")

    one.get_by_role("button", name="Undo").click()
    expect(slider(one, MLP)).to_have_attribute("aria-valuenow", "0")
    for page, name, value in ((two, QKV, "10"), (foreign, own, "30")):
        page.get_by_role("link", name="Jobs", exact=True).click()  # and back: reload values
        expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
        page.get_by_role("link", name="Tune", exact=True).click()
        expect(slider(page, name)).to_have_attribute("aria-valuenow", value)
        expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    expect(one.get_by_role("button", name="Undo")).to_be_disabled()
    expect(foreign.get_by_role("combobox", name="Model")).to_have_value(re.compile("E-Spike"))
    title = model_card(MODEL.model).title
    expect(one.get_by_role("combobox", name="Model")).to_have_value(title)


@pytest.mark.slow
def test_jobs_of_one_tab_are_visible_in_the_other(server: Server, open_page: OpenPage) -> None:
    jobs = open_page(f"{server.url}/jobs")
    expect(jobs.get_by_text("No jobs are running or waiting")).to_be_visible()
    tune = tab(jobs, f"{server.url}/tune{OTHER_URL}")
    press(tune, OTHER.groups[7].label, "PageUp")
    tune.get_by_role("button", name="Measure", exact=True).click()
    queue = jobs.get_by_text(re.compile("Measurement · E-Spike"))
    expect(queue).to_be_visible()
    expect(jobs.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
    assert wait_for_job(server.store, "measure").state == "done"
    expect(jobs.get_by_text("No jobs are running or waiting")).to_be_visible()
    expect(jobs.get_by_text("No jobs have ended yet")).to_have_count(0)
    expect(queue).to_be_visible()  # in the list of ended jobs
    expect(tune.get_by_text(re.compile("than predicted"))).to_be_visible()
