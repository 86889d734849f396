"""The Pareto front: accuracy against a cost, measured and predicted plans.

Each function adds one layer to the figure. Their order is the order in which plotly draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from psvit_core.pareto import FrontPoint
from ui.charts.front_marks import (
    SYMBOLS,
    drawn_policy,
    interval_bars,
    quartile_bars,
    ring,
    tooltip,
)
from ui.charts.palette import Palette, layout, palette, value_axis
from ui.model.formats import POLICY_NAMES
from ui.model.fronts import (
    AXES,
    DRAFT_ID,
    REFERENCE_DROP,
    Axis,
    Overview,
    PlanPoint,
    quartile_range,
)
from ui.model.stored_weights import SHORT

#: Policies drawn as reference curves next to the front, with their dashes.
REFERENCES = {"uniform": "dot", "psvit": "dash", "prime": "dashdot"}
_BELOW_BASELINE = 12.0  # percentage points below the baseline that the chart shows
_DRAWING_ORDER = ("uniform", "prime", "psvit", "optimal", "")  # later ones lie on top


@dataclass(frozen=True)
class _Chart:
    """A figure in the making: what its layers share."""

    figure: go.Figure
    view: Overview
    axis: str
    colours: Palette
    top: float  # accuracy of the unpruned model, percent
    floor: float  # lower edge; plans below it are drawn there

    @property
    def cost(self) -> Axis:
        return AXES[self.axis]

    @property
    def timed(self) -> bool:
        """Whether costs are measured times: intervals on both axes, no lines."""
        return self.axis == "latency"

    @property
    def front(self) -> tuple[FrontPoint, ...]:
        return self.view.front(self.axis)

    def x(self, point: PlanPoint) -> float:
        """Return a plan's cost in the unit shown."""
        return point.values[self.axis] * self.cost.scale

    def y(self, accuracy: float) -> float:
        """Return an accuracy in percent, no lower than the chart's edge."""
        return max(100 * accuracy, self.floor)

    def add_line(self, points: Sequence[tuple[float, float]], name: str, **style: Any) -> None:
        """Add a line through (cost, accuracy) pairs, unless costs are times."""
        if len(points) > 1 and not self.timed:
            self.figure.add_scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                mode="lines",
                name=name,
                hoverinfo="skip",
                **style,
            )


def front_chart(
    view: Overview, axis: str, *, selected: PlanPoint | None = None, dark: bool = False
) -> go.Figure:
    """Draw accuracy against cost: measured plans filled with intervals, predicted ones hollow.

    Where bytes are those of fewer bits a weight, plans whose accuracy was measured in float32 are
    hollow, too, in their policy's colour.

    A light band is the expected range of the predicted plans. Latencies are measured, and smaller
    plans are not always faster, so there whiskers show the quartiles, and rings instead of a line
    mark the front.

    Plans far below the baseline appear on the lower edge as triangles that point down. The last
    trace is invisible and receives the clicks; its custom data are the plans' ids.

    Args:
        view: All known plans.
        axis: One of ``fronts.AXES``.
        selected: The plan to ring.
        dark: Theme.
    """
    top = 100 * (view.baseline.value if view.baseline else 1.0)
    floor = max(0.0, top - _BELOW_BASELINE)
    chart = _Chart(go.Figure(), view, axis, palette(dark), top, floor)
    points = [p for p in (*view.measured, *view.predicted) if axis in p.values]
    if selected is not None and axis not in selected.values:
        selected = None
    if selected is not None and selected.id not in view.points:
        points.append(selected)
    measured = [p for p in points if p.measured]
    predicted = sorted((p for p in points if not p.measured and p.id != DRAFT_ID), key=chart.x)
    _add_predicted_range(chart, predicted)
    _add_references(chart, measured)
    _add_lines(chart, predicted)
    _add_gains(chart, measured)
    for policy in _DRAWING_ORDER:
        _add_measured(chart, [p for p in measured if drawn_policy(p) == policy], policy)
    _add_predicted(chart, predicted)
    _add_ties(chart)
    _add_unpruned(chart)
    if selected is not None:
        _add_selection(chart, selected)
    _add_levels(chart)
    _add_click_targets(chart, points)
    _set_layout(chart)
    return chart.figure


