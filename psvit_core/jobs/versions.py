"""Jobs in the store that this version of the program cannot read; no torch.

Another version has written them, which may still use the same store. They are named and can be
removed, but nothing of them is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psvit_core.errors import JobError, RecordError
from psvit_core.files import program_version
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store

WAY_OUT = (
    "Start the same work anew: results that are stored are used again. Or use the version that "
    "made it."
)


@dataclass(frozen=True, kw_only=True)
class OtherJob:
    """What can be told of a job of another version; all texts were written by that version."""

    id: str
    title: str
    state: str
    created: float  # seconds since the epoch; 0 if unknown
    program: str  # the version; empty for versions that did not note it
    why: str  # why this version cannot run it


def list_other_jobs(store: Store) -> list[OtherJob]:
    """Return the jobs that this version cannot run and that have not ended well, newest first."""
    found = {job.id: job for job in client.list_jobs(store) if job.misfit and job.state != "done"}
    others = [
        OtherJob(
            id=job.id,
            title=job.title,
            state=job.state,
            created=job.created,
            program=job.program,
            why=job.misfit,
        )
        for job in found.values()
    ]
    unread = store.read(client.PREFIX, _read_other).values()
    others += [other for other in unread if other is not None]
    return sorted(others, key=lambda other: other.created, reverse=True)


def _read_other(key: str, data: Any) -> OtherJob | None:
    """Return a job that is no record of this version; None for one that is."""
    try:
        Job.from_dict(data)
        return None
    except RecordError as error:
        why = str(error)
    known: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    created = known.get("created")
    return OtherJob(
        id=key.removeprefix(client.PREFIX),
        title=_text(known, "title") or "job without a title",
        state=_text(known, "state") or "unknown",
        created=float(created) if isinstance(created, int | float) else 0.0,
        program=_text(known, "program"),
        why=why,
    )


def _text(data: Mapping[str, Any], name: str) -> str:
    found = data.get(name)
    return found[:200] if isinstance(found, str) else ""


def version_note(program: str) -> str:
    """Return which other version a job is of; empty for this one, and where none was noted."""
    return f"version {program}" if program not in ("", program_version()) else ""


def remove(store: Store, job_id: str) -> None:
    """Delete an ended job, or one that this version cannot read; its results stay.

    Raises:
        JobError: If there is no such job, if it still waits or runs, or if it wrote a file that is
            still there.
    """
    try:
        job = client.find_job(store, job_id)
    except RecordError:  # of another version
        client.forget(store, job_id)
        return
    if job.state == "running" or (job.active and not job.misfit):
        raise JobError(f"Job {job_id} still waits or runs. Cancel it: psvit jobs cancel {job_id}.")
    if job.written is not None and Path(job.written.path).exists():
        raise JobError(
            f"Job {job_id} wrote {job.written.path}, which would be lost from the Jobs page. "
            "Remove the file there first."
        )
    client.forget(store, job_id)
