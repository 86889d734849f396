"""Kept plans: as data, side by side on the page, as files and as links."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from psvit_core.errors import InvalidPlanError
from psvit_core.jobs import client
from psvit_core.jobs.engine import Subject
from psvit_core.plans import plan_from_ratios
from psvit_core.records import Interval, Measurement, PrunePlan
from psvit_core.share import share_text
from psvit_core.size import plan_size
from psvit_core.store import Store
from psvit_core.workspace import Workspace
from tests.ui.conftest import OpenPage, Server, settled
from tests.ui.example import CONDITIONS, put_sweep, summary
from ui import compare, drafts, kept
from ui.plan_charts import class_figure, difference_figure

NAME = "e_spikeformer_digits"
MODEL = summary(NAME)
QUERY = "?model=E-SpikeFormer+(SDT+v3),+digits"


def plan_of(ratio: float, every: int = 1) -> PrunePlan:
    ratios = {g.group_id: ratio for g in MODEL.groups[::every] if g.kind != "residual"}
    return plan_from_ratios(MODEL, ratios, criterion="l2")


def measured(plan: PrunePlan) -> Measurement:
    """Made up: class 3 loses a half, class 5 wins a tenth."""
    classes = {str(c): (10, 10, 10) for c in range(10)}
    classes |= {"3": (10, 4, 9), "5": (10, 10, 9)}
    return Measurement(
        model=NAME, weights_hash=MODEL.weights_hash,
        conditions=dataclasses.replace(CONDITIONS, n_images=100, T=MODEL.T),
        accuracy=Interval(value=0.94, low=0.88, high=0.97), size=plan_size(MODEL, plan), sops=1e6,
        macs_real=1e6, energy_pj=1e6, firing={}, plan=plan,
        baseline_accuracy=Interval(value=0.98, low=0.93, high=0.99),
        drop=Interval(value=4.0, low=0.5, high=8.0), per_class=classes,
    )  # fmt: skip


def put_measured(store: Store, plan: PrunePlan) -> None:
    """Keep a measurement as its job would."""
    params = {"subject": Subject(model=NAME).to_dict(), "plan": plan.to_dict()}
    result = {"measurement": measured(plan).to_dict()}
    client.save(
        store,
        client.Job(
            id=f"m{len(plan.kept)}", task="measure", title="", params=params, state="done",
            created=1.0, ended=1.0, result=result,
        ),
    )  # fmt: skip


# ---- as data ---------------------------------------------------------------------------------


def test_plans_are_kept_renamed_deleted_and_put_back(tmp_path: Path) -> None:
    store, one, two = Store(tmp_path), plan_of(0.3), plan_of(0.5)
    first = kept.keep_plan(store, MODEL, one)
    second = kept.keep_plan(store, MODEL, two, "  Half   of it ")
    assert [k.name for k in kept.kept_plans(store, MODEL)] == ["Plan 1", "Half of it"]
    assert kept.keep_plan(store, MODEL, one, "again") == first  # the same units are there already
    assert kept.rename_plan(store, MODEL, first, "Half of it").name == "Half of it 2"
    assert kept.rename_plan(store, MODEL, first, "   ") == first
    kept.delete_plan(store, MODEL, second)
    assert [k.name for k in kept.kept_plans(store, MODEL)] == ["Half of it 2"]
    kept.put_back(store, MODEL, second)
    assert [k.plan for k in kept.kept_plans(Store(tmp_path), MODEL)] == [one, two]
    store.put(f"kept/{MODEL.weights_hash}/x", {"document": "kept_plan", "version": 99})
    assert len(kept.kept_plans(store, MODEL)) == 2  # one of another version is left out
    with pytest.raises(InvalidPlanError, match="Make a plan for this model"):
        kept.keep_plan(store, summary("sdt_v1_digits"), one)


def test_rows_tell_what_is_known(tmp_path: Path) -> None:
    plan = plan_of(0.5)
    known = compare.entry("A", plan, None, [measured(plan)], [])
    empty = compare.entry("B", plan_of(0.3, every=2), None, [measured(plan)], [])
    rows = compare.plan_rows(MODEL, [known, empty])
    assert rows["measured"].tolist() == ["4.00\N{NO-BREAK SPACE}pp (0.50 to 8.00)", "not yet"]
    assert rows["worst"].tolist() == ["3: \N{MINUS SIGN}50.0\N{NO-BREAK SPACE}pp", ""]
    assert len(rows["ratios"][0]) == len(MODEL.groups)
    saved = 1 - plan_size(MODEL, plan).bytes / plan_size(MODEL, None).bytes
    assert rows["saves"][0] == pytest.approx(100 * saved)

    classes = compare.class_rows([known])
    assert classes.set_index("class")["change 0"].to_dict() == {
        **dict.fromkeys(map(str, range(10)), 0.0), "3": -50.0, "5": 10.0,
    }  # fmt: skip
    assert "1 of 10 classes lose, most: 3" in compare.classes_line([known, empty])
    figure = class_figure(classes, ["A"])
    assert list(figure.data[0].x) == classes["change 0"].tolist()
    assert compare.class_rows([]).empty


def test_differences_are_told_by_group() -> None:
    a = compare.Entry(name="A", plan=plan_of(0.5, every=2))
    b = compare.Entry(name="<B>", plan=plan_of(0.25))
    rows = compare.difference_rows(MODEL, a, b)
    assert (rows["a"] - rows["b"]).equals(rows["difference"])
    more, less = (rows["difference"] > 0).sum(), (rows["difference"] < 0).sum()
    assert more > 0
    assert less > 0
    line = compare.difference_line(MODEL, a, b)
    assert f"from **{more}** and less from **{less}** of 45" in line
    assert "\\<B\\>" in line  # a name is no markup
    assert "the very same units" in compare.difference_line(MODEL, a, a)
    for dark in (False, True):
        figure = difference_figure(MODEL, rows, ("A", "B"), dark=dark)
        heat = figure.data[2]
        assert heat.zmin == -heat.zmax  # no difference has the background's colour
        assert heat.colorscale[2][1] == ("#12171b" if dark else "#ffffff")
        signs = dict(zip("+\N{MINUS SIGN}", (more, less), strict=True))
        assert {s: figure.data[3].text.count(s) for s in signs} == signs


# ---- in the browser --------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def stored(server: Server) -> None:
    """A sweep, a measured plan that is kept, another one as draft."""
    put_sweep(server.store, MODEL)
    kept.keep_plan(server.store, MODEL, plan_of(0.5), "Half")
    put_measured(server.store, plan_of(0.5))
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, plan_of(0.25)))


def names(server: Server) -> list[str]:
    return [k.name for k in kept.kept_plans(server.store, MODEL)]


def test_keep_compare_rename_delete_load(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(f"{server.url}/compare{QUERY}")
    page.get_by_label("Name", exact=True).fill("Quarter")
    page.get_by_role("button", name="Keep the current plan").click()
    shows(page, "Plan", "Quarter (current)")
    shows(page, "against", "Half")
    assert names(server) == ["Half", "Quarter"]
    expect(
        page.get_by_text(re.compile(r"removes more from 0 and less from \d+ of 45"))
    ).to_be_visible()
    expect(page.get_by_text("1 of 10 classes lose, most: 3")).to_be_visible()
    expect(page.get_by_text("Quarter (current) has no results by class yet")).to_be_visible()

    page.reload()  # what is kept outlives it
    settled(page)
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("A quarter")
    page.get_by_label("New name").press("Enter")
    shows(page, "Plan", "A quarter (current)")
    page.keyboard.press("Escape")

    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    path = tmp_path / "a.plan.json"
    download.value.save_as(path)
    assert PrunePlan.load(path) == plan_of(0.25)

    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Undo: delete A quarter")).to_be_visible()
    assert names(server) == ["Half"]
    page.get_by_role("button", name="Undo: delete A quarter").click()
    expect(page.get_by_role("button", name="Undo: delete")).to_have_count(0)
    assert names(server) == ["Half", "A quarter"]

    shows(page, "Plan", "A quarter (current)")  # the list of before is gone
    choose(page, "Plan", "Half")
    shows(page, "Plan", "Half")
    page.get_by_role("button", name="Load into Tune").click()
    expect(page.get_by_text("It is the current plan now")).to_be_visible()
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    assert draft.plan.kept == plan_of(0.5).kept


def shows(page: Page, label: str, value: str) -> None:
    """Wait until a list shows a value; for a moment the list before may be there, too."""
    expect(page.locator(f'input[aria-label="{label}"][value="{value}"]')).to_have_count(1)


def choose(page: Page, label: str, option: str) -> None:
    settled(page)
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_files_of_others(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/compare{QUERY}")
    foreign = summary("sdt_v1_digits")
    other = plan_from_ratios(foreign, {foreign.groups[0].group_id: 0.5}, criterion="l2")
    bad = {
        "no JSON at all": "not a JSON document",
        json.dumps(other.to_dict()): "This plan was made for sdt_v1_digits",
        json.dumps({"document": "prune_plan", "kept": "x"}): "version None",
    }
    for at, (content, message) in enumerate(bad.items()):
        path = tmp_path / f"{at}.json"
        path.write_text(content)
        upload(page, path)
        expect(page.get_by_text(re.compile(f"The plan was not opened.*{message}"))).to_be_visible()
    upload(page, plan_of(0.7).save(tmp_path / "good.json"))
    expect(page.get_by_text("The plan of the file is kept as From a file")).to_be_visible()
    shows(page, "Plan", "From a file")


def upload(page: Page, path: Path) -> None:
    settled(page)
    field = page.locator('input[type="file"]')
    if not field.count():
        page.get_by_role("button", name="Open a plan file").click()
    expect(field).to_have_count(1)
    field.set_input_files(path)


@pytest.mark.slow
def test_a_link_opens_in_another_browser(server: Server, open_page: OpenPage) -> None:
    shared = plan_of(0.6, every=3)
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, shared))
    page = open_page(f"{server.url}/compare{QUERY}")
    choose(page, "Plan", "Current plan")
    assert "plan=" not in page.url
    page.get_by_role("button", name="Share").click()
    text = share_text(MODEL, shared)
    expect(page.get_by_text("This link opens the plan")).to_be_visible()
    link = page.locator('[data-testid="stCode"] code').inner_text().strip()
    assert link == f"{server.url}/compare?plan={text}"
    assert len(link) <= 230
    page.wait_for_url(re.compile(f"plan={text}"))

    mine = plan_of(0.2)
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, mine))
    other = open_page(link)
    expect(other.get_by_label("Model", exact=True)).to_have_value("E-SpikeFormer (SDT v3), digits")
    expect(other.get_by_text("The shared plan is open")).to_be_visible()
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    assert draft.plan.kept == shared.kept
    assert any(k.plan == mine for k in kept.kept_plans(server.store, MODEL))  # nothing is lost


def test_a_wrong_link_suggests_a_plan(server: Server, open_page: OpenPage) -> None:
    drafts.save_draft(server.store, MODEL, drafts.empty_draft(MODEL))
    text = share_text(MODEL, plan_of(0.6))
    page = open_page(f"{server.url}/tune{QUERY}&plan={text[:-9]}")
    expect(page.get_by_text("The link was not opened. The link is damaged")).to_be_visible()
    expect(page.get_by_text("a quarter of the memory saved")).to_be_visible()
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    assert Workspace(Subject(model=NAME), server.store).memory_saving(draft.plan) >= 0.25
