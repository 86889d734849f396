"""The Overview page: its chart and texts, and in a browser up to the downloaded file."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.pareto import ParetoPoint
from psvit_core.plan.size import plan_size
from psvit_core.records import Machine, Measurement, ModelSummary, Profile, Quartiles, Subject
from psvit_core.storage.shipped import SWITCH_ENV, DemoStore, shipped_bundles
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import model_card
from tests.patience import JOB_MS
from tests.ui.conftest import OpenPage, Server, settled, start_server, wait_for_job
from ui.charts.front import front_chart
from ui.model import comparison, formats, front_rows, fronts, loaders, sweeps
from ui.model.fronts import AXES, DRAFT_ID, Overview
from ui.model.measured import calibrated_predictor, measured_plans
from ui.model.predictor import make_predictor
from ui.model.sweeps import SweepView
from ui.panels.overview.measuring import estimate_line, front_settings

UNKNOWN = "?model=Meta-SpikeFormer+(SDT+v2),+digits"


def plain_sweeps(store: Store, summary: ModelSummary) -> list[SweepView]:
    """Return the sweeps of networks as pruned; the recovered one is shipped, too."""
    found = sweeps.list_sweeps(store, summary)
    return [v for v in found if v.conditions is None or v.conditions.recovery == "none"]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Overview]:
    """The overview of the demo model in an empty store."""
    monkeypatch.setenv(SWITCH_ENV, "1")
    shipped_bundles.cache_clear()
    loaders.open_store.clear()
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    store = DemoStore(tmp_path)
    workspace = Workspace(Subject(), store)
    summary = workspace.summary()
    assert summary is not None
    (sweep,) = plain_sweeps(store, summary)
    predictor = calibrated_predictor(sweep, measured_plans(workspace, summary))
    yield loaders.overview(workspace, summary, sweep, predictor)
    shipped_bundles.cache_clear()
    loaders.open_store.clear()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the shipped results."""
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    yield server
    server.kill()
    server.end_workers()


# ---- chart and texts ---------------------------------------------------------------------------


def test_every_plan_can_be_clicked(shipped: Overview) -> None:
    figure = front_chart(shipped, "bytes")
    clicks = figure.data[-1]
    assert set(clicks.customdata) == set(shipped.points)
    assert clicks.marker.opacity == 0
    by_name = {trace.name: trace for trace in figure.data}
    assert by_name["Predicted"].marker.symbol == "circle-open"
    lost = by_name["Predicted, below"]
    assert lost.marker.symbol == "triangle-down-open"
    assert len(by_name["Predicted"].x) + len(lost.x) == len(shipped.predicted) > 4
    drawn = sum(len(t.x) for t in figure.data if t.error_y.array is not None)
    below = sum(len(t.x) for t in figure.data if str(t.name).endswith("below")) - len(lost.x)
    assert drawn + below == len(shipped.measured)
    assert {"Uniform: its plans", "PSViT: its plans", "PrimeSVT: its plans"} <= set(by_name)
    assert [line.y0 for line in figure.layout.shapes] == pytest.approx(
        [100 * shipped.baseline.value, 100 * shipped.baseline.value - 3]  # type: ignore[union-attr]
    )


def test_tied_neighbours_are_marked(shipped: Overview) -> None:
    front = shipped.front("bytes")
    unsure = {p.value for p in front if p.overlaps}
    assert 0 < len(unsure) <= len(front)
    marks = next(t for t in front_chart(shipped, "bytes").data if t.name == "tied")
    assert {round(x * 1e6) for x in marks.x} == unsure
    table = front_rows.table_rows(shipped, "bytes")
    assert (table["front"].str.contains("≈")).sum() == len(unsure)
    assert len(table) == len(shipped.points)


def test_each_axis_has_its_own_front(shipped: Overview) -> None:
    for axis in AXES:
        front = shipped.front(axis)
        assert bool(front) == (axis != "latency")
        if front:
            knee = shipped.points[shipped.knee(axis)]  # type: ignore[index]
            assert knee.measured and knee.values[axis] < shipped.unpruned[axis]
            assert knee.drop.value <= 3
            assert front_chart(shipped, axis, selected=knee, dark=True).data


def test_the_draft_has_a_ring(shipped: Overview) -> None:
    own = fronts.PlanPoint(
        id=DRAFT_ID,
        plan=shipped.measured[0].plan,
        title="Your plan",
        accuracy=shipped.measured[0].accuracy,
        drop=shipped.measured[0].drop,
        values={"bytes": 5e5},
    )
    figure = front_chart(shipped, "bytes", selected=own)
    ring = next(t for t in figure.data if t.name == "Your choice")
    assert list(ring.x) == [0.5]
    assert DRAFT_ID in figure.data[-1].customdata


