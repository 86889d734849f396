"""The chart of accuracy changes by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ui.charts.palette import SPACER_TICKS, Palette, layout, palette
from ui.model import formats
from ui.model.comparison import change_column
from ui.model.foreign import in_chart

MANY_CLASSES = 20  # of more classes, those that change most are shown


def class_changes_chart(
    rows: pd.DataFrame, names: Sequence[str], *, dark: bool = False
) -> go.Figure:
    """Draw each class's accuracy change: filled marks for the first plan, hollow for the second.

    Args:
        rows: ``comparison.class_rows``.
        names: The plans in it, at most two.
        dark: Theme.
    """
    colours = palette(dark)
    if len(rows) > MANY_CLASSES:
        largest = rows[[change_column(i) for i in range(len(names))]].abs().max(axis=1)
        rows = rows.loc[sorted(largest.nlargest(MANY_CLASSES).index)]
    classes = [in_chart(str(c)) for c in rows["class"]]
    names = [in_chart(name) for name in names]
    figure = go.Figure()
    for i, name in enumerate(names):
        changes = rows[change_column(i)]
        if i == 0:
            _add_stems(figure, classes, changes, colours)
        figure.add_scatter(
            x=changes,
            y=classes,
            mode="markers",
            name=name,
            marker=_marker(i > 0, colours),
            customdata=[formats.points(v, 1) for v in changes],
            hovertemplate=f"<b>class %{{y}}</b>, {name}<br>%{{customdata}}<extra></extra>",
        )
    _set_layout(figure, colours, n_classes=len(rows), legend=len(names) > 1)
    return figure


def _add_stems(
    figure: go.Figure, classes: Sequence[str], changes: pd.Series[float], colours: Palette
) -> None:
    """Add a line from zero to each change."""
    for name, change in zip(classes, changes, strict=True):
        figure.add_shape(
            type="line",
            x0=0,
            x1=change,
            y0=name,
            y1=name,
            line={"color": colours.accent, "width": 3},
            layer="below",
        )


def _marker(hollow: bool, colours: Palette) -> dict[str, Any]:
    return {
        "size": 11 if hollow else 10,
        "symbol": "diamond-open" if hollow else "circle",
        "color": colours.text if hollow else colours.accent,
        "line": {"width": 2},
    }


def _set_layout(figure: go.Figure, colours: Palette, *, n_classes: int, legend: bool) -> None:
    axis: dict[str, Any] = {
        "fixedrange": True,
        "automargin": True,
        "gridcolor": colours.grid,
        "title_font": {"size": 12, "color": colours.faint},
    }
    figure.add_vline(x=0, line={"color": colours.faint, "width": 1})
    figure.update_xaxes(**axis, zeroline=False, title_text="accuracy change, pp")
    figure.update_yaxes(
        **axis, type="category", autorange="reversed", **SPACER_TICKS, title_text="class"
    )
    figure.update_layout(
        **{**layout(colours), "showlegend": legend},
        height=24 * n_classes + 90,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        hovermode="closest",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
