"""A disk that is full while a job begins or ends: the worker goes on when there is room again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from psvit_core.errors import StoreError
from psvit_core.jobs import client, worker
from psvit_core.jobs.client import Job
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.worker import Worker
from psvit_core.records.jobs import SummaryResult
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.store import Store
from tests.made import make_job

FULL = "Cannot write to the store: database or disk is full. Free some space."


class FullDisk:
    """Makes a store refuse rows with a job's state a number of times."""

    def __init__(self, store: Store, state: str, times: int) -> None:
        self._put, self._state, self._times = store.put, state, times
        self.refused = 0

    def __call__(self, key: str, value: Any, **options: bool) -> None:
        is_meant = isinstance(value, dict) and value.get("state") == self._state
        if is_meant and self.refused < self._times:
            self.refused += 1
            raise StoreError(FULL)
        self._put(key, value, **options)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    store = Store(tmp_path / "cache")
    client.save(store, make_job(task="summary", state="queued"))
    return store


def run(store: Store, monkeypatch: pytest.MonkeyPatch, result: Any) -> Job:
    def outcome(self: JobRun) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(JobRun, "run", outcome)
    Worker(store, "cpu").run_job(client.find_job(store, "a"))
    return client.find_job(store, "a")


@pytest.mark.parametrize(
    ("result", "state", "error"),
    [
        (SummaryResult(), "done", ""),
        (StoreError(FULL), "failed", FULL),
        (OSError(28, "No space left on device"), "failed", "No space left"),
    ],
)
def test_the_end_of_a_job_is_saved_when_there_is_room(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    result: Any,
    state: str,
    error: str,
) -> None:
    disk = FullDisk(store, state, times=5)
    monkeypatch.setattr(store, "put", disk)
    ended = run(store, monkeypatch, result)
    assert (ended.state, disk.refused) == (state, 5)
    assert error in ended.error
    assert caplog.text.count("cannot save") == 1  # not once per attempt


def test_a_worker_does_not_wait_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", -1.0)
    monkeypatch.setattr(store, "put", FullDisk(store, "done", times=5))
    with pytest.raises(StoreError, match="disk is full"):
        run(store, monkeypatch, SummaryResult())


def test_a_job_that_cannot_begin_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(store, "running", times=1)
    monkeypatch.setattr(store, "put", disk)
    assert run(store, monkeypatch, SummaryResult()).state == "queued"
    assert run(store, monkeypatch, SummaryResult()).state == "done"


def test_a_job_whose_row_is_written_before_the_error_is_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is running for everyone, so that nobody else would run it."""
    put = store.put
    failed: list[str] = []

    def put_and_fail(key: str, value: Any, **options: bool) -> None:
        put(key, value, **options)
        if isinstance(value, dict) and value.get("state") == "running" and not failed:
            failed.append(key)
            raise StoreError(FULL)  # of the index of keys, for example

    monkeypatch.setattr(store, "put", put_and_fail)
    assert run(store, monkeypatch, SummaryResult()).state == "done"
    assert failed


def test_locks_of_killed_processes_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    left = [store.place("locks", f"cells-{i}.lock") for i in range(3)]
    for path in left:
        path.touch()
    with StoreLock(left[0]):  # of a process that lives
        tidy(store)
        assert [path.exists() for path in left] == [True, False, False]
    tidy(store)
    assert not any(path.exists() for path in left)
