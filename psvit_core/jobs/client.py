"""Starting, watching, cancelling and resuming background work; no torch.

A job is a record in the store. One worker process per device takes jobs from there; it is detached,
so it outlives page reloads, closed tabs and a killed server. Whether a job runs is computed when it
is read: "running" with no such process any more means interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psutil
from filelock import FileLock, Timeout

from psvit_core.errors import JobError, RecordError
from psvit_core.records import Partial, Record
from psvit_core.store import Store

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

#: Short jobs that a running sweep lets in between two batches.
SHORT = ("measure", "export", "summary", "inspect", "check_data")
KINDS = (*SHORT, "sweep", "plan", "pareto", "finetune")
ACTIVE = ("queued", "running")
_PREFIX = "job/"


@dataclass(frozen=True, kw_only=True)
class Job(Record):
    """One piece of background work."""

    document: ClassVar[str] = "job"

    id: str
    task: str  # one of KINDS
    title: str
    params: dict[str, Any]
    device: str = "cpu"
    state: str = "queued"  # queued, running, done, failed, cancelled, interrupted
    created: float = 0.0  # seconds since the epoch
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    pid_started: float | None = None  # start of that process, guards against a reused pid
    done: int = 0
    total: int = 0  # 0: not known
    what: str = ""  # what was done last
    fresh: int = 0  # done in this run, not found in the store: what a time estimate goes by
    paced: float | None = None  # when the first of them was done: start-up is no pace
    partial: Partial | None = None  # what a measurement says so far
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    def seconds_left(self, now: float | None = None) -> float | None:
        """Estimate from the pace so far; None where there is none yet."""
        if self.state != "running" or self.paced is None or self.fresh < 2 or not self.total:
            return None
        pace = ((now or time.time()) - self.paced) / (self.fresh - 1)
        return pace * (self.total - self.done)


def process_started(pid: int) -> float | None:
    """When a live process was started (seconds since the epoch), or None."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _alive(job: Job) -> bool:
    started = process_started(job.pid) if job.pid is not None else None
    return (
        started is not None
        and job.pid_started is not None
        and (abs(started - job.pid_started) < 1.0)
    )


def save(store: Store, job: Job) -> Job:
    """Keep a job's state."""
    store.put(_PREFIX + job.id, job.to_dict())
    return job


def find_job(store: Store, job_id: str) -> Job:
    """A job as it is now.

    Raises:
        JobError: If there is none of that id.
    """
    data = store.get(_PREFIX + job_id)
    if data is None:
        raise JobError(f"There is no job {job_id!r} in {store.folder}.")
    job = Job.from_dict(data)
    if job.state == "running" and not _alive(job):
        # Read again: it may have ended properly between the two looks.
        job = Job.from_dict(store.get(_PREFIX + job_id))
        if job.state == "running":
            return dataclasses.replace(job, state="interrupted")
    return job


def list_jobs(store: Store) -> list[Job]:
    """All jobs that this version can read, newest first; others are named once in the log.

    They are shared between calls: their params and results may not be changed.
    """
    read = store.read(_PREFIX, _read_job).values()
    jobs = [
        find_job(store, job.id) if job.state == "running" and not _alive(job) else job
        for job in read
        if job is not None
    ]
    return sorted(jobs, key=lambda job: job.created, reverse=True)


def _read_job(key: str, data: Any) -> Job | None:
    try:
        return Job.from_dict(data)
    except RecordError as error:
        log.warning("%s is left out, since another version wrote it: %s", key, error)
        return None


def results(store: Store, name: str, kind: type[R]) -> dict[str, R]:
    """A record in the results of finished jobs, by job id, where this version can read it.

    Args:
        store: Where.
        name: Which result.
        kind: What record it is.
    """
    found = store.read(_PREFIX, _result_reader(name, kind))  # type: ignore[arg-type]  # hashable
    return {key.removeprefix(_PREFIX): one for key, one in found.items() if one is not None}


