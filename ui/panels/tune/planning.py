"""A search with real measurements instead of predictions, in the background."""

from __future__ import annotations

import math

import streamlit as st

from psvit_core import planners
from psvit_core.errors import PsvitError
from psvit_core.jobs.client import Job
from psvit_core.plan.size import memory_saving
from psvit_core.records import (
    DEFAULT_BUDGET,
    ModelSummary,
    PlanSettings,
    PrunePlan,
    SensitivityTable,
)
from psvit_core.records.jobs import PlanResult
from psvit_core.sensitivity.spec import load_spec
from psvit_core.workspace import Workspace
from ui.model import durations, editing, fitting, formats, predictor, state
from ui.model.foreign import in_markdown
from ui.model.formats import POLICY_NAMES
from ui.panels.job import job_panel
from ui.panels.live import live_panel
from ui.panels.widgets import action_button

_MINUTES = 5  # default of the time limit
_MINUTES_HELP = "No further plan is measured after this time; the plan follows from those measured."


def planning_panel(
    workspace: Workspace,
    summary: ModelSummary,
    spec_key: str | None,
    table: SensitivityTable | None,
    job: Job | None,
    *,
    key: str,
) -> None:
    """Draw the search's settings with its size and time, its progress, or its plan.

    Args:
        workspace: The model on its images.
        summary: The model.
        spec_key: Key of the finished sweep to start from; None disables the search.
        table: The table of that sweep.
        job: The newest search, if there is one.
        key: Prefix of the widgets' keys.
    """
    if job is not None and job.active:
        live_panel(workspace.store, job, key=key)
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        with st.popover(
            "Search with real measurements",
            icon=":material/conversion_path:",
            disabled=spec_key is None or table is None,
            key=f"{key}-open",
        ):
            if spec_key is not None and table is not None:
                _settings(workspace, summary, spec_key, table, key=key)
        plan = finished_plan(summary, job)
        current = state.draft(workspace.store, summary).plan
        if job is not None and plan is not None and plan.kept != current.kept:
            action_button(
                "Use the plan found",
                _use,
                workspace,
                summary,
                plan,
                key=f"{key}-use",
                type="tertiary",
                icon=":material/check:",
                help=in_markdown(_plan_help(summary, job, plan)),
            )
    if job is not None and job.state != "done":
        job_panel(workspace.store, job.id, key=key)


def _settings(
    workspace: Workspace,
    summary: ModelSummary,
    spec_key: str,
    table: SensitivityTable,
    *,
    key: str,
) -> None:
    """Draw the settings of a search, what it will take, and the button that starts it."""
    wanted = fitting.limits(summary)
    st.markdown(
        f"Measures plans while it looks for one that saves {formats.ratio(wanted.saving)} of the "
        "memory and meets the limits above, instead of predicting them. Locked groups stay."
    )
    policy = st.selectbox(
        "Policy",
        predictor.policies(),
        format_func=formats.POLICY_NAMES.__getitem__,
        key=f"{key}-policy",
    )
    most = st.number_input("Plans to measure at most", 1, 1000, DEFAULT_BUDGET, key=f"{key}-plans")
    minutes = st.number_input(
        "Minutes at most", 1, 1440, _MINUTES, key=f"{key}-minutes", help=_MINUTES_HELP
    )
    draft = state.draft(workspace.store, summary)
    settings = PlanSettings(
        policy=policy or predictor.policies()[0],
        memory_saving=wanted.saving,
        max_drop=wanted.max_drop,
        savings=dict(wanted.savings),
        locked=fitting.locked_ratios(summary, draft),
        budget_evaluations=int(most),
        budget_seconds=60.0 * int(minutes),
    )
    possible = True
    try:
        st.markdown(_size_text(workspace, summary, table, settings))
    except PsvitError as error:
        st.warning(in_markdown(fitting.with_labels(str(error), summary)))
        possible = False
    action_button(
        "Start the search",
        _start,
        workspace,
        spec_key,
        settings,
        key=f"{key}-start",
        type="primary",
        disabled=not possible,
    )


def _size_text(
    workspace: Workspace, summary: ModelSummary, table: SensitivityTable, settings: PlanSettings
) -> str:
    """Return how many plans a search measures, and how long that takes, before it starts."""
    within, whole = planners.most_measured(table, settings)
    n_images = workspace.subject.limit or table.conditions.n_images
    text = f"Up to **{within + 1} plans** on {n_images} images"
    if whole > within:
        text += f" (without the limit, up to {whole + 1})"
    seconds = durations.plan_time(workspace, summary, n_images, profile=False)
    if seconds is None:
        return f"{text}. The time is not known before a plan has been measured here."
    at_most = min((within + 1) * seconds, settings.budget_seconds or math.inf)
    return f"{text}, at most about **{formats.duration(at_most)}**."


def finished_plan(summary: ModelSummary, job: Job | None) -> PrunePlan | None:
    """Return the plan of a finished search; None if it is for other weights."""
    if job is None or job.state != "done":
        return None
    plan = job.outcome.plan if isinstance(job.outcome, PlanResult) else None
    return plan if plan and plan.weights_hash == summary.weights_hash else None


def _plan_help(summary: ModelSummary, job: Job, plan: PrunePlan) -> str:
    policy = POLICY_NAMES.get(plan.policy, plan.policy)
    saving = formats.percent(memory_saving(summary, plan))
    text = f"{policy}, searched with real measurements: saves {saving} of the memory"
    measured = job.measurement
    return f"{text}, drop {formats.drop(measured.drop)}" if measured and measured.drop else text


def _start(workspace: Workspace, spec_key: str, settings: PlanSettings) -> None:
    workspace.start_plan(load_spec(workspace.store, spec_key), settings)


def _use(workspace: Workspace, summary: ModelSummary, plan: PrunePlan) -> None:
    """Make the found plan the draft; locked groups keep their own units."""
    draft = state.draft(workspace.store, summary)
    editing.use_plan(workspace.store, summary, fitting.with_locked_units(plan, draft))
