"""Known plans of a model with accuracy and cost, measured or predicted, for the Overview page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from psvit_core import records
from psvit_core.pareto import FrontPoint, ParetoArchive, ParetoPoint, PlanOrigin
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import (
    Interval,
    Kept,
    Machine,
    Measurement,
    ModelSummary,
    PrunePlan,
    Quartiles,
)
from psvit_core.storage.store import digest
from ui.model import formats
from ui.model.formats import POLICY_NAMES
from ui.model.predictor import Predictor

REFERENCE_DROP = 3.0  # percentage points; often taken as the largest acceptable drop
DRAFT_ID = "mine"  # id of the current plan while the archive does not contain it


@dataclass(frozen=True)
class Axis:
    """A cost that accuracy is plotted against."""

    title: str
    unit: str
    scale: float  # from the record's unit to the shown one
    note: str

    @property
    def inline_title(self) -> str:
        """The title as it is written within a sentence."""
        return self.title if self.title[1].isupper() else self.title.lower()

    def format(self, value: float) -> str:
        """Format a value, given in the record's unit."""
        shown = value * self.scale
        digits = 2 if shown < 100 else 0
        return f"{shown:,.{digits}f}{formats.NBSP}{self.unit}"


AXIS_LABELS = {
    "bytes": Axis("Weights", "MB", 1e-6, "Memory of the weights and BatchNorm buffers, float32."),
    "macs": Axis("MACs", "M", 1e-6, "Multiply-accumulates of one image and one time step."),
    "energy": Axis(
        "Energy",
        "µJ",
        1e-6,
        "Theoretical, arithmetic only: 4.6 pJ per MAC, 0.9 pJ per SOP (45 nm).",
    ),
    "sops": Axis("SOPs", "M", 1e-6, "Accumulates triggered by spikes, one image, all time steps."),
    "latency": Axis(
        "Latency",
        "ms",
        1.0,
        "Median time of one image's forward pass on one machine, with the quartiles.",
    ),
    "peak": Axis(
        "Peak activations",
        "kB",
        1e-3,
        "Most bytes of activations alive at once, one image, weights excluded.",
    ),
}
_NOT_SHOWN = frozenset({"macs"})  # dense MACs say little about a spiking network's cost
AXES = {name: AXIS_LABELS[name] for name in records.AXES if name not in _NOT_SHOWN}
"""The axes offered on the Overview page, in the engine's order."""


