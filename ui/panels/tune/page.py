"""The Tune page.

All that an edit changes is drawn in one fragment, so that an edit redraws nothing else. What edits
leave unchanged is computed once per sweep (``setup``); the browser draws a drag by itself. It also
follows running measurements by itself (``ui/panels/live``): the fragment is rerun when one ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from psvit_core.jobs.client import Job
from psvit_core.records import Interval, Measurement, ModelSummary
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.components.equalizer import preload
from ui.model import consent, loaders, measured, state, sweeps
from ui.model.drafts import Draft
from ui.model.foreign import in_markdown
from ui.model.measured import MeasuredPlan
from ui.model.predictor import Predictor
from ui.model.sweeps import SweepView
from ui.panels.frame import boot, show_message
from ui.panels.picture import picture_panel
from ui.panels.sweep_choice import select_used_sweep
from ui.panels.tune.equalizer import Results, equalizer_panel
from ui.panels.tune.history import history_panel
from ui.panels.tune.measurement import (
    drag_switch,
    follow_draft,
    measure_panel,
    measures_edits,
)
from ui.panels.tune.planning import planning_panel
from ui.panels.tune.setup import Setup, equalizer_setup
from ui.panels.tune.table import table_panel
from ui.panels.tune.toolbar import toolbar

_SWEEPING = 2.0  # seconds between two redraws while cells are measured


@dataclass(frozen=True, kw_only=True)
class _Page:
    """Inputs of the page; edits leave them unchanged."""

    store: Store
    workspace: Workspace
    summary: ModelSummary  # with the ranking by the sweep's criterion
    view: SweepView | None
    sweep_job: Job | None  # while it is active
    dark: bool  # theme of this browser


@dataclass(frozen=True, kw_only=True)
class _Now:
    """What jobs have found out so far."""

    measuring: Sequence[Job]  # newest first
    planning: Job | None  # the newest
    history: Sequence[MeasuredPlan]
    predictor: Predictor | None


def tune_page() -> None:
    """Draw the Tune page."""
    page = _load()
    if page.sweep_job is None:  # during a sweep columns change: they are sent with each answer
        preload(equalizer_setup(page.summary, page.view).fixed, key="equalizer-data")

    @st.fragment(run_every=_SWEEPING if page.sweep_job else None)
    def tune() -> None:
        if page.sweep_job and not loaders.is_active(page.store, page.sweep_job):
            st.rerun()
        show_message()
        _draw(page)
        state.save_pending_draft(page.store, page.summary)

    tune()


def _load() -> _Page:
    page = boot()
    store, workspace = page.store, page.workspace
    known = sweeps.list_sweeps(store, page.summary)
    view = select_used_sweep(known, "Heat and predictions", key="tune-sweep")
    fitting = sweeps.under_recovery(known)
    view = view or (fitting[0] if fitting else None)  # an unfinished sweep has heat, too
    summary = view.summary if view else page.summary
    loaders.warm_up(workspace)
    sweep_job = loaders.sweep_job(workspace)
    return _Page(
        store=store,
        workspace=workspace,
        summary=summary,
        view=view,
        sweep_job=sweep_job if sweep_job is not None and sweep_job.active else None,
        dark=page.dark,
    )


def _look(page: _Page) -> _Now:
    jobs = page.workspace.jobs("measure", "plan")
    history = measured.measured_plans(page.workspace, page.summary)
    return _Now(
        measuring=[job for job in jobs if job.task == "measure"],
        planning=next((job for job in jobs if job.task == "plan"), None),
        history=history,
        predictor=measured.calibrated_predictor(page.view, history),
    )


def _draw(page: _Page) -> None:
    """Draw all that an edit changes."""
    store, summary, workspace = page.store, page.summary, page.workspace
    now = _look(page)
    results, job = _results(page, now)  # first: the worker runs while the page is drawn
    view = page.view
    if view and view.key and page.sweep_job:
        view = sweeps.sweep_view(store, view.key)
    setup = equalizer_setup(summary, view)
    saving, as_columns = toolbar(page.workspace, summary, setup, key="tune")
    draft = state.draft(store, summary)
    equalizer_panel(
        store,
        summary,
        setup,
        results,
        saving=saving,
        as_columns=as_columns,
        fixed_sent=page.sweep_job is None,
        key="equalizer",
    )
    if not as_columns:
        table_panel(store, summary, setup)
    picture_panel(workspace, summary, draft.plan, lambda: view, key="tune-picture", dark=page.dark)
    left, right = st.columns(2, gap="large")
    with left:
        st.header("Measured and predicted drop", anchor=False)
        drag_switch(workspace, summary)
        measure_panel(workspace, draft, job, results, key="measure")
        spec_key = page.view.key if page.view and setup.table else None
        planning_panel(workspace, summary, spec_key, setup.table, now.planning, key="planning")
        _prediction_note(setup, draft)
    with right:
        st.header("Measured plans", anchor=False)
        history_panel(store, summary, now.history, now.predictor, key="history")


def _results(page: _Page, now: _Now) -> tuple[Results, Job | None]:
    """Return the known drops of the draft, and the job that measures it; it may start now."""
    workspace, summary = page.workspace, page.summary
    draft = state.draft(page.store, summary)
    limit = workspace.subject.limit
    found = None if draft.empty else measured.measurement_of(now.history, draft, limit)
    automatic = measures_edits(workspace, summary)
    automatic = automatic and consent.covers_images(page.store, workspace.subject)
    wanted = automatic and found is None and not draft.empty
    job = follow_draft(workspace, draft, now.measuring, wanted=wanted)
    if found is None and job is not None:  # on fewer images than asked for: there are no more
        found = job.measurement
    results = Results(
        predicted=_predicted(now.predictor, draft, found),
        calibration=now.predictor.scale(draft.plan) if now.predictor else 1.0,
        measured=found,
        partial=measured.partial_drop(job),
        live=job.id if job is not None and job.active and found is None else "",
        measures=automatic,
    )
    return results, job


def _predicted(
    predictor: Predictor | None, draft: Draft, found: Measurement | None
) -> Interval | None:
    """Return the draft's prediction; beside a measurement, one that was not fitted to it."""
    if predictor is None:
        return None
    return predictor.from_sweep(draft.plan, found) if found else predictor.drop(draft.plan)


def _prediction_note(setup: Setup, draft: Draft) -> None:
    if setup.predictor is None:
        st.info(
            "Predictions and policies need a finished sweep. Start one on the Sensitivity page."
        )
    elif not draft.empty and setup.criterion != draft.plan.criterion:
        own, other = in_markdown(draft.plan.criterion), in_markdown(setup.criterion)
        st.warning(
            f"This plan ranks units by {own}, but the sweep that predicts its drop ranks them by "
            f"{other}: the prediction is only a rough guide."
        )
    elif not draft.empty:
        st.caption(f"Predictions: {setup.predictor.note}.")
