"""``psvit export``: the files, what it prints, and that the result runs by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import psvit_core as psvit
from psvit_core.cli import main
from psvit_core.custom import plugin as plugins
from psvit_core.plan.build import plan_from_ratios
from psvit_core.zoo import cards
from psvit_core.zoo.cards import shipped_summary
from tests import own_models
from tests.patience import JOB

NAME = "sdt_v1_digits"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """Write a pruned file."""
    summary = shipped_summary(NAME)
    assert summary is not None
    plan = plan_from_ratios(summary, {g.group_id: 0.4 for g in summary.groups}, criterion="l2")
    small = psvit.apply_plan(psvit.load_model(NAME), plan)
    return psvit.save_pruned(small, tmp_path / "pruned.safetensors")


def test_a_pruned_file_becomes_a_program(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "network.py"
    options = ["export", str(pruned), "--format", "torch", "--out", str(out)]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    weights = tmp_path / "network.safetensors"
    assert result == {
        "format": "torch",
        "out": str(out),
        "weights": str(weights),
        "code_bytes": out.stat().st_size,
        "weights_bytes": weights.stat().st_size,
        "needs": ["torch", "safetensors"],
    }
    program = [sys.executable, "-I", str(out)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=JOB)
    assert done.stdout == "(2, 1, 32, 32) -> logits (2, 10)\n"
    assert main(options) == 0  # its own files may be replaced
    assert "pip install torch safetensors" in capsys.readouterr().out


@pytest.fixture
def forget_plugins() -> Iterator[None]:
    yield
    cards._custom_cards.clear()
    plugins._state.loaded.clear()
    plugins._state.store = None


@pytest.mark.usefixtures("forget_plugins")
def test_the_suffix_chooses_a_graph_that_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "network.pt2"
    options = ["own_silent", "--plugin", str(own_models.__file__), "--out", str(out)]
    assert main(["export", *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["format"], result["out"], result["needs"]) == ("pt2", str(out), ["torch"])
    assert result["bytes"] == out.stat().st_size
    assert result["agreement"]["images"] == "random, seeded"
    assert result["agreement"]["n_equal_logits"] == result["agreement"]["n_images"] == 8
    assert result["agreement"]["layers"] is None
    assert result["latency_ms"]["torch"] > 0
    assert result["latency_ms"]["export"] > 0
    assert main(["export", *options]) == 0  # its own file may be replaced
    assert "0 predictions differ" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pruned_file_becomes_an_onnx_file(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "network.onnx"
    options = ["--time-steps", "2", "--data", "digits", "--limit", "20", "--format", "onnx"]
    assert main(["export", str(pruned), *options, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["format"], result["needs"]) == ("onnx", ["onnxruntime"])
    assert result["agreement"]["images"] == "digits, val"
    assert result["agreement"]["n_images"] == 20
    assert result["agreement"]["n_equal_logits"] >= 15  # a spike may flip
    layers = result["agreement"]["layers"]
    assert layers["n_images"] == 4
    assert layers["n_flips"] <= 0.001 * layers["n_outputs"]
    assert layers["spikes_torch"] > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "network.pt2", "--spikingjelly"], "Omit --spikingjelly"),
        (["--out", "network.py", "--data", "digits"], "--format onnx, pt2 and nir"),
        (["--out", "network.onnx", "--limit", "5"], "Give --data"),
        (["--out", "network.py", "--format", "onnx"], "the suffix .onnx"),
        (["--out", "missing/network.onnx"], "does not exist"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_the_model_is_read(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "none.safetensors"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "none.safetensors" not in error


def test_options_decide_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "network.py"
    options = ["--time-steps", "2", "--spikingjelly", "--out", str(out), "--json"]
    assert main(["export", NAME, *options]) == 0
    assert json.loads(capsys.readouterr().out)["needs"] == ["torch", "safetensors", "spikingjelly"]
    text = out.read_text(encoding="utf-8")
    assert '"T": 2,' in text
    assert "from spikingjelly.activation_based import" in text


@pytest.mark.parametrize("name", ["network.txt", "my-network.py", "torch.py", "missing/network.py"])
def test_a_bad_name_is_refused_before_the_model_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / name)]) == 2
    assert "none.safetensors" not in capsys.readouterr().err


def test_the_pruned_file_itself_is_used_beside_it(pruned: Path) -> None:
    before, out = pruned.read_bytes(), pruned.with_suffix(".py")
    assert main(["export", str(pruned), "--out", str(out)]) == 0
    assert pruned.read_bytes() == before
    program = [sys.executable, "-I", str(out)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=JOB)
    assert done.stdout == "(2, 1, 32, 32) -> logits (2, 10)\n"


def test_no_other_pruned_file_is_replaced(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = pruned.read_bytes()
    assert main(["export", NAME, "--out", str(pruned.with_suffix(".py"))]) == 2
    assert "which no export wrote" in capsys.readouterr().err
    assert pruned.read_bytes() == before
