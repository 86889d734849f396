"""Follow background jobs in a terminal, in a log file, or as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from psvit_core.cli.output import duration_text
from psvit_core.errors import CancelledError, JobError, StoreError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.logs import printable
from psvit_core.jobs.words import how_far, rate_text
from psvit_core.storage.store import Store

_LOOK_SECONDS = 0.5  # between two looks at the jobs
_LINE_SECONDS = 10.0  # between two lines of progress, where there is no terminal
_JSON_SECONDS = 1.0  # the same as JSON
_WORKER_SECONDS = 5.0  # between two looks for jobs that wait without a worker
_BAR = 20  # characters
_CLEAR = "\r\x1b[K"
_EXIT = {"done": 0, "cancelled": CancelledError.exit_code}  # of jobs that have stored none


class Watch:
    """Tells of jobs until all have ended.

    With a terminal, one line is redrawn in place; without, a line is written for every change of
    state and every few seconds of progress; as JSON, one object a line on stdout.

    Args:
        store: The store of the jobs.
        ids: The jobs.
        as_json: Whether to write JSON.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        store: Store,
        ids: list[str],
        *,
        as_json: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._ids = ids
        self._json = as_json
        self._sleep = sleep
        self._told: dict[str, tuple[str, int, str]] = {}  # of each job: what was last written
        self._when: dict[str, float] = {}  # and when
        self._drawn = False  # whether the terminal's last line is to be overwritten
        self.exit_status = 0

    def follow(self) -> list[Job]:
        """Follow the jobs until all have ended; return them as they ended.

        Raises:
            CancelledError: If the user ends the watching. The jobs go on.
        """
        ended: dict[str, Job] = {}
        looked = -_WORKER_SECONDS
        try:
            while len(ended) < len(self._ids):
                if time.monotonic() - looked >= _WORKER_SECONDS:
                    looked = time.monotonic()
                    with suppress(StoreError, JobError):  # a full disk, no memory: jobs wait
                        client.reconcile(self._store)
                jobs = [self._find(job_id) for job_id in self._ids if job_id not in ended]
                for job in jobs:
                    self._tell(job)
                    if not job.active:
                        ended[job.id] = job
                self._draw([job for job in jobs if job.active])
                if len(ended) < len(self._ids):
                    self._sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            self._wipe()
            raise CancelledError("No longer watching. The jobs go on.") from None
        self._wipe()
        found = [ended[job_id] for job_id in self._ids]
        self.exit_status = max(map(exit_status, found), key=_severity, default=0)
        return found

    def _find(self, job_id: str) -> Job:
        try:
            return client.find_job(self._store, job_id)
        except JobError:  # a newer measurement of the same tab has taken its place
            gone = "It was removed from the queue: a newer request has taken its place."
            return Job(id=job_id, task="", title="", params={}, state="cancelled", error=gone)

    # ---- output ------------------------------------------------------------------------------

    def _tell(self, job: Job) -> None:
        """Write a line about a job if there is news."""
        now, told = time.monotonic(), self._told.get(job.id)
        if not job.active and len(self._ids) == 1:
            return  # the command prints it last
        between = _JSON_SECONDS if self._json else _LINE_SECONDS
        news = (job.state, job.done, job.what)
        same_state = told is not None and told[0] == job.state
        if told == news or (same_state and now - self._when[job.id] < between):
            return
        if same_state and not self._json and sys.stderr.isatty():
            return  # the line that is redrawn shows the progress
        self._told[job.id], self._when[job.id] = news, now
        if self._json:
            print(json.dumps(event(job)), flush=True)
            return
        self._wipe()
        print(f"{time.strftime('%H:%M:%S')}  {progress_line(job)}", file=sys.stderr, flush=True)

    def _draw(self, active: list[Job]) -> None:
        """Redraw the terminal's last line."""
        if self._json or not active or not sys.stderr.isatty():
            return
        running = [job for job in active if job.state == "running"]
        # The long job that runs, not the short one between two of its batches.
        job = min(running or active, key=lambda job: job.started or job.created)
        rest = f"  ({len(active) - 1} more)" if len(active) > 1 else ""
        columns = shutil.get_terminal_size().columns - 1
        line = f"{_bar(job)}{progress_line(job)}{rest}"[:columns]
        print(f"{_CLEAR}{line}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def _wipe(self) -> None:
        if self._drawn:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
            self._drawn = False


def progress_line(job: Job) -> str:
    """Describe where a job is, in one line: state, progress, rate, remaining time."""
    left = job.seconds_left()
    parts = [
        how_far(job) if job.state == "running" else job.state,
        f"{job.done:,}/{job.total:,} {job.what}".strip() if job.total else job.what,
        rate_text(job),
        f"about {duration_text(left)} left" if left is not None else "",
    ]
    text = ", ".join(filter(None, parts)) or job.state
    return printable(f"{job.id}  {text}  {job.title}".replace("\N{NO-BREAK SPACE}", " "))


def event(job: Job) -> dict[str, object]:
    """Return what a line of JSON says of a job; its result is in ``psvit jobs list``."""
    known = ("id", "task", "title", "state", "device", "done", "total", "what", "error")
    found = {name: getattr(job, name) for name in known}
    partial = dataclasses.asdict(job.partial) if job.partial else None
    code = None if job.active else exit_status(job)
    return found | {
        "rate": job.rate(),
        "seconds_left": job.seconds_left(),
        "partial": partial,
        "exit_code": code,
    }


def exit_status(job: Job) -> int:
    """Return the exit status of an ended job, as if the command line had run it."""
    return _EXIT.get(job.state, 1) if job.exit_code is None else job.exit_code


def _severity(status: int) -> tuple[bool, bool, int]:
    """Order exit statuses: success, cancelled, then failures."""
    return status != 0, status != CancelledError.exit_code, status


def _bar(job: Job) -> str:
    if not job.total:
        return ""
    full = int(_BAR * min(job.done / job.total, 1.0))
    return f"[{'#' * full}{'.' * (_BAR - full)}] "
