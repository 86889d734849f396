"""The sensitivity heatmap: a pure function from records to a plotly figure, no streamlit.

State is never told by colour alone: cells carry marks, and every number is in the tooltip and in
the table beside the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow
from psvit_core.size import plan_size
from ui import tables, words
from ui.palette import GAP_TICKS, Palette, heat_position, heat_scale, layout, palette

_TICKS = {
    "drop": {0: "0 pp", 0.5: "0.5", 3: "3", 10: "≥ 10"},
    "kl": {0: "0 nats", 0.05: "0.05", 0.3: "0.3", 1: "≥ 1"},
}
_ROW, _SMALL_ROW, _MANY_ROWS = 24, 19, 24  # pixels a row; the small one from _MANY_ROWS on
_LETTER = 5.4  # pixels, on average, of a label's 12 pixel type


def sensitivity_heatmap(
    summary: ModelSummary,
    ratios: Sequence[float],
    rows: Sequence[SensitivityRow],
    *,
    metric: str = "drop",
    by_sensitivity: bool = False,
    kinds: Sequence[str] = (),
    selected: tuple[str, float] | None = None,
    n_images: int | None = None,
    dark: bool = False,
) -> go.Figure:
    """Channel groups by prune ratios; colour is what removing that part alone costs.

    An invisible marker lies over every cell, since a plotly heatmap reports no clicks; its custom
    data is ``cell_name`` of the cell.

    Args:
        summary: The model.
        ratios: The sweep's ratios.
        rows: The cells measured so far.
        metric: ``drop`` or ``kl``.
        by_sensitivity: Most sensitive group first instead of network order.
        kinds: Kinds of groups that are shown; all when empty.
        selected: The (group_id, prune_ratio) to frame.
        n_images: Images of the whole sweep; cells may have seen fewer.
        dark: Theme.
    """
    colours = palette(dark)
    ordered = (
        tables.most_sensitive_first(summary, rows, metric) if by_sensitivity else summary.groups
    )
    groups = [group for group in ordered if not kinds or group.kind in kinds] or [*ordered]
    found = tables.by_cell(rows)
    cells = [
        _HeatCell(x, y, group, ratio, found.get((group.group_id, ratio)))
        for y, group in enumerate(groups)
        for x, ratio in enumerate(ratios)
    ]
    height = (_SMALL_ROW if len(groups) >= _MANY_ROWS else _ROW) * len(groups)
    figure = go.Figure(
        [
            _heat_layer(cells, groups, ratios, metric, colours, height),
            _hatched([c for c in cells if c.row is None], colours),
            _marks([c for c in cells if c.empty], "line-ew", 9, colours),
            _marks([c for c in cells if c.noise], "circle", 4, colours),
            _corners([c for c in cells if c.open], colours),
            _click_layer(cells, summary, n_images),
        ]
    )
    room = _frame_axes(figure, groups, ratios, colours, network=not by_sensitivity)
    shapes = [] if by_sensitivity else _block_lines(groups, ratios, colours)
    for cell in cells:
        if selected == (cell.group.group_id, cell.ratio):
            shapes += [
                {"type": "rect", "x0": cell.x - 0.5, "x1": cell.x + 0.5, "y0": cell.y - 0.5,
                 "y1": cell.y + 0.5, "line": {"color": colour, "width": width}}
                for colour, width in ((colours.heat[0], 5), (colours.text, 2))  # seen on any cell
            ]  # fmt: skip
    figure.update_layout(
        **layout(colours), shapes=shapes, height=height + 76,
        margin={"l": room, "r": 8, "t": 68, "b": 8}, hovermode="closest", hoverdistance=-1,
        bargap=0, dragmode="pan",
    )  # fmt: skip
    return figure


@dataclass(frozen=True)
class _HeatCell:
    x: int
    y: int
    group: ChannelGroup
    ratio: float
    row: SensitivityRow | None  # None: still to run

    @property
    def empty(self) -> bool:
        """Whether the cell removes nothing."""
        return self.row is not None and self.row.n_pruned == 0

    @property
    def noise(self) -> bool:
        """Whether no drop was shown."""
        return self.row is not None and not self.empty and words.within_noise(self.row.drop)

    @property
    def open(self) -> bool:
        """Whether more images are still to come."""
        return self.row is not None and not self.row.settled


def cell_name(group_id: str, ratio: float) -> str:
    """A cell's name in the chart's custom data."""
    return f"{group_id}|{ratio!r}"


def cell_of(name: str) -> tuple[str, float]:
    """The (group_id, prune_ratio) of a cell's name."""
    group_id, _, ratio = name.rpartition("|")
    return group_id, float(ratio)


def _heat_layer(
    cells: Sequence[_HeatCell],
    groups: Sequence[ChannelGroup],
    ratios: Sequence[float],
    metric: str,
    colours: Palette,
    height: int,
) -> go.Heatmap:
    z: list[list[float | None]] = [[None] * len(ratios) for _ in groups]
    for cell in cells:
        if cell.row is not None and not cell.empty:
            z[cell.y][cell.x] = heat_position(tables.metric_value(cell.row, metric), metric)
    ticks = _TICKS[metric]
    return go.Heatmap(
        z=z, zmin=0, zmax=1, xgap=1, ygap=1, hoverinfo="skip",
        colorscale=heat_scale(colours),
        colorbar={
            "orientation": "h", "thickness": 8, "len": 0.92, "x": 0.5, "xpad": 0, "ypad": 0,
            "y": 1 + 34 / height, "yanchor": "bottom", "outlinewidth": 1,
            "outlinecolor": colours.grid, "ticklabelposition": "outside top",
            "tickvals": [heat_position(v, metric) for v in ticks], "ticktext": [*ticks.values()],
            "tickfont": {"size": 11, "color": colours.faint},
        },
    )  # fmt: skip


