"""The Overview page: what it draws, and in a browser from the first look to the downloaded file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from psvit_core import demo
from psvit_core.demo import DemoStore, shipped_bundles
from psvit_core.jobs.tasks import Subject
from psvit_core.workspace import Workspace
from tests.ui.conftest import OpenPage, Server, settled, start_server, wait_for_job
from ui import charts, fronts, loaders, sweep_views
from ui.fronts import AXES, MINE, Overview
from ui.panels_overview import front_estimate, settings_of

UNKNOWN = "?model=Meta-SpikeFormer+(SDT+v2),+digits"
FIRST_PAINT = 2.0  # seconds of one processor core that the server may spend on it


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Overview]:
    """The overview of the demo model in an empty store."""
    monkeypatch.setenv(demo.SWITCH_ENV, "1")
    shipped_bundles.cache_clear()
    loaders.open_store.clear()
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    store = DemoStore(tmp_path)
    workspace = Workspace(Subject(), store)
    summary = workspace.summary()
    assert summary is not None
    view, _ = loaders.overview(workspace, summary, sweep_views.sweeps(store, summary)[0])
    yield view
    shipped_bundles.cache_clear()
    loaders.open_store.clear()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that shows the shipped results."""
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    yield server
    server.kill()
    server.end_workers()


# ---- what is drawn ---------------------------------------------------------------------------


def test_every_plan_can_be_clicked(shipped: Overview) -> None:
    figure = charts.front_chart(shipped, "bytes")
    clicks = figure.data[-1]
    assert set(clicks.customdata) == set(shipped.spots)
    assert clicks.marker.opacity == 0
    by_name = {trace.name: trace for trace in figure.data}
    assert by_name["Predicted"].marker.symbol == "circle-open"
    assert len(by_name["Predicted"].x) == len(shipped.predicted) > 4
    drawn = sum(len(t.x) for t in figure.data if t.error_y.array is not None)
    below = sum(len(t.x) for t in figure.data if str(t.name).endswith("below"))
    assert drawn + below == len(shipped.measured)
    assert {"Uniform: its plans", "PSViT: its plans", "PrimeSVT: its plans"} <= set(by_name)
    assert [line.y0 for line in figure.layout.shapes] == pytest.approx(
        [100 * shipped.baseline.value, 100 * shipped.baseline.value - 3]  # type: ignore[union-attr]
    )


def test_undecided_neighbours_are_marked(shipped: Overview) -> None:
    front = shipped.front("bytes")
    unsure = {p.value for p in front if p.overlaps}
    assert 0 < len(unsure) <= len(front)
    marks = next(t for t in charts.front_chart(shipped, "bytes").data if t.name == "undecided")
    assert {round(x * 1e6) for x in marks.x} == unsure
    table = fronts.rows(shipped, "bytes")
    assert (table["front"].str.contains("≈")).sum() == len(unsure)
    assert len(table) == len(shipped.spots)


def test_each_axis_has_its_own_front(shipped: Overview) -> None:
    for axis in AXES:
        front = shipped.front(axis)
        assert bool(front) == (axis != "latency")
        if front:
            knee = shipped.spots[shipped.knee(axis)]  # type: ignore[index]
            assert knee.measured and knee.values[axis] < shipped.whole[axis]
            assert knee.drop.value <= 3
            assert charts.front_chart(shipped, axis, selected=knee, dark=True).data


def test_an_own_plan_is_ringed_and_cannot_be_mistaken(shipped: Overview) -> None:
    own = fronts.Spot(
        id=MINE, plan=shipped.measured[0].plan, title="Your plan",
        accuracy=shipped.measured[0].accuracy, drop=shipped.measured[0].drop,
        values={"bytes": 5e5},
    )  # fmt: skip
    figure = charts.front_chart(shipped, "bytes", selected=own)
    ring = next(t for t in figure.data if t.name == "Your choice")
    assert list(ring.x) == [0.5]
    assert MINE in figure.data[-1].customdata