@functools.cache  # the store keeps what it read under the function that read it
def _result_reader(name: str, kind: type[R]) -> Callable[[str, Any], R | None]:
    def read(key: str, data: Any) -> R | None:
        if data.get("state") != "done" or name not in data.get("result", {}):
            return None
        try:
            return kind.from_dict(data["result"][name])
        except RecordError:
            return None

    return read


def submit(
    store: Store, task: str, title: str, params: Mapping[str, Any], device: str = "cpu"
) -> Job:
    """Queue work and make sure that a worker is there; an equal active job is returned instead."""
    for job in list_jobs(store):
        if job.active and (job.task, job.params, job.device) == (task, dict(params), device):
            return job
    job = Job(
        id=uuid.uuid4().hex[:12], task=task, title=title, params=dict(params), device=device,
        created=time.time(),
    )  # fmt: skip
    save(store, job)
    ensure_worker(store, device)
    return job


def cancel(store: Store, job_id: str) -> Job:
    """Ask a job to stop; what it finished is kept. A waiting one is cancelled at once."""
    store.put(_cancel_key(job_id), True)
    job = find_job(store, job_id)
    if job.state in ("queued", "interrupted"):
        job = save(store, dataclasses.replace(job, state="cancelled", ended=time.time()))
    return job


def stop(store: Store, job_id: str) -> Job:
    """Ask a fine-tuning to end after the step that runs and to write its best; else as ``cancel``.

    A job that does not run has nothing to write: it is cancelled.
    """
    job = find_job(store, job_id)
    if job.task != "finetune" or job.state != "running":
        return cancel(store, job_id)
    store.put(_stop_key(job_id), True)
    return job


def resume(store: Store, job_id: str) -> Job:
    """Queue a job again that was cancelled, failed or interrupted; it goes on where it stopped."""
    job = find_job(store, job_id)
    if job.active or job.state == "done":
        return job
    store.delete(_cancel_key(job_id))
    store.delete(_stop_key(job_id))
    again = dataclasses.replace(
        job,
        state="queued",
        started=None,
        ended=None,
        pid=None,
        pid_started=None,
        error="",
        fresh=0,
        paced=None,
        partial=None,
    )
    save(store, again)
    ensure_worker(store, job.device)
    return again


def cancel_asked(store: Store, job_id: str) -> bool:
    """Whether someone asked this job to stop."""
    return bool(store.get(_cancel_key(job_id)))


def stop_asked(store: Store, job_id: str) -> bool:
    """Whether someone asked this fine-tuning to end with what it has."""
    return bool(store.get(_stop_key(job_id)))


def _stop_key(job_id: str) -> str:
    return f"stop/{job_id}"


def _cancel_key(job_id: str) -> str:
    return f"cancel/{job_id}"


def log_path(store: Store, device: str) -> Path:
    """The worker's log file."""
    return store.place("logs", f"worker-{_file_name(device)}.log")


def _file_name(device: str) -> str:
    return device.replace(":", "-").replace("/", "-")


@contextmanager
def worker_lock(store: Store, device: str, timeout: float = 0) -> Iterator[bool]:
    """Hold the device's worker lock while the block runs; yields whether it was free.

    The system frees the lock when its process ends, however it ends.
    """
    lock = FileLock(store.place("locks", f"worker-{_file_name(device)}.lock"))
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def ensure_worker(store: Store, device: str = "cpu", warm: Mapping[str, Any] | None = None) -> None:
    """Start the device's worker unless one is there. Starting one too many is harmless.

    Args:
        store: Where its jobs are.
        device: Where it runs them.
        warm: A ``Subject`` as data, which it loads and compiles for while no job waits.
    """
    with worker_lock(store, device) as free:
        if not free:
            return
    command = [sys.executable, "-m", "psvit_core.jobs.worker", str(store.folder), device]
    command += [json.dumps(dict(warm))] if warm is not None else []
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with log_path(store, device).open("ab") as log:
        subprocess.Popen(
            command,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
        )


def reconcile(store: Store) -> None:
    """Start workers for jobs that wait without one, as after a crash."""
    for device in {job.device for job in list_jobs(store) if job.state == "queued"}:
        ensure_worker(store, device)
