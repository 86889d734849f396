"""Start, follow, cancel and resume background work; no torch.

A job is a record in the store. One worker process per device takes jobs from there. It is detached,
so it survives page reloads, closed tabs and a killed server. A job that is stored as running while
its process no longer exists is read as interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from psvit_core.errors import JobError, RecordError
from psvit_core.files import made_by, program_version
from psvit_core.jobs.devices import choose_device, idle_devices
from psvit_core.jobs.engines import fixed_engine
from psvit_core.jobs.workers import ensure_worker, ring
from psvit_core.records import Measurement, Partial, PrunePlan, Record, Subject
from psvit_core.records.jobs import TASKS, FileStamps, JobRequest, JobResult, WrittenModel
from psvit_core.storage.faults import StoreLock
from psvit_core.storage.processes import is_same_process
from psvit_core.storage.store import Store
from psvit_core.tasks.fingerprints import data_stamp, model_stamp

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

#: Tasks that run between two batches of a long job.
SHORT = (
    *("measure", "export", "quantize", "graph", "report", "fits"),
    *("summary", "inspect", "check_data"),
)
KINDS = (*SHORT, "sweep", "plan", "pareto", "finetune", "latency")
ACTIVE = ("queued", "running")
PREFIX = "job/"  # of the keys
_PATIENCE = 5.0  # seconds in which a killed process ends
#: Why a job was interrupted, and what to do.
GONE = (
    "Its worker process ended: it was killed, or the machine shut down or ran out of memory. "
    "Finished results are stored; resuming continues from there."
)
SUPERSEDED = "superseded"  # value of a cancel request that a newer job has made


@dataclass(frozen=True, kw_only=True)
class Job(Record):
    """One piece of background work.

    ``params`` and ``result`` are stored as JSON; read them through the typed properties.
    """

    document: ClassVar[str] = "job"

    id: str
    task: str  # one of KINDS
    title: str
    params: dict[str, Any]  # the subject, stamps and request
    device: str = "cpu"  # whose worker runs it
    devices: tuple[str, ...] = ()  # that may run it, if there are several (``devices``)
    state: str = "queued"  # queued, running, done, failed, cancelled, interrupted
    created: float = 0.0  # seconds since the epoch
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    pid_started: float | None = None  # start time of that process: another process may get its pid
    done: int = 0
    total: int = 0  # 0: unknown
    what: str = ""  # description of the last step
    fresh: int = 0  # steps computed in this run, not read from the store; for time estimates
    paced: float | None = None  # time of the first of them, which excludes starting up
    partial: Partial | None = None  # estimates of a running measurement
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)  # the outcome
    owner: str = ""  # whose newest plan it measures; empty: a job that nothing supersedes
    program: str = ""  # version of the program that asked for it; empty: 0.2.0 or older
    log_from: int | None = None  # bytes of the worker's log before it began, and when it ended
    log_to: int | None = None
    exit_code: int | None = None  # of an ended job, as the command line would have it
    #: PSVIT_ENGINE and PSVIT_RAY_* of the process that submitted or resumed it; empty: the stored
    #: choice decides (``engines``).
    engine: dict[str, str] = field(default_factory=dict)

    @cached_property
    def subject(self) -> Subject | None:
        """The subject; None if another version wrote it."""
        return _readable(Subject, self.params.get("subject"))

    @cached_property
    def stamps(self) -> FileStamps | None:
        """Stamps of the subject's files at submission; None for jobs of old versions."""
        return _readable(FileStamps, self.params.get("stamps"))

    @cached_property
    def request(self) -> JobRequest | None:
        """The typed request; None if another version wrote it."""
        try:
            return self.read_request()
        except RecordError:
            return None

    def read_request(self) -> JobRequest:
        """Return the typed request.

        Raises:
            RecordError: If another version wrote it.
        """
        if self.task not in TASKS:
            raise RecordError(f"Unknown task {self.task!r}. Known: {', '.join(TASKS)}.")
        own = {k: v for k, v in self.params.items() if k not in ("subject", "stamps")}
        return TASKS[self.task][0].from_dict(own)

    @cached_property
    def outcome(self) -> JobResult | None:
        """The typed result so far; None for unknown tasks.

        Fields that another version wrote have their defaults.
        """
        return TASKS[self.task][1].read(self.result) if self.task in TASKS else None

    @property
    def plan(self) -> PrunePlan | None:
        """The plan that the request names; None without one."""
        return getattr(self.request, "plan", None)

    @property
    def measurement(self) -> Measurement | None:
        """The measurement that a finished measuring or planning made; None without one."""
        return getattr(self.outcome, "measurement", None) if self.state == "done" else None

    @property
    def written(self) -> WrittenModel | None:
        """The file that a finished export or fine-tuning wrote; None for other jobs."""
        found = self.outcome if self.state == "done" else None
        return found if isinstance(found, WrittenModel) and found.path else None

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in ACTIVE

    def rate(self, now: float | None = None) -> float | None:
        """Return the steps per second of this run so far; None while there is no pace."""
        if self.state != "running" or self.paced is None or self.fresh < 2:
            return None
        seconds = (now or time.time()) - self.paced
        return (self.fresh - 1) / seconds if seconds > 0 else None

    def seconds_left(self, now: float | None = None) -> float | None:
        """Estimate the remaining seconds from the pace so far; None while there is no pace."""
        rate = self.rate(now) if self.total else None
        return max(self.total - self.done, 0) / rate if rate else None

    @cached_property
    def misfit(self) -> str:
        """Why this version of the program cannot run it; empty if it can."""
        try:
            self.read_request()
        except RecordError as error:
            return str(error)
        return "" if self.subject else "Its model and images were described in another way."