def _add_predicted_range(chart: _Chart, predicted: Sequence[PlanPoint]) -> None:
    """Add the band in which predicted plans are expected."""
    if len(predicted) < 2:
        return
    x = [chart.x(p) for p in predicted]
    low = [chart.y(p.accuracy.low) for p in predicted]
    high = [chart.y(p.accuracy.high) for p in predicted]
    chart.figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        mode="lines",
        fillcolor=chart.colours.band,
        line={"width": 0},
        hoverinfo="skip",
        name="Predicted range",
        showlegend=False,
    )


def _add_references(chart: _Chart, measured: Sequence[PlanPoint]) -> None:
    """Add a line through the measured plans of each reference policy and criterion."""
    criteria = sorted({p.criterion for p in measured})
    for policy, dash in REFERENCES.items():
        for criterion in criteria:
            own = [p for p in measured if policy in p.policies and p.criterion == criterion]
            ranked = f" · {criterion}" if len(criteria) > 1 else ""
            chart.add_line(
                [(chart.x(p), 100 * p.accuracy.value) for p in sorted(own, key=chart.x)],
                f"{POLICY_NAMES[policy]}{ranked}: its plans",
                showlegend=False,
                line={"color": chart.colours.policies[policy], "width": 1.5, "dash": dash},
            )


def _add_lines(chart: _Chart, predicted: Sequence[PlanPoint]) -> None:
    """Add the predicted and the measured front; as rings where costs are times."""
    colours = chart.colours
    chart.add_line(
        [(chart.x(p), 100 * p.accuracy.value) for p in predicted],
        "Predicted front",
        showlegend=False,
        line={"color": colours.faint, "width": 1, "dash": "dot"},
    )
    on_front = [
        (p.value * chart.cost.scale, p.point.measurement.accuracy.value) for p in chart.front
    ]
    mixed = chart.view.weights != "float32"  # hollow plans are on it
    chart.add_line(
        [(x, 100 * accuracy) for x, accuracy in on_front],
        "Front, hollow: accuracy of fp32" if mixed else "Front",
        line={
            "color": colours.accent,
            "width": 2.5,
            "shape": "hv",
            "dash": "dash" if mixed else "solid",
        },
    )
    if chart.timed and on_front:
        chart.figure.add_scatter(
            x=[x for x, _ in on_front],
            y=[chart.y(accuracy) for _, accuracy in on_front],
            mode="markers",
            name="Front",
            hoverinfo="skip",
            marker=ring(16, colours.accent, 2),
        )


def _add_gains(chart: _Chart, measured: Sequence[PlanPoint]) -> None:
    """Join plans that were measured as pruned and recovered; add the mark of the other one."""
    both = [(p, p.pruned, p.recovered) for p in measured if p.pruned and p.recovered]
    if not both:
        return
    ends = [(chart.x(p), chart.y(a.value), chart.y(b.value)) for p, a, b in both]
    chart.figure.add_scatter(
        x=[x for at, _, _ in ends for x in (at, at, None)],
        y=[y for _, a, b in ends for y in (a, b, None)],
        mode="lines",
        name="Gain by recovery",
        showlegend=False,
        hoverinfo="skip",
        line={"color": chart.colours.faint, "width": 1},
    )
    for name, symbol, others in (
        ("As pruned", "-open", [(p, a) for p, a, _ in both if p.is_recovered]),
        ("Recovered", "", [(p, b) for p, _, b in both if not p.is_recovered]),
    ):
        if others:
            chart.figure.add_scatter(
                x=[chart.x(p) for p, _ in others],
                y=[chart.y(accuracy.value) for _, accuracy in others],
                mode="markers",
                name=name,
                showlegend=False,
                hoverinfo="skip",
                marker={
                    "size": 8,
                    "symbol": [_symbol(drawn_policy(p)) + symbol for p, _ in others],
                    "color": [_policy_colour(chart, drawn_policy(p)) for p, _ in others],
                },
            )


