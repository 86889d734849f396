"""Measure the draft: at once after every edit, or by a button; and compare it with the prediction.

The worker keeps the model loaded and puts measurements first. A measurement that an edit started is
dropped by the next edit. Its result is stored like any other, so undoing an edit finds it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape

import streamlit as st

from psvit_core.jobs import client
from psvit_core.jobs.client import Job
from psvit_core.records import Interval, ModelSummary
from psvit_core.workspace import Workspace
from ui.model import consent, durations, formats, loaders, measured, state
from ui.model.drafts import Draft
from ui.model.foreign import in_markdown
from ui.model.fronts import REFERENCE_DROP
from ui.model.measured import start_measuring
from ui.panels.job import job_panel
from ui.panels.live import live_panel
from ui.panels.measurement import MEASURE_HELP
from ui.panels.tune.equalizer import Results
from ui.panels.widgets import was_clicked

DRAG_ENV = "PSVIT_DRAG"  # "0": edits are not measured until the user switches it on
_LABELS_APART = 0.15  # of the axis: what two centred labels need on a phone
_SLOW_SECONDS = 5.0  # a measurement that takes longer does not follow every edit by default


# ---- measuring while dragging ----------------------------------------------------------------


def measures_edits(workspace: Workspace, summary: ModelSummary) -> bool:
    """Return whether edits are measured at once: the user's choice, else whether it is quick."""
    chosen = state.get(_switch_key(summary))
    return _is_quick(workspace, summary) if chosen is None else bool(chosen)


def drag_switch(workspace: Workspace, summary: ModelSummary) -> None:
    """Draw the switch for measuring every edit; it says why it is off by default."""
    seconds = _seconds(workspace, summary)
    state.set_default(_switch_key(summary), _is_quick(workspace, summary))
    st.toggle(
        "Measure as I drag",
        key=_switch_key(summary),
        persist_state="session",
        help="Measures the plan on the chosen images as soon as a handle is let go. The next edit "
        "drops a measurement that still runs. Results stay: undo shows them again at once.",
    )
    if not consent.covers_images(workspace.store, workspace.subject):
        st.caption("These images come from a link: nothing is read before you press Measure.")
    if loaders.lacks_images(workspace):
        st.caption("Off by default: a measurement needs images, which are not included.")
    elif seconds is None:
        st.caption("Off by default: the number of images is not known yet.")
    elif seconds > _SLOW_SECONDS:
        st.caption(
            f"Off by default: one measurement takes about {formats.duration(seconds)} here. "
            "Fewer images are faster."
        )


def _is_quick(workspace: Workspace, summary: ModelSummary) -> bool:
    seconds = None if loaders.lacks_images(workspace) else _seconds(workspace, summary)
    return seconds is not None and seconds <= _SLOW_SECONDS and os.environ.get(DRAG_ENV) != "0"


def _seconds(workspace: Workspace, summary: ModelSummary) -> float | None:
    """Estimate the seconds of one measurement; None if the number of images is not known."""
    n_images = loaders.n_val_images(workspace)
    return durations.measuring_time(workspace, summary, n_images) if n_images else None


def _switch_key(summary: ModelSummary) -> str:
    return f"measure-edits/{summary.weights_hash[:12]}"


def follow_draft(
    workspace: Workspace, draft: Draft, jobs: Sequence[Job], *, wanted: bool
) -> Job | None:
    """Return the job that measures the draft; start it if ``wanted``, and drop that of older plans.

    Args:
        workspace: The model on its images.
        draft: The plan.
        jobs: Measurements of this model on these images, newest first.
        wanted: Whether the draft needs a measurement and may start one.
    """
    store, owner = workspace.store, state.tab_id()
    live = [job for job in jobs if not (job.active and client.is_superseded(store, job.id))]
    found = None if draft.empty else measured.measuring_job(live, draft)
    mine = [job for job in live if job.active and job.owner == owner]
    if any(job is not found for job in mine):
        client.supersede(store, owner)
        if found in mine:
            found = None
    if wanted and found is None:
        return start_measuring(workspace, draft.plan, owner)
    return found


