"""The app in a browser: everything a user does, from the first page to the downloaded network."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from psvit_core.jobs import client
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import shipped_summary
from tests.made import make_job
from tests.patience import JOB, JOB_MS, PATIENCE
from tests.ui.conftest import ROOT, OpenPage, Server, settled, start_server, wait_for_job

MODEL = "e_spikeformer_digits"
TITLE = "E-SpikeFormer (SDT v3), digits"
QUERY = f"?model={TITLE.replace(' ', '+')}&images=64"
GROUP = "Block 3.0 · attention q, k"
N_GROUPS = 45
SWEEPING = re.compile(r"Sweep: \d+\s%")

PAGES = {
    "": "Overview",
    "open": "Open",
    "sensitivity": "Sensitivity",
    "tune": "Tune",
    "export": "Export",
    "jobs": "Jobs",
}


def number(text: str) -> float:
    """Return the first number in a text; it may have the typographic minus sign."""
    found = re.search(r"[-\u2212]?\d[\d,]*\.?\d*", text)
    assert found, text
    return float(found.group().replace("\u2212", "-").replace(",", ""))


def click_cell(page: Page, column: int, row: int, n_columns: int = 3) -> None:
    """Click a cell of the heatmap once plotly has registered the pointer's position."""
    settled(page)
    plot = page.locator(".js-plotly-plot:has(.heatmaplayer image)")
    chart = plot.locator(".nsewdrag")
    expect(chart).to_have_count(1)
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] * (column + 0.7) / n_columns
    y = box["y"] + box["height"] * (row + 0.5) / N_GROUPS
    page.mouse.move(x, y)
    asked = f"{(column + 1) * 100 // (n_columns + 1)}"
    expect(plot.locator(".hoverlayer")).to_contain_text(re.compile(rf"{asked}\s% requested"))
    page.mouse.down()
    page.mouse.up()


@pytest.mark.parametrize("path", PAGES)
def test_cold_deep_link(fresh_server: Server, open_page: OpenPage, path: str) -> None:
    page = open_page(f"{fresh_server.url}/{path}")
    expect(page.get_by_role("heading", level=1)).to_have_text(PAGES[path])
    expect(page.get_by_role("link", name=PAGES[path], exact=True)).to_be_visible()
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
    expect(page.get_by_text("Something went wrong")).to_have_count(0)
    maps = Path(f"/proc/{fresh_server.process.pid}/maps") if fresh_server.process else None
    if maps is not None and maps.exists():
        assert "libtorch" not in maps.read_text()