def test_all_pages_predict_alike(shipped: Overview, tmp_path: Path) -> None:
    store = DemoStore(tmp_path)
    (sweep,) = plain_sweeps(store, shipped.summary)
    for limit in (
        None,
        64,
    ):  # 64 images: calibrated by plans on all
        workspace = Workspace(Subject(limit=limit), store)
        predictor = calibrated_predictor(sweep, measured_plans(workspace, shipped.summary))
        assert predictor is not None and predictor.is_recalibrated
        view = loaders.overview(workspace, shipped.summary, sweep, predictor)
        assert len(view.predicted) > 4
        for point in view.predicted:
            assert (point.raised_from or point.drop).value == predictor.drop(point.plan).value


def test_a_prediction_is_no_better_than_a_measured_plan_that_saves_less(
    shipped: Overview, tmp_path: Path
) -> None:
    (sweep,) = plain_sweeps(DemoStore(tmp_path), shipped.summary)
    assert sweep.table is not None and shipped.archive is not None
    older = make_predictor(dataclasses.replace(sweep.table, joint=()))  # sums of drops
    measurements = [point.measurement for point in shipped.archive.points]
    plans = [point.plan for point in shipped.predicted]
    shipped = fronts.overview(
        shipped.summary, shipped.archive, older.calibrated(measurements), plans, []
    )
    own = [s for s in shipped.measured if "optimal" in s.policies]
    raised = [point for point in shipped.predicted if point.raised_from]
    assert raised, "the demo has such plans"
    for point in shipped.predicted:
        larger = [s for s in own if s.values["bytes"] > point.values["bytes"]]
        assert all(point.accuracy.value <= s.accuracy.value + 1e-9 for s in larger)
        assert all(point.accuracy.low <= s.accuracy.low + 0.01 for s in larger)
        assert point.accuracy.low <= point.accuracy.value <= point.accuracy.high
    figure = front_chart(shipped, "bytes")
    band = next(t for t in figure.data if t.name == "Predicted range")
    assert len(band.x) == 2 * len(shipped.predicted)
    clicks = figure.data[-1]
    text = dict(zip(clicks.customdata, clicks.text, strict=True))[raised[0].id]
    assert "predicted, with the expected range" in text and "saves less" in text


def test_plans_of_two_criteria_are_two_lines(shipped: Overview) -> None:
    assert not any("·" in point.title for point in shipped.points.values())
    archive = shipped.archive
    assert archive is not None
    others = tuple(of_criterion(point, "l2") for point in archive.points)
    both = dataclasses.replace(archive, points=archive.points + others)
    view = fronts.overview(shipped.summary, both, None, [], [])
    titles = [point.title for point in view.measured]
    assert len(titles) == len(set(titles)) == 2 * len(shipped.measured)
    assert sum(title.endswith("· l2") for title in titles) == len(others)
    lines = {t.name: t for t in front_chart(view, "bytes").data}
    for policy in ("Uniform", "PSViT", "PrimeSVT"):
        assert f"{policy}: its plans" not in lines
        for criterion in ("l2", "reconstruction"):
            xs = lines[f"{policy} · {criterion}: its plans"].x
            assert len(xs) == len(set(xs))
    assert set(front_rows.table_rows(view, "bytes")["criterion"]) == {"l2", "reconstruction"}


def test_plans_of_one_title_get_numbers(shipped: Overview) -> None:
    archive = shipped.archive
    assert archive is not None
    twins = tuple(
        dataclasses.replace(p, made=(dataclasses.replace(p.made[0], weights="x"),))
        for p in archive.points
    )
    view = fronts.overview(
        shipped.summary, dataclasses.replace(archive, points=archive.points + twins), None, [], []
    )
    titles = [point.title for point in view.measured]
    assert len(titles) == len(set(titles)) == 2 * len(archive.points)


def of_criterion(point: ParetoPoint, criterion: str) -> ParetoPoint:
    """Return the same plan, as if another criterion had chosen its units."""
    kept = {group: units[::-1] for group, units in point.plan.kept.items()}  # to differ
    plan = dataclasses.replace(point.plan, criterion=criterion, kept=kept)
    made = tuple(dataclasses.replace(way, criterion=criterion) for way in point.made)
    return ParetoPoint(measurement=dataclasses.replace(point.measurement, plan=plan), made=made)


