"""The table of all plans on the Overview page."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ui.model import formats
from ui.model.fronts import AXES, Overview, PlanPoint
from ui.model.stored_weights import accuracy_weights, stored_name


def _recovery(point: PlanPoint) -> str:
    """Return how a measured plan was recovered; empty for predicted ones."""
    m = point.measurement
    return formats.recovery_text(m.conditions.recovery, m.recovered_by) if m else ""


def _weights(points: Sequence[PlanPoint]) -> dict[str, list[str]]:
    """Return the precision of the weights whose bytes are shown, and that of the accuracies."""
    return {
        "weights": [stored_name(p) for p in points],
        "accuracy_with": [accuracy_weights(p) for p in points],
    }


def table_rows(view: Overview, axis: str) -> pd.DataFrame:
    """Return all plans as a table, the largest first, with the front on one axis."""
    front = {p.point.point_id: p.overlaps for p in view.front(axis)}
    knee = view.knee(axis)
    points = sorted(view.points.values(), key=lambda p: -p.values.get("bytes", 0.0))
    position = {
        p.id: ("knee" if p.id == knee else "on the front") + (" ≈" if front[p.id] else "")
        for p in points
        if p.id in front
    }
    table = {
        "plan": [p.title for p in points],
        "criterion": [p.criterion for p in points],
        "how": ["measured" if p.measured else "predicted" for p in points],
        **(_weights(points) if view.weights != "float32" else {}),
        "front": [position.get(p.id, "") for p in points],
        "accuracy": [p.accuracy.value for p in points],
        "accuracy_low": [p.accuracy.low for p in points],
        "accuracy_high": [p.accuracy.high for p in points],
        "drop_pp": [p.drop.value for p in points],
        "drop_low_pp": [p.drop.low for p in points],
        "drop_high_pp": [p.drop.high for p in points],
        "recovery": [_recovery(p) for p in points],
        "accuracy_pruned": [p.pruned.value if p.pruned else None for p in points],
        "accuracy_recovered": [p.recovered.value if p.recovered else None for p in points],
    }
    for name, cost in AXES.items():
        values = [p.values.get(name) for p in points]
        if any(v is not None for v in values):
            table[f"{name}_{cost.unit}"] = [None if v is None else v * cost.scale for v in values]
    if any(p.times for p in points):
        table["latency_low_ms"] = [p.times.low if p.times else None for p in points]
        table["latency_high_ms"] = [p.times.high if p.times else None for p in points]
    return pd.DataFrame(table)
