"""What the equalizer draws, as compact data: columns, heat, the model's size as a sum of products.

No streamlit. The browser works out sizes itself, in the frame of a drag, from ``size_terms``: the
very numbers of ``psvit_core.size`` (``tests/ui/test_equalizer.py`` compares them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow, n_pruned
from ui import words
from ui.drafts import MAX_PERCENT, Draft
from ui.palette import DARK, LIGHT, TOO_MUCH

_FLOAT_BYTES = 4  # the size of record is at fp32, as in psvit_core.size
_SHORT = {
    "residual stream": "stream",
    "channel conv": "ch. conv",
    "attention ": "",
    "RepConv ": "",
    "hidden": "",
    "middle": "mid",
}

Term = list[Any]  # [factor, column, column, ...]: factor times the widths of these columns


def locked_reason(group: ChannelGroup) -> str | None:
    """Why no unit of a group can go whatever is asked; None where some can."""
    if n_pruned(MAX_PERCENT / 100, group.n_units, group.heads):
        return None
    if group.heads:
        return f"it has {group.n_units} units in {group.heads} heads, and each head keeps one"
    return "its only unit must stay"


def size_terms(summary: ModelSummary) -> dict[str, list[Term]]:
    """Bytes, parameters and MACs of the model as sums of products of group widths.

    Tensors that depend on the same groups are one term, so that there are few.
    """
    column = {g.group_id: i for i, g in enumerate(summary.groups)}
    sums: dict[str, dict[tuple[int, ...], float]] = {"bytes": {}, "params": {}, "macs": {}}

    def add(name: str, factor: float, groups: Sequence[str]) -> None:
        key = tuple(sorted(column[g] for g in groups))
        sums[name][key] = sums[name].get(key, 0) + factor

    for tensor in summary.shapes.tensors:
        if tensor.role in ("counter", "unused"):
            continue
        axes = list(zip(tensor.sizes, tensor.groups, strict=True))
        fixed = math.prod(size for size, group in axes if group is None)
        owners = [group for _, group in axes if group is not None]
        add("bytes", _FLOAT_BYTES * fixed, owners)
        if tensor.role != "buffer":
            add("params", fixed, owners)
    for term in summary.shapes.terms:
        add("macs", term.factor, term.groups)
    return {name: [[f, *key] for key, f in terms.items()] for name, terms in sums.items()}


def columns(
    summary: ModelSummary, rows: Sequence[SensitivityRow], ratios: Sequence[float]
) -> list[dict[str, Any]]:
    """What does not change while a plan is made: one entry a group, in network order.

    ``cells`` has one entry a ratio of the sweep: [ratio, units removed, drop, low, high, KL], or
    [ratio] where it was not swept yet.
    """
    found = {(row.group_id, row.prune_ratio): row for row in rows}
    result = []
    for group in summary.groups:
        cells = []
        for ratio in ratios:
            row = found.get((group.group_id, ratio))
            drop = row.drop if row else None
            cells.append(
                [ratio, row.n_pruned, *(round(v, 3) for v in (drop.value, drop.low, drop.high)),
                 round(row.kl, 4)]
                if row and drop
                else [ratio]
            )  # fmt: skip
        result.append(
            {
                "id": group.group_id,
                "kind": group.kind,
                "block": group.block,
                "title": group.title,
                "short": short_title(group.title),
                "units": group.n_units,
                "heads": group.heads,
                "coupled": coupled_layers(group),
                "cells": cells,
                "reason": locked_reason(group),
            }
        )
    return result


def short_title(title: str) -> str:
    """A group's title as it fits under a narrow column."""
    short = title
    for long, brief in _SHORT.items():
        short = short.replace(long, brief)
    return short.strip() or title


def coupled_layers(group: ChannelGroup) -> list[str]:
    """Layers whose tensors shrink with a group, without their parameters' names; few of many."""
    layers = list(dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in group.writers))
    return layers if len(layers) <= 4 else [*layers[:3], f"and {len(layers) - 3} more"]


def moving(
    summary: ModelSummary, draft: Draft, removed: Mapping[str, int]
) -> list[list[float | int]]:
    """What the draft says of each column: [percent asked, units removed, locked]."""
    return [
        [
            round(100 * draft.asked.get(g.group_id, 0.0), 1),
            removed[g.group_id],
            int(g.group_id in draft.locked),
        ]
        for g in summary.groups
    ]


def looks() -> dict[str, Any]:
    """Colours and scale of the heat, the same as the map of the Sensitivity page."""
    return {"light": LIGHT.heat, "dark": DARK.heat, "end": TOO_MUCH, "minus": words.MINUS}
