"""Records as rows of tables and charts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from psvit_core.plan.size import plan_size
from psvit_core.records import (
    ChannelGroup,
    DataReport,
    ModelSummary,
    SensitivityRow,
    TensorShape,
    axis_owners,
)

METRIC_NAMES = {"drop": "Accuracy drop", "kl": "KL divergence"}

FLOAT_BYTES = 4  # sizes are those of float32, as in psvit_core.plan.size


def blocks(summary: ModelSummary) -> dict[str, list[ChannelGroup]]:
    """Return the groups by block, both in network order."""
    found: dict[str, list[ChannelGroup]] = {}
    for group in summary.groups:
        found.setdefault(group.place, []).append(group)
    return found


def stored_tensors(summary: ModelSummary) -> list[TensorShape]:
    """Return the tensors that count as memory: inference reads no counters or unused ones."""
    return [t for t in summary.shapes.tensors if t.role not in ("counter", "unused")]


def bytes_by_block(summary: ModelSummary) -> dict[str, int]:
    """Return the bytes of each block, in network order; their sum is the model's size.

    A tensor belongs to the block of its inner groups, or to that of its residual stream if it has
    no inner group. A tensor without groups, such as a bias, belongs to its layer's block.
    """
    found = dict.fromkeys([*blocks(summary), "Other"], 0)
    stored = stored_tensors(summary)
    block_of_layer = {_layer(t): block for t in stored if (block := _block_of(summary, t))}
    for tensor in stored:
        n_bytes = FLOAT_BYTES * math.prod(tensor.sizes)
        block = _block_of(summary, tensor) or block_of_layer.get(_layer(tensor), "Other")
        found[block] += n_bytes
    return {block: n_bytes for block, n_bytes in found.items() if n_bytes}


def _layer(tensor: TensorShape) -> str:
    return tensor.name.rpartition(".")[0]


def _block_of(summary: ModelSummary, tensor: TensorShape) -> str | None:
    owners = [axis_owners(owner)[0] for owner in tensor.groups if owner is not None]
    groups = [summary.by_id[name] for names in owners for name in names]
    inner = [g for g in groups if not g.is_stream]
    return (inner or groups)[0].place if groups else None


def group_rows(summary: ModelSummary) -> pd.DataFrame:
    """Return one row per channel group: block, title, kind, units, heads, id."""
    return pd.DataFrame(
        {
            "block": [g.place for g in summary.groups],
            "group": [g.title for g in summary.groups],
            "kind": [g.kind for g in summary.groups],
            "units": [g.n_units for g in summary.groups],
            "heads": [str(g.heads) if g.heads else "" for g in summary.groups],
            "group_id": [g.group_id for g in summary.groups],
        }
    )


def split_rows(report: DataReport) -> pd.DataFrame:
    """Return one row per split of the data: images, classes, images per class, problem."""
    return pd.DataFrame(
        {
            "Split": [s.split for s in report.splits],
            "Images": [s.n_images for s in report.splits],
            "Classes": [s.n_classes for s in report.splits],
            "Images per class": [_span(s.fewest, s.most) for s in report.splits],
            "Problem": [s.problem for s in report.splits],
        }
    )


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def sensitivity_rows(summary: ModelSummary, rows: Iterable[SensitivityRow]) -> pd.DataFrame:
    """Return one row per measured cell; fractions and percentage points as numbers."""
    base = plan_size(summary, None)
    records = [
        {
            "block": summary.by_id[row.group_id].place,
            "group": summary.by_id[row.group_id].title,
            "prune_ratio": row.prune_ratio,
            "n_pruned": row.n_pruned,
            "n_units": summary.by_id[row.group_id].n_units,
            "drop_pp": row.drop.value,
            "drop_low_pp": row.drop.low,
            "drop_high_pp": row.drop.high,
            "accuracy": row.accuracy.value,
            "kl_nats": row.kl,
            "agreement": row.agreement,
            "params_removed": base.params - row.size.params,
            "memory_saving": 1 - row.size.bytes / base.bytes,
            "sops": row.sops,
            "n_images": row.n_images,
            "group_id": row.group_id,
        }
        for row in rows
    ]
    return pd.DataFrame(records)


def metric_value(row: SensitivityRow, metric: str) -> float:
    """Return a cell's drop (percentage points) or KL (nats)."""
    return row.kl if metric == "kl" else row.drop.value


def by_cell(rows: Iterable[SensitivityRow]) -> dict[tuple[str, float], SensitivityRow]:
    """Return the rows by (group_id, prune_ratio)."""
    return {(row.group_id, row.prune_ratio): row for row in rows}


def most_sensitive_first(
    summary: ModelSummary, rows: Sequence[SensitivityRow], metric: str
) -> list[ChannelGroup]:
    """Return the groups by their mean over the measured cells, highest first; KL breaks ties.

    Groups without a measured cell come last.
    """
    means: dict[str, tuple[float, float]] = {}
    for group in summary.groups:
        own = [row for row in rows if row.group_id == group.group_id]
        if own:
            mean = sum(metric_value(row, metric) for row in own) / len(own)
            means[group.group_id] = (mean, sum(row.kl for row in own) / len(own))
    unmeasured = (float("-inf"), 0.0)
    return sorted(summary.groups, key=lambda g: means.get(g.group_id, unmeasured), reverse=True)


def changed_groups(summary: ModelSummary, removed: Mapping[str, int]) -> int:
    """Return the number of groups that lose units."""
    return sum(removed[g.group_id] > 0 for g in summary.groups)
