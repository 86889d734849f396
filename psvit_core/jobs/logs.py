"""What the worker's log says of one job; no torch."""

from __future__ import annotations

from pathlib import Path

from psvit_core.files import lines_between
from psvit_core.jobs import workers
from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store

WORKER_BEGINS = "worker begins:"  # in the line that a new worker process writes first
_LONGEST_LINE = 65_536  # bytes read at once


def job_log(store: Store, job: Job, n_lines: int) -> list[str]:
    """Return the last lines of the worker's log from a job's last run.

    Short jobs that ran between its batches are in it, too. Of an interrupted job the log ends where
    the next worker process began, so that the last lines are what its own one left.

    Args:
        store: The store of the job.
        job: The job.
        n_lines: Number of lines at most.

    Returns:
        The lines as they are in the file, but without characters that a terminal would obey. Empty
        if the job has not begun, was run by a version that did not note this, or the log is gone.
    """
    path = workers.log_path(store, job.device)
    if job.log_from is None or not path.is_file():
        return []
    end = job.log_to
    if end is None and not job.active:
        end = _next_worker(path, job.log_from)
    return [printable(line) for line in lines_between(path, job.log_from, end, n_lines)]


def _next_worker(path: Path, start: int) -> int | None:
    """Return where in a log the next worker process after a position began; None without one."""
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline(_LONGEST_LINE):
            if WORKER_BEGINS.encode() in line:
                return file.tell() - len(line)
    return None


def printable(line: str) -> str:
    """Return a line with control characters written out, as a terminal would obey them."""
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
