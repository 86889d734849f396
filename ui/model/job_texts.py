"""What a job works on, in words, and where its result is shown."""

from __future__ import annotations

from pathlib import Path

from psvit_core.jobs.client import Job
from psvit_core.plan.size import memory_saving
from psvit_core.records import ModelSummary, PlanSettings, PrunePlan, Subject
from psvit_core.records.jobs import (
    ExportRequest,
    GraphRequest,
    ParetoRequest,
    PlanRequest,
    PlanResult,
    QuantizeRequest,
    SweepRequest,
)
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import list_models
from psvit_core.zoo.sizing import format_arguments
from ui.model import consent, formats, loaders, saved_plans, state
from ui.model.formats import POLICY_NAMES

_PAGES = {  # of a finished job's result
    "sweep": "Sensitivity",
    "measure": "Compare",
    "plan": "Compare",
    "pareto": "Overview",
    "export": "Export",
    "quantize": "Export",
    "graph": "Export",
    "report": "Export",
    "fits": "Export",
    "latency": "Compare",
    "finetune": "Fine-tune",
    "summary": "Open",
    "check_data": "Open",
}


def about(store: Store, job: Job) -> str:
    """Describe what a job works on: the plan by name, policy and saving, or the sweep's grid."""
    request = job.request
    if isinstance(request, SweepRequest):
        return sweep_line(request.settings.ratios, request.settings.criterion)
    if isinstance(request, ParetoRequest):
        names = [POLICY_NAMES.get(p, p) for p in request.settings.policies]
        return f"{len(list(request.settings.cells()))} plans by {', '.join(names)}"
    if isinstance(request, GraphRequest | QuantizeRequest):
        return Path(request.path).name
    plan = job_plan(job)
    if plan is None:
        if isinstance(request, PlanRequest):
            return settings_line(request.settings)
        return "unpruned" if job.task in ("measure", "fits", "latency") else ""
    summary = Workspace(job.subject, store).summary() if job.subject else None
    if summary is None or summary.weights_hash != plan.weights_hash:
        return POLICY_NAMES.get(plan.policy, plan.policy)
    return plan_text(store, summary, plan)


def job_plan(job: Job) -> PrunePlan | None:
    """Return the plan that a job was given, or that it chose."""
    chosen = job.outcome.plan if isinstance(job.outcome, PlanResult) else None
    return job.plan or chosen


def plan_text(store: Store, summary: ModelSummary, plan: PrunePlan) -> str:
    """Return a plan's name if it is saved, its policy and the memory that it saves."""
    saved = saved_plans.list_plans(store, summary)
    name = next((item.name for item in saved if item.plan.kept == plan.kept), "")
    policy = POLICY_NAMES.get(plan.policy, plan.policy)
    return " · ".join(
        filter(None, [name, policy, f"saves {formats.percent(memory_saving(summary, plan))}"])
    )


def sweep_line(ratios: tuple[float, ...], criterion: str | None) -> str:
    """Describe the grid of a sweep."""
    shown = ", ".join(f"{100 * r:g}" for r in ratios)
    ranked = formats.CRITERION_NAMES.get(criterion or "", formats.DEFAULT_CRITERION_NAME)
    return f"{shown}{formats.NBSP}% of each group · {ranked}"


def settings_line(settings: PlanSettings) -> str:
    """Describe a plan that is still to be chosen."""
    policy = POLICY_NAMES.get(settings.policy, settings.policy)
    saving = settings.memory_saving or settings.saving
    if saving is not None:
        return f"{policy} · to save {formats.percent(saving)}"
    if settings.max_drop is not None:
        return f"{policy} · at most {formats.points(100 * settings.max_drop)}"
    return policy


# ---- the result ----------------------------------------------------------------------------------


def result_page(job: Job) -> str:
    """Return the title of the page that shows a finished job's result; empty without one."""
    if job.state != "done" or job.subject is None:
        return ""
    if isinstance(job.request, ExportRequest) and job.request.measure:
        return "Fine-tune"
    if job.task == "measure" and job_plan(job) is None:
        return "Open"
    return _PAGES.get(job.task, "")


def select_result(store: Store, job: Job) -> None:
    """Select the job's model and images, and its plan on Compare; call it in a callback."""
    subject = job.subject
    if subject is None:
        return
    _select_subject(store, subject)
    plan = job_plan(job)
    if plan is not None:
        state.put(state.COMPARED.format(plan.weights_hash), state.plan_id(plan))


def _select_subject(store: Store, subject: Subject) -> None:
    """Select a subject's model and images in the header's fields."""
    consent.give(subject.model, subject.checkpoint, subject.data)
    listed = subject.model in loaders.model_titles(store)
    named = {"T": subject.time_steps, "image_size": subject.image_size, **subject.arguments}
    if subject.num_heads is not None:
        named["num_heads"] = subject.num_heads
    arguments = {name: value for name, value in named.items() if value is not None}
    in_list = listed and (subject.model in list_models() or not arguments)
    state.put(state.MODEL, subject.model if in_list else loaders.OPEN_FILE)
    state.put(state.FILE, "" if in_list else subject.model)
    state.put(state.ARGUMENTS, "" if in_list else format_arguments(arguments))
    state.put(state.CHECKPOINT, subject.checkpoint or "")
    state.put(state.ENTRY, subject.entry or "")
    state.put(state.DATA, subject.data or "")
    if subject.limit in (None, 64, 250):
        state.put(state.IMAGES, "all" if subject.limit is None else str(subject.limit))
