"""How fast a job gets on, in words that the command line and the app share; no torch."""

from __future__ import annotations

import math

from psvit_core.jobs.client import Job

#: What a job's steps are; those of other tasks are named in the job (``Job.what``).
UNITS = {"sweep": "images", "measure": "images", "finetune": "steps", "pareto": "steps"}


def unit_of(job: Job) -> str:
    """Return what a job's steps are. A sweep measures each of its images in many cells."""
    return UNITS.get(job.task, "steps")


def how_far(job: Job) -> str:
    """Return the finished part of a job as a whole percentage, rounded down; empty if unknown."""
    if not job.total:
        return ""
    return f"{math.floor(100 * min(job.done / job.total, 1.0))}\N{NO-BREAK SPACE}%"


def rate_text(job: Job, now: float | None = None) -> str:
    """Return the pace of a running job, such as ``12.3 images/s``; empty while there is none.

    Args:
        job: The job.
        now: Seconds since the epoch; the present when None.
    """
    rate = job.rate(now)
    if rate is None:
        return ""
    per, rate = ("s", rate) if rate >= 0.1 else ("min", 60 * rate)
    number = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    return f"{number}\N{NO-BREAK SPACE}{unit_of(job)}/{per}"
