"""The chart of firing rates by neuron layer."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from ui.charts.palette import layout, palette, value_axis
from ui.model import formats
from ui.model.foreign import in_chart


def firing_chart(rows: pd.DataFrame, *, dark: bool = False) -> go.Figure:
    """Draw a line for each network: the unpruned one, then the plans.

    Args:
        rows: ``comparison.firing_rows``.
        dark: Theme.
    """
    colours = palette(dark)
    figure = go.Figure()
    styles = {  # also told apart without colour
        "Unpruned": (colours.faint, "dot", "circle-open"),
        0: (colours.accent, "solid", "circle"),
        1: (colours.policies["psvit"], "dash", "diamond"),
    }
    plans = 0
    for name in rows.columns[1:]:
        style = styles["Unpruned"] if name == "Unpruned" else styles[min(plans, 1)]
        plans += name != "Unpruned"
        colour, dash, symbol = style
        figure.add_scatter(
            x=list(range(1, len(rows) + 1)),
            y=rows[name],
            mode="lines+markers",
            name=in_chart(str(name)),
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 6, "symbol": symbol},
            customdata=[
                f"{in_chart(layer)}: {formats.percent(rate)}"
                for layer, rate in zip(rows["layer"], rows[name], strict=True)
            ],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(**value_axis(colours), title_text="neuron layer, in network order")
    figure.update_yaxes(**value_axis(colours), title_text="firing rate", rangemode="tozero")
    figure.update_layout(
        **{**layout(colours), "showlegend": True},
        height=300,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure
