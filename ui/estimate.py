"""How long a sweep will take, from how long others took; no streamlit.

A sweep's work is images times cells times the model's multiply-accumulates; the pace is that of the
newest sweep in the store, of this model if there is one. Without any, it is the one measured when
this was written, on one thread of a busy machine: a hint of the order only.
"""

from __future__ import annotations

from dataclasses import dataclass

from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import ModelSummary
from psvit_core.sensitivity.table import load_spec
from psvit_core.size import plan_size
from psvit_core.store import Store

_SECONDS_PER_MAC = 2.6e-10  # e_spikeformer_digits, 135 cells on 64 images: 17.6 s
_ENOUGH = 500  # images of cells from which a pace says something


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a sweep will take."""

    seconds: float
    source: str  # what the pace is from: "model", "machine" or "guess"


def sweep_time(store: Store, summary: ModelSummary, n_cells: int, n_images: int) -> Estimate:
    """The time for all cells on all images; a progressive sweep takes that or less.

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
    for source in ("model", "machine"):
        if source in paces:
            return Estimate(seconds=work * paces[source], source=source)
    return Estimate(seconds=work * _SECONDS_PER_MAC, source="guess")


def _macs(summary: ModelSummary) -> float:
    """Multiply-accumulates of one image."""
    return float(plan_size(summary, None).macs) * summary.T


def _pace(store: Store, job: Job) -> tuple[str, float] | None:
    """(weights hash, seconds a multiply-accumulate) of a sweep that has come far enough."""
    if job.task != "sweep" or job.paced is None or job.ended is None or job.fresh < _ENOUGH:
        return None
    try:
        spec = load_spec(store, job.result["sweep_key"])
    except (PsvitError, KeyError):  # of another version, or ended before it began
        return None
    seconds = (job.ended - job.paced) / (job.fresh - 1)
    return spec.summary.weights_hash, seconds / _macs(spec.summary)
