"""How long layers take, unpruned and under a plan, from the table that a job measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from psvit_core.machine_jobs import latency_table
from psvit_core.plan.latency import PredictedLatency
from psvit_core.records import ModelSummary, PrunePlan
from psvit_core.storage.store import Store
from ui.model import formats


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer, of the unpruned network and of the plan."""

    name: str
    unpruned: float
    plan: float | None  # None: there is no plan


def predicted(store: Store, summary: ModelSummary) -> PredictedLatency | None:
    """Return what predicts latencies of the model's plans; None before its layers were timed."""
    table = latency_table(store, summary)
    return PredictedLatency(table) if table else None


def layer_times(found: PredictedLatency, plan: PrunePlan | None) -> list[LayerTime]:
    """Return the times of all layers in the order of the network, and what is between them.

    Args:
        found: Predicts the latencies.
        plan: The plan; None: only the unpruned network.
    """
    small = found.layers(plan) if plan else {}
    return [LayerTime(name, ms, small.get(name)) for name, ms in found.layers(None).items()]


def largest(times: Sequence[LayerTime], count: int) -> list[LayerTime]:
    """Return the layers that take longest unpruned, in the order of the network."""
    kept = sorted(times, key=lambda time: time.unpruned, reverse=True)[:count]
    return [time for time in times if time in kept]


def rows(times: Sequence[LayerTime]) -> pd.DataFrame:
    """Return one row per layer: name, milliseconds unpruned, and of the plan if there is one."""
    columns: dict[str, list[object]] = {
        "layer": [time.name for time in times],
        "unpruned": [time.unpruned for time in times],
    }
    if any(time.plan is not None for time in times):
        columns["plan"] = [time.plan for time in times]
    return pd.DataFrame(columns)


def milliseconds(ms: float) -> str:
    """Format a time of a layer or network."""
    digits = 2 if abs(ms) >= 1 else 3
    return f"{ms:,.{digits}f}{formats.NBSP}ms"


def total_line(found: PredictedLatency, plan: PrunePlan | None) -> str:
    """Describe the network's time, and the plan's predicted one, in Markdown."""
    whole = f"Unpruned **{milliseconds(found.table.total_ms)}**, measured"
    if plan is None:
        return f"{whole}."
    small, saving = milliseconds(found(plan)), formats.percent(found.saving(plan))
    return f"{whole}. This plan **{small}**, predicted: saves {saving}."


def conditions(store: Store, summary: ModelSummary) -> str:
    """Say where layers were timed; empty before that."""
    found = predicted(store, summary)
    if found is None:
        return ""
    m = found.table.machine
    return f"Layers were timed on {m.processor}, {m.on_threads}, one image at a time."
