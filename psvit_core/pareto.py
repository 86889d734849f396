"""The archive of measured plans and its fronts: accuracy against bytes, MACs, energy, latency.

Every measured plan of a model and data set is kept with how it was made. A front is computed from
what is there, so it needs no planner and no torch. Points of one archive were measured on the same
images of one split; a front found on the planning split is judged on the test split, which has an
archive of its own that no planner reads.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from psvit_core.errors import RecordError, StoreError, UnknownNameError
from psvit_core.files import write_text
from psvit_core.records import Conditions, Measurement, PrunePlan, Record
from psvit_core.store import Store, digest

log = logging.getLogger(__name__)

#: What accuracy is set against; less is better. Unit: bytes, MACs, pJ, SOPs, ms, bytes.
AXES = ("bytes", "macs", "energy", "sops", "latency", "peak")
_PREFIX = "pareto/"
_HEAD_PREFIX = "pareto-head/"


@dataclass(frozen=True, kw_only=True)
class Made(Record):
    """How a plan came to be, and what was done after pruning."""

    policy: str = "by hand"
    criterion: str = ""
    scope: str = "all"
    memory_saving: float | None = None  # target, a fraction; or
    max_drop: float | None = None  # target, a fraction; or
    saving: float | None = None  # target, a fraction of ``resource``
    resource: str = "memory"
    locked: dict[str, float] = field(default_factory=dict)  # prune ratio by group
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)  # least and largest
    round_to: int = 1
    seed: int = 0  # of the calibration images
    tried: bool = False  # measured on the way to a plan, not chosen
    recovery: str = "none"
    finetuning: str = ""  # in words; empty: none
    epochs: float = 0.0  # of fine-tuning that are in the weights
    weights: str = ""  # their hash where recovery or training changed them

    @property
    def target(self) -> str:
        """The target in words, empty without one."""
        if self.memory_saving is not None:
            return f"memory saving {self.memory_saving:.4g}"
        if self.saving is not None:
            return f"{self.resource} saving {self.saving:.4g}"
        if self.max_drop is None:
            return ""
        most = "" if self.resource == "memory" else f", most {self.resource} saved"
        return f"largest drop {self.max_drop:.4g}{most}"

    @property
    def limits(self) -> str:
        """What was set by hand, in words; empty where nothing was."""
        fixed = [f"{group}={ratio:g}" for group, ratio in self.locked.items()]
        held = [f"{group}={low:g}:{high:g}" for group, (low, high) in self.bounds.items()]
        return " ".join(fixed + held)


@dataclass(frozen=True, kw_only=True)
class ParetoPoint(Record):
    """One measured plan: what it gave, and every way that led to it."""

    measurement: Measurement  # with its plan
    made: tuple[Made, ...]

    @property
    def plan(self) -> PrunePlan:
        """The plan that was measured."""
        assert self.measurement.plan is not None
        return self.measurement.plan

    @property
    def point_id(self) -> str:
        """Same for equal kept units and weights, whatever chose them."""
        kept = {group: list(units) for group, units in self.plan.kept.items()}
        return digest([kept, self.made[0].weights])

    @property
    def plain(self) -> bool:
        """Whether it is what the plan alone leaves: neither recovery nor training changed it."""
        return not self.made[0].weights

    def value(self, axis: str) -> float | None:
        """The point's value on an axis; None where it was not profiled.

        ``latency`` is the median of one image's forward pass, ``peak`` its activations' bytes.

        Raises:
            UnknownNameError: If there is no such axis.
        """
        m = self.measurement
        if axis not in AXES:
            raise UnknownNameError("axis", axis, AXES)
        if axis in ("latency", "peak"):
            if m.profile is None:
                return None
            if axis == "peak":
                return m.profile.peak_activation_bytes["1"]
            times = m.profile.latency_ms.get("1")  # shipped profiles hold no times
            return times.median if times else None
        return {
            "bytes": m.size.bytes, "macs": m.size.macs, "energy": m.energy_pj, "sops": m.sops,
        }[axis]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FrontPoint(Record):
    """A point of a front."""

    point: ParetoPoint
    value: float  # on the front's axis
    overlaps: bool  # its accuracy interval and a neighbour's on the front share values: undecided


@dataclass(frozen=True, kw_only=True)
class Unreached(Record):
    """A target that a policy could not reach."""

    made: Made
    reason: str


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
    batch: int | None = None  # where an image's results depend on its batch
    images: str = ""  # digest of their names; empty: before it was kept
    points: tuple[ParetoPoint, ...] = ()
    unreached: tuple[Unreached, ...] = ()  # of the run that this file was written by

    @property
    def key(self) -> str:
        """What keeps archives apart; which images were measured is part of it."""
        return archive_key(
            self.weights_hash, data=self.data, split=self.split, transform=self.transform,
            T=self.T, precision=self.precision, n_images=self.n_images, batch=self.batch,
            images=self.images,
        )  # fmt: skip

    def front(self, axis: str = "bytes") -> tuple[FrontPoint, ...]:
        """The points that no other beats: at least as accurate and small, and better in one.

        A point whose accuracy interval shares values with that of the next smaller or the next
        larger point of the front is marked: which of the two is better is not decided. (The
        images are the same, so a paired comparison would decide some of these pairs.)

        Args:
            axis: One of ``AXES``; points without a value there are left out.

        Returns:
            Smallest first; equal points all stand on it.

        Raises:
            UnknownNameError: If there is no such axis.
        """
        placed = [(p.value(axis), _accuracy(p), p) for p in self.points]
        known = [(value, accuracy, p) for value, accuracy, p in placed if value is not None]
        known.sort(key=lambda item: (item[0], -item[1]))
        best: list[tuple[float, float, ParetoPoint]] = []
        for value, accuracy, point in known:
            equal = bool(best) and (value, accuracy) == best[-1][:2]
            if not best or equal or accuracy > best[-1][1]:
                best.append((value, accuracy, point))
        unsure = [False, *(_overlap(a, b) for (*_, a), (*_, b) in pairwise(best)), False]
        return tuple(
            FrontPoint(point=point, value=value, overlaps=unsure[i] or unsure[i + 1])
            for i, (value, _, point) in enumerate(best)
        )

    def chosen(self) -> ParetoArchive:
        """Only the plans that were chosen, and those on a front of any axis.

        A planner that measures tries hundreds of plans on its way; the store keeps them all.
        """
        best = {p.point.point_id for axis in AXES for p in self.front(axis)}
        kept = (
            p for p in self.points
            if p.point_id in best or not all(way.tried for way in p.made)
        )  # fmt: skip
        return dataclasses.replace(self, points=tuple(kept))

    def plain(self) -> ParetoArchive:
        """Only what plans alone leave; recovered and fine-tuned models are left out."""
        return dataclasses.replace(self, points=tuple(p for p in self.points if p.plain))

    def knee(self, axis: str = "bytes") -> FrontPoint | None:
        """Where giving up more accuracy begins to save little: the front's farthest bulge.

        Rule: both axes are scaled so that the front's two ends are (0, 0) and (1, 1); the knee is
        the point farthest above the straight line between the ends; of equally far ones the
        smallest. None where the front has fewer than three points or bulges nowhere.

        Source:
            The chord rule of Das 1999, Structural Optimization 18, in two dimensions.
        """
        front = self.front(axis)
        if len(front) < 3:
            return None
        low, high = front[0], front[-1]
        width, height = high.value - low.value, _accuracy(high.point) - _accuracy(low.point)
        if width <= 0 or height <= 0:
            return None

        def above(p: FrontPoint) -> float:
            up = (_accuracy(p.point) - _accuracy(low.point)) / height
            return up - (p.value - low.value) / width

        best = max(front, key=above)
        return best if above(best) > 1e-12 else None

    # ---- tables ------------------------------------------------------------------------------

    def to_csv(self) -> str:
        """One line a point, smallest first, for spreadsheets."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(_COLUMNS)
        fronts = {p.point.point_id for p in self.front()}
        for p in sorted(self.points, key=lambda p: (p.measurement.size.bytes, p.point_id)):
            lines.writerow(_row(p, p.point_id in fronts))
        return text.getvalue()

    def save_csv(self, path: str | Path) -> Path:
        """Write ``to_csv``, whole or not at all; raises ``OutputError`` where it cannot."""
        return write_text(path, self.to_csv())


