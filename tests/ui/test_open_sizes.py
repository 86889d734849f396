"""A checkpoint of a size that no card knows, in a browser: inspect, choose, open, prune, reopen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect

from psvit_core.groups import plan_from_kept, summarize
from psvit_core.importance import rank
from psvit_core.plan.build import plan_from_ratios
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.registry import FAMILIES, build_model
from tests.patience import JOB_MS
from tests.sizes import hidden_arguments, square_model
from tests.tiny import QUICK_NAMES
from tests.ui.conftest import OpenPage, Server, settled

OPEN_BUTTON = "Open with these arguments"


def inspect_folder(page: Page, folder: Path) -> None:
    """Inspect the only file of a folder."""
    page.get_by_role("link", name="Open", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Open")
    settled(page)
    page.get_by_role("radio", name="From a folder").check(force=True)
    field = page.get_by_role("textbox", name="Folder with models")
    field.fill(str(folder))
    field.press("Enter")
    page.get_by_role("button", name="Inspect").click()
    expect(page.get_by_text("built-in network has this size")).to_be_visible()
    settled(page)  # the form below the text is complete: a test counts its fields


def choose(page: Page, label: str | re.Pattern[str], option: str) -> None:
    """Choose an option that starts with a text, or enter the text if there is none."""
    field = page.get_by_role("combobox", name=label)
    field.click()
    field.fill(option)
    expect(page.get_by_role("option").first).to_be_visible()  # before options are counted
    listed = page.get_by_role("option", name=re.compile(rf"^{re.escape(option)}( ·|$)"))
    (listed if listed.count() else page.get_by_role("option")).first.click()
    settled(page)


def prune_and_reopen(page: Page, plan_file: Path, family: str) -> None:
    """Prune the open model by a plan file, and open the pruned file."""
    page.get_by_role("link", name="Export", exact=True).click()
    page.locator("input[type=file]").set_input_files(plan_file)
    expect(page.get_by_text("The plan file is now the current plan.")).to_be_visible()
    page.get_by_role("button", name="Prune and write checkpoint").click()
    page.get_by_role("button", name="Open here").click(timeout=JOB_MS)
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value(
        re.compile("^Pruned")
    )
    page.get_by_role("link", name="Open", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Open")
    settled(page)
    built_in = page.get_by_role("radio", name="Built in").first  # not the file examined before
    built_in.check(force=True)
    expect(page.get_by_role("heading", name="Pruned model")).to_be_visible(timeout=JOB_MS)
    expect(page.get_by_text(f"family {family}")).to_be_visible()


@pytest.mark.slow
def test_nothing_is_guessed(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    """From inspection to a pruned file that opens again."""
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "embed_dims": 32,
        "num_heads": 4,
        "depths": 1,
        "in_channels": 1,
        "num_classes": 10,
    }
    torch.save(build_model("sdt_v1", **small).state_dict(), tmp_path / "own.pth")
    page = open_page(server.url)
    inspect_folder(page, tmp_path)
    if page.get_by_role("combobox", name="Family").count():
        choose(page, "Family", FAMILIES["sdt_v1"].title)
    button = page.get_by_role("button", name=OPEN_BUTTON)
    expect(page.get_by_text("To open the file, choose pooling_stat, T, image_size")).to_be_visible()
    expect(button).to_be_disabled()
    choose(page, "Stages that pool", "0011")
    choose(page, "Time steps", "4")
    choose(page, "Image size", "32")
    button.click()
    expect(page.get_by_role("heading", name="Model from a checkpoint")).to_be_visible(
        timeout=JOB_MS
    )
    expect(page.get_by_text("T = 4 time steps")).to_be_visible()
    expect(page).to_have_url(re.compile("arguments=.*pooling_stat"))
    page.reload()  # the arguments are in the URL
    settled(page)
    expect(page.get_by_role("heading", name="Model from a checkpoint")).to_be_visible()

    given: dict[str, Any] = {"family": "sdt_v1", "pooling_stat": "0011", "T": 4, "image_size": 32}
    model = load_model(tmp_path / "own.pth", **given)
    plan = plan_from_kept(model, {"block.0.mlp.hidden": range(64)})
    plan.save(tmp_path / "plan.json")
    prune_and_reopen(page, tmp_path / "plan.json", "sdt_v1")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK_NAMES)
def test_every_family(server: Server, open_page: OpenPage, tmp_path: Path, name: str) -> None:
    model = square_model(name)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    given = hidden_arguments(model)
    page = open_page(server.url)
    inspect_folder(page, tmp_path)
    if page.get_by_role("combobox", name="Family").count():
        choose(page, "Family", FAMILIES[given["family"]].title)
    for argument, value in given.items():
        field = "Time steps" if argument == "T" else re.compile(rf"(^|\()({argument})(\)|$)")
        if argument != "family":
            choose(page, field, str(value))
    page.get_by_role("button", name=OPEN_BUTTON).click()
    expect(page.get_by_role("heading", name="Model from a checkpoint")).to_be_visible(
        timeout=JOB_MS
    )
    expect(page.get_by_text(f"T = {model.T} time step")).to_be_visible()

    opened = load_model(tmp_path / "own.pth", **given)
    summary = summarize(opened, {"l2": rank(opened, "l2")})
    ratios = {group.group_id: 0.5 for group in summary.groups}
    plan_from_ratios(summary, ratios, criterion="l2").save(tmp_path / "plan.json")
    prune_and_reopen(page, tmp_path / "plan.json", opened.family)
