"""``psvit quantize``: the file, what is measured of it, and what other commands make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import psvit_core as psvit
from psvit_core.cli import main
from psvit_core.plan.build import plan_from_ratios
from psvit_core.zoo.cards import shipped_summary

NAME = "sdt_v1_digits"
DATA = ["--data", "digits", "--limit", "40"]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


def n_correct(model: Path | str) -> int:
    """Return the correct answers on the images of ``DATA``."""
    network, data = psvit.load_model(model), psvit.load_data("digits", split="val").limit(40)
    with torch.no_grad():
        guesses = torch.cat([network(x).argmax(1) for x in data.batches(40)])
    return sum(int(g) == label for g, label in zip(guesses, data.labels, strict=True))


def test_a_pruned_file_is_quantized_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = shipped_summary(NAME)
    assert summary is not None
    plan = plan_from_ratios(summary, {g.group_id: 0.5 for g in summary.groups}, criterion="l2")
    small = psvit.apply_plan(psvit.load_model(NAME), plan)
    pruned = psvit.save_pruned(small, tmp_path / "pruned.safetensors")
    out = tmp_path / "small.safetensors"
    options = ["quantize", str(pruned), "--weights", "int8", "--out", str(out), *DATA]
    assert main([*options, "--measure", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kind"], result["file_bytes"]) == ("int8", out.stat().st_size)
    read = sum(
        t.numel() * t.element_size()
        for name, t in load_file(out).items()
        if t.dtype != torch.int64 and name.removesuffix(".scale") not in small.unused
    )
    whole = small.provenance["origin_bytes"]
    assert result["weights_bytes"] == result["measurement"]["size"]["bytes"] == read
    assert result["memory_saving"] == pytest.approx(1 - read / whole)
    assert 0.001 < result["relative_change"] < 0.02
    measured, alone = result["measurement"], result["against_float32"]
    assert measured["conditions"]["weights"] == alone["conditions"]["weights"] == "int8"
    n_whole, n_float, n_int8 = n_correct(NAME), n_correct(pruned), n_correct(out)
    assert measured["accuracy"]["value"] == n_int8 / 40
    assert measured["drop"]["value"] == pytest.approx(100 * (n_whole - n_int8) / 40)
    assert alone["drop"]["value"] == pytest.approx(100 * (n_float - n_int8) / 40)
    assert measured["drop"]["low"] < measured["drop"]["value"] < measured["drop"]["high"]
    assert n_int8 != n_whole  # so that the comparison is one

    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr()
    assert "stored as int8" in shown.err
    assert "weights int8" in shown.out + shown.err
    assert main(["evaluate", str(out), *DATA, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["size"]["bytes"] == read
    assert again["conditions"]["weights"] == "int8"
    assert main(["quantize", str(out), "--out", str(tmp_path / "b.safetensors")]) == 2
    assert "are int8 already" in capsys.readouterr().err


def test_a_whole_network_needs_no_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "whole.safetensors"
    assert main(["quantize", NAME, "--weights", "bf16", "--out", str(out)]) == 0
    assert "Weights in bfloat16" in capsys.readouterr().out
    network = psvit.load_model(out)
    assert network.provenance["plans"][0]["note"] == "removes nothing"
    plain = psvit.load_model(NAME).state_dict()
    stored = load_file(out)["block.0.mlp.fc1_conv.weight"]
    assert torch.equal(stored, plain["block.0.mlp.fc1_conv.weight"].bfloat16())
    assert torch.equal(network.state_dict()["head.bias"], plain["head.bias"])
    assert main(["quantize", NAME, "--out", str(tmp_path / "whole.pt")]) == 2
    assert ".safetensors" in capsys.readouterr().err
