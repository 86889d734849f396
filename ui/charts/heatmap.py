"""The sensitivity heatmap of a sweep.

Colour alone never carries a state: cells have marks, and every number is in the tooltip and in the
table below the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from psvit_core.plan.size import plan_size
from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow
from ui.charts.palette import SPACER_TICKS, Palette, heat_position, heat_scale, layout, palette
from ui.model import formats, tables
from ui.model.foreign import in_chart

_TICKS = {
    "drop": {0: "0 pp", 0.5: "0.5", 3: "3", 10: "≥ 10"},
    "kl": {0: "0 nats", 0.05: "0.05", 0.3: "0.3", 1: "≥ 1"},
}
_ROW, _SMALL_ROW = 24, 19  # pixels
_MANY_ROWS = 24  # from this number on, rows are small
_LETTER = 5.4  # average width of a letter of the labels' 12 pixel type, pixels


@dataclass(frozen=True, kw_only=True)
class HeatmapSettings:
    """Display settings of a heatmap."""

    metric: str = "drop"  # or "kl"
    by_sensitivity: bool = False  # most sensitive group first, instead of network order
    kinds: tuple[str, ...] = ()  # kinds of groups to show; all when empty


_DEFAULT = HeatmapSettings()


def sensitivity_heatmap(
    summary: ModelSummary,
    ratios: Sequence[float],
    rows: Sequence[SensitivityRow],
    settings: HeatmapSettings = _DEFAULT,
    *,
    selected: tuple[str, float] | None = None,
    n_images: int | None = None,
    dark: bool = False,
) -> go.Figure:
    """Draw channel groups by prune ratios; colour shows the cost of removing that part alone.

    A plotly heatmap reports no clicks, so an invisible marker covers each cell. Its custom data is
    the cell's ``cell_name``.

    Args:
        summary: The model.
        ratios: The sweep's ratios.
        rows: The cells measured so far.
        settings: Metric, order and kinds of groups.
        selected: The (group_id, prune_ratio) to frame.
        n_images: Images of the whole sweep; cells may have seen fewer.
        dark: Theme.
    """
    colours = palette(dark)
    groups = _shown_groups(summary, rows, settings)
    found = tables.by_cell(rows)
    cells = [
        _HeatCell(x, y, group, ratio, found.get((group.group_id, ratio)))
        for y, group in enumerate(groups)
        for x, ratio in enumerate(ratios)
    ]
    height = (_SMALL_ROW if len(groups) >= _MANY_ROWS else _ROW) * len(groups)
    figure = go.Figure(
        [
            _heat_layer(cells, (len(groups), len(ratios)), settings.metric, colours, height),
            _hatched([c for c in cells if c.row is None], colours),
            _marks([c for c in cells if c.empty], "line-ew", 9, colours),
            _marks([c for c in cells if c.noise], "circle", 4, colours),
            _unsettled_marks([c for c in cells if c.unsettled], colours),
            _click_layer(cells, summary, n_images),
        ]
    )
    label_width = _set_axes(figure, groups, ratios, colours, by_sensitivity=settings.by_sensitivity)
    shapes = [] if settings.by_sensitivity else _block_lines(groups, ratios, colours)
    for cell in cells:
        if selected == (cell.group.group_id, cell.ratio):
            shapes += _selection_frame(cell, colours)
    figure.update_layout(
        **layout(colours),
        shapes=shapes,
        height=height + 76,
        margin={"l": label_width, "r": 8, "t": 68, "b": 8},
        hovermode="closest",
        hoverdistance=-1,
        bargap=0,
        dragmode="pan",
    )
    return figure


@dataclass(frozen=True)
class _HeatCell:
    x: int
    y: int
    group: ChannelGroup
    ratio: float
    row: SensitivityRow | None  # None while not measured

    @property
    def empty(self) -> bool:
        """Whether the cell removes nothing."""
        return self.row is not None and self.row.n_pruned == 0

    @property
    def noise(self) -> bool:
        """Whether the drop's interval includes 0."""
        return self.row is not None and not self.empty and formats.within_noise(self.row.drop)

    @property
    def unsettled(self) -> bool:
        """Whether the sweep will run more images of this cell."""
        return self.row is not None and not self.row.settled


