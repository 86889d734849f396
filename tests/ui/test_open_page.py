"""The Open page in a browser: models from folders and uploads, refused files, images."""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors.torch import load_file

from psvit_core.jobs import client
from psvit_core.records.jobs import SummaryResult
from psvit_core.zoo.cards import WEIGHTS
from psvit_core.zoo.checkpoint import load_model, weights_hash
from tests.ui.conftest import OpenPage, Server, settled

TITLE = "Spike-driven Transformer v1, digits"
SHIPPED = WEIGHTS / "sdt_v1_digits.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a file of an unknown architecture and one that would run code."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(SHIPPED, folder / "own.safetensors")
    torch.save({"state_dict": {"a.weight": torch.zeros(3, 3)}}, folder / "strange.pth")
    torch.save({"path": PurePosixPath("a")}, folder / "unsafe.pth")
    (folder / "notes.txt").write_text("no model")
    return folder


def source(page: Page, name: str) -> None:
    page.get_by_role("link", name="Open", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Open")
    settled(page)
    page.get_by_role("radio", name=name).check(force=True)


def inspect(page: Page, name: str) -> None:
    page.get_by_role("combobox", name=re.compile("model file")).click()
    page.get_by_role("option", name=re.compile(name)).click()
    page.get_by_role("button", name="Inspect").click()  # at once, as a quick user does


@pytest.mark.slow
def test_from_a_folder(server: Server, open_page: OpenPage, models: Path) -> None:
    page = open_page(server.url)
    source(page, "From a folder")
    expect(page.get_by_text("No model files in")).to_be_visible()
    folder = page.get_by_role("textbox", name="Folder with models")
    folder.fill("/no/such/folder")
    folder.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Enter a folder that exists")
    folder.fill(str(models))
    folder.press("Enter")
    expect(page.get_by_text("3 model files")).to_be_visible()

    inspect(page, "unsafe.pth")
    refused = page.get_by_role("alert").filter(has_text="would run code")
    expect(refused).to_contain_text("PurePosixPath")
    inspect(page, "strange.pth")
    expect(page.get_by_text("No known architecture has these tensors")).to_be_visible()
    page.get_by_text("Tensors that do not fit").click()
    expect(page.get_by_text("unexpected: a.weight")).to_be_visible()


@pytest.mark.slow
def test_a_checkpoint_is_recognised_and_opened(
    server: Server, open_page: OpenPage, models: Path
) -> None:
    page = open_page(server.url)
    source(page, "From a folder")
    folder = page.get_by_role("textbox", name="Folder with models")
    folder.fill(str(models))
    folder.press("Enter")
    inspect(page, "own.safetensors")
    page.get_by_role("button", name=f"Open as {TITLE}").click()
    opened = page.get_by_text(f"File: {models / 'own.safetensors'}")
    expect(opened).to_be_visible()
    expect(page.get_by_text("All 272 tensors were found")).to_be_visible()
    page.reload()  # the file is in the URL
    settled(page)
    expect(opened).to_be_visible()
    page.get_by_role("link", name="Export", exact=True).click()
    field = page.get_by_role("textbox", name="Checkpoint file")
    expect(field).to_have_value(str(models / "own.safetensors"))


@pytest.mark.slow
def test_one_of_several_state_dicts(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    weights = load_file(SHIPPED)
    average = {name: tensor.clone() for name, tensor in weights.items()}
    average["head.bias"] += 1
    torch.save({"best": weights, "last": weights, "ema": average, "epoch": 3}, tmp_path / "own.pth")
    page = open_page(server.url)
    source(page, "From a folder")
    folder = page.get_by_role("textbox", name="Folder with models")
    folder.fill(str(tmp_path))
    folder.press("Enter")
    page.get_by_role("button", name="Inspect").click()
    choice = page.get_by_role("combobox", name="Weights to load")
    choice.click()
    page.get_by_role("option", name="ema · 272 tensors · moving average").click()
    expect(page.get_by_text("Entry ema was chosen from")).to_be_visible()
    page.get_by_role("button", name=f"Open as {TITLE}").click()
    expect(page.get_by_text("Weights in the file: ema")).to_be_visible()
    expect(page.get_by_text("All 272 tensors were found")).to_be_visible()
    job = next(j for j in client.list_jobs(server.store) if j.task == "summary")
    assert job.subject is not None
    assert job.subject.entry == "ema"
    expected = load_model("sdt_v1_digits", tmp_path / "own.pth", ema=True)
    outcome = client.find_job(server.store, job.id).outcome
    assert isinstance(outcome, SummaryResult) and outcome.summary is not None
    assert outcome.summary.weights_hash == weights_hash(expected)


@pytest.mark.slow
def test_upload(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(server.url)
    source(page, "Upload")
    page.locator("input[type=file]").set_input_files(SHIPPED)
    expect(page.get_by_text("Recognised: every tensor fits")).to_be_visible()
    kept = server.cache / "uploads" / SHIPPED.name
    assert kept.read_bytes() == SHIPPED.read_bytes()
    other = tmp_path / SHIPPED.name  # another file with the same name
    shutil.copy(WEIGHTS / "e_spikeformer_digits.safetensors", other)
    page.locator("input[type=file]").set_input_files(other)
    chosen = page.get_by_role("combobox", name="2 model files")
    expect(chosen).to_have_value(re.compile(f"^{SHIPPED.stem}-2.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UPPER.SAFETENSORS", f"{'x' * 242}.safetensors"])
def test_upload_with_another_usual_name(
    server: Server, open_page: OpenPage, tmp_path: Path, name: str
) -> None:
    page = open_page(server.url)
    source(page, "Upload")
    shutil.copy(SHIPPED, tmp_path / name)
    page.locator("input[type=file]").set_input_files(tmp_path / name)
    chosen = page.get_by_role("combobox", name=re.compile("model file"))
    kept = re.compile(rf"^{name[:5]}\S*\.safetensors ·")
    expect(chosen).to_have_value(kept)
    expect(page.get_by_text("Recognised: every tensor fits")).to_be_visible()


@pytest.mark.slow
def test_images(server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(server.url)
    page.get_by_role("link", name="Open", exact=True).click()
    check = page.get_by_role("button", name="Check these images")
    check.click()
    expect(page.get_by_text("Read 64 validation images")).to_be_visible()

    page.get_by_role("radio", name="NumPy file").check(force=True)
    expect(check).to_be_disabled()
    place = page.get_by_role("textbox", name="File with images and labels")
    for labels, message in ((np.arange(20) + 5, "has 10 outputs"), (np.arange(20) % 10, "")):
        file = tmp_path / f"{len(message)}.npz"
        np.savez(file, images=np.zeros((20, 28, 28), np.uint8), labels=labels)
        place.fill(str(file))
        place.press("Enter")
        expect(check).to_be_enabled()
        settled(page)
        check.click()
        if message:
            expect(page.get_by_role("alert").filter(has_text=message)).to_be_visible()
    page.get_by_role("button", name="Use these images").click()
    expect(page.get_by_text(f"Measurements use npz:{file}")).to_be_visible()
