"""Quantizing in a browser: from the plan to the file, its ONNX export, the file opened again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from playwright.sync_api import Page, expect
from safetensors.torch import load_file

from psvit_core.records.jobs import QuantizeResult
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.quantized import weights_bytes
from tests.patience import JOB_MS
from tests.ui.conftest import OpenPage, Server, settled, start_server, wait_for_job

STORED = "Weights of convolutions and linear layers are stored in"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("store"), demo=True)
    yield server
    server.kill()
    server.end_workers()


def go(page: Page, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()
    settled(page)


def downloaded(page: Page, name: str | re.Pattern[str], folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("link", name=name, exact=isinstance(name, str)).click()
    file = folder / waiting.value.suggested_filename
    waiting.value.save_as(file)
    return file


@pytest.mark.slow
def test_from_the_plan_to_an_int8_file_and_back(
    server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(f"{server.url}/?recovery=none&weights=int8")
    expect(page.get_by_text("No network measured in int8 on these images")).to_be_visible()
    expect(page.get_by_text("Weights in int8", exact=True).first).to_be_visible()
    expect(page.get_by_text("Accuracy in fp32", exact=True)).to_be_visible()
    page.get_by_role("button", name="Prune and download").click()
    expect(page.get_by_role("link", name=re.compile("^Download .*safetensors"))).to_be_visible(
        timeout=JOB_MS
    )
    go(page, "Export")
    page.get_by_role("button", name="Quantize and measure").click()
    expect(page.get_by_text("against this network in fp32")).to_be_visible(timeout=JOB_MS)
    job = wait_for_job(server.store, "quantize")
    assert isinstance(job.outcome, QuantizeResult)
    found = job.outcome.file_measurement
    assert found is not None and found.drop is not None and found.conditions.weights == "int8"
    expect(page.get_by_text(f"{job.outcome.weights_bytes:,} bytes instead of")).to_be_visible()

    file = downloaded(page, re.compile("^Download .*-int8.safetensors"), tmp_path)
    assert file.stat().st_size == job.outcome.bytes
    assert any(t.numpy().dtype == np.int8 for t in load_file(file).values())
    assert weights_bytes(load_model(file)) == found.size.bytes == job.outcome.weights_bytes
    panel = page.locator(f".st-key-file-{written_by(server)}-quantize-{job.id}")
    expect(panel.get_by_role("button", name="Python file")).to_be_visible()
    panel.get_by_role("button", name="Write ONNX").click()
    expect(page.get_by_role("link", name="ONNX file", exact=True)).to_be_visible(timeout=JOB_MS)
    graph = onnx.load(downloaded(page, "ONNX file", tmp_path))
    assert any(node.op_type == "DequantizeLinear" for node in graph.graph.node)

    go(page, "Overview")
    expect(page.get_by_role("radio", name="int8", exact=True)).to_be_checked()
    assert "weights=int8" in page.url  # which other pages do not have
    expect(page.get_by_text("1 network measured in int8 on these images")).to_be_visible()
    expect(page.get_by_text("Accuracy in int8", exact=True)).to_be_visible()
    expect(page.get_by_text(f"{found.size.bytes:,} in int8")).to_be_visible()

    assert server.process is not None
    maps = Path(f"/proc/{server.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


def written_by(server: Server) -> str:
    """Return the id of the job that wrote the checkpoint."""
    return wait_for_job(server.store, "export").id


@pytest.mark.slow
def test_a_quantized_file_is_inspected_and_opened(server: Server, open_page: OpenPage) -> None:
    file = Path(__file__).parents[1] / "zoo" / "files" / "pruned_format_3.safetensors"
    page = open_page(f"{server.url}/open")
    page.get_by_role("radio", name="Upload").check(force=True)
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text(re.compile("A pruned model that this tool wrote.*int8"))).to_be_visible(
        timeout=JOB_MS
    )
    says = re.compile("The file says: accuracy 14.29.*drop 14.29.* weights int8")
    expect(page.get_by_text(says)).to_be_visible()
    expect(page.get_by_text("It cannot be quantized a second time")).to_be_visible()
    page.get_by_role("button", name="Open the pruned model").click()
    expect(page.get_by_text(STORED)).to_be_visible(timeout=JOB_MS)
    memory = weights_bytes(load_model(file))
    expect(page.get_by_text(f"{memory / 1e6:.2f}\N{NO-BREAK SPACE}MB", exact=True)).to_be_visible()
    expect(page.get_by_text(says)).to_have_count(2)  # in the report, and of the open model
