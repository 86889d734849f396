"""What a new user meets: links, warnings, two tabs, what to do next."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from psvit_core.jobs import client, workers
from psvit_core.records import Subject, SweepSettings
from psvit_core.records.jobs import SweepRequest
from psvit_core.sensitivity.spec import sweep_keys
from psvit_core.zoo.cards import WEIGHTS
from tests.ui.conftest import OpenPage, Server, script_ended, settled, start_server
from tests.ui.example import put_sweep, summary
from ui.model import drafts

pytestmark = pytest.mark.slow

MODEL = summary("sdt_v1_digits")
MLP = "block.0.mlp.hidden"
STREAM = next(g.group_id for g in MODEL.groups if g.kind == "residual")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"))
    put_sweep(server.store, MODEL)
    yield server
    server.kill()
    server.end_workers()


def put_plan(server: Server, ratios: dict[str, float]) -> drafts.Draft:
    """Store a plan as the current one."""
    draft = drafts.with_ratios(drafts.empty_draft(MODEL), MODEL, ratios)
    drafts.save_draft(server.store, MODEL, draft)
    return draft


@pytest.mark.parametrize("other", ["Fine-tune", "Export"])
def test_a_share_link_stays_right_after_a_visit_to_another_page(
    server: Server, open_page: OpenPage, other: str
) -> None:
    put_plan(server, {MLP: 0.5})
    page = open_page(f"{server.url}/compare")
    page.get_by_role("button", name="Share").click()
    link = page.locator('[data-testid="stCode"] code')
    expect(link).to_contain_text(f"{server.url}/compare?plan=")
    for title in (other, "Compare"):
        page.get_by_role("link", name=title, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        settled(page)
    expect(link).to_contain_text(f"{server.url}/compare?plan=")


def test_export_warns_of_a_plan_predicted_to_lose_more_than_the_limit(
    server: Server, open_page: OpenPage
) -> None:
    warning = re.compile("is predicted to lose .* more than the limit of 3 pp")
    put_plan(server, {MLP: 0.25})  # 4 pp times the square of the ratio
    page = open_page(f"{server.url}/export")
    expect(page.get_by_role("button", name="Prune and write checkpoint")).to_be_visible()
    settled(page)
    expect(page.get_by_text(warning)).to_have_count(0)
    put_plan(server, {STREAM: 0.75})
    page = open_page(f"{server.url}/export")
    expect(page.get_by_text(warning)).to_be_visible()


# ---- two tabs, reloads ---------------------------------------------------------------------------


def test_a_tab_tells_of_a_plan_changed_in_another(server: Server, open_page: OpenPage) -> None:
    put_plan(server, {MLP: 0.5})
    page = open_page(f"{server.url}/export")
    told = page.get_by_text("was changed in another tab")
    expect(page.get_by_text("1 of")).to_be_visible()
    expect(told).to_have_count(0)
    put_plan(server, {MLP: 0.5, STREAM: 0.25})
    expect(told).to_be_visible()
    page.get_by_role("button", name="Keep this one").click()
    expect(told).to_have_count(0)
    expect(page.get_by_text("1 of")).to_be_visible()
    put_plan(server, {MLP: 0.25, STREAM: 0.5})
    expect(told).to_be_visible()
    page.get_by_role("button", name="Use that plan").click()
    expect(told).to_have_count(0)
    expect(page.get_by_text("2 of")).to_be_visible()


def test_undo_and_budget_survive_a_reload(server: Server, open_page: OpenPage) -> None:
    put_plan(server, {})
    page = open_page(f"{server.url}/tune")
    budget = page.get_by_label("Budget", exact=True)
    budget.fill("40")
    budget.press("Enter")
    page.get_by_role("button", name="Fit", exact=True).click()
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    settled(page)
    saved = page.locator(".figure.predicted .value").inner_text()
    page.reload()
    settled(page)
    expect(budget).to_have_value("40.0")
    expect(page.locator(".figure.predicted .value")).to_have_text(saved)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Redo")).to_be_enabled()
    expect(page.get_by_role("button", name="Reset")).to_be_disabled()


def put_sweep_job(server: Server, state: str) -> None:
    """Store a job of the stored sweep that runs in this process, or has ended."""
    pid = os.getpid()
    (key,) = sweep_keys(server.store)
    request = SweepRequest(settings=SweepSettings(ratios=(0.25, 0.5, 0.75)))
    job = client.Job(
        id="sweep",
        task="sweep",
        title="Sweep",
        params={"subject": Subject(model=MODEL.model).to_dict(), **request.to_dict()},
        state=state,
        created=1.0,
        pid=pid,
        pid_started=workers.process_started(pid),
        done=40,
        total=100,
        result={"sweep_key": key},
    )
    client.save(server.store, job)


def test_the_map_stays_where_it_is_when_a_sweep_is_cancelled(
    server: Server, open_page: OpenPage
) -> None:
    put_sweep_job(server, "running")
    page = open_page(f"{server.url}/sensitivity")
    heatmap = page.locator(".st-key-cell-chart")
    expect(page.get_by_text(re.compile(r"Sweep: 40\s%"))).to_be_visible()
    expect(heatmap.locator(".main-svg").first).to_be_visible()
    settled(page)
    before = heatmap.bounding_box()
    put_sweep_job(server, "cancelled")
    expect(page.get_by_text("Sweep cancelled")).to_be_visible()
    expect(page.get_by_role("combobox", name="Sweep shown")).to_be_enabled()
    settled(page)
    after = heatmap.bounding_box()
    assert before is not None and after is not None
    assert abs(after["y"] - before["y"]) <= 1
    put_sweep_job(server, "done")
    page.reload()
    expect(page.get_by_text("This sweep is done: 48 of 48 cells on 100 images")).to_be_visible()
    expect(heatmap.locator(".main-svg").first).to_be_visible()
    expect(page.get_by_text("All 48 measured cells as a table")).to_be_visible()
    settled(page)
    ended = heatmap.bounding_box()
    assert ended is not None and abs(ended["y"] - before["y"]) <= 1
    page.get_by_role("button", name="Make a plan on Tune").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tune")


def test_the_navigation_shows_running_work(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/export")
    link = page.get_by_role("link", name="Jobs", exact=True)
    shown = "e => getComputedStyle(e, '::after').content"
    assert link.evaluate(shown) in ("none", "normal")
    job = client.Job(
        id="one", task="sweep", title="Sweep", params={}, device="none", done=1, total=4
    )
    pid = os.getpid()  # a job runs if its process lives
    running = dataclasses.replace(
        job, state="running", pid=pid, pid_started=workers.process_started(pid)
    )
    client.save(server.store, running)
    expect(page.get_by_text(re.compile(r"Running: sweep 25\s%"))).to_have_count(1)
    assert "sweep 25" in link.evaluate(shown)
    client.save(server.store, dataclasses.replace(job, state="done"))
    expect(page.get_by_text(re.compile("Running: "))).to_have_count(0)
    assert link.evaluate(shown) in ("none", "normal")


# ---- the Open page, the glossary -----------------------------------------------------------------


def test_an_examined_upload_keeps_its_name_and_hides_the_model_before(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    name = "mein Netz (größer).safetensors"
    tensors = load_file(WEIGHTS / "sdt_v1_digits.safetensors")
    tensors["head.bias"] += 0.01  # the user's own weights
    save_file(tensors, tmp_path / name)
    page = open_page(f"{server.url}/open")
    expect(page.get_by_text("Trained for")).to_be_visible()
    page.get_by_role("radio", name="Upload").check(force=True)
    page.locator("input[type=file]").set_input_files(tmp_path / name)
    expect(page.get_by_text(f"What was found in {name} appears here")).to_be_visible()
    expect(page.get_by_role("combobox", name="1 model file")).to_have_value(
        re.compile(re.escape(name))
    )
    expect(page.get_by_role("heading", name="2 · Check what was found")).to_have_count(0)
    page.get_by_role("button", name=re.compile("^Open as Spike-driven")).click()
    expect(page.get_by_text("All 272 tensors were found")).to_be_visible()
    expect(page.get_by_text(f"uploads/{name}")).to_be_visible()
    expect(page.get_by_text("Trained for")).to_have_count(0)
    expect(page.get_by_text("Not measured yet")).to_be_visible()  # the demo's baseline is not his
    for label in ("Checkpoint file", "Validation images", "Model file"):
        expect(page.get_by_role("textbox", name=label)).to_have_count(0)
    page.reload()
    expect(page.get_by_text(f"uploads/{name}")).to_be_visible()
    page.get_by_role("button", name="Use the included weights").click()
    expect(page.get_by_text("Trained for")).to_be_visible()


@pytest.mark.parametrize("path", ["", "jobs", "tune"])
def test_the_glossary_is_within_reach(server: Server, open_page: OpenPage, path: str) -> None:
    page = open_page(f"{server.url}/{path}")
    page.get_by_role("button", name="Glossary").click()
    glossary = page.get_by_role("dialog")
    expect(glossary.get_by_text("Accumulates that spikes trigger")).to_be_visible()
    script_ended(page)  # until then Streamlit may replace the field, and what was typed is lost
    find = glossary.get_by_role("textbox", name="Find")
    find.fill("knee")
    find.press("Enter")
    expect(glossary.get_by_text("Accumulates that spikes trigger")).to_have_count(0)
    expect(glossary.get_by_text("Front, knee")).to_be_visible()


# ---- what to do first, the number of images ------------------------------------------------------


def test_overview_without_results_says_what_to_do_first(
    server: Server, open_page: OpenPage
) -> None:
    page = open_page(f"{server.url}/?model=Meta-SpikeFormer+(SDT+v2),+digits")
    expect(page.get_by_text("Nothing has been measured for this model yet")).to_be_visible()
    expect(
        page.get_by_text(re.compile("1. Choose its images and check them · done"))
    ).to_be_visible()
    page.get_by_role("button", name=re.compile("^Go to ")).click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text("Overview")
    expect(page.get_by_role("alert").filter(has_text="went wrong")).to_have_count(0)
    expect(page).to_have_url(re.compile("model=Meta-SpikeFormer"))