def _shown_groups(
    summary: ModelSummary, rows: Sequence[SensitivityRow], settings: HeatmapSettings
) -> list[ChannelGroup]:
    """Return the groups in the order of the map; all if none is of the chosen kinds."""
    ordered: Sequence[ChannelGroup] = summary.groups
    if settings.by_sensitivity:
        ordered = tables.most_sensitive_first(summary, rows, settings.metric)
    return [g for g in ordered if not settings.kinds or g.kind in settings.kinds] or [*ordered]


def cell_name(group_id: str, ratio: float) -> str:
    """Return a cell's name in the chart's custom data."""
    return f"{group_id}|{ratio!r}"


def cell_of(name: str) -> tuple[str, float]:
    """Return the (group_id, prune_ratio) of a cell's name."""
    group_id, _, ratio = name.rpartition("|")
    return group_id, float(ratio)


def _heat_layer(
    cells: Sequence[_HeatCell],
    shape: tuple[int, int],
    metric: str,
    colours: Palette,
    height: int,
) -> go.Heatmap:
    n_rows, n_columns = shape
    z: list[list[float | None]] = [[None] * n_columns for _ in range(n_rows)]
    for cell in cells:
        if cell.row is not None and not cell.empty:
            z[cell.y][cell.x] = heat_position(tables.metric_value(cell.row, metric), metric)
    ticks = _TICKS[metric]
    return go.Heatmap(
        z=z,
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        hoverinfo="skip",
        colorscale=heat_scale(colours),
        colorbar={
            "orientation": "h",
            "thickness": 8,
            "len": 0.92,
            "x": 0.5,
            "xpad": 0,
            "ypad": 0,
            "y": 1 + 34 / height,
            "yanchor": "bottom",
            "outlinewidth": 1,
            "outlinecolor": colours.grid,
            "ticklabelposition": "outside top",
            "tickvals": [heat_position(v, metric) for v in ticks],
            "ticktext": [*ticks.values()],
            "tickfont": {"size": 11, "color": colours.faint},
        },
    )


def _hatched(cells: Sequence[_HeatCell], colours: Palette) -> go.Bar:
    """Return the hatching of cells that are not measured yet."""
    return go.Bar(
        x=[c.x for c in cells],
        y=[0.94] * len(cells),
        base=[c.y - 0.47 for c in cells],
        width=0.98,
        hoverinfo="skip",
        showlegend=False,
        marker={
            "color": "rgba(0,0,0,0)",
            "line": {"width": 0},
            "pattern": {"shape": "/", "size": 6, "solidity": 0.12, "fgcolor": colours.faint},
        },
    )


def _marks(cells: Sequence[_HeatCell], symbol: str, size: int, colours: Palette) -> go.Scatter:
    return go.Scatter(
        x=[c.x for c in cells],
        y=[c.y for c in cells],
        mode="markers",
        hoverinfo="skip",
        showlegend=False,
        marker={
            "symbol": symbol,
            "size": size,
            "color": colours.mark,
            "line": {"width": 1.5 if symbol == "line-ew" else 0, "color": colours.mark},
        },
    )


def _unsettled_marks(cells: Sequence[_HeatCell], colours: Palette) -> go.Scatter:
    """Return light marks in the corners of unsettled cells; their centres are for noise."""
    return go.Scatter(
        x=[c.x + 0.42 for c in cells],
        y=[c.y - 0.3 for c in cells],
        mode="markers",
        hoverinfo="skip",
        showlegend=False,
        marker={"symbol": "circle-open", "size": 5, "color": colours.mark, "line": {"width": 1}},
        opacity=0.6,
    )


def _click_layer(
    cells: Sequence[_HeatCell], summary: ModelSummary, n_images: int | None
) -> go.Scatter:
    unpruned_bytes = plan_size(summary, None).bytes
    return go.Scatter(
        x=[c.x for c in cells],
        y=[c.y for c in cells],
        mode="markers",
        showlegend=False,
        marker={"opacity": 0, "symbol": "square", "size": 14},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=[cell_name(c.group.group_id, c.ratio) for c in cells],
        text=[cell_text(unpruned_bytes, c.group, c.ratio, c.row, n_images) for c in cells],
        hovertemplate="%{text}<extra></extra>",
    )


