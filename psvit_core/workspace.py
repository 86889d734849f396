"""The facade that pages and scripts use: names in, records out. Imports no torch.

A ``Workspace`` combines one model and one data set with a store. Cheap questions (groups, sizes, a
sweep's table so far) are answered at once from records. Heavy work is submitted to the background
worker (``jobs``), and its results are read from the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.pareto import ParetoArchive, ParetoPoint
from psvit_core.plan.build import default_criterion, plan_from_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import (
    EpochRecord,
    FinetuneSettings,
    Interval,
    Measurement,
    ModelSummary,
    ParetoSettings,
    PlanSettings,
    PrunePlan,
    RecoverySettings,
    SensitivityTable,
    Size,
    Subject,
    SweepSettings,
    counting_of,
    read_curve,
)
from psvit_core.records.jobs import (
    CheckDataRequest,
    ExportRequest,
    FinetuneRequest,
    FinetuneResult,
    GraphRequest,
    InspectRequest,
    JobRequest,
    MeasureRequest,
    ParetoRequest,
    PlanRequest,
    QuantizeRequest,
    ReportRequest,
    SummaryRequest,
    SummaryResult,
    SweepRequest,
    SweepResult,
)
from psvit_core.sensitivity.spec import SweepSpec, read_table
from psvit_core.storage.store import Store
from psvit_core.tasks.fingerprints import file_stamp
from psvit_core.tasks.matching import Matcher
from psvit_core.tasks.stored import find_archive, find_quantized, find_sweep

#: Tasks whose results depend on the subject's recovery. Export and fine-tuning name their own.
_RECOVERED_TASKS = ("measure", "sweep", "plan", "pareto")


def _measurement(job: Job, recovery: str) -> Measurement | None:
    """Return a job's measurement under a recovery, which changes nothing without a plan."""
    found = job.measurement
    if found is None or found.plan is None or job.subject is None:
        return found
    return found.under(recovery, job.subject.recovery)


def _subject_for(task: str, subject: Subject) -> Subject:
    """Return the subject of a task's jobs: without recovery where it changes nothing."""
    return subject if task in _RECOVERED_TASKS else dataclasses.replace(subject, recovery="none")


