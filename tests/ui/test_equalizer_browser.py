"""The Tune page in a browser: every way to use the equalizer, and its effects."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import memory_saving, plan_size
from tests.patience import JOB_MS, PATIENCE
from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import put_sweep, summary
from ui.components.equalizer.columns import size_terms
from ui.model import drafts, formats, predictor
from ui.model.drafts import Draft

MODEL = summary("sdt_v1_digits")
OTHER = summary("e_spikeformer_digits")
OTHER_URL = "?model=E-SpikeFormer+(SDT+v3),+digits"
QKV, MLP = "Block 0 · SDSA q, k, v", "Block 0 · MLP hidden"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
Tune = Callable[..., Page]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a sweep of the demo model and an unfinished one of the other model."""
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL)
    put_sweep(server.store, OTHER, only=[g.group_id for g in OTHER.groups[:20]])
    yield server
    server.kill()
    server.end_workers()


@pytest.fixture
def tune(server: Server, open_page: OpenPage) -> Tune:
    """Return a function that opens the Tune page with an empty plan."""

    def open_it(query: str = "?images=64", **options: object) -> Page:
        for model in (MODEL, OTHER):
            for kind in ("draft", "draft-history"):
                server.store.delete(f"{kind}/{model.weights_hash}")
        page = open_page(f"{server.url}/tune{query}", **options)
        expect(page.get_by_role("slider").first).to_be_attached()
        return page

    return open_it


def slider(page: Page, name: str = MLP) -> Locator:
    return page.get_by_role("slider", name=name, exact=True)


def percents(page: Page) -> dict[str, int]:
    """Return the percentage of every column, by label."""
    found = page.get_by_role("slider").evaluate_all(
        "all => all.map(s => [s.getAttribute('aria-label'), s.getAttribute('aria-valuenow')])"
    )
    return {name: int(value) for name, value in found}


def place(column: Locator, percent: float) -> tuple[float, float]:
    """Return the position of a percentage in a column, in pixels of the page."""
    # While Streamlit replaces the component, there is no box for a moment.
    for _ in range(20 * PATIENCE):
        if box := column.locator(".well").bounding_box():
            break
        column.page.wait_for_timeout(50)
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] * (1 - percent / 100)


def drag(page: Page, name: str, percent: float, *keys: str) -> None:
    """Drag a column's handle to a percentage while keys are held down."""
    column = slider(page, name)
    for key in keys:
        page.keyboard.down(key)
    page.mouse.move(*place(column, int(column.get_attribute("aria-valuenow") or 0)))
    page.mouse.down()
    page.mouse.move(*place(column, percent), steps=4)
    page.mouse.up()
    for key in keys:
        page.keyboard.up(key)


def known(page: Page) -> None:
    """Wait until the server's prediction has replaced the browser's estimate."""
    expect(page.locator(".figure.predicted .value")).not_to_contain_text("≈")
    settled(page)


def kept_draft(page: Page, server: Server) -> Draft:
    """Return the stored draft, once the page has answered: it is stored after that."""
    settled(page)
    draft = drafts.load_draft(server.store, MODEL)
    assert draft is not None
    return draft


def hatched(page: Page) -> float:
    """Return the hatched fraction of the columns' pixels."""
    found = page.locator(".grid").evaluate(
        """grid => {
          const area = e => { const r = e.getBoundingClientRect(); return r.width * r.height; };
          const sum = name => [...grid.querySelectorAll(name)].reduce((s, e) => s + area(e), 0);
          return sum('.cut') / sum('.heat');
        }"""
    )
    return float(found)


def test_drag_gives_exact_sizes_at_once(tune: Tune, server: Server) -> None:
    page = tune()
    x, y = place(slider(page), 40)
    page.mouse.move(*place(slider(page), 0))
    page.mouse.down()
    page.mouse.move(x, y, steps=3)
    expect(slider(page)).to_have_attribute("aria-valuenow", "40")
    plan = plan_from_ratios(MODEL, {"block.0.mlp.hidden": 0.4}, criterion="l2")
    size = plan_size(MODEL, plan)
    expect(page.locator(".figure.params .value")).to_have_text(f"{size.params:,}")
    expect(page.locator(".figure.predicted .value")).to_contain_text("≈")
    expect(page.locator(".card")).to_contain_text("102 of 256 units")
    expect(page.locator(".card")).to_contain_text("within noise")
    page.mouse.up()
    known(page)
    assert kept_draft(page, server).plan.kept == plan.kept
    page.reload()
    settled(page)
    expect(slider(page)).to_have_attribute("aria-valuenow", "40")
    expect(page.locator(".figure.params .value")).to_have_text(f"{size.params:,}")


