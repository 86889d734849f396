"""Records as rows: what tables and charts show, in order; no streamlit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from psvit_core.jobs.opening import DataReport
from psvit_core.records import ChannelGroup, ModelSummary, SensitivityRow, TensorShape
from psvit_core.size import plan_size

METRICS = {"drop": "Accuracy drop", "kl": "KL divergence"}

_FLOAT_BYTES = 4  # the size of record is at fp32, as in psvit_core.size


def blocks(summary: ModelSummary) -> dict[str, list[ChannelGroup]]:
    """Groups by block, both in network order."""
    found: dict[str, list[ChannelGroup]] = {}
    for group in summary.groups:
        found.setdefault(group.block, []).append(group)
    return found


def bytes_by_block(summary: ModelSummary) -> dict[str, int]:
    """Bytes of the tensors of each block, in network order; they add up to the model's size.

    A tensor belongs to the block of its inner groups; one that only a residual stream touches
    stands under that stream; one without groups, such as a bias, goes with its layer.
    """
    found = dict.fromkeys([*blocks(summary), "Other"], 0)
    stored = [t for t in summary.shapes.tensors if t.role not in ("counter", "unused")]
    block_of_layer = {_layer(t): block for t in stored if (block := _block_of(summary, t))}
    for tensor in stored:
        n_bytes = _FLOAT_BYTES * math.prod(tensor.sizes)
        block = _block_of(summary, tensor) or block_of_layer.get(_layer(tensor), "Other")
        found[block] += n_bytes
    return {block: n_bytes for block, n_bytes in found.items() if n_bytes}


def _layer(tensor: TensorShape) -> str:
    return tensor.name.rpartition(".")[0]


def _block_of(summary: ModelSummary, tensor: TensorShape) -> str | None:
    groups = [summary.by_id[g] for g in tensor.groups if g is not None]
    inner = [g for g in groups if g.kind != "residual"]
    return (inner or groups)[0].block if groups else None


def group_rows(summary: ModelSummary) -> pd.DataFrame:
    """One row a channel group: what it is, how many units, what removing half of it frees."""
    return pd.DataFrame(
        {
            "block": [g.block for g in summary.groups],
            "group": [g.title for g in summary.groups],
            "kind": [g.kind for g in summary.groups],
            "units": [g.n_units for g in summary.groups],
            "heads": [str(g.heads) if g.heads else "" for g in summary.groups],
            "group_id": [g.group_id for g in summary.groups],
        }
    )


def coupled_layers(group: ChannelGroup) -> tuple[list[str], list[str]]:
    """Layers whose tensors shrink with a group: those that write its units, those that read."""
    writers = dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in group.writers)
    readers = dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in group.readers)
    return list(writers), list(readers)


def firing_rates(group: ChannelGroup, firing: Mapping[str, float]) -> dict[str, float]:
    """Rates of the neurons that stand in the modules of a group's layers, by their short names.

    A residual stream passes nearly all modules, so it has none of its own.
    """
    if group.kind == "residual":
        return {}
    layers = [layer for side in coupled_layers(group) for layer in side]
    parents = {layer.rpartition(".")[0] for layer in layers}
    return {
        name.rpartition(".")[2]: rate
        for name, rate in firing.items()
        if name.rpartition(".")[0] in parents
    }


def split_rows(report: DataReport) -> pd.DataFrame:
    """One row a split of the data: how many images, of how many classes, what is wrong."""
    return pd.DataFrame(
        {
            "Split": [s.split for s in report.splits],
            "Images": [s.n_images for s in report.splits],
            "Classes": [s.n_classes for s in report.splits],
            "Images a class": [_span(s.fewest, s.most) for s in report.splits],
            "Problem": [s.problem for s in report.splits],
        }
    )


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def sensitivity_rows(summary: ModelSummary, rows: Iterable[SensitivityRow]) -> pd.DataFrame:
    """One row a measured cell, for the table and its CSV; fractions and points as numbers."""
    base = plan_size(summary, None)
    records = [
        {
            "block": summary.by_id[row.group_id].block,
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
    """A cell's drop (percentage points) or KL (nats)."""
    return row.kl if metric == "kl" else row.drop.value


def by_cell(rows: Iterable[SensitivityRow]) -> dict[tuple[str, float], SensitivityRow]:
    """Rows by (group_id, prune_ratio)."""
    return {(row.group_id, row.prune_ratio): row for row in rows}


def most_sensitive_first(
    summary: ModelSummary, rows: Sequence[SensitivityRow], metric: str
) -> list[ChannelGroup]:
    """Groups by their mean over the measured cells, worst first; KL decides between equals."""
    worst: dict[str, tuple[float, float]] = {}
    for group in summary.groups:
        own = [row for row in rows if row.group_id == group.group_id]
        if own:
            mean = sum(metric_value(row, metric) for row in own) / len(own)
            worst[group.group_id] = (mean, sum(row.kl for row in own) / len(own))
    unknown = (float("-inf"), 0.0)
    return sorted(
        summary.groups, key=lambda g: worst.get(g.group_id, unknown), reverse=True
    )  # fmt: skip


def changed_groups(summary: ModelSummary, removed: Mapping[str, int]) -> int:
    """How many groups lose units."""
    return sum(removed[g.group_id] > 0 for g in summary.groups)