# ---- the panel -------------------------------------------------------------------------------


def measure_panel(
    workspace: Workspace, draft: Draft, job: Job | None, results: Results, *, key: str
) -> None:
    """Draw the running estimate, the result, or the button that measures the draft.

    Args:
        workspace: The model on its images.
        draft: The plan.
        job: The job that measures it, if there is one.
        results: Predicted and measured drop of the draft.
        key: Prefix of the widgets' keys.
    """
    measured, predicted = results.measured, results.predicted
    if draft.empty:
        st.markdown("The plan removes nothing yet: drag a column, or choose a policy above.")
    elif measured is not None and measured.drop is not None:
        before = measured.unrecovered.drop if measured.unrecovered else None
        st.html(comparison_html(predicted, measured.drop, before))
        st.markdown(gap_line(predicted, measured.drop, before))
        st.caption(f"Measured on {in_markdown(formats.plan_conditions(measured))}.")
    elif job is not None and job.active:
        live_panel(workspace.store, job, key=f"{key}-job")
    elif job is not None and job.state != "done":
        job_panel(workspace.store, job.id, key=f"{key}-job")
    else:
        _start_row(workspace, draft, key=key)


def _start_row(workspace: Workspace, draft: Draft, *, key: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        # No callback: it would use the previous run's plan, without an edit made just now.
        if was_clicked(
            "Measure",
            key=f"{key}-start",
            type="primary",
            icon=":material/straighten:",
            help=MEASURE_HELP,
        ):
            start_measuring(workspace, draft.plan)
            st.rerun(scope="fragment")
        st.markdown(f"Not measured yet on {formats.images(workspace.subject.limit)}.")


def gap_line(predicted: Interval | None, measured: Interval, before: Interval | None = None) -> str:
    """Return the measured drop and its gap to the one predicted before.

    Args:
        predicted: The predicted drop, percentage points.
        measured: The measured drop.
        before: The measured drop without recovery, if ``measured`` includes one.
    """
    noise = ", within noise" if formats.within_noise(measured) else ""
    text = f"Measured drop **{formats.drop(measured)}**{noise}"
    if before is not None:
        text += f" after recovery, {formats.drop(before)} as pruned"
    if predicted is None:
        return f"{text}."
    gap = measured.value - predicted.value
    side = "worse" if gap > 0 else "better"
    inside = predicted.low <= measured.value <= predicted.high
    verdict = "inside the predicted range" if inside else "outside the predicted range"
    return (
        f"{text}; predicted before: {formats.drop(predicted)}. Measured "
        f"**{formats.points(abs(gap))}** {side} than predicted, {verdict}."
    )


def comparison_html(
    predicted: Interval | None, measured: Interval, before: Interval | None = None
) -> str:
    """Return HTML that draws the drops with their intervals on one axis.

    Args:
        predicted: The predicted drop, percentage points; drawn hollow, above.
        measured: The measured drop, drawn filled.
        before: The measured drop without recovery, drawn as a ring.
    """
    shown = [i for i in (predicted, before, measured) if i is not None]
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

    rows = [row("Predicted", predicted, "hollow")] if predicted is not None else []
    if before is not None:
        rows.append(row("As pruned", before, "hollow"))
    rows.append(row("Measured" if before is None else "Recovered", measured, "filled"))
    close = span * _LABELS_APART > REFERENCE_DROP  # then the labels are on the outer sides
    zero = "before" if close else "middle"
    reference = "after" if close and low > -high else "middle"
    ticks = "".join(
        f'<i class="rule" style="left:{x(value)}"></i>'
        f'<b class="{side}" style="left:{x(value)}">{text}</b>'
        for value, text, side in (
            (0.0, "0", zero),
            (REFERENCE_DROP, f"{REFERENCE_DROP:g} pp", reference),
        )
    )
    label = escape(gap_line(predicted, measured, before).replace("**", ""))
    return (
        f'<div class="psvit-compare" role="img" aria-label="{label}">'
        f'<div class="rules">{ticks}</div>{"".join(rows)}</div>'
    )
