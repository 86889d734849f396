"""Data that the pages load: the store, models, measured plans, jobs. Imports no torch."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from psvit_core.errors import JobError, StoreError
from psvit_core.files import data_set_name
from psvit_core.jobs import client, devices, queue, workers
from psvit_core.jobs.client import Job
from psvit_core.jobs.warming import request_warm_up
from psvit_core.pareto import ParetoArchive
from psvit_core.records import Measurement, ModelSummary, PrunePlan, Subject
from psvit_core.records.jobs import (
    CheckDataResult,
    ExportRequest,
    GraphRequest,
    InspectRequest,
)
from psvit_core.sensitivity.spec import load_spec
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store, digest
from psvit_core.tasks.cautions import chance_warning
from psvit_core.tasks.matching import same_model_fields
from psvit_core.tasks.pareto import predicted_plans
from psvit_core.tasks.unpruned import (
    profiled_measurement_key,
    read_measurement,
    shipped_measurement_key,
)
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from ui.model import consent, formats, fronts, provenance, state, sweeps
from ui.model.fronts import Overview
from ui.model.predictor import Predictor
from ui.model.sweeps import SweepView

log = logging.getLogger(__name__)


@st.cache_resource(show_spinner=False)
def open_store() -> Store:
    """Return the store with the shipped results as a fallback; one per server."""
    return DemoStore()


def writing_fault(store: Store) -> str:
    """Return why the store cannot be written to, such as a full disk; empty if it can be.

    Every session asks every few seconds, and one look serves all of them.
    """
    return _writing_fault(str(store.folder), store)


@st.cache_resource(ttl=2.0, show_spinner=False)
def _writing_fault(folder: str, _store: Store) -> str:
    try:
        _store.check_writable()
    except StoreError as error:
        return str(error)
    return ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The model and images chosen in the page header."""

    model: str  # registered name, or path of a pruned file or checkpoint
    limit: int | None  # validation images; None: all
    checkpoint: str | None = None  # file with weights, for registered models without any
    data: str | None = None  # data specification; None: the data that the model was trained on
    arguments: Mapping[str, Any] = field(default_factory=dict)  # that a file does not reveal
    entry: str | None = None  # state dict to load from a file with several
    recovery: str = "none"  # that numbers of pruned networks include

    def workspace(self, store: Store) -> Workspace:
        """Return the workspace of this choice."""
        subject = dataclasses.replace(self._model_subject(), data=self.data, limit=self.limit)
        return Workspace(dataclasses.replace(subject, recovery=self.recovery), store)

    def model_workspace(self, store: Store) -> Workspace:
        """Return a workspace of the model alone, for what does not depend on the images."""
        return Workspace(self._model_subject(), store)

    def _model_subject(self) -> Subject:
        rest = dict(self.arguments)
        return Subject(
            model=self.model,
            checkpoint=self.checkpoint,
            time_steps=rest.pop("T", None),
            image_size=rest.pop("image_size", None),
            num_heads=rest.pop("num_heads", None),
            entry=self.entry,
            arguments=rest,
            device=devices.default_device(),
        )


WARM_ENV = "PSVIT_WARM"  # "0": start no worker before the first job
_WARMED = "warmed-up"  # session key: what the worker was last asked to prepare for
#: Entry of the model list for a file that was not exported here.
OPEN_FILE = "open-file"

# ---- models --------------------------------------------------------------------------------------


def model_titles(store: Store) -> dict[str, str]:
    """Return the titles in the model list, by model name or file path.

    Models with weights come first, then files exported here (newest first), the entry for any other
    file, and models without weights. Files may share a name, so their titles end with the start of
    the job's id.
    """
    cards = [model_card(name) for name in list_models()]
    titles = {card.name: card.title for card in cards if card.weights}
    quantized = [job for job in client.list_jobs(store) if job.task == "quantize"]
    for job in (*exports(store), *quantized):
        path = Path(job.written.path) if job.written else None
        if path and path.is_file():
            titles[str(path)] = f"Pruned: {path.stem} ({job.id[:4]})"
    titles[OPEN_FILE] = "Open a file"
    others = {card.name: f"{card.title} (weights not included)" for card in cards}
    return titles | {name: title for name, title in others.items() if name not in titles}


