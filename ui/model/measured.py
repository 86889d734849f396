"""Measured plans of a model, and the predictor that they calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from psvit_core import planners
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import Interval, Measurement, ModelSummary, PrunePlan, SensitivityTable
from psvit_core.records.jobs import MeasureResult
from psvit_core.storage.store import digest
from psvit_core.workspace import Workspace
from ui.model import loaders, predictor, recovery, sweeps
from ui.model.drafts import Draft
from ui.model.predictor import Predictor
from ui.model.sweeps import SweepView


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """A plan with its measurement."""

    plan: PrunePlan
    measurement: Measurement
    ended: float  # seconds since the epoch; 0 for points of a front and shipped results


def measured_plans(workspace: Workspace, summary: ModelSummary) -> list[MeasuredPlan]:
    """Return the plans of these weights that were measured under the workspace's recovery.

    There is one per plan and number of images.

    Single measurements come first, newest first; then the points of a front, largest network
    first.
    """
    found: dict[Any, MeasuredPlan] = {}
    for job in client.list_jobs(workspace.store):
        m = job.measurement
        if m is None or m.plan is None or m.plan.weights_hash != summary.weights_hash:
            continue
        m = m.under(workspace.subject.recovery, job.subject.recovery if job.subject else "none")
        if m is None or m.plan is None:
            continue
        if m.conditions.split != workspace.subject.split:  # a final judgement on the test split
            continue
        kept = tuple(sorted(m.plan.kept.items()))
        past = MeasuredPlan(plan=m.plan, measurement=m, ended=job.ended or job.created)
        found.setdefault((kept, m.conditions.n_images), past)
    archive = loaders.archive(workspace)
    points = archive.chosen().points if archive else ()
    for point in sorted(points, key=lambda point: point.measurement.memory_saving):
        kept = tuple(sorted(point.plan.kept.items()))
        past = MeasuredPlan(plan=point.plan, measurement=point.measurement, ended=0.0)
        found.setdefault((kept, point.measurement.conditions.n_images), past)
    return list(found.values())


def calibrated_predictor(
    view: SweepView | None, measured: Sequence[MeasuredPlan]
) -> Predictor | None:
    """Return the predictor that all pages share; None without a complete sweep.

    Args:
        view: The sweep to predict from.
        measured: All measured plans of these weights (``measured_plans``).
    """
    table = view.table if view else None
    if view is None or table is None:
        return None
    table = planners.for_recovery(table, recovery.used())
    measurements = [past.measurement for past in measured]
    known = [
        [past.ended, m.memory_saving, m.drop and m.drop.value]
        for past, m in zip(measured, measurements, strict=True)
    ]
    joint = [row.calibrating_drop.value for row in table.joint]
    cache_key = digest([view.key, joint, known])
    return _calibrated(cache_key, table, measurements)


@st.cache_resource(max_entries=8, show_spinner=False)
def _calibrated(
    cache_key: str, _table: SensitivityTable, _measured: Sequence[Measurement]
) -> Predictor:
    return predictor.make_predictor(_table).calibrated(_measured)


def start_measuring(workspace: Workspace, plan: PrunePlan | None, owner: str = "") -> Job:
    """Measure a plan in the background; its prediction is frozen before.

    Args:
        workspace: The model on its images.
        plan: The plan; None for the unpruned model.
        owner: Whose newest plan this is; see ``Workspace.measure``.
    """
    summary = workspace.summary()
    if plan is None or summary is None:
        return workspace.measure(plan, owner=owner)
    view = sweeps.current_sweep(sweeps.list_sweeps(workspace.store, summary))
    history = measured_plans(workspace, summary)
    predictor = calibrated_predictor(view, history)
    known = next((past.measurement for past in history if past.plan.kept == plan.kept), None)
    predicted = None
    if predictor:  # what is fitted to a measurement of this plan is no prediction of it
        predicted = predictor.from_sweep(plan, known) if known else predictor.drop(plan)
    return workspace.measure(plan, predicted=predicted, owner=owner)


def measurement_of(
    measured: Sequence[MeasuredPlan], draft: Draft, limit: int | None
) -> Measurement | None:
    """Return the draft's measurement on ``limit`` images (None: any number), if there is one."""
    for past in measured:
        n_images = past.measurement.conditions.n_images
        if past.plan.kept == draft.plan.kept and (limit is None or n_images == limit):
            return past.measurement
    return None


@dataclass(frozen=True, kw_only=True)
class PartialDrop:
    """The drop of a plan on the images measured so far."""

    drop: Interval  # percentage points
    n_images: int
    n_all: int  # images that the plan runs on in the end


def partial_drop(job: Job | None) -> PartialDrop | None:
    """Return the estimate of a running measurement; None before its first one.

    While a plan is recovered, this is its drop without recovery.
    """
    plain = pruned_measurement(job)
    if plain is not None and plain.drop is not None:
        n_images = plain.conditions.n_images
        return PartialDrop(drop=plain.drop, n_images=n_images, n_all=n_images)
    partial = getattr(job, "partial", None)
    if job is None or not job.active or partial is None or partial.drop is None:
        return None
    n_all = partial.total - partial.done + partial.n_images
    return PartialDrop(drop=partial.drop, n_images=partial.n_images, n_all=n_all)


def pruned_measurement(job: Job | None) -> Measurement | None:
    """Return the measurement without recovery of a plan that is being recovered; else None."""
    outcome = getattr(job, "outcome", None)
    if job is None or not job.active or not isinstance(outcome, MeasureResult):
        return None
    return outcome.pruned


def measuring_job(jobs: Sequence[Job], draft: Draft) -> Job | None:
    """Return the first of the measuring jobs that is of the draft's kept units."""
    return next((j for j in jobs if j.plan and j.plan.kept == draft.plan.kept), None)
