"""The heat map that compares what two plans remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from psvit_core.records import ModelSummary
from ui.charts.palette import SPACER_TICKS, Palette, colour_scale, layout, palette
from ui.model import formats
from ui.model.foreign import in_chart

#: A difference of plans: B removes more, none (the page's background), A removes more.
DIVERGING = {
    False: ("#542788", "#b2abd2", "#ffffff", "#fdb863", "#b35806"),
    True: ("#b9a3ec", "#5c4a94", "#12171b", "#92540f", "#f5a94a"),
}
SEQUENTIAL = {False: ("#ffffff", "#0a6683"), True: ("#12171b", "#58bfda")}
_SMALLEST_RANGE = 10.0  # percentage points; the difference's scale is no narrower
_DIFFERENCE_ROW = 2


def difference_chart(
    summary: ModelSummary, rows: pd.DataFrame, names: tuple[str, str], *, dark: bool = False
) -> go.Figure:
    """Draw what two plans remove from each channel group, and their difference.

    Args:
        summary: The model; its groups run from left to right in network order.
        rows: ``comparison.difference_rows``.
        names: The plans' names.
        dark: Theme.
    """
    colours = palette(dark)
    limit = max(_SMALLEST_RANGE, float(rows["difference"].abs().max()))
    labels = [in_chart(group.label) for group in summary.groups]
    removed = {"colorscale": colour_scale(SEQUENTIAL[dark]), "zmin": 0.0, "zmax": 100.0}
    difference = {"colorscale": colour_scale(DIVERGING[dark]), "zmin": -limit, "zmax": limit}
    figure = go.Figure(
        [
            _heat_row(0, rows["a"], _removal_texts(labels, rows["a"]), removed),
            _heat_row(1, rows["b"], _removal_texts(labels, rows["b"]), removed),
            _heat_row(
                _DIFFERENCE_ROW,
                rows["difference"],
                _difference_texts(labels, rows["difference"], names),
                difference,
            ),
        ]
    )
    strong = [abs(value) > 0.6 * limit for value in rows["difference"]]
    figure.add_scatter(
        x=[*range(len(labels))],
        y=[_DIFFERENCE_ROW] * len(labels),
        mode="text",
        text=[_sign(value) for value in rows["difference"]],
        hoverinfo="skip",
        textfont={
            "size": 12,
            "color": [DIVERGING[dark][2] if dense else colours.text for dense in strong],
        },
    )
    _set_axes(figure, summary, names, colours)
    figure.update_layout(
        **layout(colours), height=220, margin={"l": 8, "r": 8, "t": 4, "b": 8}, hovermode="closest"
    )
    return figure


def _heat_row(
    y: int, values: pd.Series[float], texts: Sequence[str], scale: dict[str, Any]
) -> go.Heatmap:
    return go.Heatmap(
        z=[values.tolist()],
        y=[y],
        x=[*range(len(values))],
        xgap=1,
        ygap=3,
        showscale=False,
        customdata=[texts],
        hovertemplate="%{customdata}<extra></extra>",
        **scale,
    )


def _removal_texts(labels: Sequence[str], percents: pd.Series[float]) -> list[str]:
    return [
        f"<b>{label}</b><br>removes {formats.ratio(percent / 100)}"
        for label, percent in zip(labels, percents, strict=True)
    ]


def _difference_texts(
    labels: Sequence[str], differences: pd.Series[float], names: tuple[str, str]
) -> list[str]:
    texts = []
    for label, value in zip(labels, differences, strict=True):
        if value:
            more = in_chart(names[0] if value > 0 else names[1])
            texts.append(f"<b>{label}</b><br>{more} removes {formats.points(abs(value), 1)} more")
        else:
            texts.append(f"<b>{label}</b><br>both remove the same amount")
    return texts


def _sign(value: float) -> str:
    if value == 0:
        return ""
    return "+" if value > 0 else formats.MINUS


def _set_axes(
    figure: go.Figure, summary: ModelSummary, names: tuple[str, str], colours: Palette
) -> None:
    """Label the blocks below, the rows at the side, and separate the blocks by lines."""
    columns: dict[str, list[int]] = {}
    for x, group in enumerate(summary.groups):
        columns.setdefault(group.place, []).append(x)
    for block in [*columns.values()][1:]:
        figure.add_shape(
            type="line",
            x0=block[0] - 0.5,
            x1=block[0] - 0.5,
            y0=-0.5,
            y1=2.5,
            line={"color": colours.faint, "width": 1},
        )
    figure.update_xaxes(
        tickvals=[sum(x) / len(x) for x in columns.values()],
        ticktext=[*columns],
        tickfont={"size": 11, "color": colours.faint},
        fixedrange=True,
        showgrid=False,
        tickangle=-90,
        zeroline=False,
        range=[-0.5, len(summary.groups) - 0.5],
        automargin=True,
    )
    figure.update_yaxes(
        tickvals=[0, 1, _DIFFERENCE_ROW],
        ticktext=[*(in_chart(formats.shorten(n)) for n in names), "Difference"],
        range=[2.5, -0.5],
        fixedrange=True,
        showgrid=False,
        zeroline=False,
        **SPACER_TICKS,
        tickfont={"size": 12, "color": colours.text},
        automargin=True,
    )
