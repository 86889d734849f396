"""All plans: the chart of accuracy against cost, and its table."""

from __future__ import annotations

import dataclasses

import streamlit as st

from psvit_core.storage.store import Store
from psvit_core.workspace import Workspace
from ui.charts.front import front_chart
from ui.model import editing, formats, front_rows, fronts, loaders, state, stored_weights
from ui.model.foreign import in_markdown
from ui.model.fronts import AXES, Overview, PlanPoint
from ui.model.predictor import Predictor
from ui.panels.widgets import NO_TOOLBAR, csv_button

_MEASURED = (
    "Filled: measured, with the 95 % interval. Of a plan measured both ways, the ring is the "
    "network as pruned, and the filled mark the recovered one."
)
_LEGEND = (
    f"{_MEASURED} Hollow: predicted from the sweep; light band: the expected range. Thick line: "
    "the front, plans that no measured plan beats."
)
_LATENCY_LEGEND = (
    f"{_MEASURED} Horizontal whiskers: quartiles of the latency. Rings: the front, plans that no "
    "measured plan beats."
)
_STORED_LEGEND = (
    "Bytes are exact: those of the tensors in a quantized file. Filled: accuracy measured with "
    "these weights. Hollow, in a policy's colour: accuracy measured in fp32, which quantizing may "
    "change; grey: predicted for fp32. Dashed line: the front through both. **★** the unpruned "
    "network in fp32, **☆** with these weights."
)
_MARKS = (
    "**≈** statistically tied with a neighbouring plan on the front: their intervals overlap. "
    "**▼** below the range of the chart."
)


def axis_control(*, key: str) -> str:
    """Draw the choice of the cost that accuracy is plotted against; return its name."""
    axis = st.segmented_control(
        "Accuracy against",
        list(AXES),
        format_func=lambda name: AXES[name].title,
        default="bytes",
        required=True,
        key=key,
        persist_state="session",
        help="\n".join(f"- **{a.title}**: {a.note}" for a in AXES.values()),
    )
    return axis or "bytes"


def weights_control(*, key: str) -> str:
    """Draw the choice of the precision that weights are stored in; it is also in the URL.

    Returns:
        The precision, as ``plan_size`` takes it.
    """
    state.restore_values(key)
    chosen = st.segmented_control(
        "Weights stored in",
        list(stored_weights.CHOICES),
        format_func=stored_weights.TITLES.__getitem__,
        default="fp32",
        required=True,
        key=key,
        bind="query-params",
        help="Of convolutions and linear layers; everything else stays fp32. Bytes are exact. "
        "Accuracies are those of fp32, unless a network was measured with such weights: quantize "
        "its file on the Export page. The unpruned network in fp32 stays the reference.",
    )
    state.remember_values(key)
    return stored_weights.CHOICES[chosen or "fp32"]


def images_control(workspace: Workspace, *, key: str) -> Workspace:
    """Draw which measurements are shown: on the chosen number of images, or on all.

    Returns:
        The workspace whose measurements are shown.
    """
    limit = workspace.subject.limit
    whole = Workspace(dataclasses.replace(workspace.subject, limit=None), workspace.store)
    if limit is None or loaders.own_archive(whole) is None:
        return workspace
    own = loaders.own_archive(workspace)
    if own is None:
        st.caption(
            f"No plan is measured on {formats.images(limit)} yet, so measurements on all images "
            f"are shown. New measurements use {formats.images(limit)}."
        )
        return whole
    known = {
        "own": f"{formats.images(limit)} ({formats.plural(len(own.points), 'plan')})",
        "all": "all images",
    }
    chosen = st.segmented_control(
        "Show plans measured on",
        list(known),
        format_func=known.__getitem__,
        default="own",
        required=True,
        key=f"{key}-{limit}",
        persist_state="session",
        help="Numbers on different images are never mixed in one chart. New measurements use the "
        "images chosen at the top.",
    )
    return whole if chosen == "all" else workspace


def selected_point(
    store: Store, view: Overview, predictor: Predictor | None, axis: str
) -> PlanPoint | None:
    """Return the chosen plan: the draft, or the knee of the front if the draft is empty."""
    draft = state.draft(store, view.summary)
    if draft.empty:
        knee = view.knee(axis)
        return view.points[knee] if knee else None
    known = view.find(draft.plan)
    if known is not None or predictor is None or view.baseline is None:
        return known
    predicted = fronts.predicted_point(
        view.summary, draft.plan, predictor, view.baseline, view.measured, is_draft=True
    )
    return stored_weights.point_with_weights(view, predicted)


def take_point(store: Store, view: Overview, point: PlanPoint) -> None:
    """Make a plan the draft, unless it is already."""
    if state.draft(store, view.summary).plan.kept != point.plan.kept:
        editing.use_plan(store, view.summary, point.plan)


def front_panel(
    store: Store, view: Overview, axis: str, selected: PlanPoint | None, *, key: str, dark: bool
) -> None:
    """Draw the chart; a click on a plan makes it the draft."""

    def click() -> None:
        name = state.clicked_point(key)
        if name in view.points:
            take_point(store, view, view.points[name])

    st.plotly_chart(
        front_chart(view, axis, selected=selected, dark=dark),
        key=key,
        theme=None,
        on_select=click,
        selection_mode="points",
        config=NO_TOOLBAR,
        alt=f"Accuracy of all plans against {AXES[axis].inline_title}",
    )
    note = AXES[axis].note
    if axis == "latency" and view.machine:
        m = view.machine
        note += f" Measured on {in_markdown(m.processor)}, {m.threads} thread(s); "
        note += "other machines are left out."
    legend = _LATENCY_LEGEND if axis == "latency" else _LEGEND
    if view.weights != stored_weights.FLOAT32:
        legend = _STORED_LEGEND
        note = note if axis != "bytes" else stored_weights.joint_line(view)
    st.caption(f"{legend} {_MARKS} {note}")


def table_panel(view: Overview, axis: str, *, key: str) -> None:
    """Draw all plans as a table, with a CSV download."""
    with st.expander(f"All {len(view.points)} plans as a table", key=f"{key}-open"):
        frame = front_rows.table_rows(view, axis)
        fractions = ("accuracy", "accuracy_low", "accuracy_high")
        numbers = frame.columns[frame.columns.get_loc("drop_pp") :]
        shown_as = dict.fromkeys(fractions, "percent") | dict.fromkeys(numbers, "%.2f")
        columns = {
            name: st.column_config.NumberColumn(format=text) for name, text in shown_as.items()
        }
        st.dataframe(frame, key=key, hide_index=True, height=420, column_config=columns)
        csv_button(frame, "front.csv", key=f"{key}-csv")
