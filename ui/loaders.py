"""What pages read: the store, models, measured plans, jobs; no torch."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from psvit_core.demo import DemoStore, baseline_key
from psvit_core.errors import RecordError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import Subject
from psvit_core.jobs.fronts import predicted_plans, unpruned_key
from psvit_core.jobs.opening import DataReport
from psvit_core.pareto import ParetoArchive
from psvit_core.records import Measurement, ModelSummary, PrunePlan
from psvit_core.sensitivity.table import load_spec
from psvit_core.store import Store, digest
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import list_models, model_card
from ui import fronts, origins, predict, words
from ui.fronts import Overview
from ui.sweep_views import SweepView


@st.cache_resource(show_spinner=False)
def open_store() -> Store:
    """The store, opened once a server, with the results that ship with the models beneath it."""
    return DemoStore()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the head of a page was set to."""

    model: str  # registered name or path of a pruned file
    limit: int | None  # validation images; None: all
    checkpoint: str | None = None  # file of weights, for registered models without
    data: str | None = None  # data specification; None: what the model was trained for

    def workspace(self, store: Store) -> Workspace:
        """The workspace of this choice."""
        subject = Subject(
            model=self.model, checkpoint=self.checkpoint, data=self.data, limit=self.limit
        )
        return Workspace(subject, store)

    def describer(self, store: Store) -> Workspace:
        """The workspace that describes the model: that does not depend on the images."""
        return Workspace(Subject(model=self.model, checkpoint=self.checkpoint), store)


#: The entry of the model list for a file that was not exported here.
OPEN_FILE = "open-file"

# ---- models ----------------------------------------------------------------------------------


def model_titles(store: Store) -> dict[str, str]:
    """Names on screen: models with weights, files exported here (newest first), any file, others.

    Two files may have one name, so a file's title ends in the beginning of its job's id.
    """
    cards = [model_card(name) for name in list_models()]
    titles = {card.name: card.title for card in cards if card.weights}
    for job in exports(store):
        path = Path(job.result["path"])
        if path.is_file():
            titles[str(path)] = f"Pruned: {path.stem} ({job.id[:4]})"
    titles[OPEN_FILE] = "Open a pruned file"
    others = {card.name: f"{card.title} (weights not included)" for card in cards}
    return titles | {name: title for name, title in others.items() if name not in titles}


def measurement(workspace: Workspace, plan: PrunePlan | None) -> Measurement | None:
    """The newest measurement of a plan (None: the model itself), asked for alone or for a front."""
    found = workspace.measurement(plan)
    if found is None and plan is not None:
        archive = own_archive(workspace)
        points = (p.measurement for p in (archive.points if archive else ()))
        return next((m for m in points if m.plan and m.plan.kept == plan.kept), None)
    return found or shipped_baseline(workspace)


def shipped_baseline(workspace: Workspace) -> Measurement | None:
    """The measurement of the unpruned model that ships with it, if it is on the chosen images."""
    summary, subject, card = workspace.summary(), workspace.subject, workspace.card
    data = workspace.store.get(baseline_key(summary.weights_hash)) if summary else None
    if data is None or subject.data not in (None, card.data if card else None):
        return None
    found = Measurement.from_dict(data)
    return found if subject.limit in (None, found.conditions.n_images) else None


def timed_baseline(store: Store, plans: ParetoArchive) -> Measurement | None:
    """The profiled measurement of the unpruned model that a front was measured with."""
    data = store.get(unpruned_key(plans))
    try:
        return Measurement.from_dict(data) if data is not None else None
    except RecordError:  # of another version
        return None


def exports(store: Store, weights_hash: str | None = None) -> list[Job]:
    """Finished exports, newest first; of one model where its hash is given."""
    return [
        job
        for job in client.list_jobs(store)
        if job.task == "export"
        and job.state == "done"
        and weights_hash in (None, job.params["plan"]["weights_hash"])
    ]


def result_measurement(store: Store, job: Job) -> Measurement | None:
    """The measurement in a finished job's result, if there is one that this engine can read."""
    return client.results(store, "measurement", Measurement).get(job.id)


# ---- measured plans --------------------------------------------------------------------------


def overview(
    workspace: Workspace, summary: ModelSummary, sweep: SweepView | None,
    predictor: predict.Predictor | None,
) -> Overview:  # fmt: skip
    """All plans known of a model.

    Args:
        workspace: The model on its images.
        summary: The model.
        sweep: The finished sweep that plans without a measurement are made from, if there is one.
        predictor: What predicts their drops.
    """
    store = workspace.store
    plans = archive(workspace)
    known = (measurement(workspace, None), timed_baseline(store, plans) if plans else None)
    unpruned = [m for m in known if m is not None]
    # An entry never changes: the same keys are the same archive.
    stamp = [
        sorted(store.keys("pareto/")), workspace.subject.to_dict(),
        [m.profile.to_dict() if m.profile else None for m in unpruned],
        predictor.calibration if predictor else None,
    ]  # fmt: skip
    return _overview(
        str(store.folder), summary.weights_hash, sweep.key if sweep else None, digest(stamp),
        workspace, summary, sweep, predictor, unpruned,
    )  # fmt: skip