_COLUMNS = (
    "policies", "target", "scope", "limits", "criterion", "recovery", "finetuning", "epochs",
    "chosen", "seed",
    "accuracy", "accuracy_low", "accuracy_high", "drop_pp", "drop_low", "drop_high", "kl",
    "memory_saving", "params", "bytes", "macs", "energy_pj", "sops", "state_bytes",
    "peak_activation_bytes", "latency_ms", "latency_low", "latency_high", "on_front_of_bytes",
    "n_images", "split", "point_id",
)  # fmt: skip


def _row(point: ParetoPoint, on_front: bool) -> list[object]:
    m, made = point.measurement, point.made

    def ways(name: str) -> str:
        return "; ".join(dict.fromkeys(str(getattr(way, name)) for way in made))

    drop, profile = m.drop, m.profile
    times = profile.latency_ms.get("1") if profile else None
    return [
        ways("policy"), ways("target"), ways("scope"), ways("limits"), ways("criterion"),
        ways("recovery"), made[0].finetuning, made[0].epochs,
        not all(way.tried for way in made), ways("seed"),
        m.accuracy.value, m.accuracy.low, m.accuracy.high,
        *((drop.value, drop.low, drop.high) if drop else ("", "", "")),
        "" if m.kl is None else m.kl, m.memory_saving, m.size.params, m.size.bytes, m.size.macs,
        m.energy_pj, m.sops, profile.state_bytes if profile else "",
        profile.peak_activation_bytes["1"] if profile else "",
        *((times.median, times.low, times.high) if times else ("", "", "")),
        on_front, m.conditions.n_images, m.conditions.split, point.point_id,
    ]  # fmt: skip


