"""The curves of a fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from psvit_core.records import EpochRecord
from ui.charts.palette import Palette, layout, palette
from ui.model import formats
from ui.model.history import Reference, validated_epochs

_ACCURACY, _LOSS = {"row": 1, "col": 1}, {"row": 2, "col": 1}


def training_chart(
    records: Sequence[EpochRecord], reference: Reference, *, epochs: float, dark: bool = False
) -> go.Figure:
    """Draw validation accuracy with its 95 % intervals above the losses, by epoch.

    Args:
        records: The curve so far.
        reference: Accuracies to draw as lines.
        epochs: End of the axis.
        dark: Theme.
    """
    colours = palette(dark)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    validated = validated_epochs(records)
    _add_accuracy(figure, validated, reference, epochs, colours)
    _add_losses(figure, records, validated, colours)
    axis: dict[str, Any] = {
        "gridcolor": colours.grid,
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
        "title_font": {"size": 12, "color": colours.faint},
    }
    figure.update_xaxes(**axis, range=[-0.02 * epochs, 1.02 * epochs])
    figure.update_xaxes(title_text="epoch", **_LOSS)
    figure.update_yaxes(**axis)
    figure.update_yaxes(title_text="accuracy, %", **_ACCURACY)
    figure.update_yaxes(title_text="loss", rangemode="tozero", **_LOSS)
    figure.update_layout(
        **{**layout(colours), "showlegend": True},
        height=430,
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _add_accuracy(
    figure: go.Figure,
    validated: Sequence[EpochRecord],
    reference: Reference,
    epochs: float,
    colours: Palette,
) -> None:
    """Add validation accuracies, and lines at the unpruned and the untrained accuracy."""
    intervals = [r.val_accuracy for r in validated if r.val_accuracy]
    accuracies = [100 * i.value for i in intervals]
    figure.add_scatter(
        x=[r.epoch for r in validated],
        y=accuracies,
        mode="lines+markers",
        **_ACCURACY,
        name="validation accuracy",
        line={"color": colours.accent, "width": 2},
        marker={"size": 8},
        error_y={
            "type": "data",
            "symmetric": False,
            "thickness": 1.2,
            "width": 4,
            "color": colours.accent,
            "array": [100 * (i.high - i.value) for i in intervals],
            "arrayminus": [100 * (i.value - i.low) for i in intervals],
        },
        customdata=[formats.accuracy(i) for i in intervals],
        hovertemplate="epoch %{x:.3g}<br>%{customdata}<extra></extra>",
    )
    lines: list[tuple[str, float, str]] = []
    if reference.baseline:
        lines.append(("unpruned", 100 * reference.baseline.value, "dash"))
    if accuracies:
        lines.append(("before training", accuracies[0], "dot"))
    for name, value, dash in lines:
        figure.add_scatter(
            x=[0, epochs],
            y=[value, value],
            mode="lines",
            name=name,
            **_ACCURACY,
            line={"color": colours.faint, "width": 1.5, "dash": dash},
            hovertemplate=f"{name}: {formats.percent(value / 100, 2)}<extra></extra>",
        )


def _add_losses(
    figure: go.Figure,
    records: Sequence[EpochRecord],
    validated: Sequence[EpochRecord],
    colours: Palette,
) -> None:
    trained = [r for r in records if r.train_loss is not None]
    figure.add_scatter(
        x=[r.epoch for r in trained],
        y=[r.train_loss for r in trained],
        mode="lines",
        name="training loss",
        **_LOSS,
        line={"color": colours.accent, "width": 1.5},
        hovertemplate="epoch %{x:.3g}<br>training loss %{y:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=[r.epoch for r in validated],
        y=[r.val_loss for r in validated],
        mode="lines+markers",
        name="validation loss",
        **_LOSS,
        line={"color": colours.text, "width": 1.5, "dash": "dash"},
        marker={"size": 7, "symbol": "diamond-open"},
        hovertemplate="epoch %{x:.3g}<br>validation loss %{y:.3f}<extra></extra>",
    )
