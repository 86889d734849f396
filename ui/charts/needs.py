"""The bar chart of what layers or positions need, unpruned and under a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from ui.charts.palette import SPACER_TICKS, Palette, layout, palette
from ui.model import formats
from ui.model.fits import Need

_WIDE, _NARROW = 0.78, 0.42  # of the bars
_LABELS = 1.4  # the axis ends after the labels, which are right of the bars
LEGEND = {
    "orientation": "h",
    "x": 0,
    "xref": "container",
    "y": 1,
    "yref": "container",
    "yanchor": "top",
    "itemclick": False,
    "itemdoubleclick": False,
    "traceorder": "normal",
}


def needs_chart(found: Sequence[Need], *, dark: bool = False) -> go.Figure:
    """Draw bytes by layer or position; state kept between time steps is a part of each bar."""
    colours = palette(dark)
    bars = list(_bars(found, colours))
    figure = go.Figure(bars)
    figure.update_xaxes(
        visible=False, fixedrange=True, range=[0, _LABELS * max(need.unpruned for need in found)]
    )
    figure.update_yaxes(
        autorange="reversed",
        fixedrange=True,
        **SPACER_TICKS,
        automargin=True,
        type="category",
        tickfont={"size": 12, "color": colours.text},
    )
    legend = len(bars) > 1
    figure.update_layout(
        **layout(colours) | {"showlegend": legend},
        barmode="overlay",
        height=26 * len(found) + 56,
        margin={"l": 8, "r": 8, "t": 36 if legend else 4, "b": 4},
        legend=LEGEND,
    )
    return figure


def _bars(found: Sequence[Need], colours: Palette) -> Iterator[go.Bar]:
    """Yield the unpruned network's bars behind those of the plan, and the state in these."""
    pruned = any(need.plan is not None for need in found)
    shown = [need.unpruned if need.plan is None else need.plan for need in found]
    state = [min(need.state, n_bytes) for need, n_bytes in zip(found, shown, strict=True)]
    common = {"y": [need.name for need in found], "orientation": "h"}
    labels = {
        "text": [formats.kilobytes(need.unpruned) for need in found],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"size": 12, "color": colours.faint},
    }
    if pruned:
        yield go.Bar(
            **common,
            **labels,
            x=[need.unpruned for need in found],
            width=_WIDE,
            marker={"color": colours.grid},
            name="Unpruned",
            hovertemplate="<b>%{y}</b><br>unpruned: %{x:,} bytes<extra></extra>",
        )
    yield go.Bar(
        **common,
        **({} if pruned else labels),
        x=[n_bytes - kept for n_bytes, kept in zip(shown, state, strict=True)],
        base=state,
        width=_NARROW,
        marker={"color": colours.accent},
        name="Current plan" if pruned else "Unpruned",
        customdata=shown,
        hovertemplate="<b>%{y}</b><br>%{customdata:,} bytes in all<extra></extra>",
    )
    if any(state):
        yield go.Bar(
            **common,
            x=state,
            width=_NARROW,
            marker={"color": colours.policies["psvit"], "pattern": {"shape": "/", "size": 5}},
            name="Neuron state in it",
            hovertemplate="<b>%{y}</b><br>neuron state: %{x:,} bytes<extra></extra>",
        )
