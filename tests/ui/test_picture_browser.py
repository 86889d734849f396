"""The picture of the network in a browser: choosing a group there and elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.ui.conftest import OpenPage, Server, settled, start_server
from tests.ui.example import put_sweep, summary
from ui.components.picture import chosen_group

MODEL = summary("sdt_v1_digits")
QKV, MLP, STREAM = "Block 0 · SDSA q, k, v", "Block 0 · MLP hidden", "All blocks · residual stream"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL)
    yield server
    server.kill()
    server.end_workers()


def picture(page: Page) -> None:
    """Open the picture of the page."""
    page.get_by_text("Picture of the network").click()
    expect(page.locator(".pn-group")).to_have_count(len(MODEL.groups))


def group(page: Page, label: str) -> Locator:
    return page.locator(".pic-net").get_by_role("button", name=label)


def test_a_group_is_chosen_with_the_keyboard(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/open")
    picture(page)
    group(page, STREAM).press("ArrowDown")
    expect(group(page, QKV)).to_be_focused()
    group(page, QKV).press("ArrowDown")
    expect(page.locator(".pic-card")).to_contain_text("block.0.mlp.fc1_conv (256 × 64 × 1 × 1)")
    group(page, MLP).press("Enter")
    expect(group(page, MLP)).to_have_attribute("aria-pressed", "true")
    settled(page)
    page.get_by_role("button", name=f"Show {MLP} in the heatmap").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sensitivity")
    expect(page.get_by_label("Channel group", exact=True)).to_have_value(re.compile(MLP))


def test_picture_and_equalizer_point_at_the_same_group(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/tune")
    expect(page.get_by_role("slider").first).to_be_attached()
    picture(page)
    group(page, MLP).click()
    column = page.get_by_role("slider", name=MLP, exact=True)
    expect(column).to_have_attribute("tabindex", "0")
    expect(group(page, MLP)).to_have_attribute("aria-pressed", "true")
    settled(page)
    other = page.get_by_role("slider", name=QKV, exact=True)
    other.focus()
    expect(group(page, QKV)).to_have_attribute("aria-pressed", "true")
    expect(group(page, QKV).locator("rect[fill^='url']")).to_have_count(0)
    other.press("PageUp")
    expect(group(page, QKV).locator("rect[fill^='url']")).to_have_count(1)


def test_messages_name_groups_of_the_model() -> None:
    ids = ["a", "b"]
    assert chosen_group("b", ids) == "b"
    for message in (None, "c", 1, ["a"], {"a": 1}):
        assert chosen_group(message, ids) is None