def measurement(workspace: Workspace, plan: PrunePlan | None) -> Measurement | None:
    """Return the newest measurement of a plan, single or of a front; None if not measured.

    Args:
        workspace: The model on its images.
        plan: The plan; None for the unpruned model.
    """
    found = workspace.measurement(plan)
    if found is None and plan is not None:
        archive = own_archive(workspace)
        points = (p.measurement for p in (archive.points if archive else ()))
        return next((m for m in points if m.plan and m.plan.kept == plan.kept), None)
    return found or shipped_baseline(workspace)


def shipped_baseline(workspace: Workspace) -> Measurement | None:
    """Return the shipped measurement of the unpruned model, if it is on the chosen images."""
    summary, subject, card = workspace.summary(), workspace.subject, workspace.card
    if summary is None or not _on_own_images(subject, card):
        return None
    found = read_measurement(workspace.store, shipped_measurement_key(summary.weights_hash))
    if found is None:
        return None
    return found if subject.limit in (None, found.conditions.n_images) else None


def chance_caution(workspace: Workspace, summary: ModelSummary) -> str | None:
    """Return a warning if the unpruned model is no better than guessing on the chosen images.

    Its accuracy is that of its own measurement, of a plan's on the same images, or of a sweep's.
    """
    own = measurement(workspace, None)
    if own is not None:
        return chance_warning(own.accuracy, summary.num_classes)
    for job in workspace.jobs("measure"):
        found = job.measurement
        if found is not None and found.baseline_accuracy is not None:
            return chance_warning(found.baseline_accuracy, summary.num_classes)
    here = data_set_name(workspace.subject.data or "")
    for view in sweeps.list_sweeps(workspace.store, summary):
        if view.baseline is not None and data_set_name(sweeps.data_name(view)) == here:
            return chance_warning(view.baseline, summary.num_classes)
    return None


def profiled_baseline(store: Store, plans: ParetoArchive) -> Measurement | None:
    """Return the profiled measurement of the unpruned model made with a front; None without."""
    return read_measurement(store, profiled_measurement_key(plans))


def exports(store: Store, weights_hash: str | None = None) -> list[Job]:
    """Return finished exports, newest first; only those of one model if its hash is given."""
    return [
        job
        for job in client.list_jobs(store)
        if job.task == "export"
        and job.written
        and weights_hash in (None, job.plan.weights_hash if job.plan else "")
    ]


def graph_job(workspace: Workspace, path: Path) -> Job | None:
    """Return the newest job that writes a checkpoint as an ONNX file; None without one."""
    return next(
        (
            job
            for job in workspace.jobs("graph")
            if isinstance(job.request, GraphRequest) and job.request.path == str(path)
        ),
        None,
    )


# ---- measured plans ------------------------------------------------------------------------------


def overview(
    workspace: Workspace,
    summary: ModelSummary,
    sweep: SweepView | None,
    predictor: Predictor | None,
) -> Overview:
    """Return all known plans of a model.

    Args:
        workspace: The model on its images.
        summary: The model.
        sweep: Finished sweep that predicted plans are made from; None without one.
        predictor: Predicts their drops; None without a sweep.
    """
    store = workspace.store
    plans, others = archive(workspace), archive(other_recovery(workspace))
    known = (measurement(workspace, None), profiled_baseline(store, plans) if plans else None)
    unpruned = [m for m in known if m is not None]
    version = [
        str(store.folder),
        summary.weights_hash,
        sweep.key if sweep else None,
        sorted(store.keys("pareto/")),  # entries never change: equal keys mean an equal archive
        workspace.subject.to_dict(),
        [m.profile.to_dict() if m.profile else None for m in unpruned],
        predictor.version if predictor else None,
    ]

    def build() -> Overview:
        table, planned = sweep.table if sweep else None, list[PrunePlan]()
        if sweep and sweep.key and table is not None:
            planned = predicted_plans(store, load_spec(store, sweep.key), table)
        return fronts.overview(summary, plans, predictor, planned, unpruned, others)

    return _cached_overview(digest(version), build)