def test_estimate_before_a_front(shipped: Overview, tmp_path: Path) -> None:
    workspace = Workspace(Subject(limit=64), DemoStore(tmp_path))
    text = front_estimate(workspace, shipped.summary, settings_of(profile=False), None, None)
    assert "24 plans" in text and "144 cells" in text and "roughly" in text
    unknown = Workspace(Subject(data="npz:/images.npz"), DemoStore(tmp_path))
    text = front_estimate(unknown, shipped.summary, settings_of(profile=False), None, None)
    assert "told when the first are done" in text


# ---- in a browser ----------------------------------------------------------------------------


def test_first_paint_is_light(server: Server, open_page: OpenPage) -> None:
    """Stands first: nobody has asked this server anything yet."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = process.cpu_times()
    page = open_page(server.url)
    expect(page.get_by_role("button", name="Prune and download")).to_be_visible()
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    print(f"first paint: {spent:.2f} s of processor time")
    assert spent < FIRST_PAINT
    maps = Path(f"/proc/{server.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


def test_three_clicks_to_a_checkpoint(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:  # fmt: skip
    page = open_page(server.url)
    clicks = 0

    def click(target: Locator) -> None:
        nonlocal clicks
        clicks += 1
        target.click()

    expect(page.get_by_role("combobox", name="Plan")).to_have_value(
        re.compile("knee"), timeout=20_000
    )
    click(page.get_by_role("button", name="Prune and download"))
    link = page.get_by_role("link", name=re.compile("^Download .*safetensors"))
    expect(link).to_be_visible(timeout=60_000)
    with page.expect_download() as waiting:
        click(link)
    assert clicks <= 3
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    expect(page.get_by_role("code")).to_have_text(hashlib.sha256(file.read_bytes()).hexdigest())
    assert wait_for_job(server.store, "export").result["bytes"] == file.stat().st_size


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

    page.get_by_role("button", name="Tune it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tune")
    saved = re.search(r"[\d.]+", chosen)
    assert saved is not None
    expect(page.get_by_text(re.compile(rf"Memory .*\u2212{saved.group()}")).first).to_be_attached()
    expect(page.get_by_label("Budget", exact=True)).to_have_value(saved.group())
    expect(page.get_by_text("budget met")).to_be_visible()
    expect(page.get_by_text(re.compile("the gap is"))).to_be_visible()  # it was measured
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("combobox", name="Plan")).to_have_value(chosen)


def click_marker(page: Page, name: str) -> None:
    """Click a trace's marker that stands alone, when plotly has noticed where the pointer is."""
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


def test_axes_table_and_a_model_without_results(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.get_by_role("radio", name="SOPs").check(force=True)
    expect(page.get_by_text("SOPs, M", exact=True)).to_be_visible()
    page.get_by_role("radio", name="Latency").check(force=True)
    expect(page.get_by_text("Latency: not measured yet")).to_be_visible()
    expect(page.get_by_role("combobox", name="Plan")).to_be_visible()
    page.get_by_text(re.compile(r"All \d+ plans as a table")).click()
    settled(page)
    with page.expect_download() as waiting:  # by the keyboard: the table is still unfolding
        page.get_by_role("button", name="Download CSV").press("Enter")
    head = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("plan,how,front,accuracy")

    other = open_page(f"{server.url}/{UNKNOWN}")
    expect(other.get_by_text("Nothing was measured of this model yet")).to_be_visible()
    expect(other.get_by_role("button", name="Measure a front")).to_be_visible()
    expect(other.get_by_text(re.compile("after a sweep of"))).to_be_visible()


@pytest.mark.slow
def test_a_front_is_measured_from_the_shipped_sweep(server: Server, open_page: OpenPage) -> None:
    """On a phone in the dark; stopped after the first plans."""
    page = open_page(
        f"{server.url}/?images=64", viewport={"width": 390, "height": 844}, color_scheme="dark"
    )
    page.get_by_role("button", name="Measure a front").click()
    expect(page.get_by_text(re.compile(r"Measuring plans: [1-9]\d* of 24"))).to_be_visible(
        timeout=60_000
    )
    page.get_by_role("button", name="Cancel", exact=True).click()
    job = wait_for_job(server.store, "pareto")
    assert job.state == "cancelled" or job.done == job.total
    expect(page.get_by_text(re.compile("64 images")).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