class Workspace:
    """One model on one data set.

    Args:
        subject: The model, the images and how they are run.
        store: The store of results; that of the default folder when None.
    """

    def __init__(self, subject: Subject | None = None, store: Store | None = None) -> None:
        self.subject = subject or Subject()
        self.store = store or Store()
        self._matcher = Matcher(self.subject)
        self.card = self._matcher.card

    # ---- the model ---------------------------------------------------------------------------

    def summary(self) -> ModelSummary | None:
        """Return the model's summary, shipped or stored; None until ``request_summary`` is done."""
        if shipped := self._matcher.shipped_summary():
            return shipped
        for job in client.list_jobs(self.store):
            found = job.outcome if job.state == "done" else None
            summary = found.summary if isinstance(found, SummaryResult) else None
            if summary is not None and self._matcher.same_model(job.subject, job.stamps):
                return summary
        return None

    def request_summary(self) -> Job:
        """Describe the model in the background."""
        return self._submit(f"Describe {self.subject.model}", SummaryRequest())

    def inspect_file(self, path: str, entry: str | None = None) -> Job:
        """Inspect a file, or one of its state dicts; the job's outcome has a ``FileReport``."""
        request = InspectRequest(path=path, entry=entry, stamp=tuple(file_stamp(path)))
        return self._submit(f"Inspect {Path(path).name}", request)

    def check_data(self) -> Job:
        """Check the images in the background; the outcome has a ``DataReport``."""
        return self._submit(f"Check {self.subject.data or 'the images'}", CheckDataRequest())

    def size(self, plan: PrunePlan | None = None, precision: str = "float32") -> Size:
        """Return the exact size of the model, or of the model pruned by ``plan``."""
        return plan_size(self._known_summary(), plan, precision)

    def memory_saving(self, plan: PrunePlan) -> float:
        """Return the fraction of the memory that a plan saves."""
        return memory_saving(self._known_summary(), plan)

    def plan_by_hand(self, ratios: Mapping[str, float], criterion: str | None = None) -> PrunePlan:
        """Return the plan of these prune ratios.

        Args:
            ratios: Prune ratio by group, in [0, 1).
            criterion: The criterion that ranks units; the best available one when None.
        """
        summary = self._known_summary()
        chosen = criterion or default_criterion(summary.rankings)
        return plan_from_ratios(summary, ratios, criterion=chosen)

    def _known_summary(self) -> ModelSummary:
        summary = self.summary()
        if summary is None:
            raise RuntimeError("The model has no summary yet: wait until request_summary() is done")
        return summary

    # ---- sweeps ------------------------------------------------------------------------------

    def start_sweep(self, settings: SweepSettings) -> Job:
        """Run or resume a sweep in the background."""
        name = f"Sweep {self.subject.model}: {len(settings.ratios)} ratios"
        return self._submit(name, SweepRequest(settings=settings))

    def sweep_key(self) -> str | None:
        """Return the store key of the sweep of this model, split and images, if there is one.

        The last sweep that a job of this subject started comes first. Then comes the newest sweep
        on as many images as the subject's limit; without a limit, on the most images.
        """
        summary = self.summary()
        if summary is None:
            return None
        results = (job.outcome for job in self.jobs("sweep"))
        requested = {r.sweep_key for r in results if isinstance(r, SweepResult)}
        return find_sweep(self.store, self._matcher, summary, requested)

    def table(self, spec: SweepSpec) -> SensitivityTable | None:
        """Return the sweep's table of all cells finished so far; None until its baseline is."""
        return read_table(self.store, spec)

    # ---- measurements, plans, exports ----------------------------------------------------------

    def measure(
        self,
        plan: PrunePlan | None,
        *,
        profile: bool = False,
        predicted: Interval | None = None,
        owner: str = "",
    ) -> Job:
        """Measure a plan in the background; ``Job.partial`` has estimates meanwhile.

        Args:
            plan: The plan; None measures the unpruned model.
            profile: Also measure run-time memory and latency on the worker's machine.
            predicted: The drop predicted for the plan now, pp; a plan's first one is kept.
            owner: Whose newest plan this is: drops the owner's earlier ones; empty: drops none.
        """
        target = f"plan of {len(plan.kept)} groups" if plan else "unpruned model"
        request = MeasureRequest(plan=plan, profile=profile, predicted=predicted)
        return client.submit(self.store, f"Measure {target}", self.subject, request, owner)

    def measurement(self, plan: PrunePlan | None) -> Measurement | None:
        """Return the newest measurement of a plan's kept units on this subject, if there is one."""
        kept = plan.kept if plan else None
        summary = self.summary()
        for job in client.list_jobs(self.store):
            found = _measurement(job, self.subject.recovery)
            if (
                found is not None
                and (found.plan.kept if found.plan else None) == kept
                and self._matcher.same_numbers(job.subject, job.stamps)
                and (summary is None or found.conditions.counting == counting_of(summary.family))
            ):
                return found
        return None

    def start_plan(self, spec: SweepSpec, settings: PlanSettings) -> Job:
        """Choose a plan with a planner and measure it in the background."""
        request = PlanRequest(sweep_key=spec.key, settings=settings)
        return self._submit(f"Plan by {settings.policy}", request)

    def export(
        self,
        plan: PrunePlan,
        file_name: str,
        recover: RecoverySettings | None = None,
        *,
        default_recovery: bool = False,
        measure: bool = False,
    ) -> Job:
        """Prune, recover and write the checkpoint in the background.

        Args:
            plan: The plan.
            file_name: Name of the checkpoint file.
            recover: Recovery settings; None: no recovery.
            default_recovery: Recover with ``auto`` if there are calibration images.
            measure: Also measure the plan alone and the written file on this subject's images.
        """
        request = ExportRequest(
            plan=plan,
            file_name=file_name,
            recovery=recover,
            default_recovery=default_recovery,
            measure=measure,
        )
        return self._submit(f"Export {file_name}", request)

    def start_finetune(
        self,
        plan: PrunePlan | None,
        settings: FinetuneSettings,
        file_name: str,
        recover: RecoverySettings | None = None,
        trials: tuple[FinetuneSettings, ...] = (),
    ) -> Job:
        """Prune, recover and train in the background; ``finetune_records`` returns the curve.

        A cancelled, failed or interrupted job continues after its last epoch when resumed.

        Args:
            plan: The plan to prune by first; None: the model is a pruned file.
            settings: Training settings.
            file_name: Name of the checkpoint file.
            recover: Recovery settings; None: no recovery.
            trials: Settings to try, of which the best is kept (``trials.vary``); empty: only
                ``settings``.
        """
        request = FinetuneRequest(
            settings=settings, file_name=file_name, plan=plan, recovery=recover, trials=trials
        )
        return self._submit(f"Fine-tune {file_name}", request)

    def finetune_records(self, job: Job) -> tuple[EpochRecord, ...]:
        """Return the training curve of a fine-tuning so far."""
        result = client.find_job(self.store, job.id).outcome
        curve = result.records if isinstance(result, FinetuneResult) else ""
        return read_curve(curve) if curve else ()

    # ---- the archive of measured plans ---------------------------------------------------------

    def start_pareto(self, settings: ParetoSettings, spec: SweepSpec | None = None) -> Job:
        """Measure policies x targets in the background and add them to the archive.

        Args:
            settings: Policies, targets and scopes.
            spec: A finished sweep to plan from; None runs a sweep first.
        """
        title = f"Front of {self.subject.model}: {len(list(settings.cells()))} plans"
        request = ParetoRequest(settings=settings, sweep_key=spec.key if spec else None)
        return self._submit(title, request)

    def archive(self, split: str | None = None, *, improved: bool = False) -> ParetoArchive | None:
        """Return all plans measured so far for this model and data, if there are any.

        Measurements on different numbers of images are never mixed. The subject's limit chooses;
        without one, the archive of most images, then the newest.

        Args:
            split: Split instead of the subject's: ``test`` to judge what was planned.
            improved: Include all recoveries and fine-tuned models; otherwise only plans measured
                under the subject's recovery.
        """
        summary = self.summary()
        if summary is None:
            return None
        return find_archive(self.store, self._matcher, summary, split, improved=improved)

    def quantized(self, beside: ParetoArchive | None = None) -> tuple[ParetoPoint, ...]:
        """Return the measured networks with quantized weights, pruned from this model.

        Args:
            beside: The archive whose images they must have; None: the subject's, the most.
        """
        summary = self.summary()
        return find_quantized(self.store, self._matcher, summary, beside) if summary else ()

    # ---- jobs --------------------------------------------------------------------------------

    def jobs(self, *tasks: str) -> list[Job]:
        """Return this subject's jobs, newest first, optionally of these tasks only."""
        found = client.list_jobs(self.store)
        own = {task: _subject_for(task, self.subject) for task in client.KINDS}
        return [j for j in found if j.task in (tasks or own) and j.subject == own.get(j.task)]

    def _submit(self, title: str, request: JobRequest) -> Job:
        return client.submit(self.store, title, _subject_for(request.task, self.subject), request)


