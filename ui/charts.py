"""Figures of results: pure functions from records to plotly, no streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from psvit_core.records import ChannelGroup, SensitivityRow
from ui import tables, words
from ui.palette import GAP_TICKS, REFERENCE_DROP, layout, palette


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
