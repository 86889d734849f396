"""How long sweeps and fronts will take, from how long others took; no streamlit.

A sweep's work is images times cells times the model's multiply-accumulates; the pace is that of the
newest sweep in the store, of this model if there is one. Without any, that of a sweep that ships
with a model: its processor time on one core of the machine where it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import Measurement, ModelSummary
from psvit_core.sensitivity.table import SweepSpec, load_spec
from psvit_core.size import plan_size
from psvit_core.store import Store
from psvit_core.workspace import Workspace

_ENOUGH = 500  # images of cells from which a pace says something
_ENOUGH_PLANS = 4  # of a front
_ENOUGH_IMAGES = 200  # of a measured plan


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a sweep will take."""

    seconds: float
    source: str  # what the pace is from: "model", "machine" or "shipped"


def sweep_time(store: Store, summary: ModelSummary, n_cells: int, n_images: int) -> Estimate | None:
    """The time for all cells on all images; a progressive sweep takes that or less.

    None where no sweep tells a pace.

    Args:
        store: Where earlier sweeps are.
        summary: The model.
        n_cells: Groups times ratios.
        n_images: Images of the sweep.
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
    """Seconds that a plan of a front takes to be measured here; None where nothing tells.

    By the last front on these very images, else by the last single measurement on this machine,
    whose time grows with images times multiply-accumulates; that says nothing of profiling.

    Args:
        workspace: The model on its images.
        summary: The model.
        n_images: How many these are.
        profile: Whether plans are also profiled.
    """
    for job in workspace.jobs("pareto"):
        alike = "sweep_key" in job.params and job.params["settings"]["profile"] == profile
        if alike and (seconds := _step_seconds(job, _ENOUGH_PLANS)) is not None:
            return seconds
    if profile:
        return None
    measured = client.results(workspace.store, "measurement", Measurement)
    for job in client.list_jobs(workspace.store):
        m = measured.get(job.id)
        if job.task != "measure" or m is None or job.params.get("profile"):
            continue
        if (seconds := _step_seconds(job, _ENOUGH_IMAGES)) is not None:
            return seconds / (m.size.macs * m.conditions.T) * _macs(summary) * n_images
    return None


def _step_seconds(job: Job, enough: int) -> float | None:
    """Seconds a step (cell image, plan, image) of a job that has ended after enough of them."""
    if job.paced is None or job.ended is None or job.fresh < enough:
        return None
    return (job.ended - job.paced) / (job.fresh - 1)


def _macs(summary: ModelSummary) -> float:
    """Multiply-accumulates of one image."""
    return float(plan_size(summary, None).macs) * summary.T


def _recorded(key: str, entry: Any) -> tuple[str, float] | None:
    """(weights hash, seconds a multiply-accumulate) of a sweep that ships with its time."""
    if "seconds" not in entry:
        return None
    spec = SweepSpec.from_dict(entry["spec"])
    work = _macs(spec.summary) * len(spec.summary.groups) * len(spec.ratios) * len(spec.ids)
    return spec.summary.weights_hash, entry["seconds"] / work


def _pace(store: Store, job: Job) -> tuple[str, float] | None:
    """(weights hash, seconds a multiply-accumulate) of a sweep that has come far enough."""
    seconds = _step_seconds(job, _ENOUGH) if job.task == "sweep" else None
    if seconds is None:
        return None
    try:
        spec = load_spec(store, job.result["sweep_key"])
    except (PsvitError, KeyError):  # of another version, or ended before it began
        return None
    return spec.summary.weights_hash, seconds / _macs(spec.summary)
