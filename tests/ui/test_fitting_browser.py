"""Budget, policy and plan agree on the Tune page; limits hold together; a search says its size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from psvit_core.jobs import client
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.plan.size import memory_saving
from psvit_core.planners import predict_drop, saving_range
from psvit_core.records import SensitivityTable
from psvit_core.records.jobs import PlanRequest
from psvit_core.sensitivity.spec import load_spec, read_table, sweep_keys
from tests.patience import PATIENCE
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import put_sweep, summary
from ui.model import drafts, formats
from ui.model.drafts import Draft

pytestmark = pytest.mark.slow

MODEL = summary("sdt_v1_digits")
STREAM = "All blocks · residual stream"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a sweep of the demo model."""
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL)
    yield server
    server.kill()
    server.end_workers()


def table_of(server: Server) -> SensitivityTable:
    (key,) = sweep_keys(server.store)
    table = read_table(server.store, load_spec(server.store, key))
    assert table is not None
    return table


def open_tune(server: Server, open_page: OpenPage, draft: Draft | None = None) -> Page:
    """Open the Tune page with a draft, an empty one by default."""
    for kind in ("draft", "draft-history", "budget"):
        server.store.delete(f"{kind}/{MODEL.weights_hash}")
    if draft is not None:
        drafts.save_draft(server.store, MODEL, draft)
    page = open_page(f"{server.url}/tune?images=64")
    expect(page.get_by_role("slider").first).to_be_attached()
    return page


def locked_draft(*locked: str, ratio: float = 0.0) -> Draft:
    """Return a draft that prunes and locks these groups."""
    plan = plan_from_ratios(MODEL, dict.fromkeys(locked, ratio), criterion="l2")
    return drafts.draft_of(MODEL, plan, locked)


def kept_draft(page: Page, server: Server) -> Draft:
    """Return the stored draft, once the page has answered: it is stored after that."""
    settled(page)
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    return draft


def made_by(server: Server) -> str:
    draft = drafts.load_draft(server.store, MODEL)
    return draft.plan.policy if draft else ""


def set_number(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.click()
    field.press("Control+a")
    field.press_sequentially(value)
    field.press("Enter")
    settled(page)


def eventually(page: Page, check: Callable[[], bool]) -> None:
    """Wait until a condition on the server holds."""
    for _ in range(10 * PATIENCE):
        if check():
            return
        page.wait_for_timeout(100)
    assert check()


def chosen(page: Page, server: Server, policy: str) -> None:
    page.get_by_role("radio", name=policy).check(force=True)
    expect(page.get_by_role("radio", name=policy)).to_be_checked()
    eventually(page, lambda: formats.POLICY_NAMES.get(made_by(server)) == policy)


def test_a_changed_budget_refits_the_marked_policy(server: Server, open_page: OpenPage) -> None:
    page = open_tune(server, open_page)
    chosen(page, server, "PrimeSVT")
    before = kept_draft(page, server)
    assert before.plan.policy == "prime"
    set_number(page, "Budget", "45")
    eventually(page, lambda: kept_draft(page, server).plan.kept != before.plan.kept)
    expect(page.get_by_role("radio", name="PrimeSVT")).to_be_checked()
    after = kept_draft(page, server)
    assert after.plan.policy == "prime"
    assert memory_saving(MODEL, before.plan) < 0.45 <= memory_saving(MODEL, after.plan) + 1e-9

    # The plan of the earlier budget is not the policy's at the present one.
    page.get_by_role("button", name="Undo").click()
    eventually(page, lambda: kept_draft(page, server).plan.kept == before.plan.kept)
    expect(page.get_by_role("radio", name="PrimeSVT")).not_to_be_checked()
    assert kept_draft(page, server).plan.kept == before.plan.kept
    set_number(page, "Budget", "30")
    assert (
        kept_draft(page, server).plan.kept == before.plan.kept
    )  # nothing marked, nothing refitted


def test_out_of_range_says_what_is_possible_and_what_binds(
    server: Server, open_page: OpenPage
) -> None:
    mlp = ("block.0.mlp.hidden", "block.1.mlp.hidden")
    page = open_tune(server, open_page, locked_draft(*mlp))
    chosen(page, server, "Uniform")
    before = kept_draft(page, server).plan
    possible = saving_range(table_of(server), locked=dict.fromkeys(mlp, 0.0))
    assert possible.high < 0.9
    set_number(page, "Budget", "90")
    warning = page.get_by_test_id("stAlert").filter(has_text="out of range")
    expect(warning).to_contain_text(f"0.0\N{NO-BREAK SPACE}% to {100 * possible.high:.1f}")
    for group in mlp:
        expect(warning).to_contain_text(MODEL.by_id[group].label)
    expect(page.get_by_role("radio", name="Uniform")).not_to_be_checked()
    assert kept_draft(page, server).plan.kept == before.kept
    set_number(page, "Budget", "30")
    expect(page.get_by_text("out of range")).to_have_count(0)


def test_several_limits_hold_together(server: Server, open_page: OpenPage) -> None:
    page = open_tune(server, open_page)
    page.get_by_role("button", name="Limits").click()
    set_number(page, "MACs saved (%)", "50")
    set_number(page, "Largest predicted drop (points)", "20")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Limits (2)")).to_be_visible()
    page.get_by_role("button", name="Fit").click()
    eventually(page, lambda: made_by(server) == "optimal")
    expect(page.get_by_role("radio", name="Optimal")).to_be_checked()
    settled(page)
    plan, table = kept_draft(page, server).plan, table_of(server)
    assert memory_saving(MODEL, plan) >= 0.25 - 1e-9
    assert predict_drop(table, reached_ratios(MODEL, plan)) <= 20
    page.get_by_role("button", name="Limits (2)").click()
    set_number(page, "Largest predicted drop (points)", "0.1")
    expect(page.get_by_text("cannot be met together")).to_be_visible()
    expect(page.get_by_text(re.compile("Within 0.1 points, at most"))).to_be_visible()
    assert kept_draft(page, server).plan.kept == plan.kept


@pytest.mark.slow
def test_a_search_says_its_size_and_keeps_locks(server: Server, open_page: OpenPage) -> None:
    page = open_tune(server, open_page, locked_draft("block.0.mlp.hidden", ratio=0.25))
    page.get_by_role("button", name="Search with real measurements").click()
    expect(page.get_by_text(re.compile("Up to 21 plans on 64 images"))).to_be_visible()
    page.get_by_role("combobox", name=re.compile("Policy")).click()
    page.get_by_role("option", name="PSViT").click()
    expect(page.get_by_text(re.compile(r"without the limit, up to \d+"))).to_be_visible()
    set_number(page, "Plans to measure at most", "3")
    expect(page.get_by_text(re.compile("Up to 4 plans"))).to_be_visible()
    page.get_by_role("button", name="Start the search").click()
    eventually(page, lambda: any(j.task == "plan" for j in client.list_jobs(server.store)))
    (job,) = [job for job in client.list_jobs(server.store) if job.task == "plan"]
    client.cancel(server.store, job.id)
    assert isinstance(job.request, PlanRequest)
    settings = job.request.settings
    assert (settings.policy, settings.budget_evaluations, settings.budget_seconds) == (
        "psvit",
        3,
        300,
    )
    assert settings.locked == {"block.0.mlp.hidden": 0.25}
    assert settings.memory_saving == 0.25
