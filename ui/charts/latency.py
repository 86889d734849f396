"""The bar chart of the time that layers take, unpruned and under a plan."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from ui.charts.needs import LEGEND
from ui.charts.palette import SPACER_TICKS, layout, palette
from ui.model.latency import LayerTime, milliseconds

_WIDE, _NARROW = 0.78, 0.42  # of the bars
_LABELS = 1.3  # the axis ends after the labels, which are right of the bars


def latency_chart(times: Sequence[LayerTime], *, dark: bool = False) -> go.Figure:
    """Draw milliseconds by layer, in the order given; the plan's bars lie in the unpruned ones."""
    colours = palette(dark)
    pruned = any(time.plan is not None for time in times)
    names, whole = [time.name for time in times], [time.unpruned for time in times]
    figure = go.Figure(
        go.Bar(
            y=names,
            x=whole,
            orientation="h",
            width=_WIDE if pruned else _NARROW,
            marker={"color": colours.grid if pruned else colours.accent},
            name="Unpruned, measured",
            text=[milliseconds(ms) for ms in whole],
            textposition="outside",
            cliponaxis=False,
            textfont={"size": 12, "color": colours.faint},
            hovertemplate="<b>%{y}</b><br>unpruned: %{x:.3f} ms<extra></extra>",
        )
    )
    if pruned:
        figure.add_bar(
            y=names,
            x=[time.plan for time in times],
            orientation="h",
            width=_NARROW,
            marker={"color": colours.accent},
            name="Plan, predicted",
            hovertemplate="<b>%{y}</b><br>plan: %{x:.3f} ms, predicted<extra></extra>",
        )
    low = min(0.0, *whole, *(time.plan or 0.0 for time in times))
    figure.update_xaxes(visible=False, fixedrange=True, range=[_LABELS * low, _LABELS * max(whole)])
    figure.update_yaxes(
        autorange="reversed",
        fixedrange=True,
        **SPACER_TICKS,
        automargin=True,
        type="category",
        tickfont={"size": 12, "color": colours.text},
    )
    figure.update_layout(
        **layout(colours) | {"showlegend": pruned},
        barmode="overlay",
        height=26 * len(times) + 56,
        margin={"l": 8, "r": 8, "t": 36 if pruned else 4, "b": 4},
        legend=LEGEND,
    )
    return figure
