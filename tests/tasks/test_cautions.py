"""Warnings where classes and outputs disagree or accuracy is at chance: text, JSON, app records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psvit_core.cli import main
from psvit_core.data import digits_arrays, digits_split
from psvit_core.records import Interval, Subject
from psvit_core.storage.store import Store
from psvit_core.tasks.cautions import chance_warning, class_warning, empty_class_warning
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.inspect import check_data
from psvit_core.tasks.session import Session

MODEL = "e_spikeformer_digits"
N_EACH = 4


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


def digits(place: Path, shift: int = 0, without: tuple[int, ...] = ()) -> str:
    """Write digits in class folders; ``shift`` puts each into another digit's folder."""
    images, labels = digits_arrays()
    for digit in range(10):
        if digit not in without:
            folder = place / str((digit + shift) % 10)
            folder.mkdir(parents=True)
            for i in [i for i in digits_split("val") if labels[i] == digit][:N_EACH]:
                Image.fromarray(images[i, 0].numpy()).save(folder / f"{i}.png")
    return f"folder:{place}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], list[str]]:
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("psvit: ")]
    return json.loads(captured.out), lines


def test_a_missing_class_without_train_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = digits(tmp_path / "d", without=(0,))  # so that all labels are one too low
    result, said = run(capsys, "evaluate", MODEL, "--data", spec)
    assert result["accuracy"]["value"] < 0.2
    first, second = result["warnings"]
    assert "has 9 classes, but e_spikeformer_digits has 10 outputs" in first
    assert "no better than guessing among 10 classes (10.00%)" in second
    assert said == [f"psvit: {first}", f"psvit: {second}"]


def test_a_missing_class_with_train_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits(tmp_path / "d" / "val", without=(0, 4))
    digits(tmp_path / "d" / "train")
    result, said = run(capsys, "evaluate", MODEL, "--data", f"folder:{tmp_path / 'd'}")
    assert result["accuracy"]["value"] > 0.8
    assert result["warnings"] == said == []


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "command", ["evaluate", pytest.param("sweep", marks=SLOW), pytest.param("pareto", marks=SLOW)]
)
def test_accuracy_at_chance_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    spec = digits(tmp_path / "d", shift=1)
    more = {
        "evaluate": [],
        "sweep": ["--ratios", "0.5", "--criterion", "l1", "--out", str(tmp_path / "t.json")],
        "pareto": [
            *("--ratios", "0.5", "--criterion", "l1", "--policies", "uniform"),
            *("--savings", "0.3", "--out", str(tmp_path / "a.json")),
        ],
    }[command]
    result, said = run(capsys, command, MODEL, "--data", spec, *more)
    (warning,) = (line for line in result["warnings"] if "recovery" not in line)
    assert "is no better than guessing among 10 classes" in warning
    assert [f"psvit: {warning}"] == [line for line in said if "guess" in line]


@pytest.mark.slow
def test_good_numbers_have_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, said = run(capsys, "evaluate", MODEL, "--limit", "20")
    assert result["warnings"] == said == []
    out = ("--ratios", "0.5", "--criterion", "l1", "--limit", "20", "--out", str(tmp_path / "t"))
    table, said = run(capsys, "sweep", MODEL, *out)
    assert "warnings" not in table and not said


def test_stored_results_are_judged_again(tmp_path: Path) -> None:
    spec = digits(tmp_path / "d", shift=1)
    store = Store(tmp_path / "s")
    for _ in range(2):
        session = Session(Subject(model=MODEL, data=spec), store)
        assert "guessing" in evaluate(session).warnings[0]
        assert list(evaluate(session).warnings) == session.warnings


def test_check_data_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits(tmp_path / "d" / "val", without=(0, 4))
    spec = f"folder:{tmp_path / 'd'}"
    report = check_data(Session(Subject(model=MODEL, data=spec), Store(tmp_path / "s")))
    assert not report.problem
    assert len(report.warnings) == 1
    assert f"{spec} has 8 classes, but {MODEL} has 10 outputs" in report.warnings[0]
    digits(tmp_path / "d" / "train")
    result, said = run(capsys, "check-data", MODEL, "--data", spec)
    assert result["warnings"] == ["val has no images of 2 of 10 classes: 0, 4."]
    assert said == ["psvit: val has no images of 2 of 10 classes: 0, 4."]
    assert main(["check-data", MODEL, "--data", spec]) == 0
    assert said[0] in capsys.readouterr().err


def test_arrays_with_fewer_classes_than_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = digits_arrays()
    chosen = [i for i in digits_split("val") if labels[i] < 7][::13]
    pixels = np.stack([images[i, 0].numpy() for i in chosen])
    np.savez(tmp_path / "d.npz", images=pixels, labels=np.array([labels[i] for i in chosen]))
    result, _ = run(capsys, "evaluate", MODEL, "--data", f"npz:{tmp_path / 'd.npz'}")
    assert result["accuracy"]["value"] > 0.8
    assert "has 7 classes" in result["warnings"][0]


def test_words() -> None:
    assert class_warning("x", 4, "m", 4) is None
    assert str(class_warning("x", 1, "m", 1000)).startswith("x has 1 class, but m has 1,000 out")
    assert empty_class_warning("val", [1, 2], ("a", "b")) is None
    assert empty_class_warning("val", [0, 0], ("a", "b")) is None  # an error says it
    many = empty_class_warning("val", [0] * 5 + [1], tuple("abcdef"))
    assert many == "val has no images of 5 of 6 classes: a, b, c and 2 more."
    assert chance_warning(Interval(value=0.3, low=0.26, high=0.34), 4) is None
    assert chance_warning(Interval(value=0.3, low=0.25, high=0.35), 4)
    assert chance_warning(Interval(value=1.0, low=0.9, high=1.0), 1) is None
