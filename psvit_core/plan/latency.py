"""Predicts a plan's latency from a table of measured layers; no torch.

A layer between two grid points is interpolated linearly in each of its widths. Steps that a
processor makes between them (widths that suit its vector units) are not resolved.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from statistics import mean, median

import numpy as np

from psvit_core.records import LatencyTable, LayerLatency, PrunePlan

#: What no layer accounts for, among the layers.
REST = "(between layers)"
_GRID_AXES = 2  # groups of a layer whose widths are all combined in the table
Widths = Mapping[str, int]


class PredictedLatency:
    """The predicted latency of any plan of a model: the sum of its layers and the rest.

    Args:
        table: The model's latency table.
    """

    def __init__(self, table: LatencyTable) -> None:
        self.table = table

    @property
    def note(self) -> str:
        """How latencies are predicted, for a plan's note."""
        m = self.table.machine
        return (
            f"latency predicted from layers timed on {m.processor} ({m.on_threads}, batch "
            f"{self.table.batch})"
        )

    def __call__(self, plan: PrunePlan | None) -> float:
        """Return the predicted milliseconds of a plan (None: unpruned, as measured)."""
        return sum(self.layers(plan).values())

    def saving(self, plan: PrunePlan | None) -> float:
        """Return the fraction of the unpruned network's time that a plan saves, predicted."""
        return 1 - self(plan) / self.table.total_ms

    def layers(self, plan: PrunePlan | None) -> dict[str, float]:
        """Return milliseconds by layer, then ``REST``; unpruned they add up to ``total_ms``."""
        kept = plan.kept if plan else {}
        widths = {g: len(kept[g]) if g in kept else n for g, n in self.table.full_widths.items()}
        found = {name: at(widths) for name, at in self._layers.items()}
        shares = [widths[g] / n for g, n in self.table.full_widths.items()]
        lost = 1 - mean(shares) if shares else 0.0
        found[REST] = self.table.rest_ms - self.table.rest_slope_ms * lost
        return found

    @cached_property
    def _layers(self) -> dict[str, Callable[[Widths], float]]:
        full = self.table.full_widths
        return {layer.name: predictor(layer, full) for layer in self.table.layers}


def predictor(layer: LayerLatency, full_widths: Widths) -> Callable[[Widths], float]:
    """Return a function from the widths of all groups to a layer's milliseconds.

    Args:
        layer: The layer's measured times.
        full_widths: Unpruned units by group.

    Without groups, it is the median of all times. With one or two, it interpolates the grid, and
    keeps its ends beyond them. With more, or if the grid has holes, it is a least-squares fit of
    1, the mean and the product of the shares of channels that remain, not below 0.
    """
    points: dict[tuple[int, ...], list[float]] = {}
    for widths, ms in zip(layer.widths, layer.ms, strict=True):
        points.setdefault(tuple(widths), []).append(ms)
    times = {widths: median(found) for widths, found in points.items()}
    axes = [sorted({widths[i] for widths in times}) for i in range(len(layer.groups))]
    if len(axes) > _GRID_AXES or len(times) < np.prod([len(axis) for axis in axes], dtype=int):
        return _fitted(layer, times, full_widths)

    def interpolated(widths: Widths) -> float:
        corners: dict[tuple[int, ...], float] = {(): 1.0}
        for group, axis in zip(layer.groups, axes, strict=True):
            ends = _ends(axis, widths[group])
            corners = {
                (*corner, end): weight * share
                for corner, weight in corners.items()
                for end, share in ends.items()
            }
        return sum(times[corner] * weight for corner, weight in corners.items())

    return interpolated


def _ends(axis: Sequence[int], width: int) -> dict[int, float]:
    """Return the widths beside ``width`` on a sorted axis, with their weights."""
    above = bisect.bisect_left(axis, width)
    if above == len(axis):
        return {axis[-1]: 1.0}
    if above == 0 or axis[above] == width:
        return {axis[above]: 1.0}
    low, high = axis[above - 1], axis[above]
    share = (width - low) / (high - low)
    return {low: 1 - share, high: share}


def _fitted(
    layer: LayerLatency, times: Mapping[tuple[int, ...], float], full_widths: Widths
) -> Callable[[Widths], float]:
    full = [full_widths[group] for group in layer.groups]

    def terms(widths: Sequence[int]) -> list[float]:
        shares = [width / most for width, most in zip(widths, full, strict=True)]
        return [1.0, mean(shares), float(np.prod(shares))]

    found = np.linalg.lstsq(
        np.array([terms(widths) for widths in times]), np.array([*times.values()]), rcond=None
    )[0]
    factors: list[float] = found.tolist()

    def fitted(widths: Widths) -> float:
        here = terms([widths[group] for group in layer.groups])
        return max(0.0, sum(f * t for f, t in zip(factors, here, strict=True)))

    return fitted
