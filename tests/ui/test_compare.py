"""Saved plans: as data, on the Compare page, as files and as links."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from psvit_core.errors import InvalidPlanError
from psvit_core.jobs import client
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.link import share_text
from psvit_core.plan.size import plan_size
from psvit_core.records import Interval, Measurement, PrunePlan, Subject
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.patience import JOB_MS
from tests.ui.conftest import OpenPage, Server, settled, wait_for_job
from tests.ui.example import CONDITIONS, put_sweep, summary
from ui.charts.classes import class_changes_chart
from ui.charts.difference import difference_chart
from ui.charts.firing import firing_chart
from ui.model import comparison, drafts, saved_plans
from ui.model.measured import measured_plans

NAME = "e_spikeformer_digits"
MODEL = summary(NAME)
QUERY = "?model=E-SpikeFormer+(SDT+v3),+digits"


def plan_of(ratio: float, every: int = 1) -> PrunePlan:
    ratios = {g.group_id: ratio for g in MODEL.groups[::every] if g.kind != "residual"}
    return plan_from_ratios(MODEL, ratios, criterion="l2")


def measured(plan: PrunePlan) -> Measurement:
    """Return an invented measurement: class 3 loses one half, class 5 gains one tenth."""
    classes = {str(c): (10, 10, 10) for c in range(10)}
    classes |= {"3": (10, 4, 9), "5": (10, 10, 9)}
    return Measurement(
        model=NAME,
        weights_hash=MODEL.weights_hash,
        conditions=dataclasses.replace(CONDITIONS, n_images=100, T=MODEL.T),
        accuracy=Interval(value=0.94, low=0.88, high=0.97),
        size=plan_size(MODEL, plan),
        sops=1e6,
        macs_real=1e6,
        energy_pj=1e6,
        firing={},
        plan=plan,
        baseline_accuracy=Interval(value=0.98, low=0.93, high=0.99),
        drop=Interval(value=4.0, low=0.5, high=8.0),
        per_class=classes,
    )


def put_measured(store: Store, plan: PrunePlan) -> None:
    """Store a measurement as its job would."""
    params = {"subject": Subject(model=NAME).to_dict(), "plan": plan.to_dict()}
    result = {"measurement": measured(plan).to_dict()}
    client.save(
        store,
        client.Job(
            id=f"m{len(plan.kept)}",
            task="measure",
            title="",
            params=params,
            state="done",
            created=1.0,
            ended=1.0,
            result=result,
        ),
    )


# ---- as data ---------------------------------------------------------------------------------


def test_save_rename_delete_and_restore(tmp_path: Path) -> None:
    store, one, two = Store(tmp_path), plan_of(0.3), plan_of(0.5)
    first = saved_plans.save_plan(store, MODEL, one)
    second = saved_plans.save_plan(store, MODEL, two, "  Half   of it ")
    assert [k.name for k in saved_plans.list_plans(store, MODEL)] == ["Plan 1", "Half of it"]
    assert saved_plans.save_plan(store, MODEL, one, "again") == first  # the same units
    assert saved_plans.rename_plan(store, MODEL, first, "Half of it").name == "Half of it 2"
    assert saved_plans.rename_plan(store, MODEL, first, "   ") == first
    saved_plans.delete_plan(store, MODEL, second)
    assert [k.name for k in saved_plans.list_plans(store, MODEL)] == ["Half of it 2"]
    saved_plans.restore_plan(store, MODEL, second)
    assert [k.plan for k in saved_plans.list_plans(Store(tmp_path), MODEL)] == [one, two]
    store.put(f"kept/{MODEL.weights_hash}/x", {"document": "kept_plan", "version": 99})
    assert len(saved_plans.list_plans(store, MODEL)) == 2  # other versions are ignored
    with pytest.raises(InvalidPlanError, match="Create a plan for this model"):
        saved_plans.save_plan(store, summary("sdt_v1_digits"), one)


def test_rows_of_the_table(tmp_path: Path) -> None:
    plan = plan_of(0.5)
    known = comparison.compared_plan("A", plan, None, [measured(plan)], [])
    empty = comparison.compared_plan("B", plan_of(0.3, every=2), None, [measured(plan)], [])
    rows = comparison.plan_rows(MODEL, [known, empty])
    assert rows["measured"].tolist() == ["4.00\N{NO-BREAK SPACE}pp (0.50 to 8.00)", "not yet"]
    assert rows["worst"].tolist() == ["3: \N{MINUS SIGN}50.0\N{NO-BREAK SPACE}pp", ""]
    assert len(rows["ratios"][0]) == len(MODEL.groups)
    saved = 1 - plan_size(MODEL, plan).bytes / plan_size(MODEL, None).bytes
    assert rows["saves"][0] == pytest.approx(100 * saved)

    classes = comparison.class_rows([known])
    assert classes.set_index("class")["change 0"].to_dict() == {
        **dict.fromkeys(map(str, range(10)), 0.0),
        "3": -50.0,
        "5": 10.0,
    }
    assert "1 of 10 classes lost accuracy, most of all 3" in comparison.classes_line([known, empty])
    figure = class_changes_chart(classes, ["A"])
    assert list(figure.data[0].x) == classes["change 0"].tolist()
    assert comparison.class_rows([]).empty


def test_differences_by_group() -> None:
    a = comparison.ComparedPlan(name="A", plan=plan_of(0.5, every=2))
    b = comparison.ComparedPlan(name="<B>", plan=plan_of(0.25))
    rows = comparison.difference_rows(MODEL, a, b)
    assert (rows["a"] - rows["b"]).equals(rows["difference"])
    more, less = (rows["difference"] > 0).sum(), (rows["difference"] < 0).sum()
    assert more > 0
    assert less > 0
    line = comparison.difference_line(MODEL, a, b)
    assert f"from **{more}** and less from **{less}** of 45" in line
    assert "\\<B\\>" in line  # names are escaped
    assert "the same units" in comparison.difference_line(MODEL, a, a)
    for dark in (False, True):
        figure = difference_chart(MODEL, rows, ("A", "B"), dark=dark)
        heat = figure.data[2]
        assert heat.zmin == -heat.zmax  # zero has the background's colour
        assert heat.colorscale[2][1] == ("#12171b" if dark else "#ffffff")
        signs = dict(zip("+\N{MINUS SIGN}", (more, less), strict=True))
        assert {s: figure.data[3].text.count(s) for s in signs} == signs


def test_costs_confusions_and_firing_rates() -> None:
    plan = plan_of(0.5)
    unpruned = dataclasses.replace(measured(plan), plan=None, firing={"a.lif": 0.2, "b.lif": 0.1})
    found = dataclasses.replace(
        measured(plan),
        firing={"a.lif": 0.1, "b.lif": 0.3},
        confusions=(("3", "5", 6, 0), ("4", "9", 1, 1)),
    )
    known = comparison.compared_plan("A", plan, None, [found], [])
    other = comparison.compared_plan("B", plan_of(0.3), None, [found], [])
    rows = comparison.plan_rows(MODEL, [known, other])
    assert rows["macs"][0] == plan_size(MODEL, plan).macs / 1e6
    assert (rows["sops"][0], rows["energy"][0]) == (1.0, 1.0) and math.isnan(rows["sops"][1])
    assert "top5" not in rows  # 10 classes
    many = dataclasses.replace(MODEL, num_classes=20)
    share = Interval(value=0.99, low=0.9, high=1.0)
    top5 = dataclasses.replace(found, top5=share, baseline_top5=dataclasses.replace(share, value=1))
    entry = comparison.compared_plan("A", plan, None, [top5], [])
    shown = comparison.plan_rows(many, [entry, other])["top5"].tolist()
    assert shown == ["99.00\N{NO-BREAK SPACE}%, \N{MINUS SIGN}1.00\N{NO-BREAK SPACE}pp", "not yet"]

    confusions = comparison.confusion_rows(known)
    assert confusions is not None
    assert confusions.to_dict("records") == [
        {"class": "3", "predicted": "5", "before": 0, "after": 6, "change": 6}
    ]
    assert comparison.confusion_rows(other) is None
    firing = comparison.firing_rows([known, other], unpruned)
    assert firing.to_dict("list") == {
        "layer": ["a.lif", "b.lif"],
        "Unpruned": [0.2, 0.1],
        "A": [0.1, 0.3],
    }
    figure = firing_chart(firing)
    assert [trace.name for trace in figure.data] == ["Unpruned", "A"]
    assert list(figure.data[1].y) == [0.1, 0.3]
    assert comparison.firing_rows([other], None).empty


# ---- in the browser --------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def stored(server: Server) -> None:
    """Store a sweep, a measured and saved plan, and another plan as the draft."""
    put_sweep(server.store, MODEL)
    saved_plans.save_plan(server.store, MODEL, plan_of(0.5), "Half")
    put_measured(server.store, plan_of(0.5))
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, plan_of(0.25)))


def names(server: Server) -> list[str]:
    return [k.name for k in saved_plans.list_plans(server.store, MODEL)]


@pytest.mark.slow
def test_save_compare_rename_delete_load(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(f"{server.url}/compare{QUERY}")
    page.get_by_label("Name", exact=True).fill("Quarter")
    page.get_by_role("button", name="Save current plan").click()
    shows(page, "Plan", "Quarter (current)")
    shows(page, "Compare with", "Half")
    assert names(server) == ["Half", "Quarter"]
    expect(
        page.get_by_text(re.compile(r"removes more from 0 and less from \d+ of 45"))
    ).to_be_visible()
    expect(page.get_by_text("1 of 10 classes lost accuracy, most of all 3")).to_be_visible()
    expect(page.get_by_text("No results by class for Quarter (current) yet")).to_be_visible()

    page.reload()  # saved plans survive it
    settled(page)
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("A quarter")
    page.get_by_label("New name").press("Enter")
    shows(page, "Plan", "A quarter (current)")
    page.keyboard.press("Escape")

    with page.expect_download() as download:
        page.get_by_role("button", name="Download plan (JSON)").click()
    path = tmp_path / "a.plan.json"
    download.value.save_as(path)
    assert PrunePlan.load(path) == plan_of(0.25)

    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Undo delete: A quarter")).to_be_visible()
    assert names(server) == ["Half"]
    page.get_by_role("button", name="Undo delete: A quarter").click()
    expect(page.get_by_role("button", name="Undo delete:")).to_have_count(0)
    assert names(server) == ["Half", "A quarter"]

    shows(page, "Plan", "A quarter (current)")  # the list is up to date
    choose(page, "Plan", "Half")
    shows(page, "Plan", "Half")
    page.get_by_role("button", name="Open in Tune").click()
    expect(page.get_by_text("This is now the current plan")).to_be_visible()
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    assert draft.plan.kept == plan_of(0.5).kept


def shows(page: Page, label: str, value: str) -> None:
    """Wait until a list shows a value; the previous list may be visible for a moment."""
    expect(page.locator(f'input[aria-label="{label}"][value="{value}"]')).to_have_count(1)


def choose(page: Page, label: str, option: str) -> None:
    settled(page)
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


@pytest.mark.slow
def test_plan_files(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
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
        expect(page.get_by_text(re.compile(f"Could not open the plan.*{message}"))).to_be_visible()
    upload(page, plan_of(0.7).save(tmp_path / "good.json"))
    expect(page.get_by_text("The plan file is saved as From a file")).to_be_visible()
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
    assert link == f"{server.url}/compare?plan={text}&recovery=none"
    assert len(link) <= 230
    page.wait_for_url(re.compile(f"plan={text}"))

    mine = plan_of(0.2)
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, mine))
    other = open_page(link)
    expect(other.get_by_label("Model", exact=True)).to_have_value("E-SpikeFormer (SDT v3), digits")
    expect(other.get_by_text("The shared plan is now the current plan")).to_be_visible()
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    assert draft.plan.kept == shared.kept
    saved = saved_plans.list_plans(server.store, MODEL)
    assert any(k.plan == mine for k in saved), "the previous draft is lost"


def test_a_wrong_link_suggests_a_plan(server: Server, open_page: OpenPage) -> None:
    drafts.save_draft(server.store, MODEL, drafts.empty_draft(MODEL))
    text = share_text(MODEL, plan_of(0.6))
    page = open_page(f"{server.url}/tune{QUERY}&plan={text[:-9]}")
    expect(page.get_by_text("Cannot open the link. The link is damaged")).to_be_visible()
    expect(page.get_by_text("it saves a quarter of the memory")).to_be_visible()
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    assert Workspace(Subject(model=NAME), server.store).memory_saving(draft.plan) >= 0.25


@pytest.mark.slow
def test_a_plan_is_judged_once_on_the_test_split(server: Server, open_page: OpenPage) -> None:
    plan = plan_of(0.1)
    saved_plans.save_plan(server.store, MODEL, plan, "To judge")
    page = open_page(f"{server.url}/compare{QUERY}")
    choose(page, "Plan", "To judge")
    shows(page, "Plan", "To judge")
    judge = page.get_by_role("button", name="Judge on the test split")
    judge.click()
    expect(page.get_by_text("Judged once on the test split")).to_be_visible(timeout=JOB_MS)
    expect(judge).to_have_count(0)
    job = wait_for_job(server.store, "measure")
    found = job.measurement
    assert found is not None and found.drop is not None
    assert (found.conditions.split, found.conditions.n_images) == ("test", 750)
    assert found.confusions is not None and found.firing
    # It is a result of its own: the plan is still not measured on the validation split.
    expect(page.get_by_role("button", name="Measure", exact=True)).to_be_visible()
    workspace = Workspace(Subject(model=NAME), server.store)
    assert workspace.measurement(plan) is None
    assert plan.kept not in [past.plan.kept for past in measured_plans(workspace, MODEL)]
    page.reload()
    settled(page)
    choose(page, "Plan", "To judge")
    expect(page.get_by_text("Judged once on the test split")).to_be_visible()
    expect(judge).to_have_count(0)
