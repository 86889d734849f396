"""A clock that is set forth and back while jobs run: nothing looks dead, lost or new."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from psvit_core.jobs import client, queue
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.worker import Worker
from psvit_core.records import SensitivityTable
from psvit_core.records.jobs import SummaryResult
from psvit_core.runtime import Run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage import processes
from psvit_core.storage.store import Store
from tests.made import make_job
from tests.patience import PATIENCE
from tests.tiny import tiny_data, tiny_model
from ui.model import formats

ROOT = Path(__file__).resolve().parents[2]
DAY = 86_400.0
ON_LINUX = Path("/proc/sys/kernel/random/boot_id").exists()

#: A process that starts after the clock was set: its time of day and that of the start of the
#: machine, which Linux derives from it, differ from those before.
LATER = """
import sys, time
import psutil
step = float(sys.argv[2])
real_time, real_boot = time.time, psutil._pslinux.boot_time
time.time = lambda: real_time() + step
psutil._pslinux.boot_time = lambda: real_boot() + step
from psvit_core.jobs import client, servers, workers
from psvit_core.storage.store import Store
store = Store(sys.argv[1])
print(client.find_job(store, "a").state, servers.server_lives(store), workers._noted(store, "cpu"))
print(store.used_since() == 0.0, *store.keys("using/"))
"""


@pytest.mark.skipif(not ON_LINUX, reason="elsewhere, systems keep the start of a process")
@pytest.mark.parametrize("step", [-DAY, pytest.param(DAY, marks=pytest.mark.slow)])
def test_running_work_is_known_after_the_clock_was_set(tmp_path: Path, step: float) -> None:
    from psvit_core.jobs import servers, workers

    store = Store(tmp_path)
    own = {"pid": os.getpid(), "pid_started": processes.process_started(os.getpid())}
    client.save(store, make_job(state="running", **own))
    servers.register_server(store)
    workers.note_worker(store, "cpu")
    with store.using():
        done = subprocess.run(
            [sys.executable, "-c", LATER, str(tmp_path), str(step)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    known, using = done.stdout.splitlines()
    assert known == f"running True {os.getpid()}"
    everything_stays, *keys = using.split()
    assert len(keys) == 1 and everything_stays == str(step < 0)


def test_processes_of_older_versions_are_known() -> None:
    """These noted the start in seconds since the epoch."""
    pid = os.getpid()
    assert processes.is_same_process(pid, psutil.Process(pid).create_time())
    assert not processes.is_same_process(pid, psutil.Process(pid).create_time() - 60)
    now = processes.process_started(pid)
    assert now is not None and processes.is_same_process(pid, now)
    assert not processes.is_same_process(pid, now + 60)
    assert not processes.is_same_process(pid, None)


@pytest.fixture
def wild_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock by up to a day, both ways, at every look."""
    random, now = Random(5), time.time()
    monkeypatch.setattr(time, "time", lambda: now + random.uniform(-DAY, DAY))


@pytest.mark.usefixtures("wild_clock")
def test_jobs_run_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    order: list[str] = []

    def run(self: Any) -> SummaryResult:
        order.append(self.job.owner)
        return SummaryResult()

    monkeypatch.setattr(JobRun, "run", run)
    for number, owner in itertools.product(range(3), "ab"):
        task = make_job(id=f"{owner}{number}", task="measure", state="queued", owner=owner)
        client.save(store, dataclasses.replace(task, created=time.time()))
    one = Worker(store, "cpu")
    while waiting := queue.waiting(store, "cpu", one._served):
        one.run_job(waiting[0])
    assert {job.state for job in client.list_jobs(store)} == {"done"}
    assert all(order[i] != order[i + 1] for i in range(5))  # nobody waits for the other's third


def test_times_on_the_screen_are_never_negative() -> None:
    job = make_job(state="running", started=0.0, paced=100.0, done=6, total=10, fresh=5)
    assert job.seconds_left(now=140.0) == pytest.approx(40.0)
    assert job.seconds_left(now=60.0) is None  # the clock was set back
    assert formats.duration(-DAY) == formats.duration(0)
    assert formats.time_ago(200.0, now=100.0) == "just now"


@pytest.mark.slow
def test_a_sweep_with_a_wild_clock(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 6)

    def table(store: str) -> SensitivityTable:
        return sweep(model, data, ratios=(0.5,), run=Run(batch=4), store=Store(tmp_path / store))

    undisturbed = table("undisturbed")
    request.getfixturevalue("wild_clock")
    assert table("disturbed") == undisturbed
    assert table("disturbed") == undisturbed  # read
