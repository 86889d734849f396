"""Parts of a running sweep: the report of its progress, and fan-outs at any widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from psvit_core.callbacks import Progress
from psvit_core.metrics.spikes import fan_outs
from psvit_core.sensitivity.spec import Cell
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel


@dataclass
class ProgressMeter:
    """Reports progress in images of cells, each cell weighted by its cost.

    Args:
        report: The callback.
        total: Images of all cells.
    """

    report: Progress
    total: int
    costs: dict[str, float] = field(default_factory=dict)  # by cell key, for one image
    _spent: float = 0.0
    _remaining: float = 0.0
    _reported: int = 0

    def set_remaining(self, missing: Mapping[str, int], n_images: int) -> None:
        """Update the remaining cost, and at first the cost of results from earlier runs.

        Args:
            missing: Images without results, by key of the open cells.
            n_images: Images of the sweep.
        """
        self._remaining = sum(self.costs[key] * n for key, n in missing.items())
        if not self._spent:
            self._spent = sum(self.costs[key] for key in missing) * n_images - self._remaining

    def advance(self, cell: Cell, n_images: int) -> None:
        """Report the progress after a cell has run on some images."""
        cost = self.costs[cell.key] * n_images
        self._spent += cost
        share = self._spent / max(self._spent + self._remaining, self._spent, 1e-9)
        self._remaining -= cost
        # Cost estimates change, but progress never goes back.
        self._reported = max(self._reported, int(self.total * min(share, 1.0) + 1e-6))
        self.report(self._reported, self.total, cell.group.label)

    def finish(self) -> None:
        """Report completion, also if settled cells did not need all images."""
        if self._reported < self.total:
            self.report(self.total, self.total, "")


class FanOuts:
    """Number of output channels that a spike reaches at each reader, at any widths."""

    def __init__(self, model: SpikingModel) -> None:
        self._full_widths = model.widths
        self._of_reader = fan_outs(model)

    def at(self, readers: Iterable[str], widths: Mapping[str, int]) -> Array:
        """Return the fan-outs at these group widths, (n_readers,) float64."""
        all_widths = {**self._full_widths, **widths}
        return np.array([self._of_reader(n).at(all_widths) for n in readers], dtype=np.float64)