def test_latencies_have_a_reference_and_whiskers(shipped: Overview) -> None:
    archive = shipped.archive
    assert archive is not None
    points = tuple(
        dataclasses.replace(p, measurement=timed(p.measurement, 2.0 + i % 5))
        for i, p in enumerate(archive.points)
    )
    whole = timed(dataclasses.replace(points[0].measurement, plan=None), 9.0)
    elsewhere = timed(whole, 4.0, threads=8)
    view = fronts.overview(
        shipped.summary, dataclasses.replace(archive, points=points), None, [], [whole, elsewhere]
    )
    assert view.unpruned["latency"] == 9.0
    figure = front_chart(view, "latency", selected=view.measured[0])
    star = next(t for t in figure.data if t.name == "Unpruned")
    assert list(star.x) == [9.0] and list(star.error_x.array) == pytest.approx([0.5])
    assert not [t.name for t in figure.data if t.mode == "lines"]
    whiskers = [t for t in figure.data if t.error_x.array is not None and t.name != "Unpruned"]
    assert sum(len(t.error_x.array) for t in whiskers) > 10
    assert all(list(t.error_x.arrayminus) == pytest.approx([0.25] * len(t.x)) for t in whiskers)
    rings = next(t for t in figure.data if t.name == "Front")
    assert len(rings.x) == len(view.front("latency"))
    assert "(1.75 to 2.50, 20 runs)" in "".join(figure.data[-1].text)
    assert {"latency_low_ms", "latency_high_ms"} <= set(front_rows.table_rows(view, "latency"))


def timed(m: Measurement, median: float, threads: int = 1) -> Measurement:
    """Return the measurement with an invented latency."""
    machine = Machine(device="cpu", processor="x", threads=threads, torch="2", kernels="plain")
    times = Quartiles(median=median, low=median - 0.25, high=median + 0.5, n_runs=20)
    profile = Profile(
        state_bytes=1, peak_activation_bytes={"1": 1}, latency_ms={"1": times}, machine=machine
    )
    return dataclasses.replace(m, profile=profile)


def test_estimate_before_a_front(shipped: Overview, tmp_path: Path) -> None:
    store = DemoStore(tmp_path)
    (sweep,) = plain_sweeps(store, shipped.summary)
    sweep = dataclasses.replace(sweep, conditions=None)
    workspace = Workspace(Subject(limit=64), store)
    later = "estimate appears after the first plans"

    def estimate(workspace: Workspace, *, profile: bool = False, swept: bool = True) -> str:
        settings = front_settings(profile=profile)
        return estimate_line(workspace, shipped.summary, settings, sweep if swept else None)

    text = estimate(workspace)
    assert "24 plans" in text and later in text  # no measurement on this machine
    text = estimate(workspace, swept=False)
    assert "144 cells" in text and later in text

    assert shipped.archive is not None
    m = shipped.archive.points[0].measurement
    m = dataclasses.replace(m, size=plan_size(shipped.summary, None))
    one = Job(
        id="one",
        task="measure",
        title="",
        params={"plan": None},
        state="done",
        created=1.0,
        paced=0.0,
        ended=749.0,
        fresh=750,
        result={"measurement": m.to_dict()},
    )
    client.save(store, one)  # one second per image
    assert formats.rough_duration(24 * 64) in estimate(workspace)
    assert later in estimate(workspace, profile=True)
    assert later in estimate(workspace, swept=False)  # the only sweep is from another machine
    settings = front_settings(profile=True).to_dict()
    params = {"subject": workspace.subject.to_dict(), "settings": settings, "sweep_key": sweep.key}
    front = Job(
        id="two",
        task="pareto",
        title="",
        params=params,
        state="done",
        created=2.0,
        paced=0.0,
        ended=23 * 30.0,
        fresh=24,
    )
    client.save(store, front)  # half a minute per plan
    assert formats.rough_duration(24 * 30) in estimate(workspace, profile=True)
    assert formats.rough_duration(24 * 64) in estimate(workspace)
    unknown = Workspace(Subject(data="npz:/images.npz"), store)
    assert later in estimate(unknown)


# ---- in a browser ----------------------------------------------------------------------------


