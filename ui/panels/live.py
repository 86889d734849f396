"""Jobs that the browser follows without a rerun of the page: their panel, and the app's route."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from psvit_core.errors import JobError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.storage.store import Store
from ui.components.live import follow
from ui.model import formats, measured
from ui.model.loaders import open_store
from ui.model.measured import PartialDrop
from ui.panels.job import cancel_button, progress_text, running_title, task_text

#: A job's id has 48 random bits, and the answer contains no more than a progress line.
ROUTE = "/progress/{job}"
_HOLD_SECONDS = 5.0  # longest wait for news before an unchanged answer
_LOOK_SECONDS = 0.03


def live_panel(store: Store, job: Job, *, key: str) -> None:
    """Draw an active job's progress and the button that cancels it.

    Only the browser redraws them; the fragment or page around is rerun when the job has ended.

    Args:
        store: The store with the job.
        job: The job.
        key: Prefix of the widgets' keys.
    """
    cancelling = client.cancel_requested(store, job.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        with st.container(width="stretch"):
            follow(job.id, f"progress/{job.id}", progress(store, job), key=f"{key}-live")
        cancel_button(store, job, cancelling, key=f"{key}-cancel")


def progress(store: Store, job: Job | None) -> dict[str, Any]:
    """Return what the browser shows of a job; of a deleted one, that it is not active."""
    if job is None or not job.active:
        return {"active": False}
    cancelling = client.cancel_requested(store, job.id)
    text = progress_text(job, task_text(job.task), cancelling, running_title(store, job))
    partial = measured.partial_drop(job)
    estimate = None
    if partial:
        text = estimate_line(partial)
        if measured.pruned_measurement(job) is not None:
            text = f"As pruned {formats.drop(partial.drop)}. Recovering without training"
        estimate = {**partial.drop.to_dict(), "images": partial.n_images, "of": partial.n_all}
    return {
        "active": True,
        "stamp": f"{job.state}/{job.what}/{job.done}/{cancelling}",
        "text": text,
        "done": job.done,
        "total": job.total,
        "partial": estimate,
    }


def estimate_line(partial: PartialDrop) -> str:
    """Return the estimate of a running measurement in one line."""
    low, high = (formats.points(x) for x in (partial.drop.low, partial.drop.high))
    return (
        f"So far {formats.points(partial.drop.value)} on {partial.n_images} of {partial.n_all} "
        f"images: between {low} and {high} on all of them (95 %, for all looks together)"
    )


async def send_progress(request: Request) -> Response:
    """Answer with a job's progress, once it differs from what the browser has seen."""
    job_id, seen = request.path_params["job"], request.query_params.get("seen")
    deadline = time.monotonic() + _HOLD_SECONDS
    while True:
        found = await asyncio.to_thread(_look, job_id)
        if found.get("stamp") != seen or time.monotonic() > deadline:
            return JSONResponse(found, headers={"Cache-Control": "no-store"})
        if await request.is_disconnected():
            return Response(status_code=204)
        await asyncio.sleep(_LOOK_SECONDS)


def _look(job_id: str) -> dict[str, Any]:
    store = open_store()
    try:
        return progress(store, client.find_job(store, job_id))
    except JobError:
        return progress(store, None)
