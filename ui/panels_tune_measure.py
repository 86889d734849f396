"""Measuring a plan in the background, predicted beside measured, and the plans measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import streamlit as st

from psvit_core.errors import PsvitError
from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import PlanSettings
from psvit_core.records import (
    Interval,
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
)
from psvit_core.sensitivity.table import load_spec
from psvit_core.size import memory_saving
from psvit_core.store import Store, digest
from psvit_core.workspace import Workspace
from ui import drafts, loaders, predict, state, words
from ui.drafts import Draft
from ui.palette import REFERENCE_DROP
from ui.panels_job import job_panel
from ui.panels_tune import set_draft
from ui.sweep_views import SweepView

SHOWN_PLANS = 6
_LABELS_APART = 0.15  # of the axis: what two labels in their middle need on a phone


@dataclass(frozen=True, kw_only=True)
class Past:
    """A plan that was measured, and when (0: for a front, or before it was shipped)."""

    plan: PrunePlan
    measurement: Measurement
    ended: float


def measured_plans(workspace: Workspace, summary: ModelSummary) -> list[Past]:
    """Plans of these weights that were measured, newest first; each on its images once.

    Those of a front come last, the largest network first.
    """
    found: dict[Any, Past] = {}
    for job in client.list_jobs(workspace.store):
        if job.task not in ("measure", "plan") or job.state != "done":
            continue
        m = loaders.result_measurement(workspace.store, job)
        if m is None or m.plan is None or m.plan.weights_hash != summary.weights_hash:
            continue
        kept = tuple(sorted(m.plan.kept.items()))
        past = Past(plan=m.plan, measurement=m, ended=job.ended or job.created)
        found.setdefault((kept, m.conditions.n_images), past)
    archive = loaders.archive(workspace)
    points = archive.chosen().points if archive else ()
    for point in sorted(points, key=lambda point: point.measurement.memory_saving):
        kept = tuple(sorted(point.plan.kept.items()))
        past = Past(plan=point.plan, measurement=point.measurement, ended=0.0)
        found.setdefault((kept, point.measurement.conditions.n_images), past)
    return list(found.values())


def predictor_of(view: SweepView | None, history: Sequence[Past]) -> predict.Predictor | None:
    """What predicts drops on every page, taught by the measured plans; None without a sweep.

    Args:
        view: The sweep to predict from.
        history: All plans of these weights that were measured (``measured_plans``).
    """
    table = view.table if view else None
    if view is None or table is None:
        return None
    measured = [past.measurement for past in history]
    known = [[past.ended, m.memory_saving, m.drop and m.drop.value]
             for past, m in zip(history, measured, strict=True)]  # fmt: skip
    return _taught(digest([view.key, known]), table, measured)


@st.cache_resource(max_entries=8, show_spinner=False)
def _taught(
    stamp: str, _table: SensitivityTable, _measured: Sequence[Measurement]
) -> predict.Predictor:
    return predict.predictor(_table).calibrated(_measured)


def measurement_of(history: Sequence[Past], draft: Draft, limit: int | None) -> Measurement | None:
    """The draft's own measurement on as many images as are chosen now."""
    for past in history:
        n_images = past.measurement.conditions.n_images
        if past.plan.kept == draft.plan.kept and (limit is None or n_images == limit):
            return past.measurement
    return None


def partial_estimate(job: Job | None) -> dict[str, Any] | None:
    """The drop on the images measured so far, as the equalizer shows it; None before the first."""
    partial = getattr(job, "partial", None)
    if job is None or not job.active or partial is None or partial.drop is None:
        return None
    return {**partial.drop.to_dict(), "images": partial.n_images}


def job_of(jobs: Sequence[Job], draft: Draft) -> Job | None:
    """The newest measuring job of the draft's kept units."""
    kept = {group: list(units) for group, units in draft.plan.kept.items()}
    return next((j for j in jobs if (j.params["plan"] or {}).get("kept") == kept), None)


# ---- measuring -------------------------------------------------------------------------------


