"""Estimated durations of sweeps and fronts, from those of earlier ones.

A sweep's work is images times cells times the model's multiply-accumulates. The pace is that of the
newest sweep in the store, preferably of this model. Without any, it is the pace of a sweep that
ships with a model: its processor time on one core of the machine that ran it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.plan.size import plan_size
from psvit_core.records import ModelSummary
from psvit_core.records.jobs import (
    MeasureRequest,
    MeasureResult,
    ParetoRequest,
    SweepResult,
)
from psvit_core.sensitivity.spec import SweepSpec, load_spec
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace

# Steps of a job after which its pace is reliable.
_ENOUGH_CELL_IMAGES = 500  # of a sweep
_ENOUGH_PLANS = 4  # of a front
_ENOUGH_IMAGES = 200  # of a measured plan
#: Seconds per multiply-accumulate of a measurement on a slow processor core.
_SLOW_PACE = 1.5e-10


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated duration of a sweep."""

    seconds: float
    source: str  # origin of the pace: "model", "machine" or "shipped"


def sweep_time(store: Store, summary: ModelSummary, n_cells: int, n_images: int) -> Estimate | None:
    """Estimate the time for all cells on all images, an upper bound for progressive sweeps.

    Args:
        store: The store with earlier sweeps.
        summary: The model.
        n_cells: Groups times ratios.
        n_images: Images of the sweep.

    Returns:
        None without an earlier sweep.
    """
    work = _macs(summary) * n_cells * n_images
    paces: dict[str, float] = {}
    for job in client.list_jobs(store):  # newest first
        found = _pace(store, job)
        if found is not None:
            weights_hash, pace = found
            source = "model" if weights_hash == summary.weights_hash else "machine"
            paces.setdefault(source, pace)
    shipped = {k: pace for k, pace in store.read("sweep/", _recorded).items() if pace}
    if shipped:
        same = (pace for w, pace in shipped.values() if w == summary.weights_hash)
        paces["shipped"] = next(same, None) or max(pace for _, pace in shipped.values())
    for source in ("model", "machine", "shipped"):
        if source in paces:
            return Estimate(seconds=work * paces[source], source=source)
    return None


def plan_time(
    workspace: Workspace, summary: ModelSummary, n_images: int, *, profile: bool
) -> float | None:
    """Estimate the seconds that one plan of a front takes to be measured here.

    The estimate comes from the last front on the same images, or from the last single measurement
    on this machine, scaled by images times multiply-accumulates. Single measurements give no
    estimate for profiling.

    Args:
        workspace: The model on its images.
        summary: The model.
        n_images: Number of images.
        profile: Whether plans are also profiled.

    Returns:
        None without an earlier measurement to estimate from.
    """
    for job in workspace.jobs("pareto"):
        request = job.request
        if not isinstance(request, ParetoRequest) or request.sweep_key is None:
            continue
        seconds = _step_seconds(job, _ENOUGH_PLANS)
        if request.settings.profile == profile and seconds is not None:
            return seconds
    if profile:
        return None
    for job in client.list_jobs(workspace.store):
        m = job.measurement
        if m is None or not isinstance(job.request, MeasureRequest) or job.request.profile:
            continue
        if (seconds := _step_seconds(job, _ENOUGH_IMAGES)) is not None:
            return seconds / (m.size.macs * m.conditions.T) * _macs(summary) * n_images
    return None


def measuring_time(workspace: Workspace, summary: ModelSummary, n_images: int) -> float:
    """Estimate the seconds of one measurement here; before the first one, rather too many."""
    for job in workspace.jobs("measure"):
        seconds = _step_seconds(job, _ENOUGH_IMAGES, _pruned_at(job))
        profiled = isinstance(job.request, MeasureRequest) and job.request.profile
        if seconds is not None and not profiled:
            return seconds * n_images
    return _SLOW_PACE * _macs(summary) * n_images


def _step_seconds(job: Job, enough: int, until: float | None = None) -> float | None:
    """Return the seconds per step (cell image, plan or image) of a job that ran enough steps.

    Args:
        job: The job.
        enough: Number of steps after which a pace is reliable.
        until: When the steps ended; None: with the job.
    """
    if job.paced is None or job.ended is None or job.fresh < enough:
        return None
    return ((until or job.ended) - job.paced) / (job.fresh - 1)


def _pruned_at(job: Job) -> float | None:
    """Return when a plan was measured, if a recovery followed; the first figures count."""
    return job.outcome.pruned_at if isinstance(job.outcome, MeasureResult) else None


def _macs(summary: ModelSummary) -> float:
    """Return the multiply-accumulates of one image, all time steps."""
    return float(plan_size(summary, None).macs) * summary.T


def _recorded(key: str, entry: Any) -> tuple[str, float] | None:
    """Return (weights hash, seconds per multiply-accumulate) of a shipped sweep with its time."""
    if "seconds" not in entry:
        return None
    spec = SweepSpec.from_dict(entry["spec"])
    work = _macs(spec.summary) * len(spec.summary.groups) * len(spec.ratios) * len(spec.ids)
    return spec.summary.weights_hash, entry["seconds"] / work


def _pace(store: Store, job: Job) -> tuple[str, float] | None:
    """Return (weights hash, seconds per multiply-accumulate) of a sweep that ran enough images."""
    seconds = _step_seconds(job, _ENOUGH_CELL_IMAGES) if job.task == "sweep" else None
    if seconds is None or not isinstance(job.outcome, SweepResult):
        return None
    try:
        spec = load_spec(store, job.outcome.sweep_key)
    except PsvitError:  # by another version, or it ended before its first cell
        return None
    return spec.summary.weights_hash, seconds / _macs(spec.summary)