@pytest.mark.slow
def test_undo_and_redo_by_gesture(tune: Tune) -> None:
    page = tune()
    drag(page, MLP, 30)
    known(page)
    drag(page, QKV, 60)
    known(page)
    page.get_by_role("button", name="Undo").click()
    expect(slider(page, QKV)).to_have_attribute("aria-valuenow", "0")
    assert percents(page)[MLP] == 30
    page.keyboard.press("Control+z")
    expect(slider(page)).to_have_attribute("aria-valuenow", "0")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    page.keyboard.press("Control+Shift+z")
    expect(slider(page)).to_have_attribute("aria-valuenow", "30")
    page.get_by_role("button", name="Redo").click()
    expect(slider(page, QKV)).to_have_attribute("aria-valuenow", "60")
    expect(page.get_by_role("button", name="Redo")).to_be_disabled()


@pytest.mark.slow
def test_paint_is_one_step(tune: Tune) -> None:
    page = tune()
    page.get_by_role("button", name="Paint across groups").click()
    page.mouse.move(*place(slider(page, QKV), 50))
    page.mouse.down()
    page.mouse.move(*place(slider(page, "Block 2 · MLP hidden"), 50), steps=2)  # skips columns
    page.mouse.up()
    known(page)
    painted = {name for name, value in percents(page).items() if value == 50}
    assert painted == {
        f"Block {b} · {t}" for b in (0, 1, 2) for t in ("SDSA q, k, v", "MLP hidden")
    }
    page.get_by_role("button", name="Undo").click()
    expect(slider(page)).to_have_attribute("aria-valuenow", "0")
    assert set(percents(page).values()) == {0}


@pytest.mark.slow
def test_shift_and_alt_edit_together(tune: Tune) -> None:
    page = tune()
    drag(page, MLP, 35, "Shift")
    known(page)
    changed = {name for name, value in percents(page).items() if value == 35}
    assert changed == {f"Block {b} · MLP hidden" for b in range(6)}
    drag(page, QKV, 60, "Alt")
    known(page)
    changed = {name for name, value in percents(page).items() if value == 60}
    assert changed == {QKV, MLP}


@pytest.mark.slow
def test_quick_drags_are_not_lost(tune: Tune, server: Server) -> None:
    page = tune()
    names = [name for name in percents(page) if name.startswith("Block")][:8]
    for i, name in enumerate(names):
        drag(page, name, 10 + 5 * i)
    known(page)
    wanted = {name: 10 + 5 * i for i, name in enumerate(names)}
    assert {name: percents(page)[name] for name in names} == wanted
    asked = {
        MODEL.by_id[g].label: round(100 * r) for g, r in kept_draft(page, server).asked.items()
    }
    assert asked == wanted


@pytest.mark.slow
def test_locks_hold_against_drags_and_planners(tune: Tune, server: Server) -> None:
    page = tune()
    drag(page, MLP, 20)
    known(page)
    slider(page).locator(".lock").click()
    expect(slider(page)).to_have_attribute("aria-readonly", "true")
    drag(page, MLP, 70)
    drag(page, "Block 1 · MLP hidden", 70, "Shift")
    known(page)
    assert percents(page)[MLP] == 20
    assert percents(page)["Block 1 · MLP hidden"] == 70
    page.get_by_role("button", name="Fit").click()
    best = formats.POLICY_NAMES[predictor.policies()[0]]
    expect(page.get_by_role("radio", name=best)).to_be_checked()
    draft = kept_draft(page, server)
    assert draft.locked == ("block.0.mlp.hidden",)
    assert len(draft.plan.kept["block.0.mlp.hidden"]) == 256 - 51
    assert memory_saving(MODEL, draft.plan) >= 0.25
    slider(page).press("l")
    expect(slider(page)).not_to_have_attribute("aria-readonly", "true")
    expect(page.get_by_role("radio", name=best)).not_to_be_checked()  # it was with the lock
    page.get_by_role("radio", name="Uniform").check(force=True)
    expect(slider(page)).not_to_have_attribute("aria-valuenow", "20")
    expect(page.get_by_role("radio", name="Uniform")).to_be_checked()
    assert kept_draft(page, server).plan.policy == "uniform"