def _symbol(policy: str) -> str:
    return SYMBOLS.get(policy, "x")


def _policy_colour(chart: _Chart, policy: str) -> str:
    return chart.colours.policies.get(policy, chart.colours.text)


def _add_measured(chart: _Chart, points: Sequence[PlanPoint], policy: str) -> None:
    """Add measured plans of one policy with their intervals; those below the edge on it.

    A plan whose recovered accuracy is shown as well is a ring.
    """
    colour = _policy_colour(chart, policy)
    name = POLICY_NAMES.get(policy, "Others")
    shown = [p for p in points if 100 * p.accuracy.value >= chart.floor]
    below = [p for p in points if 100 * p.accuracy.value < chart.floor]
    if shown:
        chart.figure.add_scatter(
            x=[chart.x(p) for p in shown],
            y=[100 * p.accuracy.value for p in shown],
            mode="markers",
            name=name,
            hoverinfo="skip",
            marker={
                "size": 9,
                "color": colour,
                "symbol": [_symbol(policy) + ("-open" if _is_hollow(p) else "") for p in shown],
            },
            error_y=interval_bars(shown, colour),
            error_x=quartile_bars([p.times for p in shown], colour) if chart.timed else None,
        )
    if below:
        chart.figure.add_scatter(
            x=[chart.x(p) for p in below],
            y=[chart.floor] * len(below),
            mode="markers",
            showlegend=False,
            name=f"{name}, below",
            hoverinfo="skip",
            marker={"size": 9, "color": colour, "symbol": "triangle-down"},
        )


def _is_hollow(point: PlanPoint) -> bool:
    """Return whether a measured plan is a ring: another accuracy of it counts, or is not known."""
    return point.is_assumed or bool(point.recovered and not point.is_recovered)


def _add_predicted(chart: _Chart, predicted: Sequence[PlanPoint]) -> None:
    """Add predicted plans as hollow marks; those below the edge on it."""
    for name, symbol, inside in (
        ("Predicted", "circle-open", True),
        ("Predicted, below", "triangle-down-open", False),
    ):
        own = [p for p in predicted if (100 * p.accuracy.value >= chart.floor) == inside]
        if own:
            chart.figure.add_scatter(
                x=[chart.x(p) for p in own],
                y=[chart.y(p.accuracy.value) for p in own],
                mode="markers",
                name=name,
                hoverinfo="skip",
                showlegend=inside,
                marker=ring(9, chart.colours.faint, 1.5) | {"symbol": symbol},
            )


def _add_ties(chart: _Chart) -> None:
    """Mark plans of the front that are statistically tied with a neighbour."""
    tied = [chart.view.points[p.point.point_id] for p in chart.front if p.overlaps]
    if tied:
        chart.figure.add_scatter(
            x=[chart.x(p) for p in tied],
            y=[100 * p.accuracy.high for p in tied],
            mode="text",
            text=["≈"] * len(tied),
            textposition="top center",
            showlegend=False,
            textfont={"size": 15, "color": chart.colours.faint},
            hoverinfo="skip",
            name="tied",
        )


def _add_unpruned(chart: _Chart) -> None:
    """Add the unpruned model as a star."""
    view, cost, colour = chart.view, chart.cost, chart.colours.text
    value = view.unpruned.get(chart.axis)
    if value is None:
        return
    spread = quartile_range(view.unpruned_times) if chart.timed else ""
    title = "Unpruned" if view.weights == "float32" else "Unpruned in fp32"
    chart.figure.add_scatter(
        x=[value * cost.scale],
        y=[chart.top],
        mode="markers",
        name=title,
        marker={"size": 11, "symbol": "star", "color": colour},
        error_x=quartile_bars([view.unpruned_times], colour) if chart.timed else None,
        hovertemplate=f"<b>{title}</b><br>{cost.title}: {cost.format(value)}{spread}<br>"
        f"top-1 {chart.top:.2f} %<extra></extra>",
    )
    if chart.axis == "bytes" and view.unpruned_stored:
        _add_unpruned_stored(chart)


