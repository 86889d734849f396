"""Figures of results: pure functions from records to plotly, no streamlit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from psvit_core.records import ChannelGroup, Quartiles, SensitivityRow
from ui import tables, words
from ui.fronts import AXES, MINE, Axis, Overview, Spot, quartiles
from ui.palette import GAP_TICKS, REFERENCE_DROP, layout, palette
from ui.predict import POLICY_NAMES


def sensitivity_curve(
    group: ChannelGroup,
    rows: Sequence[SensitivityRow],
    *,
    metric: str = "drop",
    selected_ratio: float | None = None,
    dark: bool = False,
) -> go.Figure:
    """One group's cost over the fraction really removed, with its 95 % interval where it has one.

    Args:
        group: The group.
        rows: Its measured cells; those that remove nothing are left out.
        metric: ``drop`` or ``kl``.
        selected_ratio: The prune ratio whose point is emphasised.
        dark: Theme.
    """
    colours = palette(dark)
    own = sorted((row for row in rows if row.n_pruned), key=lambda row: row.n_pruned)
    x = [0.0, *(100 * row.n_pruned / group.n_units for row in own)]
    y = [0.0, *(tables.metric_value(row, metric) for row in own)]
    figure = go.Figure()
    if metric == "drop":
        low, high = [0.0, *(r.drop.low for r in own)], [0.0, *(r.drop.high for r in own)]
        figure.add_scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", mode="lines",
            fillcolor=colours.band, line={"width": 0}, hoverinfo="skip", name="95 % interval",
        )  # fmt: skip
        if max(high) > REFERENCE_DROP:
            figure.add_hline(
                y=REFERENCE_DROP, line={"color": colours.faint, "width": 1, "dash": "dot"},
                annotation={"text": "3 pp", "font": {"size": 11, "color": colours.faint}},
                annotation_position="top left",
            )  # fmt: skip
    chosen = [row.prune_ratio == selected_ratio for row in own]
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", name=tables.METRICS[metric],
        line={"color": colours.accent, "width": 2},
        marker={"size": [5, *(11 if c else 6 for c in chosen)], "color": colours.accent},
        text=["nothing removed", *(_curve_text(row, metric) for row in own)],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    unit = "drop, pp" if metric == "drop" else "KL, nats"
    axis: dict[str, Any] = {
        "gridcolor": colours.grid, "zerolinecolor": colours.grid, "fixedrange": True,
        "automargin": True, "title": {"font": {"size": 12, "color": colours.faint}},
    }  # fmt: skip
    figure.update_xaxes(**axis, range=[0, 100], ticksuffix=" %", title_text="units removed")
    figure.update_yaxes(**axis, title_text=unit, rangemode="tozero")
    figure.update_layout(
        **layout(colours), height=230, margin={"l": 8, "r": 8, "t": 12, "b": 8},
        hovermode="closest",
    )  # fmt: skip
    return figure


def _curve_text(row: SensitivityRow, metric: str) -> str:
    value = words.drop(row.drop) if metric == "drop" else f"{row.kl:.4f} nats"
    return f"{row.n_pruned} units removed: {value}"


def byte_bars(n_bytes: Mapping[str, int], *, dark: bool = False) -> go.Figure:
    """Bytes by block, in the order given."""
    colours = palette(dark)
    names, values = [*n_bytes], [*n_bytes.values()]
    whole = sum(values)
    figure = go.Figure(
        go.Bar(
            y=names, x=values, orientation="h", marker={"color": colours.accent},
            text=[words.kilobytes(v) for v in values], textposition="outside", cliponaxis=False,
            textfont={"size": 12, "color": colours.faint},
            customdata=[words.percent(v / whole) for v in values],
            hovertemplate="<b>%{y}</b><br>%{x:,} bytes, %{customdata} of the model<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(visible=False, fixedrange=True, range=[0, 1.18 * max(values)])
    figure.update_yaxes(
        autorange="reversed", fixedrange=True, **GAP_TICKS, automargin=True, type="category",
        tickfont={"size": 12, "color": colours.text},
    )  # fmt: skip
    figure.update_layout(
        **layout(colours), height=24 * len(names) + 16, margin={"l": 8, "r": 8, "t": 4, "b": 4},
        bargap=0.35,
    )  # fmt: skip
    return figure


# ---- the front -------------------------------------------------------------------------------

_BELOW = 12.0  # percentage points under the baseline that the front's chart shows
_SYMBOLS = {"optimal": "circle", "psvit": "square", "prime": "diamond", "uniform": "triangle-up"}
#: Policies drawn as reference curves beside the front.
REFERENCES = {"uniform": "dot", "psvit": "dash", "prime": "dashdot"}


def front_chart(
    view: Overview, axis: str, *, selected: Spot | None = None, dark: bool = False
) -> go.Figure:
    """Accuracy against cost: measured plans filled with their intervals, predicted ones hollow.

    A light band is the range in which predicted plans are expected. Latencies are measured, too,
    and plans that save more are not always quicker: there whiskers show the quartiles, and rings
    in place of lines the front.

    Plans far below the baseline stand on the lower edge as a triangle that points down. The last
    trace is invisible and takes the clicks; its custom data are the plans' ids.

    Args:
        view: What is known.
        axis: One of ``fronts.AXES``.
        selected: The plan that is ringed.
        dark: Theme.
    """
    colours, a = palette(dark), AXES[axis]
    top = 100 * (view.baseline.value if view.baseline else 1.0)
    floor = max(0.0, top - _BELOW)
    spots = [s for s in (*view.measured, *view.predicted) if axis in s.values]
    if selected is not None and selected.id not in view.spots and axis in selected.values:
        spots.append(selected)
    figure = go.Figure()
    timed = axis == "latency"

    def x(spot: Spot) -> float:
        return spot.values[axis] * a.scale

    def y(spot: Spot) -> float:
        return max(100 * spot.accuracy.value, floor)

    def line(points: Sequence[tuple[float, float]], name: str, **style: Any) -> None:
        if len(points) > 1 and not timed:
            figure.add_scatter(
                x=[p[0] for p in points], y=[p[1] for p in points], mode="lines", name=name,
                hoverinfo="skip", **style,
            )  # fmt: skip

    predicted = sorted((s for s in spots if not s.measured and s.id != MINE), key=x)
    if len(predicted) > 1:
        across = [x(s) for s in predicted]
        low = [max(100 * s.accuracy.low, floor) for s in predicted]
        high = [max(100 * s.accuracy.high, floor) for s in predicted]
        figure.add_scatter(
            x=[*across, *reversed(across)], y=[*high, *reversed(low)], fill="toself", mode="lines",
            fillcolor=colours.band, line={"width": 0}, hoverinfo="skip", name="Predicted range",
            showlegend=False,
        )  # fmt: skip
    criteria = sorted({s.criterion for s in spots if s.measured})
    for policy, dash in REFERENCES.items():
        for criterion in criteria:
            own = sorted((s for s in spots if s.measured and policy in s.policies
                          and s.criterion == criterion), key=x)  # fmt: skip
            ranked = f" · {criterion}" if len(criteria) > 1 else ""
            line(
                [(x(s), 100 * s.accuracy.value) for s in own],
                f"{POLICY_NAMES[policy]}{ranked}: its plans", showlegend=False,
                line={"color": colours.policies[policy], "width": 1.5, "dash": dash},
            )  # fmt: skip
    line(
        [(x(s), 100 * s.accuracy.value) for s in predicted], "Predicted front", showlegend=False,
        line={"color": colours.faint, "width": 1, "dash": "dot"},
    )  # fmt: skip
    front = view.front(axis)
    line(
        [(p.value * a.scale, 100 * p.point.measurement.accuracy.value) for p in front],
        "Front", line={"color": colours.accent, "width": 2.5, "shape": "hv"},
    )  # fmt: skip
    if timed and front:
        figure.add_scatter(
            x=[p.value * a.scale for p in front], mode="markers", name="Front", hoverinfo="skip",
            y=[max(100 * p.point.measurement.accuracy.value, floor) for p in front],
            marker={"size": 16, "symbol": "circle-open", "color": colours.accent,
                    "line": {"width": 2}},
        )  # fmt: skip
    for policy in ("uniform", "prime", "psvit", "optimal", ""):
        own = [s for s in spots if s.measured and _drawn_as(s) == policy]
        _points(figure, own, x, floor, colours.policies.get(policy, colours.text), policy, timed)
    for name, symbol, inside in (
        ("Predicted", "circle-open", True), ("Predicted, below", "triangle-down-open", False),
    ):  # fmt: skip
        own = [s for s in predicted if (100 * s.accuracy.value >= floor) == inside]
        if own:
            figure.add_scatter(
                x=[x(s) for s in own], y=[y(s) for s in own], mode="markers", name=name,
                hoverinfo="skip", showlegend=inside,
                marker={"size": 9, "color": colours.faint, "symbol": symbol,
                        "line": {"width": 1.5}},
            )  # fmt: skip
    unsure = [view.spots[p.point.point_id] for p in front if p.overlaps]
    if unsure:
        figure.add_scatter(
            x=[x(s) for s in unsure], y=[100 * s.accuracy.high for s in unsure], mode="text",
            text=["≈"] * len(unsure), textposition="top center", showlegend=False,
            textfont={"size": 15, "color": colours.faint}, hoverinfo="skip", name="undecided",
        )  # fmt: skip
    if axis in view.whole:
        spread = quartiles(view.whole_times) if timed else ""
        figure.add_scatter(
            x=[view.whole[axis] * a.scale], y=[top], mode="markers", name="Unpruned",
            marker={"size": 11, "symbol": "star", "color": colours.text},
            error_x=_whiskers([view.whole_times], colours.text) if timed else None,
            hovertemplate=f"<b>Unpruned</b><br>{a.title}: {a.text(view.whole[axis])}{spread}<br>"
            f"top-1 {top:.2f} %<extra></extra>",
        )  # fmt: skip
    if selected is not None and axis in selected.values:
        figure.add_scatter(
            x=[x(selected)], y=[y(selected)], mode="markers", name="Your choice",
            marker={"size": 20, "symbol": "circle-open", "color": colours.text,
                    "line": {"width": 2.5}}, hoverinfo="skip",
            error_y=None if selected.measured else _interval([selected], colours.text, floor),
        )  # fmt: skip
    for level, text in ((top, "baseline"), (top - REFERENCE_DROP, f"{REFERENCE_DROP:g} pp less")):
        figure.add_hline(
            y=level, line={"color": colours.faint, "width": 1, "dash": "dot"},
            annotation={"text": text, "font": {"size": 11, "color": colours.faint}},
            annotation_position="bottom left",
        )  # fmt: skip
    spots.sort(key=lambda s: (not s.measured, _drawn_as(s) != "optimal"))  # the first takes a click
    figure.add_scatter(
        x=[x(s) for s in spots], y=[y(s) for s in spots], mode="markers", showlegend=False,
        marker={"size": 14, "opacity": 0, "color": colours.accent}, name="clicks",
        selected={"marker": {"opacity": 0}}, unselected={"marker": {"opacity": 0}},
        customdata=[s.id for s in spots], text=[_spot_text(s, a, axis) for s in spots],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    grid: dict[str, Any] = {
        "gridcolor": colours.grid, "zeroline": False, "fixedrange": True, "automargin": True,
        "title": {"font": {"size": 12, "color": colours.faint}},
    }  # fmt: skip
    figure.update_xaxes(**grid, title_text=f"{a.title}, {a.unit}", rangemode="tozero")
    figure.update_yaxes(
        **grid, title_text="top-1 accuracy, %", range=[floor - 0.6, min(top + 2.0, 100.9)]
    )
    figure.update_layout(**layout(colours))
    figure.update_layout(
        height=460, margin={"l": 8, "r": 12, "t": 8, "b": 8}, hovermode="closest", showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemclick": False,
                "itemdoubleclick": False},
    )  # fmt: skip
    return figure


def _drawn_as(spot: Spot) -> str:
    """The policy that a plan is drawn as; empty for one by hand or of another make."""
    return next((policy for policy in _SYMBOLS if policy in spot.policies), "")


def _points(
    figure: go.Figure, spots: Sequence[Spot], x: Callable[[Spot], float], floor: float,
    colour: str, policy: str, timed: bool,
) -> None:  # fmt: skip
    """Measured plans of one policy with their intervals; those under the floor at its edge."""
    shown = [s for s in spots if 100 * s.accuracy.value >= floor]
    below = [s for s in spots if 100 * s.accuracy.value < floor]
    if shown:
        figure.add_scatter(
            x=[x(s) for s in shown], y=[100 * s.accuracy.value for s in shown], mode="markers",
            name=POLICY_NAMES.get(policy, "Others"), hoverinfo="skip",
            marker={"size": 9, "color": colour, "symbol": _SYMBOLS.get(policy, "x")},
            error_y=_interval(shown, colour),
            error_x=_whiskers([s.times for s in shown], colour) if timed else None,
        )  # fmt: skip
    if below:
        figure.add_scatter(
            x=[x(s) for s in below], y=[floor] * len(below), mode="markers", showlegend=False,
            name=f"{POLICY_NAMES.get(policy, 'Others')}, below", hoverinfo="skip",
            marker={"size": 9, "color": colour, "symbol": "triangle-down"},
        )  # fmt: skip


_BAR = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3}


def _interval(spots: Sequence[Spot], colour: str, floor: float = 0.0) -> dict[str, Any]:
    """Error bars of accuracies, percent, that end at the chart's lower edge."""
    levels = [(max(100 * s.accuracy.value, floor), s.accuracy) for s in spots]
    return _BAR | {
        "color": colour,
        "array": [max(100 * a.high - y, 0.0) for y, a in levels],
        "arrayminus": [max(y - max(100 * a.low, floor), 0.0) for y, a in levels],
    }


def _whiskers(times: Sequence[Quartiles | None], colour: str) -> dict[str, Any]:
    """Error bars from the median to the quartiles, ms."""
    return _BAR | {
        "color": colour,
        "array": [t.high - t.median if t else 0.0 for t in times],
        "arrayminus": [t.median - t.low if t else 0.0 for t in times],
    }


def _spot_text(spot: Spot, a: Axis, axis: str) -> str:
    spread = quartiles(spot.times) if axis == "latency" else ""
    text = f"<b>{spot.title}</b><br>{a.title}: {a.text(spot.values[axis])}{spread}<br>"
    if spot.measured:
        return f"{text}top-1 {words.accuracy(spot.accuracy)}<br>drop {words.drop(spot.drop)}"
    accuracy, drop = words.accuracy(spot.accuracy), words.drop(spot.drop)
    text += f"predicted, with the range that is expected:<br>top-1 {accuracy}<br>drop {drop}"
    if spot.raised_from:
        text += "<br>no less than a measured plan of this policy that saves less"
    return text
