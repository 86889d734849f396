"""The bar chart of bytes by block."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from ui.charts.palette import SPACER_TICKS, layout, palette
from ui.model import formats


def bytes_chart(n_bytes: Mapping[str, int], *, dark: bool = False) -> go.Figure:
    """Draw bytes by block, in the order given."""
    colours = palette(dark)
    names, values = [*n_bytes], [*n_bytes.values()]
    total = sum(values)
    figure = go.Figure(
        go.Bar(
            y=names,
            x=values,
            orientation="h",
            marker={"color": colours.accent},
            text=[formats.kilobytes(v) for v in values],
            textposition="outside",
            cliponaxis=False,
            textfont={"size": 12, "color": colours.faint},
            customdata=[formats.percent(v / total) for v in values],
            hovertemplate="<b>%{y}</b><br>%{x:,} bytes, %{customdata} of the model<extra></extra>",
        )
    )
    figure.update_xaxes(visible=False, fixedrange=True, range=[0, 1.18 * max(values)])
    figure.update_yaxes(
        autorange="reversed",
        fixedrange=True,
        **SPACER_TICKS,
        automargin=True,
        type="category",
        tickfont={"size": 12, "color": colours.text},
    )
    figure.update_layout(
        **layout(colours),
        height=24 * len(names) + 16,
        margin={"l": 8, "r": 8, "t": 4, "b": 4},
        bargap=0.35,
    )
    return figure
