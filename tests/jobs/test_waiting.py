"""No job waits for ever: whoever sees one without a living worker starts one."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psvit_core.cli import main
from psvit_core.errors import JobError
from psvit_core.jobs import client, servers, workers
from psvit_core.jobs.client import Job
from psvit_core.records import Subject, SweepSettings
from psvit_core.records.jobs import MeasureRequest
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from tests.jobs.test_jobs import ended, pids, wait
from tests.patience import PATIENCE

SUBJECT = Subject(model="e_spikeformer_digits", data="digits", limit=5, batch=5)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path / "cache"))
    store = Store()
    yield store
    for pid in pids(store):
        os.kill(pid, signal.SIGKILL)


# ---- real processes ------------------------------------------------------------------------------


@pytest.mark.slow
def test_jobs_outlive_the_worker_of_the_one_before(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    long = Workspace(dataclasses.replace(SUBJECT, limit=100), store)
    short = Workspace(SUBJECT, store)
    a = long.start_sweep(SweepSettings(ratios=(0.5,)))
    running = wait(store, a, lambda job: job.total > 0)
    b = short.start_sweep(SweepSettings(ratios=(0.5,)))
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    assert wait(store, a, ended).state == "interrupted"
    assert client.find_job(store, b.id).state == "queued"

    assert main(["jobs", "list"]) == 0  # sees B, which waits without a worker
    assert "interrupted" in capsys.readouterr().out
    assert wait(store, b, ended).state == "done"

    again = client.resume(store, a.id)
    taken = wait(store, again, lambda job: job.state == "running")
    assert taken.pid is not None
    os.kill(taken.pid, signal.SIGKILL)
    wait(store, a, ended)
    client.resume(store, a.id)  # at once: the system may not have released the lock yet
    assert wait(store, a, ended).state == "done"


@pytest.mark.slow
def test_the_server_starts_workers_for_jobs_that_come_later(store: Store) -> None:
    with servers.jobs_have_workers(store, seconds=0.2):
        job = queued(store)  # stored by a process that died before it started a worker
        assert wait(store, job, ended).state == "done"


# ---- one process at a time -----------------------------------------------------------------------


def queued(store: Store, **changed: Any) -> Job:
    params = {"subject": SUBJECT.to_dict(), **MeasureRequest(plan=None, profile=False).to_dict()}
    job = Job(id="a", task="measure", title="t", params=params, created=1.0)
    return client.save(store, dataclasses.replace(job, **changed))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the devices for which a worker would have been started."""
    found: list[str] = []

    class Process:
        pid = -1

        def __init__(self, command: list[str], **options: Any) -> None:
            found.append(command[4])

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    return found


def test_a_second_resume_starts_a_worker(store: Store, started: list[str]) -> None:
    queued(store)
    assert client.resume(store, "a").state == "queued"
    assert started == ["cpu"]


def test_an_equal_submission_starts_a_worker(store: Store, started: list[str]) -> None:
    first = Workspace(SUBJECT, store).measure(None)
    assert Workspace(SUBJECT, store).measure(None).id == first.id
    assert started == ["cpu", "cpu"]


def test_a_system_that_starts_no_process(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs are shown and wait, and who looks for them goes on looking."""
    attempts: list[str] = []

    def refuse(command: list[str], **_: Any) -> None:
        attempts.append(command[4])
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    queued(store)
    assert main(["jobs", "list"]) == 0
    said = capsys.readouterr()
    assert "queued" in said.out
    assert "The worker of cpu cannot start: Cannot allocate memory." in said.err
    with servers.jobs_have_workers(store, seconds=0.01):
        deadline = time.monotonic() + PATIENCE
        while len(attempts) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(attempts) >= 4
    assert client.find_job(store, "a").state == "queued"


def test_a_dead_job_that_is_removed_while_it_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued(store, id="b")
    queued(store, state="running", pid=2**22 + 1, pid_started=0.0)
    get = store.get
    monkeypatch.setattr(store, "get", lambda key: None if key == "job/a" else get(key))
    assert [job.id for job in client.list_jobs(store)] == ["b"]
    with pytest.raises(JobError, match="There is no job 'a'"):
        client.find_job(store, "a")


@pytest.mark.parametrize("state", ["done", "failed", "cancelled", "interrupted"])
def test_ended_jobs_need_no_worker(store: Store, started: list[str], state: str) -> None:
    queued(store, state=state)
    client.reconcile(store)
    assert started == []


def test_jobs_of_other_versions_need_no_worker(store: Store, started: list[str]) -> None:
    queued(store, task="of-tomorrow")
    client.reconcile(store)
    assert started == []


def test_a_busy_device_needs_no_other_worker(store: Store, started: list[str]) -> None:
    now = {"pid": os.getpid(), "pid_started": workers.process_started(os.getpid())}
    queued(store, id="b", state="running", **now)
    queued(store)
    queued(store, id="c", device="cuda:0")
    client.reconcile(store)
    assert started == ["cuda:0"]


def test_a_lock_that_is_released_late(
    store: Store, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process's lock is free only after its last thread has ended."""
    store.put("worker/cpu", [os.getpid(), 1.0])  # another process had this number then
    queued(store, state="interrupted")
    lock = workers.worker_lock(store, "cpu")
    assert lock.__enter__()
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 3:
            lock.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", sleep)
    assert client.resume(store, "a").state == "queued"
    assert (len(polls), started) == (3, ["cpu"])


def test_the_lock_of_a_living_worker_is_not_waited_for(
    store: Store, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_sleep(seconds: float) -> None:
        raise AssertionError("waited")

    monkeypatch.setattr(time, "sleep", no_sleep)
    workers.note_worker(store, "cpu")
    with workers.worker_lock(store, "cpu"):
        queued(store)
        client.reconcile(store)
    assert started == []


def test_a_worker_that_starts_is_not_started_twice(
    store: Store, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queued(store)
    client.reconcile(store)
    monkeypatch.setattr(subprocess.Popen, "poll", lambda self: None)  # it lives
    client.reconcile(store)
    assert started == ["cpu"]
    monkeypatch.setattr(subprocess.Popen, "pid", os.getpid())
    workers.note_worker(store, "cpu")  # it held the lock, and is about to end
    client.reconcile(store)
    assert started == ["cpu", "cpu"]
