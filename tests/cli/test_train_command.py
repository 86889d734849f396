"""The command ``train``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from psvit_core.cli import main
from tests.tasks.test_train import SMALL, with_settings


def test_train_writes_files_and_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataclasses.replace(with_settings(epochs=1), data="nowhere").save(tmp_path / "c.json")
    arguments = ["train", str(path), "--out", str(tmp_path / "out"), "--data", "digits", "--test"]
    assert main([*arguments, "--seed", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["train"]["settings"]["seed"] == 3
    assert result["test"]["images"] == 750
    assert Path(result["weights"]).is_file()
    assert json.loads(Path(result["record"]).read_text())["config"]["data"] == "digits"
    assert main(arguments) == 2  # a different seed
    assert "belongs to a training with a different model" in capsys.readouterr().err


def test_misuse_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = SMALL.save(tmp_path / "c.json")
    for arguments in (["none.json"], [str(path), "--epochs", "0"], [str(path), "--data", "mnist"]):
        assert main(["train", *arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("psvit: ")
