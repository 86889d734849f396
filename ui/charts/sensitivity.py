"""The sensitivity curve of one channel group."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from psvit_core.records import ChannelGroup, SensitivityRow
from ui.charts.palette import Palette, layout, palette, value_axis
from ui.model import formats, tables
from ui.model.fronts import REFERENCE_DROP


def sensitivity_curve(
    group: ChannelGroup,
    rows: Sequence[SensitivityRow],
    *,
    metric: str = "drop",
    selected_ratio: float | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw a group's cost against the fraction removed; drops with their 95 % interval.

    Args:
        group: The group.
        rows: Its measured cells; those that remove nothing are omitted.
        metric: ``drop`` or ``kl``.
        selected_ratio: The prune ratio whose point is emphasised.
        dark: Theme.
    """
    colours = palette(dark)
    own = sorted((row for row in rows if row.n_pruned), key=lambda row: row.n_pruned)
    x = [0.0, *(100 * row.n_pruned / group.n_units for row in own)]
    figure = go.Figure()
    if metric == "drop":
        _add_interval(figure, x, own, colours)
    selected = [row.prune_ratio == selected_ratio for row in own]
    figure.add_scatter(
        x=x,
        y=[0.0, *(tables.metric_value(row, metric) for row in own)],
        mode="lines+markers",
        name=tables.METRIC_NAMES[metric],
        line={"color": colours.accent, "width": 2},
        marker={"size": [5, *(11 if s else 6 for s in selected)], "color": colours.accent},
        text=["nothing removed", *(_point_text(row, metric) for row in own)],
        hovertemplate="%{text}<extra></extra>",
    )
    axis = value_axis(colours) | {"zerolinecolor": colours.grid}
    unit = "drop, pp" if metric == "drop" else "KL, nats"
    figure.update_xaxes(**axis, range=[0, 100], ticksuffix=" %", title_text="units removed")
    figure.update_yaxes(**axis, title_text=unit, rangemode="tozero")
    figure.update_layout(
        **layout(colours), height=230, margin={"l": 8, "r": 8, "t": 12, "b": 8}, hovermode="closest"
    )
    return figure


def _add_interval(
    figure: go.Figure, x: Sequence[float], rows: Sequence[SensitivityRow], colours: Palette
) -> None:
    """Add the band of the 95 % intervals, and the reference drop if the band reaches it."""
    low, high = [0.0, *(r.drop.low for r in rows)], [0.0, *(r.drop.high for r in rows)]
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        mode="lines",
        fillcolor=colours.band,
        line={"width": 0},
        hoverinfo="skip",
        name="95 % interval",
    )
    if max(high) > REFERENCE_DROP:
        figure.add_hline(
            y=REFERENCE_DROP,
            line={"color": colours.faint, "width": 1, "dash": "dot"},
            annotation={
                "text": f"{REFERENCE_DROP:g} pp",
                "font": {"size": 11, "color": colours.faint},
            },
            annotation_position="top left",
        )


def _point_text(row: SensitivityRow, metric: str) -> str:
    value = formats.drop(row.drop) if metric == "drop" else f"{row.kl:.4f} nats"
    return f"{row.n_pruned} units removed: {value}"
