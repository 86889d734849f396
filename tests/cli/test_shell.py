"""How the command line behaves in a shell: closed pipes, ``~`` in paths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psvit_core.cli import main
from psvit_core.data import load_data
from psvit_core.errors import PsvitError
from psvit_core.files import check_writable, expand, expand_spec
from psvit_core.records import DIGITS_TRANSFORM, PrunePlan, SensitivityTable
from psvit_core.storage.store import Store, default_folder
from psvit_core.zoo.cards import WEIGHTS
from tests.patience import JOB

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "psvit_core")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, in a current folder where a ``~`` would be seen."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PSVIT_CACHE", "~/cache")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


# --- closed pipes


def closed_early(tmp_path: Path, arguments: Sequence[str], stream: str) -> tuple[int, str]:
    """Run a command whose output nobody reads; return its status and the other stream's text."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, "PSVIT_CACHE": str(tmp_path)},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write},  # type: ignore[call-overload]  # chosen by name
    )
    os.close(write)
    out, err = process.communicate(timeout=JOB)
    return process.returncode, (err if stream == "stdout" else out)


@pytest.mark.parametrize(
    "arguments",
    [["models"], ["models", "--json"], ["groups", "sdt_v1_digits"], ["jobs", "list"]],
)
def test_a_closed_pipe_ends_quietly(tmp_path: Path, arguments: list[str]) -> None:
    assert closed_early(tmp_path, arguments, "stdout") == (141, "")


def test_a_closed_pipe_of_errors_ends_quietly(tmp_path: Path) -> None:
    assert closed_early(tmp_path, ["groups", "no_such_model"], "stderr") == (141, "")


def test_help_and_usage_into_a_closed_pipe(tmp_path: Path) -> None:
    assert closed_early(tmp_path, ["--help"], "stdout") == (0, "")  # argparse does not tell
    assert closed_early(tmp_path, ["no_such_command"], "stderr") == (2, "")


@pytest.mark.parametrize("arguments", ["models --json", "groups sdt_v1_digits"])
def test_no_output_at_all(tmp_path: Path, arguments: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} {arguments} >&-"],
        cwd=ROOT,
        env={**os.environ, "PSVIT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=JOB,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 141)


def test_head_reads_the_first_line(tmp_path: Path) -> None:
    line = f"set -o pipefail; {' '.join(COMMAND)} models | head -n 1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("\n") == 1
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_other_broken_pipes_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Any:
        raise BrokenPipeError

    monkeypatch.setattr("psvit_core.cli._run", fail)
    with pytest.raises(BrokenPipeError):
        main(["models"])


# --- the home folder


def words(command: str) -> list[str]:
    return command.split()


def run(capsys: pytest.CaptureFixture[str], command: str) -> dict[str, Any]:
    assert main([*words(command), "--json"]) == 0, capsys.readouterr().err
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.slow
def test_every_path_of_a_command_may_begin_with_a_tilde(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "e_spikeformer_digits"
    for digit in range(10):
        (home / "digits" / str(digit)).mkdir(parents=True)
        Image.new("L", (28, 28), 9 * digit).save(home / "digits" / str(digit) / "x.png")
    shutil.copy(WEIGHTS / f"{model}.safetensors", home / "own.safetensors")
    weights = "--checkpoint ~/own.safetensors"
    options = f"{weights} --data folder:~/digits --batch 5"
    assert run(capsys, "inspect ~/own.safetensors")["fits"]
    assert run(capsys, f"check-data {model} {weights} --data folder:~/digits")["n_looked"] == 10
    run(capsys, f"sweep {model} {options} --ratios 0.5 --criterion l1 --out=~/sweep.json")
    run(capsys, "plan --sweep ~/sweep.json --memory-saving 0.2 --out ~/plan.json")
    run(capsys, f"prune {model} {options} --plan ~/plan.json --out=~/small.safetensors")
    run(capsys, "groups ~/small.safetensors")
    run(capsys, f"compare {model} {weights} ~/plan.json --sweep ~/sweep.json")
    run(capsys, f"link ~/plan.json {model} {weights}")
    archive = "--policies uniform --savings 0.2 --csv ~/a.csv --out ~/a.json --sweep ~/sweep.json"
    run(capsys, f"pareto {model} {options} {archive}")
    names = ("sweep.json", "plan.json", "small.safetensors", "a.csv", "a.json", "cache")
    assert all((home / name).exists() for name in names)
    assert list(Path.cwd().iterdir()) == []  # no folder named ~
    (home / "own_plugin.py").write_text("raise ValueError('it was read')")
    assert main(words("models --plugin ~/own_plugin.py")) == 2
    assert "it was read" in capsys.readouterr().err


def test_paths_in_python_may_begin_with_a_tilde(home: Path) -> None:
    assert default_folder() == Store().folder == home / "cache"
    assert Store("~/other").folder == home / "other"
    np.savez(home / "d.npz", images=np.zeros((2, 28, 28), np.uint8), labels=np.arange(2))
    assert len(load_data("npz:~/d.npz", transform=DIGITS_TRANSFORM)) == 2
    assert check_writable("~/new.json") == home / "new.json"
    for kind in (PrunePlan, SensitivityTable):
        (home / "bad.json").write_text("{}")
        with pytest.raises(PsvitError, match="Expected"):
            kind.load("~/bad.json")
    assert expand_spec("folder:~/a") == f"folder:{home / 'a'}"
    assert expand_spec("digits") == "digits" and expand_spec("folder:a~") == "folder:a~"


@pytest.mark.parametrize(
    "command",
    [
        "inspect ~nobody_of_this_name/x.pth",
        "evaluate sdt_v1_digits --data folder:~nobody_of_this_name/x",
        "plan --sweep ~nobody_of_this_name/x --memory-saving 0.1 --out y",
    ],
)
def test_an_unknown_home_folder_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(command)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Cannot expand the ~ in ~nobody_of_this_name/x" in said
    with pytest.raises(PsvitError, match="Give the full path"):
        expand("~nobody_of_this_name")
