"""What pages and scripts call: names in, records out; no torch.

A ``Workspace`` is one model on one data set over a store. Cheap questions (groups, sizes of plans,
the table so far, plans by hand) are answered at once from records; heavy work is submitted to the
background worker (``jobs``), and its results are read from the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from psvit_core.errors import RecordError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import (
    PlanSettings,
    RecoverySettings,
    Subject,
    SweepSettings,
)
from psvit_core.jobs.fronts import ParetoSettings
from psvit_core.jobs.stamps import data_stamp, model_stamp
from psvit_core.pareto import ParetoArchive, find_archives, read_archive
from psvit_core.plans import default_criterion, plan_from_ratios
from psvit_core.records import (
    Conditions,
    EpochRecord,
    FinetuneSettings,
    Measurement,
    ModelSummary,
    PrunePlan,
    Record,
    SensitivityTable,
    Size,
    read_curve,
)
from psvit_core.sensitivity.table import SweepSpec, load_spec, read_table, sweep_keys
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store
from psvit_core.zoo.cards import ModelCard, list_models, model_card, shipped_summary

#: What of a subject decides the model; the rest decides the images and how they are run.
_OF_THE_MODEL = (
    "model", "checkpoint", "plugin", "image_size", "num_heads", "time_steps", "ema",
)  # fmt: skip

R = TypeVar("R", bound=Record)


def _readable(kind: type[R], data: object) -> R | None:
    """The record in ``data``; None where there is none or another version wrote it."""
    try:
        return kind.from_dict(data)
    except RecordError:
        return None


def _unchanged(job: Job, what: str, stamp: list[float]) -> bool:
    """Whether files are as they were when a job was asked for; told by no job of old versions."""
    return bool(job.params.get("stamps", {}).get(what, stamp) == stamp)


class Workspace:
    """One model on one data set.

    Args:
        subject: Which model on which images, and how it is run.
        store: Where results are kept; the default folder's when None.

    Raises:
        UnknownNameError: If there is no such model.
    """

    def __init__(self, subject: Subject | None = None, store: Store | None = None) -> None:
        self.subject = subject or Subject()
        self.store = store or Store()
        if self.subject.model in list_models():
            self.card: ModelCard | None = model_card(self.subject.model)
        else:
            self.card = None

    # ---- the model ---------------------------------------------------------------------------

    def summary(self) -> ModelSummary | None:
        """The model's summary, shipped or kept; None until ``request_summary`` is done."""
        if shipped := self._shipped_summary():
            return shipped
        known = client.results(self.store, "summary", ModelSummary)
        for job in client.list_jobs(self.store) if known else []:
            if job.id in known and self._same_model(job):
                return known[job.id]
        return None

    def _shipped_summary(self) -> ModelSummary | None:
        """The summary that ships with the model's weights, if the subject is that very model."""
        s, shipped = self.subject, shipped_summary(self.subject.model)
        if shipped is None or self.card is None or s.checkpoint is not None:
            return None
        same_heads = s.num_heads in (None, self.card.arguments["num_heads"])
        return shipped if same_heads and s.image_size in (None, shipped.input_shape[1]) else None

    def _same_model(self, job: Job) -> bool:
        """Whether a job was on this very model, whatever the images."""
        theirs = self._subject_of(job)
        return (
            theirs is not None
            and all(getattr(theirs, name) == getattr(self.subject, name) for name in _OF_THE_MODEL)
            and _unchanged(job, "model", model_stamp(theirs))
        )

    def _same_numbers(self, job: Job) -> bool:
        """Whether what a job measured holds for this subject: same model, images and run."""
        theirs = self._subject_of(job)
        return (
            theirs is not None
            and self._decided(theirs) == self._decided(self.subject)
            and _unchanged(job, "model", model_stamp(theirs))
            and _unchanged(job, "data", data_stamp(theirs.data))
        )

    def _subject_of(self, job: Job) -> Subject | None:
        """The subject of a job on a model of this name; None for others and older versions'."""
        data = job.params.get("subject")
        if not isinstance(data, dict) or data.get("model") != self.subject.model:
            return None
        return _readable(Subject, data)

    def _decided(self, subject: Subject) -> Subject:
        """A subject with the card's values for what it leaves open, and without what is no matter.

        How many processes decode the images changes no number.
        """
        data, batch = subject.data, subject.batch
        if self.card is not None and subject.model == self.card.name:
            data, batch = data or self.card.data, batch or self.card.batch
        return dataclasses.replace(subject, data=data, batch=batch, workers=0)

    def request_summary(self) -> Job:
        """Have the worker describe the model."""
        return self._submit("summary", f"Describe {self.subject.model}", {})

    def inspect_file(self, path: str) -> Job:
        """Have the worker look into a checkpoint file; the result's ``report`` is a FileReport."""
        return self._submit("inspect", f"Look into {Path(path).name}", {"path": path})

    def check_data(self) -> Job:
        """Have the worker count and look at the images; the ``report`` is a DataReport."""
        return self._submit("check_data", f"Check {self.subject.data or 'the images'}", {})

    def size(self, plan: PrunePlan | None = None, precision: str = "float32") -> Size:
        """Exact size of the model, or of what a plan makes of it."""
        return plan_size(self._known(), plan, precision)

    def memory_saving(self, plan: PrunePlan) -> float:
        """Fraction of the memory that a plan saves."""
        return memory_saving(self._known(), plan)

    def plan_by_hand(self, ratios: Mapping[str, float], criterion: str | None = None) -> PrunePlan:
        """The plan of these prune ratios; ranked by the best criterion at hand when None."""
        summary = self._known()
        chosen = criterion or default_criterion(summary.rankings)
        return plan_from_ratios(summary, ratios, criterion=chosen)

    def _known(self) -> ModelSummary:
        summary = self.summary()
        if summary is None:
            raise RuntimeError("ask for summary() first and wait until it is there")
        return summary

    # ---- sweeps ------------------------------------------------------------------------------

    def start_sweep(self, settings: SweepSettings) -> Job:
        """Run or resume a sweep in the background."""
        title = f"Sweep {self.subject.model}: {len(settings.ratios)} ratios"
        return self._submit("sweep", title, {"settings": settings.to_dict()})

    def sweep_key(self) -> str | None:
        """The sweep of this model, split and images; None without one.

        The one that a job of this subject started last; else, of those on as many images as the
        limit says (without a limit: on the most), the one started last.
        """
        summary = self.summary()
        if summary is None:
            return None
        asked = {job.result.get("sweep_key") for job in self.jobs("sweep")}
        n_images: dict[str, int] = {}
        for key in sweep_keys(self.store):
            spec = load_spec(self.store, key)
            same = spec.summary.weights_hash == summary.weights_hash
            batch = spec.cluster  # the batch, where it matters
            if not same or not self._is_run_so(spec.conditions, batch, summary.T):
                continue
            if key in asked:
                return key
            if self.subject.limit in (None, spec.conditions.n_images):
                n_images[key] = spec.conditions.n_images
        return max(n_images, key=lambda key: n_images[key], default=None)

    def _is_run_so(
        self, c: Conditions | ParetoArchive, batch: int | None, T: int, split: str | None = None
    ) -> bool:
        """Whether numbers were made as this subject makes its own, but for the number of images.

        Args:
            c: How they were made.
            batch: Their batch size, where it matters.
            T: The model's time steps; frames bring their own.
            split: Another split than the subject's.
        """
        s = self._decided(self.subject)
        frames = c.transform.startswith("frames")
        transform = self.card.at(s.image_size).transform.name if self.card else c.transform
        return (
            (c.split, c.precision) == (split or s.split, s.precision)
            and c.data == (s.data or c.data)
            and (frames or c.transform == transform)
            and ((s.time_steps or T) == c.T or (frames and s.time_steps is None))
            and (s.batch is None or batch in (None, s.batch))
        )

    def table(self, spec: SweepSpec) -> SensitivityTable | None:
        """The sweep's table of the cells finished so far; None before its baseline is there."""
        return read_table(self.store, spec)

    # ---- measurements, plans, exports ----------------------------------------------------------

    def measure(self, plan: PrunePlan | None, *, profile: bool = False) -> Job:
        """Measure a plan (None: the model itself) in the background.

        While it runs, ``Job.partial`` says what the images so far show.

        Args:
            plan: The plan.
            profile: Also run-time memory and latency on the worker's machine.
        """
        what = f"plan of {len(plan.kept)} groups" if plan else "unpruned model"
        params: dict[str, Any] = {"plan": plan.to_dict() if plan else None}
        if profile:
            params["profile"] = True
        return self._submit("measure", f"Measure {what}", params)

    def measurement(self, plan: PrunePlan | None) -> Measurement | None:
        """The newest measurement of a plan with these kept units on this subject, if any."""
        kept = plan.kept if plan else None
        known = client.results(self.store, "measurement", Measurement)
        for job in client.list_jobs(self.store) if known else []:
            if job.task not in ("measure", "plan") or job.id not in known:
                continue
            found = known[job.id]
            if (found.plan.kept if found.plan else None) == kept and self._same_numbers(job):
                return found
        return None

    def start_plan(self, spec: SweepSpec, settings: PlanSettings) -> Job:
        """Have a planner choose and measure a plan in the background."""
        params = {"sweep_key": spec.key, "settings": settings.to_dict()}
        return self._submit("plan", f"Plan by {settings.policy}", params)

    def export(
        self,
        plan: PrunePlan,
        file_name: str,
        recover: RecoverySettings | None = None,
        *,
        measure: bool = False,
    ) -> Job:
        """Prune, recover and write the checkpoint in the background.

        Args:
            plan: The plan.
            file_name: Of the checkpoint.
            recover: How to recover; not at all when None.
            measure: Also measure the file that was written, on this subject's images.
        """
        params: dict[str, Any] = {"plan": plan.to_dict(), "file_name": file_name}
        if recover is not None:
            params["recovery"] = recover.to_dict()
        if measure:
            params["measure"] = True
        return self._submit("export", f"Export {file_name}", params)

    # ---- the archive of measured plans ---------------------------------------------------------

    def start_pareto(self, settings: ParetoSettings, spec: SweepSpec | None = None) -> Job:
        """Measure policies x targets into the archive in the background.

        Args:
            settings: What to measure.
            spec: A finished sweep to plan from; swept first when None.
        """
        params: dict[str, Any] = {"settings": settings.to_dict()}
        if spec is not None:
            params["sweep_key"] = spec.key
        title = f"Front of {self.subject.model}: {len(list(settings.cells()))} plans"
        return self._submit("pareto", title, params)

    def archive(self, split: str | None = None, *, improved: bool = False) -> ParetoArchive | None:
        """All measured plans of this model and data so far; None without one.

        Where several numbers of images were measured, the subject's limit decides, else the
        archive of most images, then the newest; they are never mixed.

        Args:
            split: Another split than the subject's: ``test`` to judge what was planned.
            improved: Also what became of plans by recovery and fine-tuning; predictions do not
                speak of those.
        """
        summary = self.summary()
        if summary is None:
            return None
        heads = [
            head
            for head in find_archives(self.store, summary.weights_hash)
            if self._is_run_so(head, head.batch, summary.T, split)
            and self.subject.limit in (None, head.n_images)
        ]
        if not heads:
            return None
        found = read_archive(self.store, heads[0])
        return found if improved else found.plain()

    def start_finetune(
        self,
        plan: PrunePlan | None,
        settings: FinetuneSettings,
        file_name: str,
        recover: RecoverySettings | None = None,
    ) -> Job:
        """Prune by ``plan`` (None: the model is a pruned file), recover and train, all behind.

        Its curve while it runs: ``finetune_records``. A cancelled, failed or interrupted one goes
        on after its last epoch when it is resumed.
        """
        params: dict[str, Any] = {
            "plan": plan.to_dict() if plan else None,
            "settings": settings.to_dict(),
            "file_name": file_name,
        }
        if recover is not None:
            params["recovery"] = recover.to_dict()
        return self._submit("finetune", f"Fine-tune {file_name}", params)

    def finetune_records(self, job: Job) -> tuple[EpochRecord, ...]:
        """The training curve of a fine-tuning so far."""
        curve = client.find_job(self.store, job.id).result.get("records")
        return read_curve(curve) if curve else ()

    # ---- jobs --------------------------------------------------------------------------------

    def jobs(self, *tasks: str) -> list[Job]:
        """Jobs of this subject, newest first."""
        subject = self.subject.to_dict()
        return [
            job
            for job in client.list_jobs(self.store)
            if job.params.get("subject") == subject and (not tasks or job.task in tasks)
        ]

    def _submit(self, task: str, title: str, params: dict[str, Any]) -> Job:
        stamps = {"model": model_stamp(self.subject), "data": data_stamp(self.subject.data)}
        params = {"subject": self.subject.to_dict(), "stamps": stamps, **params}
        return client.submit(self.store, task, title, params, device=self.subject.device)