@st.cache_resource(max_entries=8, show_spinner=False)
def _cached_overview(version: str, _build: Callable[[], Overview]) -> Overview:
    return _build()


def other_recovery(workspace: Workspace) -> Workspace:
    """Return the workspace of numbers without recovery, or with it if this one is without."""
    other = "auto" if workspace.subject.recovery == "none" else "none"
    return Workspace(dataclasses.replace(workspace.subject, recovery=other), workspace.store)


def archive(workspace: Workspace) -> ParetoArchive | None:
    """Return the measured plans on the chosen images, or on all images if there are none."""
    found = own_archive(workspace)
    if found is None and workspace.subject.limit is not None:
        subject = dataclasses.replace(workspace.subject, limit=None)
        found = own_archive(Workspace(subject, workspace.store))
    return found


def own_archive(workspace: Workspace) -> ParetoArchive | None:
    """Return the measured plans on the chosen images; None without any."""
    store = workspace.store
    summary = workspace.summary()
    if summary is None:
        return None
    version = [store.changes("pareto"), workspace.subject.to_dict(), summary.weights_hash]
    return _own_archive(str(store.folder), digest(version), workspace)


@st.cache_resource(max_entries=16, show_spinner=False)
def _own_archive(folder: str, version: str, _workspace: Workspace) -> ParetoArchive | None:
    return _workspace.archive()


# ---- jobs ----------------------------------------------------------------------------------------


def newest_job(workspace: Workspace, *tasks: str) -> Job | None:
    """Return the newest job of these tasks on this model and these images."""
    jobs = workspace.jobs(*tasks)
    return jobs[0] if jobs else None


def plan_job(workspace: Workspace, task: str, plan: PrunePlan | None) -> Job | None:
    """Return the newest job of a task for a plan (None: the unpruned model)."""
    wanted = plan.kept if plan else None
    for job in workspace.jobs(task):
        if (job.plan.kept if job.plan else None) == wanted:
            return job
    return None


def export_job(workspace: Workspace, plan: PrunePlan, *, recovered: bool) -> Job | None:
    """Return the newest export of a plan with or without recovery."""
    return next(
        (
            job
            for job in workspace.jobs("export")
            if isinstance(job.request, ExportRequest)
            and job.request.plan.kept == plan.kept
            and _asks_recovery(job.request) == recovered
        ),
        None,
    )


def _asks_recovery(request: ExportRequest) -> bool:
    chosen = request.recovery is not None and request.recovery.method != "none"
    return request.default_recovery or chosen


def _on_own_images(subject: Subject, card: ModelCard | None) -> bool:
    """Return whether a model is measured on the data that it was trained on."""
    return subject.data is None or (
        card is not None and data_set_name(subject.data) == data_set_name(card.data)
    )


def lacks_images(workspace: Workspace) -> bool:
    """Return whether a model's images are not included and none were chosen."""
    card = provenance.source_card(workspace.subject.model)
    included = card is not None and card.images_included
    return workspace.subject.data is None and not included


def n_val_images(workspace: Workspace) -> int | None:
    """Return the number of validation images in use; None before they were counted."""
    subject, card = workspace.subject, provenance.source_card(workspace.subject.model)
    own = card if _on_own_images(subject, card) else None
    n_all = own.training.get("val_images") if own else None
    for job in client.list_jobs(workspace.store) if n_all is None else []:
        if job.task == "check_data" and job.state == "done":
            report = job.outcome.report if isinstance(job.outcome, CheckDataResult) else None
            if report and report.spec == subject.data:
                n_all = next(s.n_images for s in report.splits if s.split == "val")
                break
    if n_all is None:
        return subject.limit
    return min(n_all, subject.limit or n_all)