def cell_text(
    unpruned_bytes: int,
    group: ChannelGroup,
    ratio: float,
    row: SensitivityRow | None,
    n_images: int | None = None,
) -> str:
    """Return a cell's tooltip.

    Args:
        unpruned_bytes: Bytes of the unpruned model.
        group: The cell's group.
        ratio: Its prune ratio.
        row: Its results; None while not measured.
        n_images: Images of the whole sweep.
    """
    head = f"<b>{in_chart(group.label)}</b><br>{formats.ratio(ratio)} requested"
    if row is None:
        return f"{head}<br>not measured yet"
    if row.n_pruned == 0:
        return f"{head}<br><b>removes nothing</b>: too few units to remove any at this ratio"
    noise = "<br>within noise: the interval includes 0" if formats.within_noise(row.drop) else ""
    return (
        f"{head}, {row.n_pruned} of {group.n_units} units removed<br>"
        f"drop {formats.drop(row.drop)}{noise}<br>"
        f"KL {row.kl:.4f} nats · {formats.images_seen(row, n_images)}<br>"
        f"memory {formats.relative_change(row.size.bytes, unpruned_bytes)}"
    )


def _set_axes(
    figure: go.Figure,
    groups: Sequence[ChannelGroup],
    ratios: Sequence[float],
    colours: Palette,
    *,
    by_sensitivity: bool,
) -> float:
    """Label both axes and return the margin that the longest label needs, pixels.

    Plotly can measure the labels itself, but only by drawing the whole map a second time.
    """
    named = [
        by_sensitivity or i == 0 or groups[i - 1].block != group.block
        for i, group in enumerate(groups)
    ]
    labels = [
        f"<b>{in_chart(group.place)}</b>  {in_chart(group.title)}"
        if with_block
        else in_chart(group.title)
        for group, with_block in zip(groups, named, strict=True)
    ]
    widths = [_label_width(g, with_block) for g, with_block in zip(groups, named, strict=True)]
    axis: dict[str, Any] = {
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        **SPACER_TICKS,
        "tickfont": {"color": colours.text, "size": 12},
    }
    figure.update_xaxes(
        **axis,
        side="top",
        range=[-0.5, len(ratios) - 0.5],
        tickangle=0,
        tickvals=[*range(len(ratios))],
        ticktext=[f"{100 * ratio:g}" for ratio in ratios],
    )
    figure.update_yaxes(
        **axis, range=[len(groups) - 0.5, -0.5], tickvals=[*range(len(groups))], ticktext=labels
    )
    figure.add_annotation(  # to the left of the ratios: above them it would cover the colour bar
        text="removed, %",
        x=0,
        xref="x domain",
        xanchor="right",
        xshift=-8,
        y=1,
        yref="y domain",
        yanchor="bottom",
        yshift=3,
        showarrow=False,
        font={"size": 12, "color": colours.faint},
    )
    return max(widths, default=0.0) + 14


def _label_width(group: ChannelGroup, with_block: bool) -> float:
    """Return the approximate width of a row's label, pixels; the block's name is bold."""
    letters = 1.1 * len(group.place) + 1 if with_block else 0.0
    return _LETTER * (letters + len(group.title))


def _selection_frame(cell: _HeatCell, colours: Palette) -> list[dict[str, Any]]:
    """Return the frame of the selected cell: two lines, visible on any colour."""
    return [
        {
            "type": "rect",
            "x0": cell.x - 0.5,
            "x1": cell.x + 0.5,
            "y0": cell.y - 0.5,
            "y1": cell.y + 0.5,
            "line": {"color": colour, "width": width},
        }
        for colour, width in ((colours.heat[0], 5), (colours.text, 2))
    ]


def _block_lines(
    groups: Sequence[ChannelGroup], ratios: Sequence[float], colours: Palette
) -> list[dict[str, Any]]:
    """Return lines between blocks, as one list: adding shapes one by one is slow in plotly."""
    return [
        {
            "type": "line",
            "x0": -0.5,
            "x1": len(ratios) - 0.5,
            "y0": i - 0.5,
            "y1": i - 0.5,
            "line": {"color": colours.faint, "width": 1},
            "layer": "above",
            "opacity": 0.6,
        }
        for i in range(1, len(groups))
        if groups[i - 1].block != groups[i].block
    ]
