"""Figures are functions of records; these tests check the numbers in them."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest

from psvit_core.plan.size import plan_size
from tests.ui.example import RATIOS, rows, summary
from ui.charts.bytes import bytes_chart
from ui.charts.heatmap import cell_name, cell_of, sensitivity_heatmap
from ui.charts.palette import DARK, LIGHT, heat_position
from ui.charts.sensitivity import sensitivity_curve
from ui.model import tables

MODEL = summary()
ROWS = rows(MODEL)


def traces(figure: go.Figure) -> tuple[Any, ...]:
    """Return the traces: heat, hatched, removes nothing, within noise, unsettled, clicks."""
    return tuple(figure.data)


def test_every_cell_is_drawn_once_and_clickable() -> None:
    heat, hatched, nothing, noise, _, clicks = traces(sensitivity_heatmap(MODEL, RATIOS, ROWS))
    coloured = sum(value is not None for line in heat.z for value in line)
    assert coloured + len(nothing.x) == len(MODEL.groups) * len(RATIOS) == len(clicks.x)
    assert len(hatched.x) == 0
    assert {cell_of(name) for name in clicks.customdata} == {
        (group.group_id, ratio) for group in MODEL.groups for ratio in RATIOS
    }
    streams = sum(group.kind == "residual" for group in MODEL.groups)
    assert len(noise.x) == coloured - sum(
        row.n_pruned > 0 for row in ROWS if MODEL.by_id[row.group_id].kind == "residual"
    )
    assert streams


def test_a_cell_that_removes_nothing_has_no_colour() -> None:
    empty = [row for row in ROWS if row.n_pruned == 0]
    assert empty, "the example must contain such cells"
    heat, _, nothing, _, _, clicks = traces(sensitivity_heatmap(MODEL, RATIOS, ROWS))
    assert len(nothing.x) == len(empty)
    for x, y in zip(nothing.x, nothing.y, strict=True):
        assert heat.z[y][x] is None
    names = [cell_name(row.group_id, row.prune_ratio) for row in empty]
    texts = dict(zip(clicks.customdata, clicks.text, strict=True))
    assert all("removes nothing" in texts[name] for name in names)


def test_unmeasured_cells_are_hatched() -> None:
    heat, hatched, *_, clicks = traces(sensitivity_heatmap(MODEL, RATIOS, ROWS[:7]))
    assert len(hatched.x) == len(MODEL.groups) * len(RATIOS) - 7
    assert sum("not measured yet" in text for text in clicks.text) == len(hatched.x)
    assert heat.zmin == 0
    assert heat.zmax == 1


def test_tooltip_has_the_numbers() -> None:
    row = next(r for r in ROWS if r.group_id == "stage3.stream" and r.prune_ratio == 0.5)
    clicks = traces(sensitivity_heatmap(MODEL, RATIOS, ROWS))[-1]
    text = dict(zip(clicks.customdata, clicks.text, strict=True))[cell_name("stage3.stream", 0.5)]
    saving = 100 * (1 - row.size.bytes / plan_size(MODEL, None).bytes)
    for part in ("Stage 3 · residual stream", "24 of 48 units", "10.00", "(9.00 to 11.00)"):
        assert part in text
    for part in ("KL 0.0500", "64 images", f"{saving:.1f}"):
        assert part in text
    assert "within noise" not in text


def test_most_sensitive_first() -> None:
    order = tables.most_sensitive_first(MODEL, ROWS, "drop")
    n_streams = sum(group.kind == "residual" for group in MODEL.groups)
    assert {group.kind for group in order[:n_streams]} == {"residual"}
    unmeasured = tables.most_sensitive_first(MODEL, ROWS[3:], "drop")[-1]
    assert unmeasured.group_id == MODEL.groups[0].group_id


@pytest.mark.parametrize(
    ("value", "metric", "position"),
    [
        (-2, "drop", 0),
        (0, "drop", 0),
        (2.5, "drop", 0.5),
        (10, "drop", 1),
        (80, "drop", 1),
        (0.25, "kl", 0.5),
    ],
)
def test_heat_scale_is_fixed(value: float, metric: str, position: float) -> None:
    assert heat_position(value, metric) == pytest.approx(position)


def test_harmless_cells_have_the_background_colour() -> None:
    assert LIGHT.heat[0] == "#ffffff"
    assert DARK.heat[0] == "#12171b"


def test_curve_starts_at_zero_and_has_an_interval() -> None:
    group = MODEL.by_id["stage3.stream"]
    own = [row for row in ROWS if row.group_id == group.group_id]
    band, line = sensitivity_curve(group, own, selected_ratio=0.5).data
    removed = [100 * row.n_pruned / group.n_units for row in own if row.n_pruned]
    assert list(line.x) == [0, *removed]
    assert list(line.y) == [0, *(row.drop.value for row in own if row.n_pruned)]
    assert max(band.y) == pytest.approx(19)
    assert len(sensitivity_curve(group, own, metric="kl").data) == 1


@pytest.mark.parametrize("name", ["sdt_v1_digits", "e_spikeformer_digits"])
def test_bytes_by_block_add_up(name: str) -> None:
    model = summary(name)
    by_block = tables.bytes_by_block(model)
    assert sum(by_block.values()) == plan_size(model, None).bytes
    assert set(by_block) <= set(tables.blocks(model)), "a tensor belongs to no block"
    (bars,) = bytes_chart(by_block).data
    assert list(bars.x) == list(by_block.values())


def test_table_has_one_row_per_cell() -> None:
    frame = tables.sensitivity_rows(MODEL, ROWS)
    assert len(frame) == len(ROWS)
    assert list(frame["drop_pp"]) == [row.drop.value for row in ROWS]
    assert (frame["n_pruned"] <= frame["n_units"]).all()
    assert len(tables.group_rows(MODEL)) == len(MODEL.groups)
