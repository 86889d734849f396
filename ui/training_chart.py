"""The curve of a fine-tuning: a pure function from records to plotly, no streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from psvit_core.records import EpochRecord
from ui import words
from ui.palette import layout, palette
from ui.training import Reference, ends


def training_figure(
    records: Sequence[EpochRecord], reference: Reference, *, epochs: float, dark: bool = False
) -> go.Figure:
    """Validation accuracy with its 95 % intervals over the losses, by epoch.

    Args:
        records: The curve so far.
        reference: Accuracies that are drawn as lines.
        epochs: The end of the axis.
        dark: Theme.
    """
    colours = palette(dark)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    judged = ends(records)
    intervals = [r.val_accuracy for r in judged if r.val_accuracy]
    accuracy = [100 * i.value for i in intervals]
    figure.add_scatter(
        x=[r.epoch for r in judged], y=accuracy, mode="lines+markers", row=1, col=1,
        name="validation accuracy", line={"color": colours.accent, "width": 2}, marker={"size": 8},
        error_y={
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 4,
            "color": colours.accent,
            "array": [100 * (i.high - i.value) for i in intervals],
            "arrayminus": [100 * (i.value - i.low) for i in intervals],
        },
        customdata=[words.accuracy(i) for i in intervals],
        hovertemplate="epoch %{x:.3g}<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    lines: list[tuple[str, float, str]] = []
    if reference.baseline:
        lines.append(("unpruned", 100 * reference.baseline.value, "dash"))
    if accuracy:
        lines.append(("before training", accuracy[0], "dot"))
    for name, value, dash in lines:
        figure.add_scatter(
            x=[0, epochs], y=[value, value], mode="lines", name=name, row=1, col=1,
            line={"color": colours.faint, "width": 1.5, "dash": dash},
            hovertemplate=f"{name}: {words.percent(value / 100, 2)}<extra></extra>",
        )  # fmt: skip
    trained = [r for r in records if r.train_loss is not None]
    figure.add_scatter(
        x=[r.epoch for r in trained], y=[r.train_loss for r in trained], mode="lines",
        name="training loss", row=2, col=1, line={"color": colours.accent, "width": 1.5},
        hovertemplate="epoch %{x:.3g}<br>training loss %{y:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[r.epoch for r in judged], y=[r.val_loss for r in judged], mode="lines+markers",
        name="validation loss", row=2, col=1,
        line={"color": colours.text, "width": 1.5, "dash": "dash"},
        marker={"size": 7, "symbol": "diamond-open"},
        hovertemplate="epoch %{x:.3g}<br>validation loss %{y:.3f}<extra></extra>",
    )  # fmt: skip
    axis: dict[str, Any] = {
        "gridcolor": colours.grid, "zeroline": False, "fixedrange": True, "automargin": True,
        "title_font": {"size": 12, "color": colours.faint},
    }  # fmt: skip
    figure.update_xaxes(**axis, range=[-0.02 * epochs, 1.02 * epochs])
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_yaxes(**axis)
    figure.update_yaxes(title_text="accuracy, %", row=1, col=1)
    figure.update_yaxes(title_text="loss", rangemode="tozero", row=2, col=1)
    figure.update_layout(
        **{**layout(colours), "showlegend": True}, height=430, hovermode="closest",
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return figure