@st.cache_resource(max_entries=8, show_spinner=False)
def _overview(
    folder: str, weights_hash: str, sweep_key: str | None, stamp: str, _workspace: Workspace,
    _summary: ModelSummary, _sweep: SweepView | None, _predictor: predict.Predictor | None,
    _unpruned: list[Measurement],
) -> Overview:  # fmt: skip
    store, table = _workspace.store, _sweep.table if _sweep else None
    planned: list[PrunePlan] = []
    if table is not None and sweep_key is not None:
        planned = predicted_plans(store, load_spec(store, sweep_key), table)
    return fronts.overview(_summary, archive(_workspace), _predictor, planned, _unpruned)


def archive(workspace: Workspace) -> ParetoArchive | None:
    """The measured plans on as many images as are chosen, else on the most there are."""
    found = own_archive(workspace)
    if found is None and workspace.subject.limit is not None:
        subject = dataclasses.replace(workspace.subject, limit=None)
        found = own_archive(Workspace(subject, workspace.store))
    return found


def own_archive(workspace: Workspace) -> ParetoArchive | None:
    """The measured plans on as many images as are chosen."""
    store = workspace.store
    summary = workspace.summary()
    if summary is None:
        return None
    stamp = [store.changes("pareto"), workspace.subject.to_dict(), summary.weights_hash]
    return _own_archive(str(store.folder), digest(stamp), workspace)


@st.cache_resource(max_entries=16, show_spinner=False)
def _own_archive(folder: str, stamp: str, _workspace: Workspace) -> ParetoArchive | None:
    return _workspace.archive()


# ---- jobs ------------------------------------------------------------------------------------


def newest_job(workspace: Workspace, *tasks: str) -> Job | None:
    """The job of these tasks on this model and these images that was asked for last."""
    jobs = workspace.jobs(*tasks)
    return jobs[0] if jobs else None


def plan_job(workspace: Workspace, task: str, plan: PrunePlan | None) -> Job | None:
    """The newest job of a task for a plan's kept units (None: the unpruned model)."""
    wanted = {group: list(units) for group, units in plan.kept.items()} if plan else None
    for job in workspace.jobs(task):
        params = job.params.get("plan")
        if (params["kept"] if params else None) == wanted:
            return job
    return None


def n_val_images(workspace: Workspace) -> int | None:
    """How many validation images a subject has; None where nobody has counted them yet."""
    subject, card = workspace.subject, origins.source_card(workspace.subject.model)
    whole = card.training.get("val_images") if card and subject.data in (None, card.data) else None
    for job in client.list_jobs(workspace.store) if whole is None else []:
        if job.task == "check_data" and job.state == "done":
            report = DataReport.from_dict(job.result["report"])
            if report.spec == subject.data:
                whole = next(s.n_images for s in report.splits if s.split == "val")
                break
    if whole is None:
        return subject.limit
    return min(whole, subject.limit or whole)


def sweep_job(workspace: Workspace) -> Job | None:
    """The sweep of this model to tell about: an active one, else the newest if it ended early."""
    mine = (workspace.subject.model, workspace.subject.checkpoint)
    jobs = []
    for job in client.list_jobs(workspace.store):
        subject = job.params["subject"]
        if job.task == "sweep" and (subject["model"], subject.get("checkpoint")) == mine:
            jobs.append(job)
    active = next((job for job in jobs if job.active), None)
    return active or (jobs[0] if jobs and jobs[0].state != "done" else None)


def still_runs(store: Store, job: Job | None) -> bool:
    """Whether a job waits or runs now."""
    return job is not None and client.find_job(store, job.id).active


def active_jobs(store: Store) -> list[Job]:
    """Jobs of all models that run or wait, in the order in which a worker takes them."""
    jobs = [job for job in client.list_jobs(store) if job.active]
    return sorted(
        jobs, key=lambda job: (job.state != "running", job.task not in client.SHORT, job.created)
    )


def ended_jobs(store: Store) -> list[Job]:
    """Jobs of all models that ended, the last first."""
    jobs = [job for job in client.list_jobs(store) if not job.active]
    return sorted(jobs, key=lambda job: job.ended or job.created, reverse=True)


def written_files(store: Store) -> list[Job]:
    """Finished jobs whose file is still there, the newest first."""
    return [
        job
        for job in client.list_jobs(store)
        if job.task in ("export", "finetune")
        and job.state == "done"
        and Path(job.result["path"]).is_file()
    ]


def card_title(name: str) -> str:
    """The title of a registered model; of anything else its name."""
    return model_card(name).title if name in list_models() else Path(name).name


def job_model(job: Job) -> str:
    """The title of the model that a job is about."""
    if "path" in job.params:
        return Path(job.params["path"]).name
    return card_title(job.params.get("subject", {}).get("model", ""))


def job_images(job: Job) -> str:
    """On which images a job runs, in words; empty for jobs that need none."""
    subject = job.params.get("subject", {})
    if job.task in ("summary", "inspect", "check_data", "export"):
        return ""
    card = origins.source_card(subject.get("model", ""))
    data = subject.get("data") or (card.data if card else "")
    return " · ".join(filter(None, [data, words.images(subject.get("limit"))]))


def free_bytes(store: Store) -> int:
    """Free space on the store's disk."""
    return shutil.disk_usage(store.folder).free