def _accuracy(point: ParetoPoint) -> float:
    return point.measurement.accuracy.value


def _overlap(a: ParetoPoint, b: ParetoPoint) -> bool:
    one, other = a.measurement.accuracy, b.measurement.accuracy
    return one.low <= other.high and other.low <= one.high


# ---- in the store ----------------------------------------------------------------------------


def archive_key(
    weights_hash: str, *, data: str, split: str, transform: str, T: int, precision: str,
    n_images: int, batch: int | None, images: str = "",
) -> str:  # fmt: skip
    """Where the points of one model and set of images are kept."""
    parts = [weights_hash, data, split, transform, T, precision, n_images, batch]
    return _PREFIX + digest([*parts, images] if images else parts)


def empty_archive(
    model: str, weights_hash: str, conditions: Conditions, *, batch_coupled: bool = False
) -> ParetoArchive:
    """The archive of a model under these conditions, without its points.

    Args:
        model: Name, for the reader.
        weights_hash: Of the unpruned model.
        conditions: How its points are measured.
        batch_coupled: Whether an image's results depend on the batch around it; then other batch
            sizes have another archive.
    """
    c = conditions
    return ParetoArchive(
        model=model, weights_hash=weights_hash, data=c.data, split=c.split, transform=c.transform,
        T=c.T, precision=c.precision, n_images=c.n_images,
        batch=c.batch if batch_coupled else None, images=c.images,
    )  # fmt: skip