def measure_panel(
    workspace: Workspace,
    draft: Draft,
    job: Job | None,
    *,
    predicted: Interval | None,
    measured: Measurement | None,
    key: str,
) -> None:
    """Measure the draft: the button, the estimate while it narrows, the result with its gap.

    Args:
        workspace: The model on its images.
        draft: The plan.
        job: The job that measures it, if there is one.
        predicted: Its predicted drop, percentage points.
        measured: Its measurement, if there is one.
        key: Prefix of the widgets' keys.
    """
    if draft.empty:
        st.markdown("The plan removes nothing yet: drag a column, or take a policy above.")
        return
    if measured is not None and measured.drop is not None:
        st.html(comparison_html(predicted, measured.drop, final=True))
        st.markdown(gap_line(predicted, measured.drop))
        st.caption(f"Measured on {words.conditions_line(measured.conditions)}.")
        return
    if job is not None and job.state != "done":
        estimate = partial_estimate(job)
        if estimate:
            drop = Interval(**{name: estimate[name] for name in ("value", "low", "high")})
            st.html(comparison_html(predicted, drop, final=False))
            st.markdown(
                f"So far **{words.drop(drop)}** on {estimate['images']} images; the estimate "
                "narrows as more come in."
            )
        job_panel(workspace.store, job.id, key=f"{key}-job", noun="Measuring")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        # No callback: it would take the plan of the run before, and a key may have been pressed.
        if st.button(
            "Measure", key=f"{key}-start", type="primary", icon=":material/straighten:",
            help="Prunes a copy and runs it on the images, in the background.",
        ):  # fmt: skip
            workspace.measure(draft.plan)
            st.rerun()
        st.markdown(f"Not measured yet on {words.images(workspace.subject.limit)}.")


def gap_line(predicted: Interval | None, measured: Interval) -> str:
    """Measured against predicted in words, with the gap."""
    noise = ", within noise" if words.within_noise(measured) else ""
    text = f"Measured **{words.drop(measured)}**{noise}."
    if predicted is None:
        return text
    gap = measured.value - predicted.value
    side = "more" if gap > 0 else "less"
    inside = measured.low <= predicted.value <= measured.high
    judged = (
        "the prediction lies inside the measured interval"
        if inside
        else "the prediction lies outside the measured interval: trust the measurement"
    )
    return (
        f"{text} Predicted {words.points(predicted.value)}: the gap is "
        f"**{words.points(abs(gap))}** {side} than predicted, and {judged}."
    )


def comparison_html(predicted: Interval | None, measured: Interval, *, final: bool) -> str:
    """Predicted (hollow) over measured (filled) with their intervals on one axis, as HTML."""
    shown = [i for i in (predicted, measured) if i is not None]
    low = min(0.0, *(i.low for i in shown))
    high = max(REFERENCE_DROP, *(i.high for i in shown))
    span = 1.06 * (high - low)

    def x(value: float) -> str:
        return f"{100 * (value - low + 0.02 * span) / span:.2f}%"

    def row(name: str, drop: Interval, mark: str) -> str:
        width = f"{100 * (drop.high - drop.low) / span:.2f}%"
        return (
            f'<div class="row"><span>{escape(name)}</span><div class="lane">'
            f'<i class="range" style="left:{x(drop.low)};width:{width}"></i>'
            f'<i class="mark {mark}" style="left:{x(drop.value)}"></i></div></div>'
        )

    lines = [row("Predicted", predicted, "hollow")] if predicted is not None else []
    lines.append(row("Measured" if final else "So far", measured, "filled"))
    near = span * _LABELS_APART > REFERENCE_DROP  # then they stand on both sides of their rules
    ticks = "".join(
        f'<i class="rule" style="left:{x(v)}"></i>'
        f'<b class="{side if near else "middle"}" style="left:{x(v)}">{text}</b>'
        for v, text, side in (
            (0.0, "0", "before"),
            (REFERENCE_DROP, f"{REFERENCE_DROP:g} pp", "after" if low > -high else "middle"),
        )
    )
    label = gap_line(predicted, measured).replace("**", "")
    return (
        f'<div class="psvit-compare" role="img" aria-label="{escape(label)}">'
        f'<div class="rules">{ticks}</div>{"".join(lines)}</div>'
    )


# ---- plans measured so far -------------------------------------------------------------------


def history_panel(
    store: Store, summary: ModelSummary, history: Sequence[Past],
    predictor: predict.Predictor | None, *, key: str,
) -> None:  # fmt: skip
    """The plans of this model that were measured; a click makes one the draft again."""
    if not history:
        st.markdown("Plans that you measure are kept here, each with what was predicted.")
        return
    _history_rows(store, summary, history[:SHOWN_PLANS], predictor, key=key)
    if older := history[SHOWN_PLANS:]:
        with st.expander(f"{len(older)} more"):
            _history_rows(store, summary, older, predictor, key=f"{key}-old")


