"""All measured plans of one model on one set of images, and the fronts among them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from psvit_core.files import write_text
from psvit_core.pareto.points import FrontPoint, ParetoPoint, Unreached
from psvit_core.pareto.table import to_csv
from psvit_core.records import AXES, Record
from psvit_core.storage.store import digest

PREFIX = "pareto/"  # of an archive's keys in the store


@dataclass(frozen=True, kw_only=True)
class ParetoArchive(Record):
    """All measured plans of one model on one set of images."""

    document: ClassVar[str] = "pareto_archive"

    model: str
    weights_hash: str  # of the unpruned model
    data: str
    split: str
    transform: str
    T: int
    precision: str
    n_images: int
    batch: int | None = None  # only if an image's results depend on its batch
    images: str = ""  # digest of the image ids; empty in older archives
    counting: int = 1  # rule by which MACs and SOPs are counted
    points: tuple[ParetoPoint, ...] = ()
    unreached: tuple[Unreached, ...] = ()  # targets missed by the run that wrote this file

    @property
    def key(self) -> str:
        """Key in the store, different for other weights, images or conditions."""
        parts = [
            self.weights_hash,
            self.data,
            self.split,
            self.transform,
            self.T,
            self.precision,
            self.n_images,
            self.batch,
        ]
        parts += [self.images] if self.images else []
        parts += [f"counting {self.counting}"] if self.counting > 1 else []
        return PREFIX + digest(parts)

    def front(self, axis: str = "bytes") -> tuple[FrontPoint, ...]:
        """Return the points that no other point dominates on accuracy and ``axis``.

        A point dominates another if it is at least as good on both and better on one. Points whose
        accuracy interval overlaps that of a neighbour on the front are marked: which of the two is
        better is not decided. (The images are the same, so a paired test would decide some pairs.)

        Args:
            axis: One of ``AXES``; points without a value are ignored.

        Returns:
            Smallest value first. Equal points are all included.

        Raises:
            UnknownNameError: If the axis is unknown.
        """
        known = [(value, p) for p in self.points if (value := p.value(axis)) is not None]
        known.sort(key=lambda item: (item[0], -item[1].accuracy))
        best: list[tuple[float, ParetoPoint]] = []
        for value, point in known:
            last = best[-1] if best else None
            equal = last is not None and (value, point.accuracy) == (last[0], last[1].accuracy)
            if last is None or equal or point.accuracy > last[1].accuracy:
                best.append((value, point))
        overlaps = [False, *(_overlap(a, b) for (_, a), (_, b) in pairwise(best)), False]
        return tuple(
            FrontPoint(point=point, value=value, overlaps=overlaps[i] or overlaps[i + 1])
            for i, (value, point) in enumerate(best)
        )

    def chosen(self) -> ParetoArchive:
        """Return the archive with only the plans that were chosen or are on a front of any axis.

        Planners that measure try hundreds of plans; the store keeps all of them.
        """
        on_front = {p.point.point_id for axis in AXES for p in self.front(axis)}
        points = (
            p
            for p in self.points
            if p.point_id in on_front or not all(origin.tried for origin in p.made)
        )
        return dataclasses.replace(self, points=tuple(points))

    def plain(self) -> ParetoArchive:
        """Return the archive without recovered and fine-tuned models."""
        return dataclasses.replace(self, points=tuple(p for p in self.points if p.plain))

    def under(self, recovery: str) -> ParetoArchive:
        """Return the archive with only the plans measured under a recovery, without fine-tuning.

        Args:
            recovery: One of ``RECOVERIES``; ``none`` returns the same as ``plain``.
        """
        if recovery == "none":
            return self.plain()
        points = (p for p in self.points if p.recovery == recovery and not p.made[0].finetuning)
        return dataclasses.replace(self, points=tuple(points))

    def knee(self, axis: str = "bytes") -> FrontPoint | None:
        """Return the knee of a front: the point where further accuracy loss begins to save little.

        Both axes are scaled so that the ends of the front are (0, 0) and (1, 1). The knee is the
        point farthest above the line between the ends, the smallest one in case of a tie.

        Returns:
            None if the front has fewer than three points or no point above the line.

        Source:
            The chord rule of Das 1999, Structural Optimization 18, in two dimensions.
        """
        front = self.front(axis)
        if len(front) < 3:
            return None
        first, last = front[0], front[-1]
        width = last.value - first.value
        height = last.point.accuracy - first.point.accuracy
        if width <= 0 or height <= 0:
            return None

        def height_above_chord(p: FrontPoint) -> float:
            return (p.point.accuracy - first.point.accuracy) / height - (
                p.value - first.value
            ) / width

        best = max(front, key=height_above_chord)
        return best if height_above_chord(best) > 1e-12 else None

    def to_csv(self) -> str:
        """Return one line per point, smallest first, for spreadsheets."""
        return to_csv(self.points, {p.point.point_id for p in self.front()})

    def save_csv(self, path: str | Path) -> Path:
        """Write ``to_csv`` to a file in one step.

        Raises:
            OutputError: If the path cannot be written.
        """
        return write_text(path, self.to_csv())


def _overlap(a: ParetoPoint, b: ParetoPoint) -> bool:
    one, other = a.measurement.accuracy, b.measurement.accuracy
    return one.low <= other.high and other.low <= one.high
