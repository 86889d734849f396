"""Jobs of a workspace about devices and this machine: memory needs, and how long layers take."""

from __future__ import annotations

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import LatencyTable, ModelSummary, PrunePlan
from psvit_core.records.jobs import FitsRequest, LatencyRequest, LatencyResult
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace


def find_fits(workspace: Workspace, plan: PrunePlan | None) -> Job | None:
    """Return the newest job that counts what a plan needs, on whatever images; None without one.

    Args:
        workspace: The unpruned model.
        plan: The plan; None: the unpruned model, which every such job counts.
    """
    for job in client.list_jobs(workspace.store):
        request = job.request
        if not isinstance(request, FitsRequest):
            continue
        counted = plan is None or (request.plan is not None and request.plan.kept == plan.kept)
        if counted and workspace._matcher.same_model(job.subject, job.stamps):
            return job
    return None


def count_fits(workspace: Workspace, plan: PrunePlan | None) -> Job:
    """Count in the background what the model needs to run, unpruned and under a plan."""
    request = FitsRequest(plan=plan)
    return workspace._submit(f"Memory needs of {workspace.subject.model}", request)


def time_layers(workspace: Workspace) -> Job:
    """Time the model's layers in the background, on the worker's machine, one image at a time.

    A cancelled, failed or interrupted job continues after its last network when resumed.
    """
    return workspace._submit(f"Layer times of {workspace.subject.model}", LatencyRequest())


def latency_job(workspace: Workspace) -> Job | None:
    """Return the newest job that timed the model's layers, on whatever images; None without one."""
    for job in client.list_jobs(workspace.store):
        if job.task == LatencyRequest.task and workspace._matcher.same_model(
            job.subject, job.stamps
        ):
            return job
    return None


def latency_table(store: Store, summary: ModelSummary) -> LatencyTable | None:
    """Return the newest latency table of a model that a job of ``time_layers`` measured.

    Args:
        store: The store of the jobs.
        summary: The model.
    """
    what = (summary.weights_hash, summary.T, tuple(summary.input_shape))
    for job in client.list_jobs(store):
        found = job.outcome if job.state == "done" else None
        table = found.table if isinstance(found, LatencyResult) else None
        if table is not None and (table.weights_hash, table.T, table.input_shape) == what:
            return table
    return None