@pytest.mark.slow
def test_width_by_bytes_makes_the_hatched_area_the_saving(tune: Tune, server: Server) -> None:
    page = tune()
    drag(page, MLP, 60, "Shift")
    known(page)
    drag(page, "All blocks · residual stream", 40)
    known(page)
    page.get_by_role("button", name="Width: share of bytes").click()
    expect(page.get_by_text("hatched area")).to_be_visible()
    page.wait_for_timeout(300)  # widths are animated
    plan = kept_draft(page, server).plan
    whole, small = plan_size(MODEL, None).bytes, plan_size(MODEL, plan).bytes
    expect(page.get_by_text("hatched area")).to_contain_text(f"{(whole - small) / 1e6:.2f}")
    units = [g.n_units for g in MODEL.groups]
    gone = [1 - len(plan.kept.get(g.group_id, range(g.n_units))) / g.n_units for g in MODEL.groups]
    way = np.linspace(0, 1, 501)
    total = 0.0  # bytes of all columns: each tensor counts once per prunable axis
    for factor, *axes in size_terms(MODEL)["bytes"]:
        full = factor * math.prod(units[i] for i in axes)
        for at in range(len(axes)):
            others = [1 - way * gone[i] for j, i in enumerate(axes) if j != at]
            total += full * float(np.mean(np.prod(others, axis=0))) if others else full
    assert hatched(page) * total == pytest.approx(whole - small, rel=0.05)


