"""The command ``jobs``: list, follow, order, cancel and resume background jobs; their logs.

It also chooses where they run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import Any

from psvit_core.cli.options import add_engine_arguments, chosen_engine
from psvit_core.cli.output import duration_text
from psvit_core.cli.watching import Watch, event
from psvit_core.cluster.settings import EngineSettings
from psvit_core.errors import ClusterError, JobError, PsvitError, UnknownNameError
from psvit_core.files import last_lines, made_by
from psvit_core.jobs import client, engines, queue, versions, workers
from psvit_core.jobs.client import Job
from psvit_core.jobs.logs import job_log, printable
from psvit_core.jobs.versions import OtherJob
from psvit_core.jobs.words import how_far, rate_text
from psvit_core.storage.store import Store

Result = dict[str, Any]
_LOG_LINES = 60
_ACTIONS = {"cancel": client.cancel, "stop": client.stop, "resume": client.resume}
_HELP = {
    "list": "all jobs, newest first",
    "watch": "follow a job, or all that wait and run; ends with the job's exit status",
    "log": "a job's part of the worker's log, or the end of the log",
    "move": "change the order of waiting jobs (--first, --before)",
    "cancel": "stop a job; finished results stay",
    "stop": "end a fine-tuning with its best epoch",
    "resume": "queue a cancelled, failed or interrupted job again",
    "engine": "show where jobs run, or choose it (--engine, --ray-address)",
    "remove": "delete an ended job's entry, or one of another version; results stay",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "action",
        choices=tuple(_HELP),
        metavar="ACTION",
        help="; ".join(f"{name}: {text}" for name, text in _HELP.items()),
    )
    command.add_argument(
        "job", metavar="ID", nargs="?", help="the job; list, watch and log also do without"
    )
    place = command.add_mutually_exclusive_group()
    place.add_argument("--first", action="store_true", help="move: before all jobs of its sort")
    place.add_argument("--before", metavar="ID", help="move: before this waiting job")
    command.add_argument("--device", default="cpu", help="log: the worker's device (default cpu)")
    command.add_argument(
        "--lines",
        type=int,
        default=_LOG_LINES,
        help=f"log: number of lines to show (default {_LOG_LINES})",
    )
    add_engine_arguments(command)
    command.set_defaults(writes_itself=True)


def jobs(options: argparse.Namespace) -> tuple[Result, str]:
    """List, follow, move, cancel, stop, resume or remove jobs, show a log, or choose an engine."""
    if options.action != "engine" and _names_engine(options):
        raise ClusterError(
            f"psvit jobs {options.action} takes no --engine and no --ray-...: only psvit jobs "
            "engine does. Omit them."
        )
    store = Store()
    if options.action == "log" and options.job is None:
        path = workers.log_path(store, options.device)
        lines = [printable(x) for x in last_lines(path, options.lines)] if path.is_file() else []
        return {"log": str(path), "lines": lines}, "\n".join(lines) or f"{path} is empty"
    try:
        with store.optional():
            client.reconcile(store)
    except JobError as error:  # no worker can start now: jobs wait, and can be seen
        print(f"psvit: {error}", file=sys.stderr)
    if options.action == "list":
        return _list(store)
    if options.action == "watch":
        return _watch(store, options)
    if options.action == "engine":
        return _engine(store, options)
    if options.action == "remove":
        return _remove(store, options.job)
    job = _job_of(store, options.job)
    if options.action == "log":
        return _log(store, job, options.lines)
    if options.action == "move":
        return _move(store, job, options)
    job = _ACTIONS[options.action](store, job.id)
    return job_result(job), job_line(job)


def _engine(store: Store, options: argparse.Namespace) -> tuple[Result, str]:
    """Choose the engine of the next jobs if an option says which; show it."""
    try:
        found = engines.engine_of_jobs(store)
    except ClusterError:
        if options.engine is None:
            raise
        found = EngineSettings()  # what is stored cannot be read: chosen anew
    chosen = chosen_engine(options, found) if options.engine != "local" else EngineSettings()
    if _names_engine(options):
        engines.choose_engine(store, chosen)
        found = chosen
    return {"engine": dataclasses.asdict(found)}, f"jobs run on {engines.engine_text(found)}"


def _names_engine(options: argparse.Namespace) -> bool:
    names = ("engine", "ray_address", "ray_gpus", "ray_workers")
    return any(getattr(options, name) is not None for name in names)


def _job_of(store: Store, job_id: str | None) -> Job:
    """Return the named job.

    Raises:
        UnknownNameError: If there is none.
        JobError: If this version cannot read it.
    """
    for other in versions.list_other_jobs(store):
        if other.id == job_id and job_id not in {job.id for job in client.list_jobs(store)}:
            raise JobError(
                f"Job {job_id} was made by {made_by(other.program)}, and this one cannot "
                f"read it: {other.why} {versions.WAY_OUT} Remove it: psvit jobs remove {job_id}."
            )
    known = {job.id: job for job in client.list_jobs(store)}
    if job_id not in known:
        raise UnknownNameError("job", job_id or "", known)
    return client.find_job(store, job_id)


# ---- one function per action -----------------------------------------------------------------


def _list(store: Store) -> tuple[Result, str]:
    jobs = client.list_jobs(store)
    places = {job.id: n for n, job in enumerate(_waiting(store, jobs), 1)}
    others = versions.list_other_jobs(store)
    lines = [job_line(job, places.get(job.id)) for job in jobs if not _is_other(job)]
    if others:
        lines += ["", "of other versions, which this one cannot run (psvit jobs remove ID):"]
        lines += map(_other_line, others)
    result = {
        "jobs": [{**job_result(job), "place": places.get(job.id)} for job in jobs],
        "other_versions": [vars(other) for other in others],
    }
    return result, "\n".join(lines).strip("\n") or f"no jobs in {store.folder}"


def _waiting(store: Store, jobs: list[Job]) -> list[Job]:
    """Return the waiting jobs, device by device, in the order in which they run."""
    devices = sorted({job.device for job in jobs if job.state == "queued"})
    return [job for device in devices for job in queue.waiting(store, device)]


def _is_other(job: Job) -> bool:
    return bool(job.misfit) and job.state != "done"


def _watch(store: Store, options: argparse.Namespace) -> tuple[Result, str]:
    if options.job is not None:
        followed = [_job_of(store, options.job)]
    else:
        active = [job for job in client.list_jobs(store) if job.active and not job.misfit]
        followed = sorted(active, key=lambda job: (job.state != "running", job.created))
    watch = Watch(store, [job.id for job in followed], as_json=options.json)
    ended = watch.follow()
    options.exit_status = watch.exit_status
    if not followed:
        return {"jobs": []}, "no job waits or runs"
    lines = [_ended_line(job) for job in ended]
    if len(ended) == 1:
        return event(ended[0]), lines[0]
    return {"jobs": [event(job) for job in ended]}, "\n".join(lines)


def _ended_line(job: Job) -> str:
    if job.state in ("failed", "interrupted"):
        return f"{job_line(job)}\npsvit jobs log {job.id} shows its log; psvit jobs resume {job.id}"
    return job_line(job)


def _move(store: Store, job: Job, options: argparse.Namespace) -> tuple[Result, str]:
    if not options.first and options.before is None:
        raise PsvitError(
            f"Say where to move job {job.id}: --first, or --before ID of another waiting job."
        )
    before = _job_of(store, options.before).id if options.before is not None else None
    order = queue.move(store, job.id, before)
    lines = [job_line(other, n) for n, other in enumerate(order, 1)]
    return {"waiting": [other.id for other in order]}, "\n".join(lines)


def _log(store: Store, job: Job, n_lines: int) -> tuple[Result, str]:
    lines = job_log(store, job, n_lines)
    path = workers.log_path(store, job.device)
    result = {"id": job.id, "error": job.error, "log": str(path), "lines": lines}
    nothing = f"{path} has no lines of job {job.id}, which is {job.state}"
    cause = f"\n{job.state}: {printable(job.error)}" if job.error else ""
    return result, ("\n".join(lines) or nothing) + cause


def _remove(store: Store, job_id: str | None) -> tuple[Result, str]:
    known = [job.id for job in client.list_jobs(store)]
    known += [other.id for other in versions.list_other_jobs(store)]
    if job_id not in known:
        raise UnknownNameError("job", job_id or "", known)
    versions.remove(store, job_id)
    return {"removed": job_id}, f"removed job {job_id}; results that it stored stay"


# ---- texts -----------------------------------------------------------------------------------


def job_result(job: Job) -> Result:
    """Return a job without its request and result, which can be large, and with its pace."""
    kept = {k: v for k, v in job.to_dict().items() if k not in ("params", "result")}
    return kept | {"rate": job.rate(), "seconds_left": job.seconds_left()}


def job_line(job: Job, place: int | None = None) -> str:
    """Describe a job in one line.

    Args:
        job: The job.
        place: Its place among the waiting jobs, from 1; None for others.
    """
    far = f" {job.done:,}/{job.total:,}" if job.total and job.state != "done" else ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
    waits = f" (number {place})" if place else ""
    left = job.seconds_left()
    pace = ", ".join(
        filter(
            None,
            [
                how_far(job) if job.state == "running" else "",
                rate_text(job),
                f"about {duration_text(left)} left" if left is not None else "",
            ],
        )
    )
    older = versions.version_note(job.program)
    notes = "".join(f"  [{printable(note)}]" for note in (pace, older) if note)
    error = f": {printable(job.error)}" if job.error else ""
    return f"{job.id}  {when}  {job.state}{waits}{far}  {printable(job.title)}{notes}{error}"


def _other_line(other: OtherJob) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(other.created))
    made = f"version {other.program}" if other.program else "an older version"
    return printable(f"{other.id}  {when}  {other.state}  {other.title}  [{made}]: {other.why}")
