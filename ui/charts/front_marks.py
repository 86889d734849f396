"""Marks of the Pareto front's chart: symbols, error bars, tooltips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psvit_core.records import Quartiles
from ui.model import formats
from ui.model.foreign import in_chart
from ui.model.fronts import AXES, PlanPoint, quartile_range
from ui.model.stored_weights import stored_name

SYMBOLS = {"optimal": "circle", "psvit": "square", "prime": "diamond", "uniform": "triangle-up"}
_ERROR_BAR = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3}


def drawn_policy(point: PlanPoint) -> str:
    """Return the policy whose mark a plan gets; empty for a plan of no policy drawn."""
    return next((policy for policy in SYMBOLS if policy in point.policies), "")


def ring(size: float, colour: str, width: float) -> dict[str, Any]:
    """Return a hollow circle."""
    return {"size": size, "symbol": "circle-open", "color": colour, "line": {"width": width}}


def interval_bars(points: Sequence[PlanPoint], colour: str, floor: float = 0.0) -> dict[str, Any]:
    """Return error bars of accuracies, percent, that end at the chart's lower edge."""
    levels = [(max(100 * p.accuracy.value, floor), p.accuracy) for p in points]
    return _ERROR_BAR | {
        "color": colour,
        "array": [max(100 * a.high - y, 0.0) for y, a in levels],
        "arrayminus": [max(y - max(100 * a.low, floor), 0.0) for y, a in levels],
    }


def quartile_bars(times: Sequence[Quartiles | None], colour: str) -> dict[str, Any]:
    """Return error bars from the median to the quartiles, ms."""
    return _ERROR_BAR | {
        "color": colour,
        "array": [t.high - t.median if t else 0.0 for t in times],
        "arrayminus": [t.median - t.low if t else 0.0 for t in times],
    }


def tooltip(point: PlanPoint, axis: str) -> str:
    """Return what a plan's tooltip says: its cost, its accuracy, and what that is of.

    Args:
        point: The plan.
        axis: One of ``fronts.AXES`` that it has a value on.
    """
    cost = AXES[axis]
    spread = quartile_range(point.times) if axis == "latency" else ""
    value = cost.format(point.values[axis])
    text = f"<b>{in_chart(point.title)}</b><br>{cost.title}: {value}{spread}"
    if axis == "bytes" and point.weights != "float32":
        text += f" in {stored_name(point)}, exact"
    accuracy, drop = formats.accuracy(point.accuracy), formats.drop(point.drop)
    numbers = f"top-1 {accuracy}<br>drop {drop}"
    if point.measurement is not None:
        m = point.measurement
        if point.is_assumed:
            text += "<br>accuracy measured in fp32:"
        elif point.weights != "float32":
            text += f"<br>accuracy measured in {stored_name(point)}:"
        text += f"<br>{numbers}<br>{formats.recovery_text(m.conditions.recovery, m.recovered_by)}"
        if point.twin is not None:
            name = "as pruned" if point.is_recovered else "recovered"
            text += f"<br>{name}: top-1 {formats.accuracy(point.twin)}"
        return text
    fp32 = "" if point.weights == "float32" else " in fp32"
    text += f"<br>predicted{fp32}, with the expected range:<br>{numbers}"
    if point.raised_from:
        text += "<br>no less than a measured plan of this policy that saves less"
    return text
