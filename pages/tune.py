"""How much to remove from each channel group: handles on the measured sensitivity."""

import streamlit as st

import ui
from psvit_core.jobs import client
from ui import loaders, state, sweep_choice, sweep_views
from ui.equalizer import board
from ui.panels_tune import equalizer_panel, prepared, table_panel, toolbar
from ui.panels_tune_measure import (
    history_panel,
    job_of,
    measure_panel,
    measured_plans,
    measurement_of,
    partial_estimate,
    planning_panel,
    predictor_of,
)

page = ui.boot()
store, summary, workspace = page.store, page.summary, page.workspace
sweeps = sweep_views.sweeps(store, summary)
view = sweep_choice.used_line(sweeps, "Heat and predictions", key="tune-sweep")
view = view or (sweeps[0] if sweeps else None)  # as far as it has come
summary = view.summary if view else summary  # it has the ranking by the sweep's criterion
sweep_job = loaders.sweep_job(workspace)
sweeping = sweep_job is not None and sweep_job.active
history = measured_plans(workspace, summary)
jobs = workspace.jobs("measure", "plan")
active = {job.id for job in jobs if job.active}
every = 0.4 if active else 2.0 if sweeping else None
before = prepared(summary, view)
predictor = predictor_of(view, history)
if not sweeping:  # then columns change, and go with each answer
    board(before.fixed, key="board")


@st.fragment(run_every=every)
def tune() -> None:
    """All that an edit changes; looks again while a plan is measured or a sweep runs."""
    now = [client.find_job(store, j.id) if j.id in active else j for j in jobs]
    ended = {j.id for j in now if j.active} != active
    if ended or state.taken("tune-look") or (sweeping and not loaders.still_runs(store, sweep_job)):
        st.rerun()
    ui.show_message()
    seen = sweep_views.sweep_view(store, view.key) if view and view.key and sweeping else view
    ready = prepared(summary, seen)
    saving, as_columns = toolbar(store, summary, ready, key="tune")
    draft = state.draft(store, summary)
    predicted = predictor.drop(draft.plan) if predictor else None
    measured = None if draft.empty else measurement_of(history, draft, workspace.subject.limit)
    job = job_of([j for j in now if j.task == "measure"], draft)
    equalizer_panel(
        store, summary, ready, handed_over=not sweeping, saving=saving,
        board=as_columns, predicted=predicted,
        calibration=predictor.calibration if predictor else 1.0, measured=measured,
        measuring=partial_estimate(job), key="equalizer",
    )  # fmt: skip
    if not as_columns:
        table_panel(store, summary, ready, key="table")
    left, right = st.columns(2, gap="large")
    with left:
        st.header("Measured against predicted", anchor=False)
        measure_panel(workspace, draft, job, predicted=predicted, measured=measured, key="measure")
        planning = next((j for j in now if j.task == "plan"), None)
        spec_key = view.key if view and ready.table else None
        planning_panel(workspace, summary, draft, spec_key, saving, planning, key="planning")
        if ready.predictor is None:
            st.info("Predictions and policies need a finished sweep: see the Sensitivity page.")
        elif not draft.empty and ready.criterion != draft.plan.criterion:
            st.warning(
                f"This plan ranks units by {draft.plan.criterion}, the sweep that predicts its "
                f"drop by {ready.criterion}: take the prediction as a hint."
            )
    with right:
        st.header("Plans measured so far", anchor=False)
        history_panel(store, summary, history, predictor, key="history")
    state.keep_draft(store, summary)


tune()