def write_onnx(workspace: Workspace, path: str | Path) -> Job:
    """Write a pruned file's network as an ONNX file in the background, and check it.

    Args:
        workspace: The model that was pruned.
        path: The pruned file; the ONNX file gets its name with another suffix.
    """
    name = f"{Path(path).stem}.onnx"
    request = GraphRequest(path=str(path), file_name=name)
    return workspace._submit(f"Write {name}", request)


def quantize_file(workspace: Workspace, path: str | Path, kind: str, file_name: str) -> Job:
    """Write a pruned file's network with weights in fewer bits in the background, and measure it.

    Args:
        workspace: The model that was pruned, on its images.
        path: The pruned file.
        kind: One of ``STORED_WEIGHTS``.
        file_name: Name of the .safetensors file.
    """
    request = QuantizeRequest(path=str(path), file_name=file_name, kind=kind)
    return workspace._submit(f"Quantize {file_name}", request)


def request_report(
    workspace: Workspace, plan: PrunePlan | None, file_name: str, recovery: str | None = None
) -> Job:
    """Write what is stored of a run as one HTML page in the background.

    Args:
        workspace: The model on its images.
        plan: The plan; None: as for ``write_report``.
        file_name: Name of the .html file.
        recovery: Recovery of the numbers; None: as for ``write_report``.
    """
    request = ReportRequest(plan=plan, file_name=file_name, recovery=recovery)
    return workspace._submit(f"Write {file_name}", request)


def write_report(
    workspace: Workspace,
    path: str | Path,
    plan: PrunePlan | None = None,
    *,
    pruned: str | Path | None = None,
    files: str | Path | None = None,
    recovery: str | None = None,
) -> Path:
    """Write what the store has of a run as one HTML page that opens without a network.

    Nothing is measured: what the store does not have is called not measured. Results that ship with
    a model count if the workspace's store is a ``DemoStore``.

    Args:
        workspace: The model on its images.
        path: The .html file.
        plan: The plan to report on. None: that of ``pruned``; else of the newest checkpoint that
            the app wrote; else the knee of the measured front.
        pruned: A pruned file of the model, whose header tells of its recovery and fine-tuning.
        files: Folder for the figures as SVG and the data as CSV and JSON; None: no such files.
        recovery: Recovery of the numbers; None: ``auto`` if anything was measured under it.

    Returns:
        The path of the page.

    Raises:
        OutputError: If a file cannot be written.
        InvalidPlanError: If the plan or the pruned file is of another model.
        CheckpointError: If ``pruned`` is not a pruned file.
    """
    from psvit_core.report import check_page_path, collect, write_files, write_page
    from psvit_core.tasks.session import Session, summarize_model

    place = check_page_path(path)
    store, subject = workspace.store, workspace.subject
    found = collect(
        store,
        subject,
        workspace.summary() or summarize_model(Session(subject, store)),
        plan=plan,
        pruned=pruned,
        recovery=recovery,
        jobs=client.list_jobs(store),
    )
    if files is not None:
        write_files(found, files)
    return write_page(found, place)
