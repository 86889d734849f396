"""The equalizer's data in compact form: columns, heat, and the model's size as a sum of products.

The browser computes sizes itself while the user drags, from ``size_terms``. They equal those of
``psvit_core.plan.size`` (``tests/ui/test_equalizer.py`` compares them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psvit_core.picture.values import coupled_layers
from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow
from ui.charts.palette import DARK, HEAT_END, LIGHT
from ui.model import formats, tables
from ui.model.drafts import Draft, locked_reason

_ABBREVIATIONS = {
    "residual stream": "stream",
    "channel conv": "ch. conv",
    "attention ": "",
    "RepConv ": "",
    "hidden": "",
    "middle": "mid",
}
_MOST_LAYERS = 4  # layer names in a column's card

Term = list[Any]  # [factor, column, column, ...]: the factor times the widths of these columns


def size_terms(summary: ModelSummary) -> dict[str, list[Term]]:
    """Return bytes, parameters and MACs of the model as sums of products of group widths.

    Tensors that depend on the same groups share a term, which keeps the sums short.
    """
    column = {g.group_id: i for i, g in enumerate(summary.groups)}
    sums: dict[str, dict[tuple[int, ...], float]] = {"bytes": {}, "params": {}, "macs": {}}

    def add(name: str, factor: float, groups: Sequence[str]) -> None:
        key = tuple(sorted(column[g] for g in groups))
        sums[name][key] = sums[name].get(key, 0) + factor

    for tensor in tables.stored_tensors(summary):
        for factor, groups in tensor.monomials():
            add("bytes", tables.FLOAT_BYTES * factor, groups)
            if tensor.role != "buffer":
                add("params", factor, groups)
    for term in summary.shapes.terms:
        add("macs", term.factor, term.groups)
    return {name: [[f, *key] for key, f in terms.items()] for name, terms in sums.items()}


def columns(
    summary: ModelSummary, rows: Sequence[SensitivityRow], ratios: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the part that edits do not change: one entry per group, in network order.

    An entry's ``cells`` has one item per ratio of the sweep: [ratio, units removed, drop, low,
    high, KL], or [ratio] while it is not measured.
    """
    by_cell = tables.by_cell(rows)
    return [
        {
            "id": group.group_id,
            "kind": group.kind,
            "block": group.place,
            "title": group.title,
            "short": short_title(group.title),
            "units": group.n_units,
            "heads": group.heads,
            "coupled": _coupled_layers(group),
            "cells": [_cell(ratio, by_cell.get((group.group_id, ratio))) for ratio in ratios],
            "reason": locked_reason(group),
        }
        for group in summary.groups
    ]


def _cell(ratio: float, row: SensitivityRow | None) -> list[float | int]:
    if row is None:
        return [ratio]
    drop = (round(v, 3) for v in (row.drop.value, row.drop.low, row.drop.high))
    return [ratio, row.n_pruned, *drop, round(row.kl, 4)]


def short_title(title: str) -> str:
    """Shorten a group's title to fit below a narrow column."""
    short = title
    for long, brief in _ABBREVIATIONS.items():
        short = short.replace(long, brief)
    return short.strip() or title


def _coupled_layers(group: ChannelGroup) -> list[str]:
    """Return the layers that write a group's units, at most ``_MOST_LAYERS`` lines."""
    layers, _ = coupled_layers(group)
    if len(layers) <= _MOST_LAYERS:
        return layers
    shown = layers[: _MOST_LAYERS - 1]
    return [*shown, f"and {len(layers) - len(shown)} more"]


def column_values(
    summary: ModelSummary, draft: Draft, removed: Mapping[str, int]
) -> list[list[float | int]]:
    """Return the draft's values of each column: [percent requested, units removed, locked]."""
    return [
        [
            round(100 * draft.asked.get(g.group_id, 0.0), 1),
            removed[g.group_id],
            int(g.group_id in draft.locked),
        ]
        for g in summary.groups
    ]


def heat_settings() -> dict[str, Any]:
    """Return colours and range of the heat, the same as on the Sensitivity page."""
    return {"light": LIGHT.heat, "dark": DARK.heat, "end": HEAT_END, "minus": formats.MINUS}
