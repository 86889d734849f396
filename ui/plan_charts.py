"""Figures that set plans side by side: pure functions from rows to plotly, no streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from psvit_core.records import ModelSummary
from ui import words
from ui.compare import change_column
from ui.palette import GAP_TICKS, layout, palette

#: A difference of plans: B removes more, none (the page's background), A removes more.
DIVERGING = {
    False: ("#542788", "#b2abd2", "#ffffff", "#fdb863", "#b35806"),
    True: ("#b9a3ec", "#5c4a94", "#12171b", "#92540f", "#f5a94a"),
}
SEQUENTIAL = {False: ("#ffffff", "#0a6683"), True: ("#12171b", "#58bfda")}
MANY_CLASSES = 20


def difference_figure(
    summary: ModelSummary, rows: pd.DataFrame, names: tuple[str, str], *, dark: bool = False
) -> go.Figure:
    """What two plans remove from each channel group, and the difference as diverging heat.

    Args:
        summary: The model; its groups stand from left to right in network order.
        rows: ``compare.difference_rows``.
        names: The plans' names.
        dark: Theme.
    """
    colours = palette(dark)
    reach = max(10.0, float(rows["difference"].abs().max()))
    label = [f"{g.label}" for g in summary.groups]
    lines = [
        (names[0], rows["a"], SEQUENTIAL[dark], 0.0, 100.0, "removes"),
        (names[1], rows["b"], SEQUENTIAL[dark], 0.0, 100.0, "removes"),
        ("Difference", rows["difference"], DIVERGING[dark], -reach, reach, ""),
    ]
    figure = go.Figure()
    for y, (_, values, scale, low, high, _verb) in enumerate(lines):
        figure.add_heatmap(
            z=[values.tolist()], y=[y], x=[*range(len(label))], zmin=low, zmax=high, xgap=1, ygap=3,
            colorscale=[[i / (len(scale) - 1), c] for i, c in enumerate(scale)], showscale=False,
            customdata=[_hover(label, values, y == 2, names)],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    signs = ["+" if d > 0 else words.MINUS if d < 0 else "" for d in rows["difference"]]
    figure.add_scatter(
        x=[*range(len(label))], y=[2] * len(label), mode="text", text=signs, hoverinfo="skip",
        textfont={
            "size": 12,
            "color": [
                DIVERGING[dark][2] if abs(d) > 0.6 * reach else colours.text
                for d in rows["difference"]
            ],
        },
    )  # fmt: skip
    first: dict[str, list[int]] = {}
    for at, group in enumerate(summary.groups):
        first.setdefault(group.block, []).append(at)
    for block in [*first.values()][1:]:
        figure.add_shape(
            type="line", x0=block[0] - 0.5, x1=block[0] - 0.5, y0=-0.5, y1=2.5,
            line={"color": colours.faint, "width": 1},
        )  # fmt: skip
    figure.update_xaxes(
        tickvals=[sum(at) / len(at) for at in first.values()], ticktext=[*first],
        tickfont={"size": 11, "color": colours.faint}, fixedrange=True, showgrid=False,
        tickangle=-90, zeroline=False, range=[-0.5, len(label) - 0.5], automargin=True,
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=[0, 1, 2], ticktext=[_short(names[0]), _short(names[1]), "Difference"],
        range=[2.5, -0.5], fixedrange=True, showgrid=False, zeroline=False, **GAP_TICKS,
        tickfont={"size": 12, "color": colours.text}, automargin=True,
    )  # fmt: skip
    figure.update_layout(
        **layout(colours), height=220, margin={"l": 8, "r": 8, "t": 4, "b": 8}, hovermode="closest"
    )
    return figure


def _hover(
    labels: Sequence[str], values: pd.Series[float], difference: bool, names: tuple[str, str]
) -> list[str]:
    texts = []
    for label, value in zip(labels, values, strict=True):
        if not difference:
            texts.append(f"<b>{label}</b><br>removes {words.ratio(value / 100)}")
        elif not value:
            texts.append(f"<b>{label}</b><br>both remove as much")
        else:
            more = names[0] if value > 0 else names[1]
            texts.append(f"<b>{label}</b><br>{more} removes {words.points(abs(value), 1)} more")
    return texts


def _short(name: str, width: int = 18) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def class_figure(rows: pd.DataFrame, names: Sequence[str], *, dark: bool = False) -> go.Figure:
    """How each class's accuracy changes: filled marks for the first plan, hollow for the second.

    Args:
        rows: ``compare.class_rows``; of many classes those that change most are shown.
        names: The plans in it, at most two.
        dark: Theme.
    """
    colours = palette(dark)
    if len(rows) > MANY_CLASSES:
        most = rows[[change_column(at) for at in range(len(names))]].abs().max(axis=1)
        rows = rows.loc[sorted(most.nlargest(MANY_CLASSES).index)]
    figure = go.Figure()
    classes = [str(c) for c in rows["class"]]
    for at, name in enumerate(names):
        hollow = at > 0
        for klass, change in zip(classes, rows[change_column(at)], strict=True):
            if not hollow:
                figure.add_shape(
                    type="line", x0=0, x1=change, y0=klass, y1=klass,
                    line={"color": colours.accent, "width": 3}, layer="below",
                )  # fmt: skip
        figure.add_scatter(
            x=rows[change_column(at)], y=classes, mode="markers", name=name,
            marker={
                "size": 11 if hollow else 10, "symbol": "diamond-open" if hollow else "circle",
                "color": colours.text if hollow else colours.accent, "line": {"width": 2},
            },
            customdata=[words.points(v, 1) for v in rows[change_column(at)]],
            hovertemplate=f"<b>class %{{y}}</b>, {name}<br>%{{customdata}}<extra></extra>",
        )  # fmt: skip
    axis: dict[str, Any] = {"fixedrange": True, "automargin": True}
    figure.add_vline(x=0, line={"color": colours.faint, "width": 1})
    figure.update_xaxes(
        **axis, gridcolor=colours.grid, zeroline=False, title_text="accuracy change, pp",
        title_font={"size": 12, "color": colours.faint},
    )  # fmt: skip
    figure.update_yaxes(
        **axis, type="category", autorange="reversed", gridcolor=colours.grid, **GAP_TICKS,
        title_text="class", title_font={"size": 12, "color": colours.faint},
    )  # fmt: skip
    figure.update_layout(
        **{**layout(colours), "showlegend": len(names) > 1}, height=24 * len(rows) + 90,
        margin={"l": 8, "r": 8, "t": 8, "b": 8}, hovermode="closest",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return figure


def short_name(name: str) -> str:
    """A plan's name for narrow places."""
    return _short(name)
