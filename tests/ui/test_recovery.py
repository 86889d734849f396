"""Recovery as the header's choice: what the pages show, ask for and write under it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from psvit_core.jobs import client
from psvit_core.pareto import PlanOrigin, add_point
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import Interval, Measurement, PrunePlan, Subject
from psvit_core.records.jobs import MeasureRequest, MeasureResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import model_card
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import CONDITIONS, put_sweep, summary
from ui.charts.front import front_chart
from ui.model import comparison, drafts, formats, front_rows, fronts
from ui.model.measured import measured_plans
from ui.panels import live

NAME = "sdt_v1_digits"
MODEL = summary(NAME)
NBSP = formats.NBSP


def plan_of(ratio: float) -> PrunePlan:
    ratios = {g.group_id: ratio for g in MODEL.groups if g.kind != "residual"}
    return plan_from_ratios(MODEL, ratios, criterion="l2")


def plain_of(plan: PrunePlan, drop: float) -> Measurement:
    """Return an invented measurement of a plan without recovery."""
    low, high = 0.98 - drop / 100 - 0.01, 0.98 - drop / 100 + 0.01
    return Measurement(
        model=NAME,
        weights_hash=MODEL.weights_hash,
        conditions=dataclasses.replace(
            CONDITIONS, n_images=750, T=MODEL.T, transform=model_card(NAME).transform.name
        ),
        accuracy=Interval(value=0.98 - drop / 100, low=low, high=high),
        size=plan_size(MODEL, plan),
        sops=1e6,
        macs_real=1e6,
        energy_pj=1e6,
        firing={},
        memory_saving=memory_saving(MODEL, plan),
        plan=plan,
        baseline_accuracy=Interval(value=0.98, low=0.97, high=0.99),
        drop=Interval(value=drop, low=drop - 1, high=drop + 1),
    )


def recovered_of(plain: Measurement, drop: float) -> Measurement:
    """Return an invented measurement of the same plan after recovery."""
    assert plain.plan is not None
    found = plain_of(plain.plan, drop)
    return dataclasses.replace(
        found,
        conditions=dataclasses.replace(found.conditions, recovery="auto"),
        recovered_by="stages",
        unrecovered=dataclasses.replace(plain, plan=None),
    )


def put_job(store: Store, plan: PrunePlan, found: Measurement, recovery: str = "auto") -> None:
    """Store a measurement as its job would."""
    subject = Subject(model=NAME, recovery=recovery).to_dict()
    client.save(
        store,
        client.Job(
            id=f"m{recovery}{len(plan.kept)}",
            task="measure",
            title="",
            params={"subject": subject, **MeasureRequest(plan=plan).to_dict()},
            state="done",
            created=1.0,
            ended=1.0,
            result=MeasureResult(measurement=found).to_dict(),
        ),
    )


def put_points(store: Store, *measured: Measurement) -> None:
    for m in measured:
        weights = "cd" * 32 if m.conditions.recovery != "none" else ""
        add_point(store, m, PlanOrigin(policy="optimal", weights=weights))


HALF, MOST = plan_of(0.5), plan_of(0.8)
PLAIN, FEW = plain_of(HALF, 6.0), plain_of(MOST, 9.0)
GAINED = recovered_of(PLAIN, 0.4)


# ---- as data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recovery", "drop"), [("none", 6.0), ("auto", 0.4)])
def test_the_front_shows_both_and_follows_the_choice(
    tmp_path_factory: pytest.TempPathFactory, recovery: str, drop: float
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    put_points(store, PLAIN, GAINED, FEW)
    subject = Subject(model=NAME, recovery=recovery)
    other = "auto" if recovery == "none" else "none"
    archive = Workspace(subject, store).archive()
    others = Workspace(dataclasses.replace(subject, recovery=other), store).archive()
    assert archive is not None and others is not None
    view = fronts.overview(MODEL, archive, None, [], [], others)
    point = next(p for p in view.measured if p.plan.kept == HALF.kept)
    assert point.drop.value == drop
    assert (point.pruned, point.recovered) == (PLAIN.accuracy, GAINED.accuracy)
    assert len(view.measured) == (1 if recovery == "auto" else 2)

    figure = front_chart(view, "bytes")
    line = next(t for t in figure.data if t.name == "Gain by recovery")
    assert [y for y in line.y if y is not None] == pytest.approx([92.0, 97.6])
    assert line.x[0] == line.x[1]
    marks = {t.name: t for t in figure.data}
    own = marks["Optimal"]
    symbols = dict(zip(own.x, own.marker.symbol, strict=True))
    assert symbols[line.x[0]] == ("circle" if recovery == "auto" else "circle-open")
    (symbol,) = marks["As pruned" if recovery == "auto" else "Recovered"].marker.symbol
    assert symbol == ("circle-open" if recovery == "auto" else "circle")
    if recovery == "none":  # measured in one way: filled
        assert sorted(own.marker.symbol) == ["circle", "circle-open"]
    rows = front_rows.table_rows(view, "bytes").set_index("plan")
    row = rows[rows["accuracy_recovered"].notna()].iloc[0]
    assert (row["accuracy_pruned"], row["accuracy_recovered"]) == pytest.approx((0.92, 0.976))


def test_measured_plans_are_those_of_the_choice(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    put_job(store, HALF, GAINED)
    put_job(store, MOST, FEW, recovery="none")

    def drops(recovery: str) -> list[float]:
        subject = Subject(model=NAME, recovery=recovery)
        found = measured_plans(Workspace(subject, store), MODEL)
        return sorted(past.measurement.drop.value for past in found if past.measurement.drop)

    assert drops("auto") == [0.4]
    assert drops("none") == [6.0, 9.0]  # a recovered measurement contains the one before
    assert drops("lsq") == []
    plain = Workspace(Subject(model=NAME), store)
    recovered = Workspace(Subject(model=NAME, recovery="auto"), store)
    assert plain.measurement(HALF) == PLAIN and recovered.measurement(HALF) == GAINED
    assert plain.measurement(MOST) == FEW and recovered.measurement(MOST) is None


def test_a_number_names_its_recovery() -> None:
    assert formats.plan_conditions(PLAIN).endswith(" · no recovery")
    assert formats.plan_conditions(GAINED).endswith(
        " · recovered by least squares in stages (auto)"
    )
    assert "recover" not in formats.conditions_line(PLAIN.conditions)
    assert formats.conditions_line(GAINED.conditions).endswith(" · recovered (auto)")
    kept = dataclasses.replace(GAINED, recovered_by="none")
    assert "no method was better than none" in formats.plan_conditions(kept)


def test_compared_plans_have_both_drops() -> None:
    entry = comparison.compared_plan("A", HALF, None, [PLAIN], [], [GAINED])
    rows = comparison.plan_rows(MODEL, [entry])
    assert rows["measured"][0].startswith(f"6.00{NBSP}pp")
    assert rows["recovered"][0].startswith(f"0.40{NBSP}pp")


def test_the_drop_as_pruned_is_shown_while_the_plan_is_recovered(tmp_path: Path) -> None:
    store = Store(tmp_path)
    params = {"subject": Subject(model=NAME, recovery="auto").to_dict(), "plan": HALF.to_dict()}
    result = MeasureResult(pruned=PLAIN, pruned_at=1.0).to_dict()
    job = client.Job(
        id="a", task="measure", title="", params=params, state="running", result=result
    )
    shown = live.progress(store, job)
    assert shown["active"] and "Recovering without training" in shown["text"]
    assert f"As pruned 6.00{NBSP}pp" in shown["text"]
    assert (shown["partial"]["value"], shown["partial"]["images"]) == (6.0, 750)
    done = dataclasses.replace(job, state="done")
    assert live.progress(store, done) == {"active": False}


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a plain sweep, and one plan measured with and without recovery."""
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL, ratios=(0.5,))  # predicting a front takes seconds
    put_points(server.store, PLAIN, GAINED)
    put_job(server.store, HALF, GAINED)
    drafts.save_draft(server.store, MODEL, drafts.draft_of(MODEL, HALF))
    yield server
    server.kill()
    server.end_workers()