@pytest.mark.slow
def test_the_whole_flow_by_keyboard(tune: Tune, server: Server) -> None:
    page = tune()
    budget = page.get_by_label("Budget", exact=True)
    budget.focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("30")
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Fit"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("budget met")).to_be_visible()
    assert memory_saving(MODEL, kept_draft(page, server).plan) >= 0.3

    tab_to(page, page.get_by_role("slider").first)
    page.keyboard.press("Tab")
    assert page.get_by_role("slider").evaluate_all("all => all.every(s => !s.matches(':focus'))")
    page.keyboard.press("Shift+Tab")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(slider(page)).to_be_focused()
    page.keyboard.press("Home")
    expect(slider(page)).to_have_attribute("aria-valuenow", "0")
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    expect(slider(page)).to_have_attribute("aria-valuenow", "11")
    page.keyboard.press("l")
    expect(slider(page)).to_have_attribute("aria-valuetext", re.compile("28 of 256 .* locked"))
    page.keyboard.press("End")
    expect(slider(page)).to_have_attribute("aria-valuenow", "11")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("End")
    expect(slider(page, QKV)).to_have_attribute("aria-valuenow", "95")
    known(page)
    page.keyboard.press("Control+z")
    expect(slider(page, QKV)).not_to_have_attribute("aria-valuenow", "95")

    tab_to(page, page.get_by_role("button", name="Measure", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("than predicted"))).to_be_visible(timeout=JOB_MS)
    expect(page.locator(".figure.measured .value")).to_contain_text("pp")
    measured = kept_draft(page, server)

    drag(page, MLP, 5)  # locked: no effect
    drag(page, "Block 5 · MLP hidden", 95)
    known(page)
    expect(page.locator(".figure.measured .value")).to_have_text("not measured")
    page.get_by_role("button", name="Restore").first.click()
    expect(page.locator(".figure.measured .value")).to_contain_text("pp")
    assert kept_draft(page, server).plan.kept == measured.plan.kept


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus."""
    for _ in range(60):
        if target.evaluate("e => e.matches(':focus')"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {target}")


@pytest.mark.slow
def test_table_edits_the_same_plan(tune: Tune, server: Server) -> None:
    page = tune()
    drag(page, QKV, 30)
    known(page)
    page.get_by_role("radio", name="Table").check(force=True)
    grid = page.get_by_test_id("stDataFrame")
    expect(grid).to_be_visible()
    expect(page.get_by_role("slider")).to_have_count(0)
    before = page.locator(".figure.params .value").inner_text()
    box = grid.bounding_box()
    assert box is not None
    row = [g.label for g in MODEL.groups].index(MLP)
    height = box["height"] / (len(MODEL.groups) + 1)
    page.mouse.click(box["x"] + 0.38 * box["width"], box["y"] + height * (row + 1.5))
    page.wait_for_timeout(200)
    page.keyboard.press("Enter")
    page.locator("#portal input").wait_for()  # loaded late; earlier keystrokes are lost
    page.keyboard.press("Control+a")
    page.keyboard.type("40", delay=60)
    page.keyboard.press("Enter")
    expect(page.locator(".figure.params .value")).not_to_have_text(before)
    settled(page)
    page.get_by_role("radio", name="Equalizer").check(force=True)
    expect(slider(page)).to_have_attribute("aria-valuenow", "40")
    assert percents(page)[QKV] == 30
    assert kept_draft(page, server).asked == {"block.0.attn.qkv": 0.3, "block.0.mlp.hidden": 0.4}


@pytest.mark.slow
def test_touch_drags_and_scrolls(tune: Tune) -> None:
    page = tune("?images=64", **PHONE)
    column = slider(page)
    column.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    width = column.bounding_box()
    assert width is not None and width["width"] >= 23.5
    wider = page.locator(".scroller").evaluate("s => s.scrollWidth > s.clientWidth")
    assert wider
    x, y = place(column, 20)
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": px, "y": py} for px, py in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    send("touchStart", (x, y))
    for percent in (30, 45, 60):
        send("touchMove", place(column, percent))
    send("touchEnd")
    expect(column).to_have_attribute("aria-valuenow", re.compile("^(3[5-9]|4[0-5])$"))  # relative
    known(page)
    value = percents(page)[MLP]
    send("touchStart", (x, y))
    send("touchEnd")
    assert percents(page)[MLP] == value, "a tap changes nothing"
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, "the page itself does not scroll sideways"


@pytest.mark.slow
def test_unswept_groups_are_marked_and_sizes_still_work(tune: Tune) -> None:
    page = tune(OTHER_URL)
    expect(page.get_by_text("Predictions and policies need a finished sweep")).to_be_visible()
    assert page.locator(".column .todo").count() == len(OTHER.groups[20:]) * 3
    expect(page.locator(".key")).to_contain_text("not swept yet")
    before = page.locator(".figure.params .value").inner_text()
    name = OTHER.groups[30].label
    slider(page, name).press("PageUp")
    expect(page.locator(".figure.params .value")).not_to_have_text(before)
    expect(slider(page, name)).to_have_attribute("aria-valuetext", re.compile("not swept yet"))
    expect(page.locator(".figure.predicted .value")).to_have_text("no sweep")
    heads = next(g for g in OTHER.groups if g.heads)
    slider(page, heads.label).press("PageUp")  # 10 % of 48 units in 8 heads
    expect(slider(page, heads.label)).to_have_attribute(
        "aria-valuetext", re.compile("removes nothing")
    )
    expect(page.locator(".card")).to_contain_text("Removes nothing: 17")


@pytest.mark.slow
def test_dark_theme_has_its_own_heat(tune: Tune) -> None:
    page = tune(color_scheme="dark")
    heat = "e => getComputedStyle(e).backgroundImage"
    first = page.locator(".column .heat").nth(3)
    dark = first.evaluate(heat)
    paper = page.locator(".eq").evaluate("e => getComputedStyle(e).getPropertyValue('--paper')")
    assert paper.strip() == "#12171b"
    other = tune()
    assert other.locator(".column .heat").nth(3).evaluate(heat) != dark
    assert len(page.screenshot()) > 20_000