def _hatched(cells: Sequence[_HeatCell], colours: Palette) -> go.Bar:
    """Cells that are still to run."""
    return go.Bar(
        x=[c.x for c in cells], y=[0.94] * len(cells), base=[c.y - 0.47 for c in cells], width=0.98,
        hoverinfo="skip", showlegend=False,
        marker={
            "color": "rgba(0,0,0,0)", "line": {"width": 0},
            "pattern": {"shape": "/", "size": 6, "solidity": 0.12, "fgcolor": colours.faint},
        },
    )  # fmt: skip


def _marks(cells: Sequence[_HeatCell], symbol: str, size: int, colours: Palette) -> go.Scatter:
    return go.Scatter(
        x=[c.x for c in cells], y=[c.y for c in cells], mode="markers", hoverinfo="skip",
        showlegend=False,
        marker={
            "symbol": symbol, "size": size, "color": colours.mark,
            "line": {"width": 1.5 if symbol == "line-ew" else 0, "color": colours.mark},
        },
    )  # fmt: skip


def _corners(cells: Sequence[_HeatCell], colours: Palette) -> go.Scatter:
    """A light mark in the corner of cells that get sharper yet; noise has the middle."""
    return go.Scatter(
        x=[c.x + 0.42 for c in cells], y=[c.y - 0.3 for c in cells], mode="markers",
        hoverinfo="skip", showlegend=False,
        marker={"symbol": "circle-open", "size": 5, "color": colours.mark, "line": {"width": 1}},
        opacity=0.6,
    )  # fmt: skip


def _click_layer(
    cells: Sequence[_HeatCell], summary: ModelSummary, n_images: int | None
) -> go.Scatter:
    whole = plan_size(summary, None).bytes
    return go.Scatter(
        x=[c.x for c in cells], y=[c.y for c in cells], mode="markers", showlegend=False,
        marker={"opacity": 0, "symbol": "square", "size": 14},
        selected={"marker": {"opacity": 0}}, unselected={"marker": {"opacity": 0}},
        customdata=[cell_name(c.group.group_id, c.ratio) for c in cells],
        text=[cell_text(whole, c.group, c.ratio, c.row, n_images) for c in cells],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def cell_text(
    whole: int,
    group: ChannelGroup,
    ratio: float,
    row: SensitivityRow | None,
    n_images: int | None = None,
) -> str:
    """A cell's tooltip.

    Args:
        whole: Bytes of the unpruned model.
        group: The cell's group.
        ratio: Its prune ratio.
        row: What was measured; None before.
        n_images: Images of the whole sweep.
    """
    head = f"<b>{group.label}</b><br>{words.ratio(ratio)} asked"
    if row is None:
        return f"{head}<br>still to run"
    if row.n_pruned == 0:
        return f"{head}<br><b>removes nothing</b>: too few units for this ratio"
    noise = "<br>within noise: the interval includes 0" if words.within_noise(row.drop) else ""
    return (
        f"{head}, {row.n_pruned} of {group.n_units} units removed<br>"
        f"drop {words.drop(row.drop)}{noise}<br>"
        f"KL {row.kl:.4f} nats · {words.seen(row, n_images)}<br>"
        f"memory {words.saving(row.size.bytes, whole)}"
    )


def _frame_axes(
    figure: go.Figure,
    groups: Sequence[ChannelGroup],
    ratios: Sequence[float],
    colours: Palette,
    *,
    network: bool,
) -> float:
    """Label both axes; returns the pixels that the longest label takes.

    plotly would find that out, too, by drawing the whole map again.
    """
    labels = []
    room = 0.0
    for i, group in enumerate(groups):
        first = i == 0 or groups[i - 1].block != group.block
        if network and not first:
            labels.append(group.title)
            width = _LETTER * len(group.title)
        else:
            labels.append(f"<b>{group.block}</b>  {group.title}")
            width = _LETTER * (1.1 * len(group.block) + 1 + len(group.title))
        room = max(room, width)
    axis: dict[str, Any] = {
        "showgrid": False, "zeroline": False, "fixedrange": True, **GAP_TICKS,
        "tickfont": {"color": colours.text, "size": 12},
    }  # fmt: skip
    figure.update_xaxes(
        **axis, side="top", range=[-0.5, len(ratios) - 0.5], tickangle=0,
        tickvals=[*range(len(ratios))], ticktext=[f"{100 * ratio:g}" for ratio in ratios],
    )  # fmt: skip
    figure.update_yaxes(
        **axis, range=[len(groups) - 0.5, -0.5], tickvals=[*range(len(groups))], ticktext=labels,
    )  # fmt: skip
    figure.add_annotation(  # beside the ratios: a title above them would lie on the scale
        text="removed, %", x=0, xref="x domain", xanchor="right", xshift=-8, y=1, yref="y domain",
        yanchor="bottom", yshift=3, showarrow=False, font={"size": 12, "color": colours.faint},
    )  # fmt: skip
    return room + 14


def _block_lines(
    groups: Sequence[ChannelGroup], ratios: Sequence[float], colours: Palette
) -> list[dict[str, Any]]:
    """Lines between blocks; all at once, since plotly takes its time over each that is added."""
    return [
        {"type": "line", "x0": -0.5, "x1": len(ratios) - 0.5, "y0": i - 0.5, "y1": i - 0.5,
         "line": {"color": colours.faint, "width": 1}, "layer": "above", "opacity": 0.6}
        for i in range(1, len(groups))
        if groups[i - 1].block != groups[i].block
    ]  # fmt: skip
