"""The Compare page."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from psvit_core.plan.size import memory_saving
from psvit_core.records import Measurement, ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.model import comparison, formats, fronts, loaders, measured, saved_plans, state, sweeps
from ui.model.comparison import ComparedPlan
from ui.model.measured import MeasuredPlan
from ui.model.saved_plans import SavedPlan
from ui.panels.compare.differences import (
    classes_panel,
    confusions_panel,
    difference_panel,
    firing_panel,
)
from ui.panels.compare.judgement import judgement_panel
from ui.panels.compare.plan import actions_panel
from ui.panels.compare.saving import save_panel
from ui.panels.compare.table import picked_plans, plans_table, two_plans
from ui.panels.frame import Frame, boot
from ui.panels.job import follow_job
from ui.panels.latency import latency_panel

NamedPlans = dict[str, tuple[str, PrunePlan]]  # name and plan by id
_CURRENT = "current"  # the draft's id among those of saved plans


def compare_page() -> None:
    """Draw the Compare page."""
    page = boot()
    store, summary = page.store, page.summary
    plans = saved_plans.list_plans(store, summary)
    pick = (state.COMPARED.format(summary.weights_hash), f"compare-b/{summary.weights_hash}")
    save_panel(store, summary, plans, pick=pick[0], key="keep")
    own = own_plans(store, summary, plans)
    measured_ones = measured_choices(page.workspace, summary, own)
    if not own:
        st.info(
            "No plans yet. Make a plan on the Tune page, save it here, then make another one: "
            "both are shown side by side, with their savings and costs. Saved plans survive a "
            "reload.",
            icon=":material/compare_arrows:",
        )
    if not own and not measured_ones:
        st.stop()
    choices = {**own, **measured_ones}
    same = {state.plan_id(plan): plan_id for plan_id, (_, plan) in own.items()}
    for at in pick:  # a measured plan that was picked may be saved or current by now
        state.put(at, same.get(state.get(at), state.get(at)))
    first, second = picked_plans([*own] or [*measured_ones][::-1], [*choices], pick)
    shown = {k: choices[k] for k in choices if k in own or k in (first, second)}
    entries = compared_entries(page.workspace, summary, shown)
    plans_table(summary, entries, key="plans", pick=pick)
    if note := comparison.prediction_note(entries.values()):
        st.caption(note)
    two_plans({k: name for k, (name, _) in choices.items()}, pick, key="choices")
    a, b = entries[first], entries[second]
    saved = next((k for k in plans if k.id == first), None)
    actions_panel(page.workspace, summary, a, saved, key="plan")
    job = loaders.plan_job(page.workspace, "measure", a.plan)
    if job is not None and job.state != "done":
        follow_job(store, job, key="measuring")
    judgement_panel(page.workspace, a.plan, key="judge")
    _details(page, a, b)


def _details(page: Frame, a: ComparedPlan, b: ComparedPlan) -> None:
    """Draw how two plans differ by group, class and layer; one plan's own numbers if equal."""
    same = a.plan.kept == b.plan.kept
    both = [a] if same else [a, b]
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.header("Differences", anchor=False)
        if same:
            st.markdown("Choose a second plan under **Compare with** to see the differences.")
        else:
            difference_panel(page.summary, a, b, dark=page.dark, key="difference")
        st.header("Firing rate by layer", anchor=False)
        unpruned = loaders.measurement(page.workspace, None)
        firing_panel(both, unpruned, dark=page.dark, key="firing")
        st.header("Latency by layer", anchor=False)
        latency_panel(page.workspace, page.summary, a.plan, key="latency", dark=page.dark)
    with right:
        st.header("Accuracy by class", anchor=False)
        classes_panel(both, dark=page.dark, key="classes")
        for at, entry in enumerate(both):
            confusions_panel(entry, key=f"confusions-{at}")


def own_plans(store: Store, summary: ModelSummary, plans: Sequence[SavedPlan]) -> NamedPlans:
    """Return the saved plans by id, then the draft if it is not saved."""
    draft = state.draft(store, summary)
    named = {
        k.id: (f"{k.name} (current)" if k.plan.kept == draft.plan.kept else k.name, k.plan)
        for k in plans
    }
    if not draft.empty and all(k.plan.kept != draft.plan.kept for k in plans):
        named[_CURRENT] = ("Current plan", draft.plan)
    return named


def measured_choices(workspace: Workspace, summary: ModelSummary, own: NamedPlans) -> NamedPlans:
    """Return the measured plans that are not among the user's own, by id, the newest first."""
    named: NamedPlans = {}
    titles: set[str] = set()
    for past in measured.measured_plans(workspace, summary):
        plan, name = past.plan, state.plan_id(past.plan)
        if name in named or any(plan.kept == other.kept for _, other in own.values()):
            continue
        drop = past.measurement.drop
        title = fronts.title((plan.policy,), memory_saving(summary, plan))
        title = f"Measured: {title}" + (f", drop {formats.points(drop.value)}" if drop else "")
        while title in titles:  # of equal saving and drop
            title += " ·"
        titles.add(title)
        named[name] = (title, plan)
    return named


def compared_entries(
    workspace: Workspace, summary: ModelSummary, plans: NamedPlans
) -> dict[str, ComparedPlan]:
    """Return plans by id with all known results."""
    store, limit = workspace.store, workspace.subject.limit
    view = sweeps.current_sweep(sweeps.list_sweeps(store, summary))
    history = measured.measured_plans(workspace, summary)
    predictor = measured.calibrated_predictor(view, history)
    usable = _usable(history, limit)
    others = _usable(measured.measured_plans(loaders.other_recovery(workspace), summary), limit)
    jobs = comparison.finished_jobs(store, summary)
    return {
        plan_id: comparison.compared_plan(name, plan, predictor, usable, jobs, others)
        for plan_id, (name, plan) in plans.items()
    }


def _usable(history: Sequence[MeasuredPlan], limit: int | None) -> list[Measurement]:
    """Return the measurements on ``limit`` images (None: any number), most images first."""
    found = [past.measurement for past in history]
    found = [m for m in found if limit is None or m.conditions.n_images == limit]
    return sorted(found, key=lambda m: -m.conditions.n_images)
