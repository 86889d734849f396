"""Real workers that are killed again and again, by ``kill -9`` at seeded changes of their files.

``test_killed_jobs`` kills jobs of every kind; here the processes are those that an app starts, and
all kinds of jobs wait in one store, so that a killed worker also leaves others waiting.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from psvit_core.jobs import client, devices, workers
from psvit_core.jobs.client import Job
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.store import Store
from tests.faults.runs import BASES, KINDS, essence, leftovers, request_of
from tests.faults.shim import CAN_WATCH, library
from tests.patience import JOB

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_WATCH, reason="no C compiler")]
SEED, N_KILLS = 17, 4
Child = subprocess.Popen[bytes]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Kill the first workers that are started, each before a seeded change of the store."""
    random, children, plain = Random(SEED), list[Child](), devices.worker_environment

    def environment(*arguments: Any) -> dict[str, str]:
        if not (tmp_path / "cache").exists() or len(children) >= N_KILLS:
            return plain(*arguments)
        watched = {"LD_PRELOAD": str(library()), "SHIM_ROOT": str(tmp_path), "SHIM_LOG": ""}
        return {**plain(*arguments), **watched, "SHIM_KILL": str(random.randrange(10, 80))}

    class Noted(list[Child]):
        def append(self, child: Child) -> None:
            children.append(child)
            super().append(child)

    monkeypatch.setattr(workers, "worker_environment", environment)
    monkeypatch.setattr(workers, "_CHILDREN", Noted())
    yield children
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def queue(store: Store, kind: str) -> None:
    subject, request = request_of(kind, store)
    params = {"subject": subject.to_dict(), **request.to_dict()}
    created = 1.0 + [*KINDS].index(kind)
    client.save(store, Job(id=kind, task=request.task, title=kind, params=params, created=created))


def run_all(store: Store, kinds: list[str]) -> list[str]:
    """Run jobs as an app does; return the kinds of those that were interrupted."""
    for kind in kinds:
        queue(store, kind)
    interrupted, deadline = list[str](), time.monotonic() + JOB
    while True:
        workers.reap()
        client.reconcile(store)
        jobs = [client.find_job(store, kind) for kind in kinds]
        for job in jobs:
            assert job.state not in ("failed", "cancelled"), (job.id, job.error)
            if job.state == "interrupted":
                assert "Its worker process ended: it was killed" in job.error
                interrupted.append(job.id)
                client.resume(store, job.id)
        if all(job.state == "done" for job in jobs):
            return interrupted
        assert time.monotonic() < deadline, workers.log_path(store, "cpu").read_text()
        time.sleep(0.05)


def test_workers_are_killed_again_and_again(tmp_path: Path, started: list[Child]) -> None:
    def found(store: Store) -> dict[str, Any]:
        texts = {k: essence(store, k, client.find_job(store, k)) for k in KINDS}
        place = str(store.folder)  # a network is named by its file
        return {kind: json.loads(text.replace(place, "")) for kind, text in texts.items()}

    first = [kind for kind in KINDS if kind not in BASES]
    store = Store(tmp_path / "cache")
    interrupted = run_all(store, first) + run_all(store, [*BASES])
    killed = [child for child in started if child.returncode == -signal.SIGKILL]
    assert len(killed) == N_KILLS and interrupted
    assert not [child for child in killed if psutil.pid_exists(child.pid)]  # no zombie
    assert len(client.list_jobs(store)) == len(KINDS)

    [living] = [child for child in started if child.poll() is None]
    os.kill(living.pid, signal.SIGKILL)
    living.wait()
    tidy(store)  # as the next start does
    assert leftovers(tmp_path) == []
    other = Store(tmp_path / "undisturbed")
    run_all(other, first)
    run_all(other, [*BASES])
    assert found(store) == found(other)