def _readable(kind: type[R], data: object) -> R | None:
    """Return ``data`` as a record; None if it is missing or another version wrote it."""
    try:
        return kind.from_dict(data)
    except RecordError:
        return None


def _alive(job: Job) -> bool:
    return job.pid is not None and is_same_process(job.pid, job.pid_started)


def save(store: Store, job: Job) -> Job:
    """Store a job's state; how far a running one is may be lost in a power cut."""
    store.put(PREFIX + job.id, job.to_dict(), durable=job.state != "running")
    return job


def find_job(store: Store, job_id: str) -> Job:
    """Return a job in its current state.

    Raises:
        JobError: If there is no job with this id.
    """
    data = store.get(PREFIX + job_id)
    job = None if data is None else _checked(store, Job.from_dict(data))
    if job is None:
        raise JobError(
            f"There is no job {job_id!r} in {store.folder}. List the jobs with psvit jobs list."
        )
    return job


def _checked(store: Store, job: Job) -> Job | None:
    """Return a job as interrupted if it runs in no process; None if it has just been removed."""
    if job.state == "running" and not _alive(job):
        data = store.get(PREFIX + job.id)  # again: it may have ended normally in the meantime
        if data is None:
            return None
        job = Job.from_dict(data)
        if job.state == "running" and not _alive(job):
            return dataclasses.replace(job, state="interrupted", error=GONE)
    return job


def list_jobs(store: Store) -> list[Job]:
    """Return all jobs that this version can read, newest first; log each of the others once.

    Calls share the jobs: do not change their params and results.
    """
    read = store.read(PREFIX, _read_job).values()
    jobs = [_checked(store, job) for job in read if job is not None]
    return sorted(filter(None, jobs), key=lambda job: job.created, reverse=True)


def _read_job(key: str, data: Any) -> Job | None:
    try:
        return Job.from_dict(data)
    except RecordError as error:
        log.warning("skipped %s, which another version wrote: %s", key, error)
        return None


def submit(store: Store, title: str, subject: Subject, request: JobRequest, owner: str = "") -> Job:
    """Queue work and start its worker if needed.

    Args:
        store: The store of the jobs.
        title: The job's title on screen.
        subject: The model, the images and the device.
        request: The task's input.
        owner: Whose newest request this is; it supersedes the owner's earlier ones. Empty: nothing
            is superseded, and nothing supersedes this job.

    Returns:
        The new job, or an active one of the same owner with the same subject, files and request,
        on whichever engine.
    """
    stamps = FileStamps(model=tuple(model_stamp(subject)), data=tuple(data_stamp(subject.data)))
    short = request.task in SHORT
    with _alone(store):  # two processes may submit the same at once
        jobs = list_jobs(store)
        device, devices = choose_device(subject.device, short, _loads(jobs))
        new = Job(
            id=uuid.uuid4().hex[:12],
            task=request.task,
            title=title,
            params={"subject": subject.to_dict(), "stamps": stamps.to_dict(), **request.to_dict()},
            device=device,
            devices=devices,
            created=time.time(),
            owner=owner,
            program=program_version(),
            engine=fixed_engine(),
        )
        equal = [job for job in jobs if _is_equal(job, new)]
        same = next((job for job in equal if not cancel_requested(store, job.id)), None)
        if same is None:
            _supersede(store, [job for job in jobs if owner and job.owner == owner])
            save(store, new)
    if same is not None:
        reconcile(store)
        return same
    ring(store, device)
    ensure_worker(store, device)
    return new


def _alone(store: Store) -> StoreLock:
    """Return the lock of whoever decides by the list of jobs what to queue."""
    return StoreLock(store.place("locks", "jobs.lock"))


def _is_equal(job: Job, new: Job) -> bool:
    """Return whether an active job does what a new one would do."""
    ours, theirs = ((j.subject, j.stamps, j.request, j.owner) for j in (job, new))
    return job.active and ours == theirs


def _loads(jobs: Iterable[Job]) -> list[tuple[str, bool]]:
    """Return the device of each active job, and whether it is short."""
    return [(job.device, job.task in SHORT) for job in jobs if job.active]


def _supersede(store: Store, jobs: Iterable[Job]) -> None:
    """Drop jobs whose result nobody waits for any more; finished ones stay."""
    for job in jobs:
        if job.state == "running":
            store.put(_cancel_key(job.id), SUPERSEDED)
        elif job.state != "done":
            forget(store, job.id)


