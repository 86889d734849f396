"""The order of waiting jobs, and the bell that tells a worker to look at once; no torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from psvit_core.errors import JobError
from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store

_LAST = 2  # of a long job; measurements have 0, other short jobs 1
_NOBODY: Mapping[str, float] = {}
_PLACES = client.place_key("")
_TAKE_SECONDS = 1.0  # in which a job is left to the device that it waits for


def priority(task: str) -> int:
    """Return a task's priority, lowest first: a job runs between two batches of a higher one."""
    if task == "measure":
        return 0  # someone looks at the screen and waits for the figure
    return 1 if task in client.SHORT else _LAST


def in_order(store: Store, jobs: Iterable[Job], served: Mapping[str, float] = _NOBODY) -> list[Job]:
    """Return waiting jobs in the order in which they run.

    Among jobs of equal priority, that of the owner who was served least recently comes first. An
    owner who replaces a waiting measurement again and again therefore keeps nobody waiting. Then
    comes the place that a user has chosen (``move``), and else the time of the request.

    Args:
        store: The store of the jobs.
        jobs: The waiting jobs.
        served: When a job of each owner last began.
    """
    places = store.read(_PLACES, _read_place)

    def rank(job: Job) -> tuple[int, float, float, str]:
        place = places.get(client.place_key(job.id), job.created)
        return priority(job.task), served.get(job.owner, 0.0), place, job.id

    return sorted(jobs, key=rank)


def _read_place(key: str, place: Any) -> float:
    return float(place)


def waiting(
    store: Store, device: str, served: Mapping[str, float] = _NOBODY, below: int = _LAST + 1
) -> list[Job]:
    """Return the jobs that wait for a device, in the order in which they run (``in_order``).

    Args:
        store: The store of the jobs.
        device: The device.
        served: When a job of each owner last began.
        below: Only jobs of a lower priority number.
    """
    jobs = (job for job in _queued(store) if job.device == device)
    return in_order(store, (job for job in jobs if priority(job.task) < below), served)


def _queued(store: Store) -> list[Job]:
    """Return the waiting jobs of all devices; a newer version may have written unknown tasks."""
    jobs = client.list_jobs(store)
    return [job for job in jobs if job.state == "queued" and job.task in client.KINDS]


def rivals(store: Store, job: Job) -> list[Job]:
    """Return the waiting jobs among which a job can be moved, in order, with the job itself.

    These are jobs of its priority on its device.
    """
    own = priority(job.task)
    return [other for other in waiting(store, job.device) if priority(other.task) == own]


def move(store: Store, job_id: str, before: str | None = None) -> list[Job]:
    """Move a waiting job forward or back in the queue of its device.

    Args:
        store: The store of the jobs.
        job_id: The job.
        before: The waiting job that it shall run before; None: all others of its priority.

    Returns:
        The waiting jobs of this device, in the new order.

    Raises:
        JobError: If there is no such job, if one of them does not wait, waits for another device,
            or has another priority: short jobs always run before long ones.
    """
    job = _waiting_job(store, job_id)
    others = [other for other in rivals(store, job) if other.id != job_id]
    at = 0
    if before is not None:
        target = _waiting_job(store, before)
        if target.id == job_id:
            raise JobError(f"Job {job_id} cannot be moved before itself. Name another one.")
        if target.device != job.device:
            raise JobError(
                f"Job {job_id} waits for {job.device}, and {before} for {target.device}. Each "
                "device has a queue of its own: name a job of the same one."
            )
        at = next((n for n, other in enumerate(others) if other.id == target.id), -1)
        if at < 0:
            raise JobError(
                f"Job {job_id} ({job.task}) cannot be moved before {before} ({target.task}): "
                "measurements run before other short jobs, and those before long ones. Name a job "
                "of the same sort."
            )
    # All of them get places anew, so that none lies between two equal numbers, and before the
    # times of requests, so that jobs without a place come after them.
    order = [*others[:at], job, *others[at:]]
    first = min(other.created for other in order) - 1e-3 * len(order)
    for n, other in enumerate(order):
        store.put(client.place_key(other.id), first + 1e-3 * n)
    workers.ring(store, job.device)
    return waiting(store, job.device)


def _waiting_job(store: Store, job_id: str) -> Job:
    job = client.find_job(store, job_id)
    if job.state != "queued" or job.misfit:
        state = job.state if not job.misfit else "of another version"
        raise JobError(
            f"Job {job_id} is {state}. Only jobs that wait can be moved: psvit jobs list shows "
            "which ones do."
        )
    return job


def take_over(store: Store, device: str) -> Job | None:
    """Let a device without jobs have one that waits for another device; None if there is none.

    The job is then stored as waiting for this device.
    """
    now = time.time()
    possible = [
        job
        for job in _queued(store)
        if device in job.devices
        and job.device != device
        and not 0 <= now - job.created <= _TAKE_SECONDS  # below 0: the clock was set back
    ]
    for job in in_order(store, possible):
        with workers.taking_jobs(store):
            if client.waits_for(store, job):
                return client.save(store, dataclasses.replace(job, device=device))
    return None


class Bell:
    """Tells whether anybody has rung for a device (``client.ring``) since the last look.

    Looking costs microseconds, so a worker can look a hundred times a second. Two rings within one
    tick of the file system's clock may count as one: the worker looks into the store now and then
    in any case.

    Args:
        store: The store of the jobs.
        device: The device.
    """

    def __init__(self, store: Store, device: str) -> None:
        self._path: Path = workers.bell_path(store, device)
        self._heard = self._rung()

    def _rung(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0

    def has_rung(self) -> bool:
        """Return whether it has rung since the last call."""
        now = self._rung()
        heard, self._heard = self._heard, now
        return now != heard
