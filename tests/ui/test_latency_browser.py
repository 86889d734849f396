"""Layer times in a browser: timed by a click, drawn on Compare, a limit on Tune."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import LatencyTable
from psvit_core.records.jobs import LatencyResult
from tests.patience import JOB_MS
from tests.ui.conftest import OpenPage, Server, start_server, wait_for_job
from tests.ui.example import summary
from ui.model import drafts

MODEL = summary("sdt_v1_digits")
PLAN = plan_from_ratios(MODEL, {g.group_id: 0.5 for g in MODEL.groups}, criterion="l2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    yield server
    server.kill()
    server.end_workers()


def milliseconds(text: str | None) -> float:
    found = re.search(r"([\d.]+)\sms", text or "")
    assert found is not None, text
    return float(found[1])


@pytest.mark.slow
def test_from_a_click_to_a_plan_with_less_latency(server: Server, open_page: OpenPage) -> None:
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, PLAN))
    page = open_page(f"{server.url}/tune?recovery=none")
    page.get_by_role("button", name=re.compile("^Limits")).click()
    field = page.get_by_label("Latency saved, predicted (%)")
    expect(field).to_be_disabled()

    page = open_page(f"{server.url}/compare?recovery=none")
    expect(page.get_by_text("Not timed yet on this machine.")).to_be_visible()
    page.get_by_role("button", name="Time layers").click()
    job = wait_for_job(server.store, "latency")
    assert job.state == "done", job.error
    assert isinstance(job.outcome, LatencyResult)
    table = job.outcome.table
    assert isinstance(table, LatencyTable) and len(table.layers) > len(MODEL.groups)
    whole = page.locator("p", has_text=re.compile(r"Unpruned [\d.]+\sms, measured"))
    expect(whole).to_be_visible(timeout=JOB_MS)
    assert milliseconds(whole.text_content()) == pytest.approx(table.total_ms, abs=0.01)
    chart = page.locator(".st-key-latency-chart .js-plotly-plot")
    expect(chart).to_be_visible()
    expect(chart.get_by_text("Unpruned, measured", exact=True)).to_be_visible()
    with page.expect_download() as waiting:
        page.locator(".st-key-latency-csv").get_by_role("button").click()
    assert waiting.value.suggested_filename == "latency.csv"

    page = open_page(f"{server.url}/tune?recovery=none")
    page.get_by_role("button", name=re.compile("^Limits")).click()
    expect(page.get_by_label("Latency saved, predicted (%)")).to_be_enabled()