def choose(page: Page, recovery: str) -> None:
    control = page.get_by_role("radiogroup", name="Recovery").first
    control.get_by_role("radio", name=recovery, exact=True).click()
    has_it = re.compile("recovery=auto") if recovery == "none" else re.compile("recovery=none")
    expect(page).not_to_have_url(has_it)
    settled(page)


@pytest.mark.slow
def test_the_choice_is_in_the_url_on_every_page(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/?recovery=auto")
    control = page.get_by_role("radiogroup", name="Recovery")
    expect(control.get_by_role("radio", name="auto")).to_be_checked()
    expect(page.get_by_text("recovered by least squares in stages (auto)")).to_be_visible()
    choose(page, "none")
    expect(page).not_to_have_url(re.compile("recovery=auto"))
    expect(page.get_by_text("no recovery", exact=False).first).to_be_visible()
    page.get_by_role("link", name="Tune", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tune")
    settled(page)
    expect(control.get_by_role("radio", name="none")).to_be_checked()


@pytest.mark.slow
def test_a_sweep_without_recovery_is_offered_with_its_own_numbers(
    server: Server, open_page: OpenPage
) -> None:
    page = open_page(f"{server.url}/tune?recovery=auto")
    expect(page.get_by_text("sweep is of networks as pruned")).to_be_visible()
    expect(page.get_by_role("button", name="Fit")).to_be_disabled()
    page.get_by_role("button", name="Numbers without recovery").click()
    expect(page.get_by_text("sweep is of networks as pruned")).to_have_count(0)
    expect(page.get_by_role("button", name="Fit")).to_be_enabled()
    expect(
        page.get_by_role("radiogroup", name="Recovery").get_by_role("radio", name="none")
    ).to_be_checked()


@pytest.mark.slow
def test_tune_and_compare_show_the_gain(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/tune?recovery=auto")
    gain = page.get_by_text(re.compile("0.40.pp .*after recovery, 6.00.pp .* as pruned"))
    expect(gain.first).to_be_visible()
    expect(page.get_by_text("recovered by least squares in stages (auto)")).to_be_visible()
    choose(page, "none")
    expect(page.get_by_text(re.compile("Measured drop 6.00.pp"))).to_be_visible()
    expect(gain).to_have_count(0)


@pytest.mark.slow
def test_a_link_may_name_a_single_method(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/?recovery=lsq")
    control = page.get_by_role("radiogroup", name="Recovery")
    expect(control.get_by_role("radio", name="lsq")).to_be_checked()


@pytest.mark.slow
def test_the_download_follows_the_choice(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/?recovery=auto")
    expect(page.get_by_role("button", name="Prune and download")).to_be_visible()
    expect(page.get_by_role("button", name="Without recovery", exact=True)).to_be_visible()
    choose(page, "none")
    expect(page.get_by_role("button", name="With recovery", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Without recovery", exact=True)).to_have_count(0)
    export = open_page(f"{server.url}/export?recovery=none")
    control = export.get_by_role("radiogroup", name="Recovery without training")
    expect(control.get_by_role("radio", name="None", exact=True)).to_be_checked()