@dataclass(frozen=True, kw_only=True)
class PlanPoint:
    """A plan with its accuracy and costs, predicted if it has no measurement."""

    id: str
    plan: PrunePlan
    title: str  # policy and saving
    accuracy: Interval  # fraction
    drop: Interval  # percentage points
    values: dict[str, float]  # by axis; absent where not known
    policies: tuple[str, ...] = ()  # those that chose this plan
    measurement: Measurement | None = None
    times: Quartiles | None = None  # of ``values["latency"]``, ms
    # Accuracy of the same plan measured without recovery if this one has it, else with; a fraction.
    twin: Interval | None = None
    weights: str = "float32"  # in which ``values["bytes"]`` counts them
    # The sweep's own prediction, where ``drop`` was raised to that of a measured smaller saving.
    raised_from: Interval | None = None

    @property
    def criterion(self) -> str:
        """The criterion that ranks its units."""
        return self.plan.criterion

    @property
    def measured(self) -> bool:
        """Whether its accuracy was measured."""
        return self.measurement is not None

    @property
    def is_assumed(self) -> bool:
        """Whether its accuracy was measured, but with weights of another precision."""
        m = self.measurement
        return m is not None and self.weights != "float32" and m.conditions.weights == "float32"

    @property
    def is_recovered(self) -> bool:
        """Whether it was measured after recovery."""
        m = self.measurement
        return m is not None and m.conditions.recovery != "none"

    @property
    def pruned(self) -> Interval | None:
        """Accuracy measured without recovery, a fraction; None if it is not known."""
        return self.twin if self.is_recovered else self.accuracy if self.measured else None

    @property
    def recovered(self) -> Interval | None:
        """Accuracy measured after recovery, a fraction; None if it is not known."""
        return self.accuracy if self.is_recovered else self.twin


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All known plans of a model."""

    summary: ModelSummary
    archive: ParetoArchive | None  # measured plans that a policy chose
    measured: tuple[PlanPoint, ...]
    predicted: tuple[PlanPoint, ...]
    baseline: Interval | None  # accuracy of the unpruned model, fraction
    unpruned: dict[str, float]  # cost of the unpruned model, by axis
    unpruned_times: Quartiles | None = None  # of its latency, ms
    machine: Machine | None = None  # the latencies' machine
    prediction_note: str = ""  # what the ranges of predictions are; empty without a sweep
    weights: str = "float32"  # precision of the weights whose bytes are shown
    unpruned_stored: int = 0  # bytes of the unpruned model in it; 0: that is float32
    unpruned_measured: Interval | None = None  # its accuracy with such weights, if it was measured

    @property
    def points(self) -> dict[str, PlanPoint]:
        """All plans by id, measured ones first."""
        return {point.id: point for point in (*self.measured, *self.predicted)}

    def front(self, axis: str) -> tuple[FrontPoint, ...]:
        """Return the front on an axis, smallest cost first; latencies of one machine only."""
        if self.archive is None:
            return ()
        known = {point.id for point in self.measured if axis in point.values}
        return tuple(p for p in self.archive.front(axis) if p.point.point_id in known)

    def knee(self, axis: str) -> str | None:
        """Return the id of the plan to start with: the knee of the front within 3 pp.

        The knee of the whole front would lie far below the baseline, where accuracy collapses.
        Without a knee it is the smallest plan within 3 pp, or the most accurate one. On an axis
        without measurements it is the knee by weights.
        """
        front = self.front(axis)
        if not front and axis != "bytes":
            return self.knee("bytes")
        ids = [p.point.point_id for p in front] or [s.id for s in self.predicted[::-1]]
        points = self.points
        good = [i for i in ids if points[i].drop.value <= REFERENCE_DROP]
        if self.archive is not None and front:
            accurate = tuple(p for p in self.archive.points if p.point_id in good)
            knee = dataclasses.replace(self.archive, points=accurate).knee(axis)
            if knee is not None:
                return knee.point.point_id
        return next(iter(good or ids[-1:]), None)

    def find(self, plan: PrunePlan) -> PlanPoint | None:
        """Return the known plan with the same kept units; None if there is none."""
        return next((s for s in self.points.values() if s.plan.kept == plan.kept), None)


def overview(
    summary: ModelSummary,
    archive: ParetoArchive | None,
    predictor: Predictor | None,
    planned: Sequence[PrunePlan],
    unpruned: Sequence[Measurement],
    others: ParetoArchive | None = None,
) -> Overview:
    """Collect all known plans of a model.

    Args:
        summary: The model.
        archive: Its measured plans; None without any.
        predictor: Predicts drops from a finished sweep; None without one.
        planned: Plans to show with their predicted drop; measured ones are omitted.
        unpruned: Measurements of the unpruned model, for its costs.
        others: Plans measured under the other recovery, with or without, to show beside.
    """
    twins = {_kept(p): p.accuracy_interval for p in (others.points if others else ())}
    chosen = archive.chosen() if archive else None
    points = chosen.points if chosen else ()
    machine = _most_common_machine(points)
    criteria = {plan.criterion for plan in (*(p.plan for p in points), *planned)}
    many = len(criteria) > 1
    found = [_measured_point(p, machine, many, twins.get(_kept(p))) for p in points]
    measured = _with_unique_titles([point for point in found if point is not None])
    baseline = next((p.measurement.baseline_accuracy for p in points), None)
    predicted: list[PlanPoint] = []
    if predictor is not None:
        baseline = baseline or predictor.table.baseline_accuracy
        known = [point.plan.kept for point in measured]
        predicted = [
            predicted_point(summary, plan, predictor, baseline, measured, show_criterion=many)
            for plan in planned
            if plan.kept not in known
        ]
    costs = {"bytes": float(plan_size(summary, None).bytes)}
    times = None
    for m in unpruned:
        costs |= _values(ParetoPoint(measurement=m, made=(PlanOrigin(),)), machine)
        times = _times(m, machine) or times
    return Overview(
        summary=summary,
        archive=chosen,
        measured=measured,
        predicted=tuple(predicted),
        baseline=baseline,
        unpruned=costs,
        unpruned_times=times,
        machine=machine,
        prediction_note=predictor.note if predictor else "",
    )


def _most_common_machine(points: Sequence[ParetoPoint]) -> Machine | None:
    """Return the machine of most latencies: those of different machines cannot be compared."""
    machines = Counter(
        p.measurement.profile.machine
        for p in points
        if p.measurement.profile and p.measurement.profile.latency_ms
    )
    return machines.most_common(1)[0][0] if machines else None


def _kept(point: ParetoPoint) -> tuple[tuple[str, Kept], ...]:
    return tuple(sorted(point.plan.kept.items()))


def _measured_point(
    point: ParetoPoint, machine: Machine | None, show_criterion: bool, twin: Interval | None
) -> PlanPoint | None:
    m = point.measurement
    if m.drop is None:
        return None
    if twin is None and m.unrecovered is not None:
        twin = m.unrecovered.accuracy
    policies = tuple(dict.fromkeys(origin.policy for origin in point.made if not origin.tried))
    return PlanPoint(
        id=point.point_id,
        plan=point.plan,
        title=title(
            policies or (point.plan.policy,),
            m.memory_saving,
            point.plan.criterion if show_criterion else "",
        ),
        accuracy=m.accuracy,
        drop=m.drop,
        values=_values(point, machine),
        policies=policies,
        measurement=m,
        times=_times(m, machine),
        twin=twin,
    )


def loss_warning(measured: Interval | None, predicted: Interval | None) -> str:
    """Return a warning about a plan that loses more than ``REFERENCE_DROP``; empty if none does.

    Args:
        measured: The plan's measured drop, percentage points; it decides if it is known.
        predicted: Its predicted drop; None without a sweep.
    """
    drop, verb = (measured, "was measured") if measured else (predicted, "is predicted")
    if drop is None or drop.value <= REFERENCE_DROP:
        return ""
    text = (
        f"This plan {verb} to lose {formats.drop(drop)}, more than the limit of "
        f"{REFERENCE_DROP:g} pp. The file would have that loss: train the network on the "
        "Fine-tune page first, or choose a plan that removes less."
    )
    return text if measured else f"{text} Measure the plan to be sure."


def title(policies: Sequence[str], saving: float, criterion: str = "") -> str:
    """Return a plan's title: its policies, its saving, and the criterion if one is given."""
    names = " and ".join(POLICY_NAMES.get(policy, policy.capitalize()) for policy in policies)
    ranked = f" · {criterion}" if criterion else ""
    return f"{names}, saves {formats.percent(saving)}{ranked}"