def add_point(
    store: Store, measured: Measurement, made: Made, *, batch_coupled: bool = False,
    weights_hash: str | None = None,
) -> ParetoPoint:  # fmt: skip
    """Keep a measured plan in its archive; an equal entry is replaced.

    Args:
        store: Where.
        measured: With its plan.
        made: How the plan came to be.
        batch_coupled: As for ``empty_archive``.
        weights_hash: Of the unpruned model that the plan is for, where ``measured`` is of another
            (recovered or fine-tuned) one.
    """
    point = ParetoPoint(measurement=measured, made=(made,))
    archive = empty_archive(
        measured.model, weights_hash or measured.weights_hash, measured.conditions,
        batch_coupled=batch_coupled,
    )  # fmt: skip
    # One entry a plan, way and profile, never changed after: no reader or writer waits for another.
    entry = digest([point.point_id, made.to_dict(), measured.profile is not None])
    store.put(f"{archive.key}/{entry}", point.to_dict())
    store.put(_HEAD_PREFIX + archive.key.removeprefix(_PREFIX), archive.to_dict())
    return point


def read_archive(
    store: Store, empty: ParetoArchive, warn: Callable[[str], None] = log.warning
) -> ParetoArchive:
    """The archive with all points of the store; equal plans are one point with all their ways.

    Args:
        store: Where.
        empty: Which archive (``empty_archive``).
        warn: Told in a sentence of every damaged entry, which is left out.
    """
    points: dict[str, ParetoPoint] = {}
    for found in _entries(store, empty.key, warn):
        before = points.get(found.point_id)
        points[found.point_id] = _joined(before, found) if before else found
    order = sorted(points.values(), key=lambda p: (p.measurement.size.bytes, p.point_id))
    return dataclasses.replace(empty, points=tuple(order))


def find_archives(
    store: Store, weights_hash: str, warn: Callable[[str], None] = log.warning
) -> list[ParetoArchive]:
    """The archives of a model, without their points, most images first, then the newest.

    Args:
        store: Where.
        weights_hash: Of the unpruned model.
        warn: Told in a sentence of every damaged entry, which is left out.
    """
    found = []
    changes = store.changes(_HEAD_PREFIX)
    for key in sorted(changes, key=lambda key: changes[key], reverse=True):
        try:
            head = ParetoArchive.from_dict(store.get(key))
        except (RecordError, ValueError, zlib.error) as error:
            warn(f"Entry {key} in {store.folder} is damaged ({error}). Delete it.")
            continue
        if head.weights_hash == weights_hash:
            found.append(head)
    return sorted(found, key=lambda head: -head.n_images)


def _joined(one: ParetoPoint, other: ParetoPoint) -> ParetoPoint:
    """Two entries of one plan: all ways, chosen ones first; the measurement that tells more."""
    ways = {digest(way.to_dict()): way for way in (*one.made, *other.made)}
    ordered = sorted(ways.values(), key=lambda w: (w.tried, w.policy, w.target, w.scope, w.seed))

    def told(point: ParetoPoint) -> tuple[bool, bool, bool]:
        m, profile = point.measurement, point.measurement.profile
        return m.drop is not None, bool(profile and profile.latency_ms), profile is not None

    best = one if told(one) >= told(other) else other
    return ParetoPoint(measurement=best.measurement, made=tuple(ordered))


def _entries(store: Store, key: str, warn: Callable[[str], None]) -> Iterator[ParetoPoint]:
    for entry in sorted(store.keys(f"{key}/")):
        try:
            yield _read_point(store, entry)
        except StoreError as error:
            warn(str(error))


def _read_point(store: Store, entry: str) -> ParetoPoint:
    try:
        point = ParetoPoint.from_dict(store.get(entry))
        if point.measurement.plan is None or not point.made:
            raise RecordError("it names no plan or no way that led to it")
    except (RecordError, ValueError, zlib.error) as error:
        raise StoreError(
            f"Entry {entry} in {store.folder} is damaged ({error}). It is left out of the archive; "
            "measure its plan again, or delete the entry."
        ) from error
    return point
