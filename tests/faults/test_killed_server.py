"""The app's server killed by ``kill -9`` while its worker sweeps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.records import SensitivityTable, Subject, SweepSettings
from psvit_core.records.jobs import SweepRequest
from psvit_core.sensitivity.spec import load_spec, read_table
from psvit_core.storage.processes import is_same_process
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from tests.made import make_job
from tests.patience import JOB, PATIENCE
from tests.ui.conftest import Server, start_server

SEED = 17
LONG = Subject(model="e_spikeformer_digits", data="digits", limit=120, batch=10, recovery="none")
SHORT = Subject(model="e_spikeformer_digits", data="digits", limit=5, batch=5, recovery="none")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    cache = tmp_path / "cache"
    cache.mkdir()
    server = start_server(cache)
    yield server
    server.kill()
    server.end_workers()


def queue(store: Store, name: str, subject: Subject, ratio: float) -> None:
    """Queue a sweep without a worker: the server finds it."""
    request = SweepRequest(settings=SweepSettings(ratios=(ratio,)))
    params = {"subject": subject.to_dict(), **request.to_dict()}
    created = time.time()
    job = make_job(id=name, task="sweep", state="queued", params=params, created=created)
    client.save(store, job)


def wait(store: Store, name: str, until: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + JOB
    while not until(job := client.find_job(store, name)):
        assert time.monotonic() < deadline, (job, workers.log_path(store, "cpu").read_text())
        time.sleep(0.02)
    return job


def stopped_within(store: Store, name: str, random: Random) -> Job:
    """Stop a sweep's worker at a seeded step, so that it cannot end before the server does."""
    step = random.randrange(1, 1000)
    job = wait(store, name, lambda job: job.done >= step or not job.active)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGSTOP)
    job = client.find_job(store, name)
    assert job.active, "the sweep ended before the server was killed"
    return job


def table(store: Store, job: Job) -> SensitivityTable | None:
    return read_table(store, load_spec(store, job.result["sweep_key"]))


@pytest.mark.slow
def test_a_server_is_killed_while_its_worker_sweeps(tmp_path: Path, server: Server) -> None:
    store, random = server.store, Random(SEED)
    queue(store, "first", LONG, 0.5)
    queue(store, "second", SHORT, 0.5)
    running = stopped_within(store, "first", random)
    assert running.pid is not None
    server.kill()
    os.kill(running.pid, signal.SIGCONT)
    # The worker ends what waits, then itself: an idle one would stay for ``IDLE_SECONDS``.
    first, second = (wait(store, name, lambda job: not job.active) for name in ("first", "second"))
    assert (first.state, second.state) == ("done", "done"), (first.error, second.error)
    assert first.pid == second.pid == running.pid
    deadline = time.monotonic() + PATIENCE
    while is_same_process(running.pid, running.pid_started):
        assert time.monotonic() < deadline, "the worker outlives the app"
        time.sleep(0.05)
    assert "the app has ended" in workers.log_path(store, "cpu").read_text()

    queue(store, "third", LONG, 0.25)
    server.start()
    running = stopped_within(store, "third", random)  # the next start goes on with what waited
    assert running.pid is not None
    server.kill()
    os.kill(running.pid, signal.SIGKILL)
    server.start()
    again = wait(store, "third", lambda job: job.state != "running")
    assert again.state == "interrupted" and "it was killed" in again.error
    client.resume(store, "third")
    third = wait(store, "third", lambda job: not job.active)
    assert third.state == "done", third.error
    assert third.fresh < third.total  # what was written was not computed again

    whole = Session(LONG, Store(tmp_path / "undisturbed"))
    for job, ratio in ((first, 0.5), (third, 0.25)):
        assert table(store, job) == run_sweep(whole, SweepSettings(ratios=(ratio,)))