def _with_unique_titles(points: Sequence[PlanPoint]) -> tuple[PlanPoint, ...]:
    """Return the plans, with a number added to a title that an earlier plan has."""
    count: Counter[str] = Counter()
    found = []
    for point in points:
        count[point.title] += 1
        n = count[point.title]
        found.append(point if n == 1 else dataclasses.replace(point, title=f"{point.title} ({n})"))
    return tuple(found)


def quartile_range(times: Quartiles | None) -> str:
    """Format the quartiles of a latency, ms; empty if they are not known."""
    return f" ({times.low:.2f} to {times.high:.2f}, {times.n_runs} runs)" if times else ""


def _times(m: Measurement, machine: Machine | None) -> Quartiles | None:
    """Return the latency of one image, if it was measured on this machine."""
    if m.profile is None or m.profile.machine != machine:
        return None
    return m.profile.latency_ms.get("1")


def _values(point: ParetoPoint, machine: Machine | None) -> dict[str, float]:
    """Return the known costs by axis, without latencies of other machines."""
    profile = point.measurement.profile
    found = {}
    for axis in AXES:
        value = point.value(axis)
        other_machine = axis == "latency" and profile is not None and profile.machine != machine
        if value is not None and not other_machine:
            found[axis] = float(value)
    return found


def predicted_point(
    summary: ModelSummary,
    plan: PrunePlan,
    predictor: Predictor,
    baseline: Interval,
    measured: Sequence[PlanPoint],
    *,
    is_draft: bool = False,
    show_criterion: bool = False,
) -> PlanPoint:
    """Return a plan with its predicted drop; its size is exact.

    Where groups interact, the sum of single drops is too small, and one calibration factor for all
    plans does not correct that. So the drop is raised to at least that of any measured plan of the
    same policy and criterion that saves less.

    Args:
        summary: The model.
        plan: The plan.
        predictor: Predicts its drop.
        baseline: Accuracy of the unpruned model, fraction.
        measured: The measured plans.
        is_draft: Whether it is the current plan.
        show_criterion: Whether its title names the criterion.
    """
    from_sweep, size = predictor.drop(plan), plan_size(summary, plan)
    drops_with_less_saving = [
        point.drop
        for point in measured
        if plan.policy in POLICY_NAMES
        and plan.policy in point.policies
        and point.criterion == plan.criterion
        and point.values["bytes"] > size.bytes
    ]
    drop = from_sweep
    for other in drops_with_less_saving:
        drop = Interval(
            value=max(drop.value, other.value),
            low=max(drop.low, other.low),
            high=max(drop.high, other.high),
        )
    accuracy = Interval(
        value=max(0.0, baseline.value - drop.value / 100),
        low=max(0.0, baseline.value - drop.high / 100),
        high=min(1.0, baseline.value - drop.low / 100),
    )
    name = "Your plan" if is_draft else plan.policy
    return PlanPoint(
        id=DRAFT_ID if is_draft else f"predicted/{digest(plan.to_dict()['kept'])}",
        plan=plan,
        title=title(
            (name,), memory_saving(summary, plan), plan.criterion if show_criterion else ""
        ),
        accuracy=accuracy,
        drop=drop,
        values={"bytes": float(size.bytes)},
        policies=(plan.policy,),
        raised_from=from_sweep if drop.value > from_sweep.value else None,
    )