def _add_unpruned_stored(chart: _Chart) -> None:
    """Add the unpruned model with its weights in fewer bits; hollow if that was not measured."""
    view, cost, found = chart.view, chart.cost, chart.view.unpruned_measured
    name, level = SHORT[view.weights], chart.top if found is None else 100 * found.value
    of = f"in {name}" if found is not None else "measured in fp32"
    chart.figure.add_scatter(
        x=[view.unpruned_stored * cost.scale],
        y=[max(level, chart.floor)],
        mode="markers",
        name=f"Unpruned in {name}",
        marker={
            "size": 11,
            "symbol": "star" if found is not None else "star-open",
            "color": chart.colours.text,
        },
        hovertemplate=f"<b>Unpruned in {name}</b><br>{cost.title}: "
        f"{cost.format(view.unpruned_stored)}, exact<br>"
        f"top-1 {level:.2f} % {of}<extra></extra>",
    )


def _add_selection(chart: _Chart, selected: PlanPoint) -> None:
    """Ring the selected plan; a predicted one gets its interval."""
    colour = chart.colours.text
    chart.figure.add_scatter(
        x=[chart.x(selected)],
        y=[chart.y(selected.accuracy.value)],
        mode="markers",
        name="Your choice",
        marker=ring(20, colour, 2.5),
        hoverinfo="skip",
        error_y=None if selected.measured else interval_bars([selected], colour, chart.floor),
    )


def _add_levels(chart: _Chart) -> None:
    """Add lines at the baseline's accuracy and at the reference drop below it."""
    colour = chart.colours.faint
    for level, text in (
        (chart.top, "baseline"),
        (chart.top - REFERENCE_DROP, f"{REFERENCE_DROP:g} pp less"),
    ):
        chart.figure.add_hline(
            y=level,
            line={"color": colour, "width": 1, "dash": "dot"},
            annotation={"text": text, "font": {"size": 11, "color": colour}},
            annotation_position="bottom left",
        )


def _add_click_targets(chart: _Chart, points: Sequence[PlanPoint]) -> None:
    """Add the invisible trace that receives clicks; of plans in one place the first gets it."""
    ordered = sorted(points, key=lambda p: (not p.measured, drawn_policy(p) != "optimal"))
    chart.figure.add_scatter(
        x=[chart.x(p) for p in ordered],
        y=[chart.y(p.accuracy.value) for p in ordered],
        mode="markers",
        showlegend=False,
        marker={"size": 14, "opacity": 0, "color": chart.colours.accent},
        name="clicks",
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=[p.id for p in ordered],
        text=[tooltip(p, chart.axis) for p in ordered],
        hovertemplate="%{text}<extra></extra>",
    )


def _set_layout(chart: _Chart) -> None:
    figure, cost = chart.figure, chart.cost
    grid = value_axis(chart.colours) | {"zeroline": False}
    fewer = chart.axis == "bytes" and chart.view.weights != "float32"
    stored = f" in {SHORT[chart.view.weights]}" if fewer else ""
    figure.update_xaxes(**grid, title_text=f"{cost.title}{stored}, {cost.unit}", rangemode="tozero")
    figure.update_yaxes(
        **grid,
        title_text="top-1 accuracy, %",
        range=[chart.floor - 0.6, min(chart.top + 2.0, 100.9)],
    )
    figure.update_layout(**layout(chart.colours))
    figure.update_layout(
        height=460,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        hovermode="closest",
        showlegend=True,
        legend={
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "itemclick": False,
            "itemdoubleclick": False,
        },
    )
