"""Two command lines, and two clients of the queue, on one store: nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.jobs import client
from psvit_core.records import Subject
from psvit_core.records.jobs import SummaryRequest
from psvit_core.storage.leftovers import passing_lock
from psvit_core.storage.store import Store
from tests.faults.runs import leftovers
from tests.made import make_job
from tests.patience import JOB

ROOT = Path(__file__).resolve().parents[2]
SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=10, recovery="none")
SWEEP = ["sweep", SUBJECT.model, "--data", "digits", "--limit", "10", "--recover", "none"]
N_CELLS = 45

#: A command line that notes how many images of cells it computes.
COUNTING = """
import sys
from psvit_core.cli import main
from psvit_core.sensitivity import buffer
plain = buffer.ResultBuffer.add
buffer._FIRST_WRITE_SECONDS = buffer._WORK_PER_WRITE = 0.0

def add(self, key, outcome):
    with open(sys.argv[1], "a") as file:
        file.write("x" * len(outcome))
    plain(self, key, outcome)

buffer.ResultBuffer.add = add
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, program = [*SWEEP, "--ratios", "0.5"], [sys.executable, "-c", COUNTING]
    tables = [str(tmp_path / f"table-{n}.json") for n in range(2)]
    running = [
        subprocess.Popen(
            [*program, str(tmp_path / f"counted-{n}"), *command, "--out", tables[n]],
            cwd=ROOT,
            env={**os.environ, "PSVIT_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=JOB)
        assert process.returncode == 0, said
    counted = [path.stat().st_size for path in tmp_path.glob("counted-*")]
    assert sum(counted) == N_CELLS * 10  # no image of a cell twice
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "alone"))
    assert main([*command, "--out", str(tmp_path / "alone.json")]) == 0
    alone = (tmp_path / "alone.json").read_bytes()
    assert [Path(table).read_bytes() for table in tables] == [alone, alone]
    assert json.loads(alone)["rows"]
    assert leftovers(tmp_path) == []


def at_once(n: int, work: Callable[[int], object]) -> None:
    """Call ``work(number)`` in threads that begin together."""
    barrier = threading.Barrier(n)

    def run(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(run, range(n)))


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """A store as several processes open it; no worker runs."""
    monkeypatch.setattr(client, "ensure_worker", lambda *_, **__: None)
    return [Store(tmp_path) for _ in range(4)]


def test_equal_requests_at_once_are_one_job(stores: list[Store]) -> None:
    at_once(4, lambda n: client.submit(stores[n], "t", SUBJECT, SummaryRequest()))
    assert [job.state for job in client.list_jobs(stores[0])] == ["queued"]


def test_a_job_is_resumed_once(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    client.save(stores[0], make_job(state="cancelled"))
    saved: list[str] = []
    plain = client.save

    def save(store: Store, job: client.Job) -> client.Job:
        saved.append(job.state)
        return plain(store, job)

    monkeypatch.setattr(client, "save", save)
    at_once(4, lambda n: client.resume(stores[n], "a"))
    assert saved == ["queued"]


def test_a_passing_lock_is_held_by_one(stores: list[Store]) -> None:
    """Its file is removed with it; whoever had opened that file takes the new one."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with passing_lock(stores[number], "cell"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    at_once(4, work)
    assert (len(most), max(most)) == (80, 1)
    assert not [*(stores[0].folder / "locks").glob("cells-*")]
