"""The GPU benchmark without a GPU: it says so, and its code runs on small models."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from benchmarks import gpu


def started(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    gpu.main()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "no CUDA device"),
        (("--quick", "--json"), "no CUDA device"),
        (("--device", "cpu"), "--quick"),
    ],
)
def test_it_ends_with_one_line(
    options: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        started(monkeypatch, *options)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert reason in printed.err


@pytest.mark.parametrize("full", [False, True])
def test_its_code_on_a_small_model(
    full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "MODELS", gpu.MODELS[:1])
    monkeypatch.setattr("benchmarks._report.store_result", refuse)
    started(monkeypatch, "--device", "cpu", "--quick", "--json", *(["--full"] if full else []))
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["precision"] == "float32"
    assert document["settings"]["device"] == "cpu"
    rows = {row["what"]: row for row in document["rows"]}
    faster = rows["sweep: times faster"]
    assert faster["value"] > 0
    assert faster["how"].startswith("measured" if full else "extrapolated from ")
    if not full:
        assert rows["predictions equal, float32 (%)"]["value"] == 100
    for begin in ("fine-tuning step", "recovery lsq in float32", "a plan of half of all units"):
        assert any(what.startswith(begin) for what in rows)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_its_code_in_bfloat16(
    full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "MODELS", gpu.MODELS[:1])
    monkeypatch.setattr("benchmarks._report.store_result", refuse)
    options = ["--device", "cpu", "--quick", "--precision", "bfloat16", "--json"]
    started(monkeypatch, *options, *(["--full"] if full else []))
    document = json.loads(capsys.readouterr().out)
    assert document["benchmark"] == "gpu_bfloat16"
    assert document["settings"]["precision"] == "bfloat16"
    rows = {row["what"]: row["value"] for row in document["rows"]}
    if full:
        assert rows["check of the precision"].startswith("predictions equal to float32: ")
    else:
        assert 0 <= rows["predictions equal to float32 (%)"] <= 100


def refuse(*_: Any) -> None:
    raise AssertionError("a quick run stores nothing")
