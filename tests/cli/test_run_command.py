"""The command ``run``: exit statuses, one JSON object, killed runs, the documented example."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from psvit_core.cli import main
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
out: {out}
model: {{name: sdt_v1_digits}}
data: {{spec: digits, limit: {limit}}}
sweep: {{ratios: [0.5], criterion: l2_group}}
targets: {targets}
plan: {{policy: uniform}}
recovery: {recovery}
test: {test}
"""


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))


def written(tmp_path: Path, name: str = "run.yaml", **fields: object) -> Path:
    chosen = {
        "out": tmp_path / "out",
        "limit": 20,
        "targets": "{memory_saving: 0.3}",
        "recovery": "none",
        "test": "false",
    }
    path = tmp_path / name
    path.write_text(SMALL.format(**chosen | fields))
    return path


def test_checking_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert main(["run", str(path), "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["data"]["limit"] == 20 and len(found["config_sha256"]) == 64
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
    path.write_text(path.read_text() + "tests: true\n")
    assert main(["run", str(path), "--check"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "run.yaml, line 10: tests: No such field. Did you mean 'test'?" in captured.err


def test_a_target_missed_on_test_is_exit_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 8 validation images do not see the loss that 750 test images show
    path = written(tmp_path, targets="{memory_saving: 0.3, max_drop: 0.001}", test="true", limit=8)
    assert main(["run", str(path), "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert result["missed_on_test"]
    (drop,) = [t for t in result["targets"] if t["target"] == "max_drop"]
    assert not drop["met"] and drop["reached"] > 0.1 and drop["judged_on"] == "test, 750 images"
    assert result["pruned"]["measurement"]["drop"]["value"] <= 0.1  # on the validation images
    assert main(["run", str(path)]) == 3  # again, from the records
    captured = capsys.readouterr()
    assert "MISSED  at most 0.1 points lost" in captured.out
    assert "To do: nothing." in captured.err


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {"recovery": "lsq", "limit": 30, "test": "true"}
    command = [sys.executable, "-m", "psvit_core", "run", str(written(tmp_path, **fields))]
    records = tmp_path / "out" / ".run"
    for stage in ("sweep", "plan"):  # killed twice, after another stage each time
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + JOB
        while not (records / f"{stage}.json").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out" / "result.json").exists()
    kept = {name: (records / f"{name}.json").read_bytes() for name in ("sweep", "plan")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=JOB)
    assert done.returncode == 0, done.stderr
    assert "Already done: baseline, sweep, plan" in done.stderr
    assert "sweep\n" not in done.stderr.replace("baseline, sweep", "")
    assert kept == {name: (records / f"{name}.json").read_bytes() for name in kept}

    # the same, not interrupted, in another store
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "other"))
    other = written(tmp_path, "other.yaml", out=tmp_path / "whole", **fields)
    assert main(["run", str(other)]) == 0
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    one, two = (load_file(tmp_path / n / "pruned.safetensors") for n in ("out", "whole"))
    assert one.keys() == two.keys() and all(one[k].equal(two[k]) for k in one)
    numbers = [
        without(json.loads((tmp_path / n / "result.json").read_text())) for n in ("out", "whole")
    ]
    assert numbers[0] == numbers[1]


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def without(value: Any) -> Any:
    """A result without times, hashes of files that contain times, and the folder's name."""
    if isinstance(value, dict):
        left_out = ("seconds", "files", "out", "config_sha256")
        return {k: without(v) for k, v in value.items() if k not in left_out}
    return [without(item) for item in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_the_documented_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(ROOT / "configs" / "run_digits.yaml"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [t["met"] for t in result["targets"]] == [True, True]
    assert [e["format"] for e in result["exports"]] == ["torch", "pt2"]
    assert result["exports"][1]["agreement"]["n_images"] == 64
    assert result["test"]["measurement"]["conditions"]["n_images"] == 750
    out = tmp_path / "run-digits"
    code = "import network; network.load()"
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True, timeout=JOB)


@pytest.mark.slow
def test_training_follows_recovery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, recovery="bn")
    path.write_text(path.read_text() + "finetune: {epochs: 0.1, train_images: 128, batch: 32}\n")
    assert main(["run", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == "tuned.safetensors"
    training = result["tuned"]["training"]
    assert training["settings"]["epochs"] == 0.1 and training["teacher"] == "sdt_v1_digits"
    first = training["epochs"][0]["val_accuracy"]  # before training: the recovered file
    assert first["value"] == result["pruned"]["measurement"]["accuracy"]["value"]
    assert result["tuned"]["measurement"]["accuracy"]["value"] >= first["value"]
    small = load_file(tmp_path / "out" / "tuned.safetensors")
    assert {k: t.shape for k, t in small.items()} == {
        k: t.shape for k, t in load_file(tmp_path / "out" / "pruned.safetensors").items()
    }
