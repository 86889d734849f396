"""What the Overview page shows, as data: plans with their accuracy and cost; no streamlit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from psvit_core.pareto import FrontPoint, Made, ParetoArchive, ParetoPoint
from psvit_core.records import (
    Interval,
    Machine,
    Measurement,
    ModelSummary,
    PrunePlan,
    Quartiles,
)
from psvit_core.size import plan_size
from psvit_core.store import digest
from ui import words
from ui.palette import REFERENCE_DROP
from ui.predict import POLICY_NAMES, Predictor

MINE = "mine"  # id of a draft that is no point of the archive


@dataclass(frozen=True)
class Axis:
    """What accuracy is set against."""

    title: str
    unit: str
    scale: float  # from the record's unit to the shown one
    note: str

    @property
    def words(self) -> str:
        """The title within a sentence."""
        return self.title if self.title[1].isupper() else self.title.lower()

    def text(self, value: float) -> str:
        """A value of the record in words."""
        shown = value * self.scale
        digits = 2 if shown < 100 else 0
        return f"{shown:,.{digits}f}{words.GAP}{self.unit}"


AXES = {
    "bytes": Axis("Weights", "MB", 1e-6, "Memory of the weights and BatchNorm buffers, float32."),
    "peak": Axis("Peak activations", "kB", 1e-3, "Most bytes alive at a time, one image, without "
                 "the weights."),
    "sops": Axis("SOPs", "M", 1e-6, "Accumulates that spikes trigger, one image, all time steps."),
    "energy": Axis("Energy", "µJ", 1e-6, "Theoretical, arithmetic only: 4.6 pJ a MAC, 0.9 pJ a "
                   "SOP (45 nm)."),
    "latency": Axis("Latency", "ms", 1.0, "Median of one image's forward pass on one machine, with "
                    "the quartiles."),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A plan with what it gives; predicted where it has no measurement."""

    id: str
    plan: PrunePlan
    title: str  # policy and saving
    accuracy: Interval  # fraction
    drop: Interval  # percentage points
    values: dict[str, float]  # by axis; absent where not known
    policies: tuple[str, ...] = ()  # that chose it
    measurement: Measurement | None = None
    times: Quartiles | None = None  # of ``values["latency"]``, ms
    # What the sweep predicts, where a measured plan of this policy that saves less lost more
    raised_from: Interval | None = None

    @property
    def criterion(self) -> str:
        """What its units are ranked by."""
        return self.plan.criterion

    @property
    def measured(self) -> bool:
        """Whether its accuracy was measured."""
        return self.measurement is not None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All plans that are known of a model."""

    summary: ModelSummary
    archive: ParetoArchive | None  # chosen plans and fronts
    measured: tuple[Spot, ...]
    predicted: tuple[Spot, ...]
    baseline: Interval | None  # accuracy of the unpruned model, fraction
    whole: dict[str, float]  # the unpruned model's value by axis
    whole_times: Quartiles | None = None  # of its latency, ms
    machine: Machine | None = None  # where the latencies were measured

    @property
    def spots(self) -> dict[str, Spot]:
        """All plans by id, measured ones first."""
        return {spot.id: spot for spot in (*self.measured, *self.predicted)}

    def front(self, axis: str) -> tuple[FrontPoint, ...]:
        """The front on an axis, smallest first; of latency, only points of one machine."""
        if self.archive is None:
            return ()
        known = {spot.id for spot in self.measured if axis in spot.values}
        return tuple(p for p in self.archive.front(axis) if p.point.point_id in known)

    def knee(self, axis: str) -> str | None:
        """The plan to begin with: the knee of the front that loses at most 3 pp.

        Far below the baseline accuracy collapses, and a knee of the whole front would lie there.
        Without a knee: the smallest plan within 3 pp, else the most accurate. On an axis that
        nothing was measured on: the one of the weights.
        """
        front = self.front(axis)
        if not front and axis != "bytes":
            return self.knee("bytes")
        ids = [p.point.point_id for p in front] or [s.id for s in self.predicted[::-1]]
        spots = self.spots
        good = [i for i in ids if spots[i].drop.value <= REFERENCE_DROP]
        if self.archive is not None and front:
            points = tuple(p for p in self.archive.points if p.point_id in good)
            knee = dataclasses.replace(self.archive, points=points).knee(axis)
            if knee is not None:
                return knee.point.point_id
        return next(iter(good or ids[-1:]), None)

    def find(self, plan: PrunePlan) -> Spot | None:
        """The known plan with these kept units."""
        return next((s for s in self.spots.values() if s.plan.kept == plan.kept), None)


def overview(
    summary: ModelSummary,
    archive: ParetoArchive | None,
    predictor: Predictor | None,
    planned: Sequence[PrunePlan],
    unpruned: Sequence[Measurement],
) -> Overview:
    """Put together what is known.

    Args:
        summary: The model.
        archive: Its measured plans, if there are any.
        predictor: Predicts drops from a finished sweep, taught by measured plans, if there is one.
        planned: Plans to show with their predicted drop; those that were measured are left out.
        unpruned: Measurements of the unpruned model, for its values on the axes.
    """
    chosen = archive.chosen() if archive else None
    points = chosen.points if chosen else ()
    machines = Counter(
        p.measurement.profile.machine
        for p in points
        if p.measurement.profile and p.measurement.profile.latency_ms
    )
    machine = machines.most_common(1)[0][0] if machines else None
    criteria = {plan.criterion for plan in (*(p.plan for p in points), *planned)}
    many = len(criteria) > 1
    found = [_measured(p, machine, many) for p in points]
    measured = _told_apart([spot for spot in found if spot is not None])
    baseline = next((p.measurement.baseline_accuracy for p in points), None)
    predicted: list[Spot] = []
    if predictor is not None:
        baseline = baseline or predictor.table.baseline_accuracy
        known = [spot.plan.kept for spot in measured]
        predicted = [
            predicted_spot(summary, plan, predictor, baseline, measured, tell_criterion=many)
            for plan in planned
            if plan.kept not in known
        ]
    whole = {"bytes": float(plan_size(summary, None).bytes)}
    times = None
    for m in unpruned:
        whole |= _values(ParetoPoint(measurement=m, made=(Made(),)), machine)
        times = _times(m, machine) or times
    return Overview(
        summary=summary, archive=chosen, measured=measured, predicted=tuple(predicted),
        baseline=baseline, whole=whole, whole_times=times, machine=machine,
    )  # fmt: skip


def _measured(point: ParetoPoint, machine: Machine | None, tell_criterion: bool) -> Spot | None:
    m = point.measurement
    if m.drop is None:
        return None
    policies = tuple(dict.fromkeys(way.policy for way in point.made if not way.tried))
    return Spot(
        id=point.point_id, plan=point.plan,
        title=title(
            policies or (point.plan.policy,), m.memory_saving,
            point.plan.criterion if tell_criterion else "",
        ),
        accuracy=m.accuracy, drop=m.drop, values=_values(point, machine),
        policies=policies, measurement=m, times=_times(m, machine),
    )  # fmt: skip


def title(policies: Sequence[str], saving: float, criterion: str = "") -> str:
    """Who chose a plan, what it saves, and what ranks its units where that is told."""
    names = " and ".join(POLICY_NAMES.get(policy, policy.capitalize()) for policy in policies)
    ranked = f" · {criterion}" if criterion else ""
    return f"{names}, saves {words.percent(saving)}{ranked}"


def _told_apart(spots: Sequence[Spot]) -> tuple[Spot, ...]:
    """The same plans; of equal titles the later ones get a number."""
    seen: Counter[str] = Counter()
    found = []
    for spot in spots:
        seen[spot.title] += 1
        n = seen[spot.title]
        found.append(spot if n == 1 else dataclasses.replace(spot, title=f"{spot.title} ({n})"))
    return tuple(found)


def quartiles(times: Quartiles | None) -> str:
    """What stands behind a median latency, ms; empty where it is not known."""
    return f" ({times.low:.2f} to {times.high:.2f}, {times.n_runs} runs)" if times else ""


def _times(m: Measurement, machine: Machine | None) -> Quartiles | None:
    """The latency of one image, if it was measured on this machine."""
    if m.profile is None or m.profile.machine != machine:
        return None
    return m.profile.latency_ms.get("1")


def _values(point: ParetoPoint, machine: Machine | None) -> dict[str, float]:
    profile = point.measurement.profile
    found = {}
    for axis in AXES:
        value = point.value(axis)
        foreign = axis == "latency" and profile is not None and profile.machine != machine
        if value is not None and not foreign:
            found[axis] = float(value)
    return found


def predicted_spot(
    summary: ModelSummary, plan: PrunePlan, predictor: Predictor, baseline: Interval,
    measured: Sequence[Spot], *, mine: bool = False, tell_criterion: bool = False,
) -> Spot:  # fmt: skip
    """A plan with its predicted drop; its size is exact.

    Sums of single drops are too small where groups interact, and one factor for all plans does not
    mend it: a plan of a policy is not shown as losing less than a measured one of that policy (and
    criterion) that saves less.

    Args:
        summary: The model.
        plan: The plan.
        predictor: Predicts its drop.
        baseline: Accuracy of the unpruned model, fraction.
        measured: Plans that were measured.
        mine: Whether it is the user's own.
        tell_criterion: Whether its title tells what ranks its units.
    """
    alone, size = predictor.drop(plan), plan_size(summary, plan)
    least = [
        s.drop for s in measured
        if plan.policy in POLICY_NAMES and plan.policy in s.policies
        and s.criterion == plan.criterion and s.values["bytes"] > size.bytes
    ]  # fmt: skip
    drop = alone
    for other in least:
        drop = Interval(
            value=max(drop.value, other.value), low=max(drop.low, other.low),
            high=max(drop.high, other.high),
        )  # fmt: skip
    accuracy = Interval(
        value=max(0.0, baseline.value - drop.value / 100),
        low=max(0.0, baseline.value - drop.high / 100),
        high=min(1.0, baseline.value - drop.low / 100),
    )
    saving = 1 - size.bytes / plan_size(summary, None).bytes
    named = "Your plan" if mine else plan.policy
    return Spot(
        id=MINE if mine else f"predicted/{digest(plan.to_dict()['kept'])}", plan=plan,
        title=title((named,), saving, plan.criterion if tell_criterion else ""),
        accuracy=accuracy, drop=drop, values={"bytes": float(size.bytes)},
        policies=(plan.policy,), raised_from=alone if drop.value > alone.value else None,
    )  # fmt: skip


def rows(view: Overview, axis: str) -> pd.DataFrame:
    """All plans as a table: the chart's twin."""
    front = {p.point.point_id: p.overlaps for p in view.front(axis)}
    knee = view.knee(axis)
    spots = sorted(view.spots.values(), key=lambda s: -s.values.get("bytes", 0.0))
    standing = {
        s.id: ("knee" if s.id == knee else "on the front") + (" ≈" if front[s.id] else "")
        for s in spots
        if s.id in front
    }
    table = {
        "plan": [s.title for s in spots],
        "criterion": [s.criterion for s in spots],
        "how": ["measured" if s.measured else "predicted" for s in spots],
        "front": [standing.get(s.id, "") for s in spots],
        "accuracy": [s.accuracy.value for s in spots],
        "accuracy_low": [s.accuracy.low for s in spots],
        "accuracy_high": [s.accuracy.high for s in spots],
        "drop_pp": [s.drop.value for s in spots],
        "drop_low_pp": [s.drop.low for s in spots],
        "drop_high_pp": [s.drop.high for s in spots],
    }
    for name, a in AXES.items():
        values = [s.values.get(name) for s in spots]
        if any(v is not None for v in values):
            table[f"{name}_{a.unit}"] = [None if v is None else v * a.scale for v in values]
    if any(s.times for s in spots):
        table["latency_low_ms"] = [s.times.low if s.times else None for s in spots]
        table["latency_high_ms"] = [s.times.high if s.times else None for s in spots]
    return pd.DataFrame(table)
