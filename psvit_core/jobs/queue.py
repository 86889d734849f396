"""The order of waiting jobs, and the bell that tells a worker to look at once; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from psvit_core.jobs import client, workers
from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store

_LAST = 2  # of a long job; measurements have 0, other short jobs 1
_NOBODY: Mapping[str, float] = {}


def priority(task: str) -> int:
    """Return a task's priority, lowest first: a job runs between two batches of a higher one."""
    if task == "measure":
        return 0  # someone looks at the screen and waits for the figure
    return 1 if task in client.SHORT else _LAST


def waiting(
    store: Store, device: str, served: Mapping[str, float] = _NOBODY, below: int = _LAST + 1
) -> list[Job]:
    """Return the jobs that wait for a device, in the order in which they run.

    Among jobs of equal priority, that of the owner who was served least recently comes first. An
    owner who replaces a waiting measurement again and again therefore keeps nobody waiting.

    Args:
        store: The store of the jobs.
        device: The device.
        served: When a job of each owner last began.
        below: Only jobs of a lower priority number.
    """
    jobs = (j for j in client.list_jobs(store) if j.state == "queued" and j.device == device)
    known = (job for job in jobs if job.task in client.KINDS)  # a newer version has written others
    return sorted(
        (job for job in known if priority(job.task) < below),
        key=lambda j: (priority(j.task), served.get(j.owner, 0.0), j.created, j.id),
    )


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