def _history_rows(
    store: Store, summary: ModelSummary, history: Sequence[Past],
    predictor: predict.Predictor | None, *, key: str,
) -> None:  # fmt: skip
    for at, past in enumerate(history):
        with st.container(
            horizontal=True, vertical_alignment="center", gap="small", key=f"{key}-row-{at}"
        ):
            st.html(history_line(summary, past, predictor))
            st.button(
                "Restore", key=f"{key}-{at}", type="tertiary", icon=":material/history:",
                on_click=_restore, args=(store, summary, past.plan),
                help="Make this plan the one above.",
            )  # fmt: skip


def history_line(summary: ModelSummary, past: Past, predictor: predict.Predictor | None) -> str:
    """A measured plan as four aligned cells."""
    saving = words.percent(memory_saving(summary, past.plan))
    predicted = words.points(predictor.drop(past.plan).value) if predictor else "no sweep"
    drop = past.measurement.drop
    measured = words.drop(drop) if drop else ""
    policy = predict.POLICY_NAMES.get(past.plan.policy, past.plan.policy)
    n_images = past.measurement.conditions.n_images
    cells = (
        (f"saves {saving}", f"{policy}, {words.ago(past.ended) if past.ended else 'for a front'}"),
        (predicted, "predicted"),
        (measured, f"measured, {n_images} images"),
    )
    inner = "".join(
        f"<div><b>{escape(top)}</b><span>{escape(below)}</span></div>" for top, below in cells
    )
    return f'<div class="psvit-plan">{inner}</div>'


def _restore(store: Store, summary: ModelSummary, plan: PrunePlan) -> None:
    try:
        locked = state.draft(store, summary).locked
        set_draft(store, summary, drafts.draft_of(summary, plan, locked))
    except PsvitError as error:
        state.tell_error(error)


# ---- planning with measurements --------------------------------------------------------------


def planning_panel(
    workspace: Workspace, summary: ModelSummary, draft: Draft, spec_key: str | None, saving: float,
    job: Job | None, *, key: str,
) -> None:  # fmt: skip
    """PSViT's policy that measures each step instead of predicting it, in the background."""
    if job is not None and job.active:
        job_panel(workspace.store, job.id, key=key, noun="Planning")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        st.button(
            f"PSViT at {words.ratio(saving)}, measured while planning", key=f"{key}-start",
            icon=":material/conversion_path:", disabled=spec_key is None,
            on_click=_start_planning, args=(workspace, spec_key, saving),
            help="Measures each step on the images chosen above instead of predicting it. Runs in "
            "the background.",
        )  # fmt: skip
        plan = finished_plan(summary, job)
        if job is not None and plan is not None and plan.kept != draft.plan.kept:
            st.button(
                "Use the planned one", key=f"{key}-use", type="tertiary",
                icon=":material/check:", on_click=_restore, args=(workspace.store, summary, plan),
                help=planned_line(workspace.store, summary, job, plan),
            )  # fmt: skip
    if job is not None and job.state not in ("done", "queued", "running"):
        job_panel(workspace.store, job.id, key=key, noun="Planning")


def finished_plan(summary: ModelSummary, job: Job | None) -> PrunePlan | None:
    """The plan of a finished planning job, if it is one for these weights."""
    if job is None or job.state != "done":
        return None
    plan = PrunePlan.from_dict(job.result["plan"])
    return plan if plan.weights_hash == summary.weights_hash else None


def planned_line(store: Store, summary: ModelSummary, job: Job, plan: PrunePlan) -> str:
    """A planner's finished plan in one line."""
    by = predict.POLICY_NAMES.get(plan.policy, plan.policy)
    saving = words.percent(memory_saving(summary, plan))
    text = f"Planned by {by}, measured while planning: saves {saving} of the memory"
    measured = loaders.result_measurement(store, job)
    return f"{text}, drop {words.drop(measured.drop)}" if measured and measured.drop else text


def _start_planning(workspace: Workspace, spec_key: str, saving: float) -> None:
    settings = PlanSettings(policy="psvit", memory_saving=saving)
    workspace.start_plan(load_spec(workspace.store, spec_key), settings)
    state.choose("tune-look", True)