def sweep_job(workspace: Workspace) -> Job | None:
    """Return the sweep job to show: the active one, or the newest if it ended early."""
    jobs = [
        job
        for job in client.list_jobs(workspace.store)
        if job.task == "sweep" and job.subject and same_model_fields(job.subject, workspace.subject)
    ]
    active = next((job for job in jobs if job.active), None)
    return active or (jobs[0] if jobs and jobs[0].state != "done" else None)


def warm_up(workspace: Workspace) -> None:
    """Let the worker prepare for measurements of this workspace; once per choice of the session."""
    name = digest(workspace.subject.to_dict())
    if os.environ.get(WARM_ENV) == "0" or state.get(_WARMED) == name:
        return
    if not consent.covers_images(workspace.store, workspace.subject):
        return
    state.put(_WARMED, name)
    try:
        with workspace.store.optional():
            device = devices.first_device()
            request_warm_up(workspace.store, workspace.subject, device)
            workers.ensure_worker(workspace.store, device)
    except JobError as error:  # no worker can start now; the first job says so
        log.warning("%s", error)


def is_active(store: Store, job: Job | None) -> bool:
    """Return whether a job waits or runs now."""
    return job is not None and client.find_job(store, job.id).active


def active_jobs(store: Store) -> list[Job]:
    """Return the jobs of all models that run or wait, in the order a worker takes them.

    Without those of other versions, which wait for a program that can run them.
    """
    jobs = [job for job in client.list_jobs(store) if job.active]
    running = [job for job in jobs if job.state == "running"]
    queued = [job for job in jobs if job.state == "queued" and not job.misfit]
    return [
        *sorted(running, key=lambda job: (job.task not in client.SHORT, job.created)),
        *queue.in_order(store, queued),
    ]


def ended_jobs(store: Store) -> list[Job]:
    """Return the jobs of all models that have ended, the last first.

    Those of other versions that can only be removed are not among them (``jobs.versions``).
    """
    jobs = [
        job
        for job in client.list_jobs(store)
        if not job.active and (job.state == "done" or not job.misfit)
    ]
    return sorted(jobs, key=lambda job: job.ended or job.created, reverse=True)


def written_files(store: Store) -> list[Job]:
    """Return finished jobs whose file still exists, newest first."""
    return [
        job for job in client.list_jobs(store) if job.written and Path(job.written.path).is_file()
    ]


def card_title(name: str) -> str:
    """Return the title of a registered model, or the file name of any other."""
    return model_card(name).title if name in list_models() else Path(name).name


def job_model(job: Job) -> str:
    """Return the title of a job's model."""
    if isinstance(job.request, InspectRequest):
        return Path(job.request.path).name
    return card_title(job.subject.model if job.subject else "")


#: Tasks that read no images, or none that their result is about.
_WITHOUT_IMAGES = ("summary", "inspect", "check_data", "export", "graph", "report", "fits")


def job_images(job: Job) -> str:
    """Describe the images of a job; empty for jobs that use none."""
    subject = job.subject
    if subject is None or job.task in _WITHOUT_IMAGES:
        return ""
    card = provenance.source_card(subject.model)
    data = subject.data or (card.data if card else "")
    split = "" if subject.split == "val" else f"{subject.split} split"
    recovered = "" if subject.recovery == "none" else f"recovery {subject.recovery}"
    return " · ".join(filter(None, [data, split, formats.images(subject.limit), recovered]))


def free_bytes(store: Store) -> int:
    """Return the free space on the store's disk, bytes."""
    return shutil.disk_usage(store.folder).free