@pytest.mark.slow  # over a minute; the pages' own tests cover its steps
def test_sweep_to_download(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/sensitivity{QUERY}")
    sweep_survives(page, server)
    put_a_cell_into_the_plan(page)
    accuracy = tune_and_measure(page)
    python_lines, command = export_and_download(page, tmp_path, accuracy)

    # Run the code and the command that the page shows, next to the downloaded file.
    shell = run([sys.executable, *shlex.split(command)[1:]], tmp_path)
    measured = json.loads(shell)
    assert measured["conditions"]["n_images"] == 64
    assert f"{100 * measured['accuracy']['value']:.2f}" == f"{accuracy:.2f}"
    printed = run([sys.executable, "-c", python_lines], tmp_path)
    assert f"value={measured['accuracy']['value']}" in printed
    [code] = tmp_path.glob("*.py")
    alone = run([sys.executable, "-I", code.name], tmp_path)  # -I ignores PYTHONPATH
    assert alone == "(2, 1, 32, 32) -> logits (2, 10)\n"


def run(command: list[str], folder: Path) -> str:
    """Return the output of a new process with its own store."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PSVIT_CACHE": str(folder / "other")},
        capture_output=True,
        text=True,
        check=True,
        timeout=JOB,
    )
    return done.stdout


def sweep_survives(page: Page, server: Server) -> None:
    """Start a sweep, reload the page and kill the server; check that the sweep finishes.

    The worker is paused during the reload, because a sweep may be faster than a browser.
    """
    progress = page.get_by_text(SWEEPING)
    expect(page.get_by_text("No sweep of this model yet")).to_be_visible()
    page.get_by_role("button", name="Start sweep").click()
    expect(progress).to_be_visible(timeout=JOB_MS)
    job = next(job for job in client.list_jobs(server.store) if job.task == "sweep")
    assert job.pid is not None
    os.kill(job.pid, signal.SIGSTOP)
    before = client.find_job(server.store, job.id)
    assert before.active, "the sweep ended before the page was reloaded"
    page.reload()
    settled(page)
    expect(progress).to_be_visible()
    server.kill()
    os.kill(job.pid, signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE
    while client.find_job(server.store, job.id).done <= before.done + 3:
        assert time.monotonic() < deadline, "the sweep ended with the server"
        time.sleep(0.1)
    server.start()
    page.goto(f"{server.url}/sensitivity{QUERY}")
    settled(page)
    done = wait_for_job(server.store, "sweep")
    assert (done.state, done.done, done.total) == ("done", 135 * 64, 135 * 64)
    expect(page.get_by_role("progressbar")).to_have_count(0)
    expect(page.get_by_text(re.compile("Measured on digits, val split · 64 images"))).to_have_count(
        1
    )
    expect(page.get_by_text("All 135 measured cells as a table")).to_be_visible()


def put_a_cell_into_the_plan(page: Page) -> None:
    """Click cells of the heatmap; add one to the plan."""
    summary = shipped_summary(MODEL)
    assert summary is not None
    row = [group.label for group in summary.groups].index(GROUP)
    click_cell(page, 1, row)
    expect(page.get_by_role("combobox", name="Channel group")).to_have_value(GROUP)
    expect(page.get_by_role("radio", name=re.compile("^50"))).to_be_checked()
    click_cell(page, 2, row)
    expect(page.get_by_role("radio", name=re.compile("^75"))).to_be_checked()
    page.get_by_role("button", name=re.compile("Use 75.% in my plan")).click()
    expect(page.get_by_text("Your plan removes 32 of 48 units")).to_be_visible()


def tune_and_measure(page: Page) -> float:
    """Check the cell's ratio on the Tune page, move a group, measure; return the accuracy."""
    page.get_by_role("link", name="Tune", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tune")
    slider = page.get_by_role("slider", name=GROUP)
    expect(slider).to_have_attribute("aria-valuenow", "75")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("32 of 48 units removed"))

    before = figure(page, "bytes").inner_text()
    memory = number(before)
    page.get_by_role("slider", name="Block 3.0 · MLP hidden").press("End")
    expect(figure(page, "bytes")).not_to_have_text(before)  # updated by the browser, at once
    assert number(figure(page, "bytes").inner_text()) < memory
    expect(figure(page, "predicted")).to_have_text(re.compile(r"^\d+\.\d\d\spp$"))
    settled(page)
    page.reload()
    settled(page)
    assert number(figure(page, "bytes").inner_text()) < memory, "the draft was lost"

    page.get_by_role("button", name="Measure", exact=True).click()
    expect(page.get_by_text(re.compile("than predicted"))).to_be_visible(timeout=JOB_MS)
    expect(figure(page, "measured")).to_have_text(re.compile(r"\d\spp"))
    expect(
        page.get_by_text(re.compile("Measured on digits, val split · 64 images"))
    ).to_be_visible()
    page.get_by_role("link", name="Export", exact=True).click()
    line = page.get_by_text(re.compile("Measured: top-1")).inner_text()
    return number(line.partition("top-1")[2])


def figure(page: Page, name: str) -> Locator:
    """Locate the value of one of the equalizer's figures."""
    return page.locator(f".figure.{name} .value")


def export_and_download(page: Page, folder: Path, accuracy: float) -> tuple[str, str]:
    """Write and download the checkpoint; return the code that loads it (Python, shell)."""
    page.get_by_role("link", name="Export", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Export")
    expect(page.get_by_text(re.compile(f"Measured: top-1 {accuracy:.2f}"))).to_be_visible()
    # Unrecovered, so that the checkpoint loses what was measured.
    page.get_by_role("radio", name="None", exact=True).check(force=True)
    expect(page.get_by_role("textbox", name="File name")).not_to_have_value(re.compile("recovered"))
    page.get_by_role("button", name="Prune and write checkpoint").click()
    link = page.get_by_role("link", name="Download", exact=True)
    expect(link).to_be_visible(timeout=JOB_MS)
    with page.expect_download() as waiting:
        link.click()
    file = folder / waiting.value.suggested_filename
    assert re.fullmatch(r"e_spikeformer_digits-saves\d+\.safetensors", file.name)
    waiting.value.save_as(file)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Python file").click()
    waiting.value.save_as(folder / waiting.value.suggested_filename)
    blocks = page.get_by_role("code")  # drawn shortly after the link
    expect(blocks.first).to_have_text(hashlib.sha256(file.read_bytes()).hexdigest())
    expect(blocks).to_have_count(4)
    codes = blocks.all_inner_texts()
    assert f'load_model("{file.name}")' in codes[1]
    assert f"psvit_core export {file.name} --out" in codes[3]
    return codes[1], codes[2]


def test_download_needs_the_token(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    for token in ("0" * 40, "..%2findex%2fcache.db", "..%2f..%2fapp.py"):
        answer = page.request.get(f"{server.url}/files/{token}")
        assert (answer.status in (400, 404), "content-disposition" in answer.headers) == (
            True,
            False,
        )
    foreign = page.request.get(f"{server.url}/files/x", headers={"Host": "attacker.example"})
    assert foreign.status == 400


@pytest.mark.slow
def test_answers_have_headers_for_security(server: Server, open_page: OpenPage) -> None:
    page = open_page(server.url)
    paths, hosts = (
        ("", "files/x", "_stcore/health", "progress/x"),
        ("127.0.0.1", "attacker.example"),
    )
    for path, host in itertools.product(paths, hosts):
        headers = page.request.get(f"{server.url}/{path}", headers={"Host": host}).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self';" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy and "http" not in policy
        assert headers["referrer-policy"] == "no-referrer"


def test_no_other_page_shows_the_app_in_a_frame(server: Server, browser: Browser) -> None:
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.set_content(f"<iframe src='{server.url}'></iframe>")
    page.wait_for_function("() => document.querySelector('iframe').contentDocument === null")
    assert any("frame-ancestors" in text for text in refused)
    page.close()


def test_the_policy_stops_what_is_not_escaped(server: Server, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(server.url)
    settled(page)
    answer = page.evaluate(
        """() => new Promise((done) => {
            const picture = document.createElement("img");
            picture.onload = () => done("loaded");
            picture.onerror = () => done("refused");
            document.addEventListener("securitypolicyviolation", (e) => done(e.blockedURI));
            picture.src = "http://evil.example/p.png";
            document.body.append(picture);
        })"""
    )
    assert answer == "http://evil.example/p.png"
    page.close()


@pytest.mark.slow
def test_cancel_and_resume(server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/sensitivity{QUERY}")
    page.get_by_role("combobox", name="Rank units by").click()
    page.get_by_role("option", name="L1 norm of filters").click()
    page.get_by_role("button", name="Start sweep").click()
    progress = page.get_by_text(SWEEPING)
    expect(progress).to_be_visible(timeout=JOB_MS)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("Sweep cancelled")).to_be_visible()
    done = wait_for_job(server.store, "sweep")
    assert (done.state, done.done < done.total) == ("cancelled", True)
    percent = 100 * done.done // done.total
    expect(page.get_by_text(re.compile(rf"\({percent}\s% done\)"))).to_be_visible()

    page.get_by_role("button", name="Resume").click()
    expect(progress).to_be_visible(timeout=JOB_MS)
    assert wait_for_job(server.store, "sweep").state == "done"
    expect(page.get_by_text("units ranked by l1")).to_be_visible()
    expect(page.get_by_text("All 135 measured cells as a table")).to_be_visible()
    expect(page.get_by_text("Sweep cancelled")).to_have_count(0)


@pytest.mark.slow
def test_plan_of_another_model(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/export{QUERY}")
    line = page.get_by_text("groups pruned")
    before = line.inner_text()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download plan").click()
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)

    other = open_page(f"{server.url}/export")
    unpruned = other.get_by_text("groups pruned").inner_text()
    other.locator("input[type=file]").set_input_files(file)
    expect(other.get_by_text("Could not open the plan. This plan was made for")).to_be_visible()
    assert other.get_by_text("groups pruned").inner_text() == unpruned
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    other.locator("input[type=file]").set_input_files(tmp_path / "broken.json")
    expect(other.get_by_text("not a JSON document")).to_be_visible()

    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text("The plan file is now the current plan.")).to_be_visible()
    assert line.inner_text() == before


def test_missing_and_broken_files(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(f"{server.url}/?model=Open+a+pruned+file&file=/no/such/file.safetensors")
    expect(page.get_by_role("alert")).to_contain_text(
        "File not found on this machine: /no/such/file.safetensors"
    )
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    page.get_by_role("textbox", name="Model file").fill(str(broken))
    page.keyboard.press("Enter")
    failed = page.get_by_text("Could not read this model")
    expect(failed).to_contain_text("is a text file", timeout=JOB_MS)


@pytest.mark.parametrize("model", ["QKFormer+10-384+(weights+not+included)", "qkformer_10_384"])
def test_model_without_weights(model: str, server: Server, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/tune?model={model}")
    expect(page.get_by_text("The weights of this model are not included")).to_be_visible()
    expect(page.get_by_text("Published top-1: 78.80")).to_be_visible()
    page.get_by_role("textbox", name="Checkpoint file").fill("/no/such/weights.pth")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(
        "Checkpoint not found on this machine: /no/such/weights.pth"
    )


@pytest.mark.slow
def test_choices_survive(server: Server, open_page: OpenPage) -> None:
    """Model and images survive page switches and a reload; charts follow a change of theme."""
    page = open_page(f"{server.url}/open{QUERY}")
    for title in ("Sensitivity", "Export", "Jobs", "Open"):
        page.get_by_role("link", name=title, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        settled(page)
        expect(page.get_by_role("combobox", name="Model")).to_have_value(TITLE)
        expect(page.get_by_role("radio", name="64")).to_be_checked()
        expect(page).to_have_url(re.compile("images=64"))
    page.reload()
    settled(page)
    expect(page.get_by_role("combobox", name="Model")).to_have_value(TITLE)

    bars = page.locator(".js-plotly-plot .bars path").first
    before = bars.evaluate("bar => getComputedStyle(bar).fill")
    page.get_by_role("button", name="Main menu").click()
    page.get_by_role("menuitemradio", name="Dark").click()
    page.wait_for_function(
        "before => { const bar = document.querySelector('.js-plotly-plot .bars path');"
        " return bar && getComputedStyle(bar).fill !== before; }",
        arg=before,
    )


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_the_app_starts_beside_a_damaged_index(
    tmp_path: Path, open_page: OpenPage, damage: str
) -> None:
    store = Store(tmp_path)
    for i in range(300):
        client.save(store, make_job(id=f"job{i}", state="done"))
    store.close()
    path = tmp_path / "index" / "cache.db"
    content = path.read_bytes()
    path.write_bytes(b"garbage" * 1000 if damage == "garbage" else content[: len(content) // 2])
    server = start_server(tmp_path)
    try:
        page = open_page(f"{server.url}/jobs")
        expect(page.get_by_text("The index of the store was damaged")).to_be_visible()
        expect(page.get_by_text("No jobs have ended yet")).to_be_visible()
    finally:
        server.kill()
        server.end_workers()
