"""Every kind of file in a store truncated, garbled and emptied: read past it, or named in a line.

The store is that of a killed process, so that the logs of its databases are there, too. What each
module does with its own files in detail is tested there (``tests/storage/test_faults.py``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from psvit_core.cli import main
from psvit_core.errors import StoreError
from psvit_core.finetune import STATE_FILE
from psvit_core.jobs import client
from psvit_core.records import EpochRecord, FinetuneReport, FinetuneSettings, Interval
from psvit_core.records.training import read_curve
from psvit_core.storage.layout import mark_layout
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.store import Store, digest
from psvit_core.tasks.trial_runs import ended_trials
from tests.made import CONDITIONS, make_job
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
KEY = digest("a result")
SEED = 3


def fill(folder: Path) -> None:
    store = Store(folder)
    for number in range(4):
        client.save(store, make_job(id=f"job{number}", state="done"))
    store.put("long", np.random.RandomState(SEED).rand(9_000).tolist())  # in a file of its own
    store.put_arrays(KEY, {"x": np.arange(99)})
    for name, content in {
        "exports/job0/small.safetensors": b"\x10" + bytes(3000),
        "uploads/model.pth": bytes(3000),
        "finetune/k/curve.jsonl": 3 * (curve_line(0.5) + b"\n"),
        "finetune/k/report.json": report(),
        "logs/worker-cpu.log": b"a line\n" * 99,
        "locks/outcome-00.lock": b"",
        "locks/bell-cpu": b"",
    }.items():
        store.place(*name.split("/")).write_bytes(content)


def curve_line(epoch: float) -> bytes:
    accuracy = Interval(value=0.5, low=0.4, high=0.6)
    point = EpochRecord(step=1, epoch=epoch, lr=0.1, seconds=1.0, val_accuracy=accuracy)
    return json.dumps(point.to_dict()).encode()


def report() -> bytes:
    before_training = EpochRecord.from_dict(json.loads(curve_line(0)))
    found = FinetuneReport(
        model="m",
        settings=FinetuneSettings(),
        conditions=CONDITIONS,
        teacher=None,
        best_epoch=0.0,
        epochs=(before_training,),
    )
    return json.dumps(found.to_dict()).encode()


def cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randint(len(content) // 4, max(0, len(content) - 1))])


def garble(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(max(64, path.stat().st_size)))


def empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


#: Kinds of files, and what the commands may say of one: the fault of the store, if it is one.
FILES = {
    "version": "instead of the version of the store",
    "keys.db": "",
    "keys.db-wal": "",
    "index/cache.db": "",
    "index/cache.db-wal": "",
    "index/*/*/*.val": "'long'",
    "arrays/*/*.npz": "is damaged",
    "exports/job0/small.safetensors": "",
    "uploads/model.pth": "",
    "finetune/k/curve.jsonl": "",
    "finetune/k/report.json": "",
    "logs/worker-cpu.log": "",
    "locks/outcome-00.lock": "",
    "locks/bell-cpu": "",
}
#: Those of which the index of jobs depends: with them, jobs may be gone.
_INDEX = ("index/cache.db", "index/cache.db-wal")


#: Tested by default; the others are slow tests.
_QUICK = ("version", "keys.db", "index/cache.db", "index/*/*/*.val", "arrays/*/*.npz")


def cases() -> list[Any]:
    """Return every kind of file with every kind of damage."""
    return [
        pytest.param(
            pattern,
            damage,
            id=f"{damage.__name__} {pattern}",
            marks=() if damage is garble and pattern in _QUICK else pytest.mark.slow,
        )
        for pattern in FILES
        for damage in (garble, cut, empty)
    ]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a process that was killed: its databases have logs."""
    folder = tmp_path_factory.mktemp("killed") / "cache"
    program = "import os, sys; from pathlib import Path; from tests.faults import test_garbled; "
    program += "test_garbled.fill(Path(sys.argv[1])); os._exit(0)"
    subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, check=True, timeout=PATIENCE
    )
    for pattern in FILES:
        assert len([*folder.glob(pattern)]) == 1, pattern
    return folder


@pytest.mark.parametrize(("pattern", "damage"), cases())
def test_a_damaged_file(
    killed: Path,
    tmp_path: Path,
    pattern: str,
    damage: Callable[[Path, Random], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(killed, folder)
    [path] = folder.glob(pattern)
    damage(path, Random(SEED))
    monkeypatch.setenv("PSVIT_CACHE", str(folder))
    commands = [["jobs", "list"], ["cache", "info"], ["cache", "verify"], ["jobs", "log"]]
    first = [main(command) for command in commands]  # damage in the middle may be met late
    capsys.readouterr()
    status = [main(command) for command in commands]
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    if pattern == "version" and damage is garble:  # a newer program's, perhaps: untouched
        assert status == first == [2] * 4 and FILES[pattern] in said.err
        assert "Delete that file" in said.err
        return
    assert status == [0] * 4, said.err
    if pattern not in _INDEX:
        assert all(f"job{number}" in said.out for number in range(4))
    if (FILES[pattern] and damage is not empty) or pattern.startswith("arrays"):
        assert pattern == "version" or FILES[pattern] in said.out, said.out
    store = Store(folder)
    tidy(store)
    client.save(store, make_job(id="new", state="done"))
    assert "job/new" in store.changes("job/")
    if pattern.startswith("arrays"):
        with pytest.raises(StoreError, match="Delete it; its results are computed again"):
            store.get_arrays(KEY)
        assert main(["cache", "clear", "--damaged"]) == 0
        assert store.get_arrays(KEY) is None  # and is computed again
    else:
        found = store.get_arrays(KEY)
        assert found is not None and found["x"].tolist() == [*range(99)]
    training = folder / "finetune" / "k"
    assert len(read_curve(training / "curve.jsonl")) <= 3
    (training / STATE_FILE).touch()  # as of the best of several trainings
    assert bool(ended_trials([training])) == (path.name != "report.json")


def test_damaged_lines_of_a_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    lines = [curve_line(0), b"\xff\x00{", curve_line(1)[:9], b"[" * 5000, b"{}", curve_line(2)]
    path.write_bytes(b"\n".join(lines))
    assert [point.epoch for point in read_curve(path)] == [0, 2]


def test_a_marker_that_lost_its_content_is_written_again(tmp_path: Path) -> None:
    Store(tmp_path).close()
    (tmp_path / "version").write_bytes(b"")
    mark_layout(tmp_path)
    assert (tmp_path / "version").read_text() == "1\n"