def supersede(store: Store, owner: str) -> None:
    """Drop an owner's waiting and running jobs (``submit``)."""
    mine = [job for job in list_jobs(store) if job.owner == owner]
    _supersede(store, mine)
    for device in {job.device for job in mine if job.active}:
        ring(store, device)


def forget(store: Store, job_id: str) -> None:
    """Delete a job from the store."""
    for key in (PREFIX + job_id, _cancel_key(job_id), _stop_key(job_id), place_key(job_id)):
        store.delete(key)


def waits_for(store: Store, job: Job) -> bool:
    """Return whether a job still waits for its device.

    It may have been cancelled or superseded meanwhile, or another device has taken it.
    """
    data = store.get(PREFIX + job.id)
    return data is not None and (data.get("state"), data.get("device")) == ("queued", job.device)


def cancel(store: Store, job_id: str) -> Job:
    """Ask a job to stop; its finished work stays stored. A waiting job is cancelled at once."""
    store.put(_cancel_key(job_id), True)
    job = find_job(store, job_id)
    ring(store, job.device)
    if job.state in ("queued", "interrupted"):
        job = save(store, dataclasses.replace(job, state="cancelled", error="", ended=time.time()))
    return job


def stop(store: Store, job_id: str) -> Job:
    """Ask a running fine-tuning to end after its current step and write its best epoch.

    Other jobs are cancelled.
    """
    job = find_job(store, job_id)
    if job.task != "finetune" or job.state != "running":
        return cancel(store, job_id)
    store.put(_stop_key(job_id), True)
    return job


def resume(store: Store, job_id: str) -> Job:
    """Queue a cancelled, failed or interrupted job again; it continues where it stopped.

    Raises:
        JobError: If there is no such job, or another version of the program asked for it in a way
            that this one cannot read.
    """
    with _alone(store):  # two processes may resume it at once
        job = find_job(store, job_id)
        ended = not job.active and job.state != "done"
        if ended:
            job = _queued_again(store, job)
    if not ended:
        reconcile(store)
        return job
    ring(store, job.device)
    ensure_worker(store, job.device, patience=_PATIENCE)
    return job


def _queued_again(store: Store, job: Job) -> Job:
    if job.misfit:
        raise JobError(
            f"Job {job.id} was made by {made_by(job.program)} and cannot be run by this one "
            f"({program_version()}): {job.misfit} Start the same work anew; results that are "
            f"stored are used again. Remove the job with psvit jobs remove {job.id}."
        )
    for key in (_cancel_key(job.id), _stop_key(job.id), place_key(job.id)):
        store.delete(key)
    device, devices = job.device, job.devices
    if job.subject:
        short = job.task in SHORT
        device, devices = choose_device(job.subject.device, short, _loads(list_jobs(store)))
    again = dataclasses.replace(
        job,
        device=device,
        devices=devices,
        state="queued",
        started=None,
        ended=None,
        pid=None,
        pid_started=None,
        error="",
        exit_code=None,
        fresh=0,
        paced=None,
        partial=None,
        engine=fixed_engine(),
    )
    return save(store, again)


def cancel_requested(store: Store, job_id: str) -> bool:
    """Return whether the user asked to cancel this job."""
    return bool(store.get(_cancel_key(job_id)))


def is_superseded(store: Store, job_id: str) -> bool:
    """Return whether a newer request of the same owner has taken the place of a running job."""
    return bool(store.get(_cancel_key(job_id)) == SUPERSEDED)


def save_ended(store: Store, job: Job) -> None:
    """Store a job that has ended; one that was superseded without a result is deleted."""
    superseded = is_superseded(store, job.id)
    if superseded and job.state != "done":
        forget(store, job.id)
        return
    save(store, job)
    with store.optional():
        store.delete(place_key(job.id))
    if superseded:
        store.delete(_cancel_key(job.id))


def stop_requested(store: Store, job_id: str) -> bool:
    """Return whether the user asked to end this fine-tuning with its best epoch."""
    return bool(store.get(_stop_key(job_id)))


def place_key(job_id: str) -> str:
    """Return the key of a waiting job's place in the queue (``queue.move``)."""
    return f"place/{job_id}"


def _stop_key(job_id: str) -> str:
    return f"stop/{job_id}"


def _cancel_key(job_id: str) -> str:
    return f"cancel/{job_id}"


def reconcile(store: Store) -> None:
    """Start workers for waiting jobs that have none, as after a crash.

    Whoever sees waiting jobs calls it: the app every few seconds, and the command line.
    """
    jobs = [job for job in list_jobs(store) if job.task in KINDS]
    busy = {job.device for job in jobs if job.state == "running"}
    wanted = {job.device for job in jobs if job.state == "queued"}
    others = idle_devices((job.devices for job in jobs if job.state == "queued"), busy | wanted)
    for device in (wanted - busy) | others:
        ensure_worker(store, device)