def test_first_paint_loads_no_torch(server: Server, open_page: OpenPage) -> None:
    """Runs first, on a server without any request so far; ``benchmarks/ui.py`` measures times."""
    assert server.process is not None
    page = open_page(server.url)
    expect(page.get_by_role("button", name="Prune and download")).to_be_visible()
    process = psutil.Process(server.process.pid)
    loaded = [*process.memory_maps(grouped=True)]
    assert loaded and not any("libtorch" in library.path for library in loaded)


def test_results_are_shown_without_the_images_that_they_were_measured_on(
    server: Server, open_page: OpenPage
) -> None:
    title = quote(model_card("sdt_v1_cifar10").title)
    page = open_page(f"{server.url}/?model={title}&recovery=auto")
    expect(page.get_by_text("Its images, cifar10-jpeg, are not included")).to_be_visible()
    expect(page.get_by_role("combobox", name="Plan")).to_have_value(re.compile("knee"))
    expect(page.get_by_text(re.compile("cifar10-jpeg, val split"))).not_to_have_count(0)


@pytest.mark.slow
def test_three_clicks_to_a_checkpoint(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/?recovery=auto")
    clicks = 0

    def click(target: Locator) -> None:
        nonlocal clicks
        clicks += 1
        target.click()

    expect(page.get_by_role("combobox", name="Plan")).to_have_value(re.compile("knee"))
    click(page.get_by_role("button", name="Prune and download"))
    link = page.get_by_role("link", name=re.compile("^Download .*safetensors"))
    expect(link).to_be_visible(timeout=JOB_MS)
    with page.expect_download() as waiting:
        click(link)
    assert clicks <= 3
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    expect(page.get_by_role("code")).to_have_text(hashlib.sha256(file.read_bytes()).hexdigest())
    job = wait_for_job(server.store, "export")
    assert job.written is not None and job.written.bytes == file.stat().st_size

    gain = comparison.gain_text(job)
    assert "Drop" in gain and "Measured on" in gain
    expect(page.get_by_text(gain)).to_be_visible()
    recovery = comparison.recovery_report(job)
    assert recovery is not None and recovery.method == "auto"


@pytest.mark.slow
def test_a_checkpoint_without_recovery(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/?recovery=auto")
    page.get_by_role("button", name="Without recovery").click()
    expect(page.get_by_text("without recovery. Measured on")).to_be_visible(timeout=JOB_MS)
    plain = wait_for_job(server.store, "export")
    assert comparison.recovery_report(plain) is None
    assert plain.written is not None
    assert Path(plain.written.path).name.endswith("-as-pruned.safetensors")


@pytest.mark.slow
def test_a_model_without_its_images_is_not_recovered(server: Server, open_page: OpenPage) -> None:
    title = quote(model_card("sdt_v1_cifar10").title)
    page = open_page(f"{server.url}/?model={title}&recovery=auto")
    expect(page.get_by_role("button", name="Prune and download")).to_be_disabled()
    expect(page.get_by_text("Recovery needs the model's images")).to_contain_text("this plan loses")
    page.get_by_role("button", name="Without recovery").click()
    link = page.get_by_role("link", name=re.compile("^Download .*-as-pruned.safetensors"))
    expect(link).to_be_visible(timeout=JOB_MS)
    expect(page.get_by_text("Not measured: The images of cifar10-jpeg")).to_be_visible()
    settled(page)
    auto = page.get_by_role("radio", name=re.compile("auto", re.IGNORECASE))
    expect(auto.first).to_be_checked()  # the shipped results stay on the page
    export = open_page(f"{server.url}/export?model={title}&recovery=auto")
    expect(
        export.get_by_text("Without recovery. Recovery needs the model's images")
    ).to_be_visible()


@pytest.mark.slow
def test_a_click_makes_a_point_the_plan(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    plan = page.get_by_role("combobox", name="Plan")
    before = plan.input_value()
    click_marker(page, "PSViT")
    expect(plan).not_to_have_value(before)
    chosen = plan.input_value()
    assert chosen.startswith("PSViT, saves")
    page.reload()
    settled(page)
    expect(page.get_by_role("combobox", name="Plan")).to_have_value(chosen)

    page.get_by_role("button", name="Edit in Tune").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tune")
    saved = re.search(r"[\d.]+", chosen)
    assert saved is not None
    expect(page.get_by_text(re.compile(rf"Memory .*\u2212{saved.group()}")).first).to_be_attached()
    expect(page.get_by_label("Budget", exact=True)).to_have_value(saved.group())
    expect(page.get_by_text("budget met")).to_be_visible()
    expect(page.get_by_text(re.compile("than predicted"))).to_be_visible()  # it was measured
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("combobox", name="Plan")).to_have_value(chosen)


def click_marker(page: Page, name: str) -> None:
    """Click the most isolated marker of a trace once plotly has registered the pointer."""
    page.locator(".js-plotly-plot .nsewdrag").wait_for(state="attached")
    place = page.locator(".js-plotly-plot").evaluate(
        """(plot, name) => {
          const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
          const list = v => [...(v._inputArray ?? v)];
          const places = t => list(t.x).map((x, i) => [
            box.x + xaxis._offset + xaxis.l2p(x), box.y + yaxis._offset + yaxis.l2p(list(t.y)[i])]);
          const all = places(plot.data.at(-1));
          const near = ([x, y]) =>
            all.map(([a, b]) => Math.hypot(a - x, b - y)).sort((a, b) => a - b)[1];
          const own = places(plot.data.find(t => t.name === name));
          return own.reduce((best, place) => near(place) > near(best) ? place : best);
        }""",
        name,
    )
    page.mouse.move(*place)
    expect(page.locator(".hoverlayer .hovertext").first).to_be_visible()
    page.mouse.down()
    page.mouse.up()


@pytest.mark.slow
def test_the_number_of_images_says_what_is_shown(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/?images=64")
    told = page.get_by_text("No plan is measured on 64 images yet, so measurements on all")
    expect(told).to_be_visible()
    expect(page.get_by_text(re.compile("measured on 64 images"))).to_have_count(2)  # and a front
    page.get_by_role("radio", name="all", exact=True).check(force=True)
    expect(told).to_have_count(0)
    page.get_by_role("radio", name="64", exact=True).check(force=True)
    expect(told).to_be_visible()
    page.get_by_role("button", name="Edit in Tune").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tune")
    expect(page).to_have_url(re.compile("/tune.*images=64"))


@pytest.mark.slow
def test_a_plan_measured_on_fewer_images_can_be_shown(server: Server, open_page: OpenPage) -> None:
    store = server.store
    plan = Workspace(Subject(), DemoStore(store.folder)).plan_by_hand({"block.0.mlp.hidden": 0.5})
    Workspace(Subject(limit=64), store).measure(plan)
    assert wait_for_job(store, "measure").state == "done"
    page = open_page(f"{server.url}/?images=64")
    expect(page.get_by_role("radio", name="64 images (1 plan)")).to_be_checked()
    few = page.get_by_text(re.compile(r"All \d+ plans as a table")).inner_text()
    page.get_by_role("radio", name="all images").check(force=True)
    expect(page.get_by_text(few)).to_have_count(0)
    expect(page.get_by_text(re.compile(r"All \d+ plans as a table"))).to_be_visible()


@pytest.mark.slow
def test_axes_table_and_a_model_without_results(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_role("radio", name="SOPs").check(force=True)
    expect(page.get_by_text("SOPs, M", exact=True)).to_be_visible()
    page.get_by_role("radio", name="Latency").check(force=True)
    expect(page.get_by_text("Latency: not measured yet")).to_be_visible()
    expect(page.get_by_role("combobox", name="Plan")).to_be_visible()
    page.get_by_text(re.compile(r"All \d+ plans as a table")).click()
    settled(page)
    with page.expect_download() as waiting:  # by keyboard: the expander is still column_values
        page.get_by_role("button", name="Download CSV").press("Enter")
    head = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("plan,criterion,how,front,accuracy")

    other = open_page(f"{server.url}/{UNKNOWN}")
    expect(other.get_by_text("Nothing has been measured for this model yet")).to_be_visible()
    expect(other.get_by_role("button", name="Measure a front")).to_be_visible()
    expect(other.get_by_text(re.compile("after a sweep of"))).to_be_visible()


@pytest.mark.slow
def test_a_front_is_measured_from_the_shipped_sweep(server: Server, open_page: OpenPage) -> None:
    """On a phone, in the dark theme; cancelled after the first plans."""
    page = open_page(
        f"{server.url}/?images=64", viewport={"width": 390, "height": 844}, color_scheme="dark"
    )
    page.get_by_role("button", name="Measure a front").click()
    expect(page.get_by_text(re.compile(r"Measuring plans: [1-9]\d* of 24"))).to_be_visible(
        timeout=JOB_MS
    )
    page.get_by_role("button", name="Cancel", exact=True).click()
    job = wait_for_job(server.store, "pareto")
    assert job.state == "cancelled" or job.done == job.total
    expect(page.get_by_text(re.compile("64 images")).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
