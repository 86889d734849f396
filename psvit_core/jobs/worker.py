"""The detached worker: ``python -m psvit_core.jobs.worker STORE DEVICE``.

It runs queued jobs one after another. Between two batches of a job it runs those of a higher
priority: measurements first, then other short jobs. When it has no work, it waits for a while with
the model loaded. A file lock allows one worker per device
and store.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext

from psvit_core.errors import CancelledError, PsvitError, StoreError
from psvit_core.jobs import client, devices, logs, servers, workers
from psvit_core.jobs.client import Job
from psvit_core.jobs.queue import Bell, priority, take_over, waiting
from psvit_core.jobs.run import JobRun
from psvit_core.jobs.warming import request_warm_up, take_warm_up
from psvit_core.jobs.workers import note_worker
from psvit_core.records import Subject
from psvit_core.storage.leftovers import tidy
from psvit_core.storage.processes import process_started
from psvit_core.storage.store import Store, digest
from psvit_core.tasks.fingerprints import CodeStamp, code_stamp, data_stamp, model_stamp
from psvit_core.tasks.session import Session, warm_up

log = logging.getLogger("psvit.worker")

IDLE_SECONDS = 900.0  # a worker without work ends after this time
_SERVER_SECONDS = 2.0  # an idle worker looks this often whether the app still runs
_LOOK_SECONDS = 0.2  # between two looks into the store for jobs, unless the bell rings
_BELL_SECONDS = 0.01  # between two looks at the bell
_LOCK_SECONDS = 2.0  # a client that checks for a worker holds the lock for a moment
_CHECK_SECONDS = 0.2  # the same while a job runs, between two of its batches
_FAULT_SECONDS = 1.0  # between two attempts to write to a store that cannot be written
_MAX_SESSIONS = 3  # loaded models with their images
_NICE = 10  # the browser and the app have priority


class OutdatedError(Exception):
    """The code on disk has changed since this process loaded it."""


def main(arguments: list[str]) -> None:
    """Work until there was no job for ``IDLE_SECONDS``, or until the app has ended.

    If the code on disk has changed, the process restarts itself before the next job, because that
    job was written by the new code.

    Args:
        arguments: Folder of the store, device and optionally a subject as JSON to warm up for.
    """
    folder, device, *warm = arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.nice(max(0, _NICE - os.nice(0)))  # not again after a restart
    store, code = Store(folder), code_stamp()
    while True:
        with workers.worker_lock(store, device, timeout=_LOCK_SECONDS) as free:
            if not free:
                return
            until_saved(lambda: note_worker(store, device))
            log.info("%s %d on %s", logs.WORKER_BEGINS, os.getpid(), device)
            tidy(store)
            from psvit_core.runtime import use_default_threads

            use_default_threads()
            worker = Worker(store, device, code)
            worker.work(Subject.from_dict(json.loads(warm[0])) if warm else None)
        if worker.outdated() and waiting(store, device):
            log.info("the code has changed: restarting")
            command = [sys.executable, "-m", "psvit_core.jobs.worker", *arguments]
            os.execv(sys.executable, command)
        # A job may have arrived after the last check and before the lock was released.
        if not waiting(store, device):
            return


def until_saved(save: Callable[[], object]) -> None:
    """Save the state of a job or worker, again and again while the disk is full.

    Raises:
        StoreError: If it is not possible for as long as a worker waits for work.
    """
    begin, said = time.monotonic(), ""
    while True:
        try:
            save()
            return
        except StoreError as error:
            if time.monotonic() - begin > IDLE_SECONDS:
                raise
            if str(error) != said:
                said = str(error)
                log.error("cannot save, trying again: %s", said)
        time.sleep(_FAULT_SECONDS)


def _failed(job: Job, error: str, exit_code: int = 1) -> Job:
    """Return a job that has failed."""
    return dataclasses.replace(job, state="failed", error=error, exit_code=exit_code)


class Worker:
    """One process's work on one device.

    Args:
        store: The store of jobs and results.
        device: The device whose jobs it runs.
        code: Stamp of the code that this process runs; of the code on disk when None.
    """

    def __init__(self, store: Store, device: str, code: CodeStamp | None = None) -> None:
        self.store = store
        self.device = device
        self._code = code or code_stamp()
        self._sessions: dict[str, tuple[list[float], Session]] = {}  # most recently used last
        self._checked = 0.0
        self._app_looked = -math.inf
        self._app_ran = False  # whether the app was seen running
        self._bell = Bell(store, device)
        self._served: dict[str, float] = {}  # when a job of each owner last began
        self._said = ""  # why a job could not begin

    def outdated(self) -> bool:
        """Return whether the code on disk has changed since this process loaded it."""
        return code_stamp() != self._code

    def work(self, warm: Subject | None = None) -> None:
        """Run jobs until idle for ``IDLE_SECONDS`` or, if the app ran, until it has ended.

        Returns also if a job waits and the code has changed.

        Args:
            warm: Subject to warm up for while no job waits.
        """
        last, looked = time.monotonic(), -math.inf
        if warm:
            request_warm_up(self.store, warm, self.device)
        steps: Iterator[str] = iter(())
        while time.monotonic() - last < IDLE_SECONDS:
            if not self._bell.has_rung() and time.monotonic() - looked < _LOOK_SECONDS:
                if self._warm_up_step(steps):
                    looked = -math.inf  # a step takes long: a job may have come meanwhile
                else:
                    time.sleep(_BELL_SECONDS)
                continue
            looked = time.monotonic()
            jobs = waiting(self.store, self.device, self._served)[:1]
            if not jobs and (taken := self._take_over()):
                jobs = [taken]
            for job in jobs:
                if self.outdated():
                    return
                # The app may be killed during the job, and must then have been seen before.
                self._app_ran = self._app_ran or servers.server_lives(self.store)
                self.run_job(job)
                last, looked = time.monotonic(), -math.inf  # look for the next one at once
            if not jobs and self._left_alone():
                log.info("the app has ended")
                return
            if not jobs and (wanted := take_warm_up(self.store, self.device)):
                steps = self._warm_up(wanted)

    def _take_over(self) -> Job | None:
        """Take a job that waits for another device; None without one, or on a full disk."""
        with self.store.optional():
            return take_over(self.store, self.device)
        return None

    def _left_alone(self) -> bool:
        """Return whether the app ran while this process worked, and has ended."""
        now = time.monotonic()
        if now - self._app_looked < _SERVER_SECONDS:
            return False
        self._app_looked = now
        lives = servers.server_lives(self.store)
        ended = self._app_ran and not lives
        self._app_ran = lives
        return ended

    def _warm_up(self, subject: Subject) -> Iterator[str]:
        yield from warm_up(self.session(subject))

    def _warm_up_step(self, steps: Iterator[str]) -> bool:
        """Take the next step of warming up; return whether there was one."""
        try:
            step = next(steps, None)
        except PsvitError as error:  # a job on this model will report it
            log.warning("cannot warm up: %s", error)
            return False
        if step:
            log.info("warm-up: %s", step)
        return step is not None

    def run_job(self, job: Job) -> None:
        """Run one job and store its result or error; nothing if it was dropped meanwhile."""
        begun = self._begin(job)
        if begun is None:
            return
        job = begun
        run = JobRun(self.store, job, self.session, self.check)
        log.info("%s %s: start", job.id, job.title)
        try:
            with self.store.using():
                result = run.run()
            ended = dataclasses.replace(run.job, state="done", result=result.to_dict(), exit_code=0)
        except OutdatedError:  # queued again for the new code
            again = dataclasses.replace(run.job, state="queued", partial=None)
            until_saved(lambda: client.save(self.store, again))
            return
        except CancelledError as error:
            ended = dataclasses.replace(run.job, state="cancelled", exit_code=error.exit_code)
        except PsvitError as error:
            ended = _failed(run.job, str(error), error.exit_code)
        except Exception as error:  # a bug or lack of memory must not end the worker
            log.error("%s", traceback.format_exc())
            ended = _failed(run.job, f"{type(error).__name__}: {error}. See the job's log.")
        log.info("%s %s: %s %s", job.id, job.title, ended.state, ended.error)
        size = workers.log_size(self.store, self.device)
        ended = dataclasses.replace(ended, ended=time.time(), log_to=size)
        until_saved(lambda: client.save_ended(self.store, ended))

    def _begin(self, job: Job) -> Job | None:
        """Store a job as running; None if it was dropped meanwhile, or cannot be stored."""
        begun = job
        try:
            with workers.taking_jobs(self.store) if job.devices else nullcontext():
                if not client.waits_for(self.store, job):
                    return None
                self._served[job.owner] = time.monotonic()  # which nobody sets back
                begun = dataclasses.replace(
                    job,
                    state="running",
                    started=time.time(),
                    pid=os.getpid(),
                    pid_started=process_started(os.getpid()),
                    fresh=0,
                    paced=None,
                    log_from=workers.log_size(self.store, self.device),
                    log_to=None,
                )
                return client.save(self.store, begun)
        except StoreError as error:  # a full disk, for example; the job still waits
            if self._is_stored(begun):
                return begun
            text = f"{job.id} {job.title}: {error}"
        if text != self._said:
            self._said = text
            log.error("%s", text)
        time.sleep(_FAULT_SECONDS)
        return None

    def _is_stored(self, job: Job) -> bool:
        """Return whether a running job is stored, though an error came after its row was written.

        Otherwise it would be running for everyone, and nobody would run it.
        """
        try:
            stored = client.find_job(self.store, job.id)
        except PsvitError:  # it cannot be read either
            return False
        return (stored.state, stored.started) == ("running", job.started)

    def session(self, subject: Subject) -> Session:
        """Return the session of a subject; the most recent ones stay loaded.

        A session is reloaded if its checkpoint or images have changed on disk. Subjects that differ
        in their recovery share the model and the images.
        """
        return self._loaded(subject).with_recovery(subject.recovery)

    def _loaded(self, subject: Subject) -> Session:
        """Return the session of a subject without recovery."""
        device = devices.placed(subject.device)
        subject = dataclasses.replace(subject, recovery="none", device=device)
        key = digest(subject.to_dict())
        stamp = [*model_stamp(subject), *data_stamp(subject.data)]
        known = self._sessions.pop(key, None)
        if known is None or known[0] != stamp:
            while len(self._sessions) >= _MAX_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            known = (stamp, Session(subject, self.store))
        self._sessions[key] = known
        return known[1]

    def check(self, job: Job) -> None:
        """Stop a job that was cancelled, and run those that go first; called between batches.

        Raises:
            CancelledError: If the job is cancelled or superseded.
            OutdatedError: If a job that goes first waits for new code.
        """
        now = time.monotonic()
        if not self._bell.has_rung() and now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        if client.cancel_requested(self.store, job.id):
            raise CancelledError(f"{job.title} was cancelled.")
        own = priority(job.task)
        # Looked up anew after each one: it may have been superseded, or another has come.
        while own and (first := waiting(self.store, self.device, self._served, own)):
            if self.outdated():
                raise OutdatedError("The code has changed; the job continues with the new code.")
            self.run_job(first[0])


if __name__ == "__main__":
    main(sys.argv[1:])
