"""The planning problem, and the uniform plans that several planners start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from psvit_core.callbacks import Stop, never_stop
from psvit_core.errors import InvalidRatioError, TargetError, UnknownNameError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.planners._resources import Array, WidthForm, width_form
from psvit_core.planners.forecast import predict_drop
from psvit_core.planners.predict import calibrate, group_drop
from psvit_core.records import (
    DEFAULT_BUDGET,
    ChannelGroup,
    Kept,
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
    Target,
    check_counts,
    check_ratio,
    n_pruned,
)

Measure = Callable[[PrunePlan], Measurement]
Cost = Callable[[PrunePlan], float]
Ratios = dict[str, float]

_n_pruned = lru_cache(maxsize=1 << 16)(n_pruned)  # planners repeat the same calls

UNIFORM_STEPS = 7  # of the bisection in ``largest_uniform``
SLACK = 1e-9  # tolerance for rounding: 1 - 0.8 < 0.2


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A planning problem: the table, the target, and limits on the prune ratios.

    Args:
        table: Sensitivities and shapes of the model.
        target: The target; its resources must be among ``CLOSED_FORMS``.
        scope: ``all`` groups, or ``inner``: all but the residual streams.
        measure: Measures a plan on the planning split, once per distinct plan; None plans from the
            table alone.
        round_to: Round widths to multiples of this.
        locked: Fixed prune ratio by ``group_id``.
        bounds: Smallest and largest prune ratio by ``group_id``; groups out of scope take the
            smallest.
        budget: Largest number of plans that are measured.
        stop: Asked before each measurement; True ends measuring, like a spent budget.

    Raises:
        UnknownNameError: If ``locked`` or ``bounds`` contain an unknown group.
        InvalidRatioError: If a ratio is outside [0, 1), bounds are in the wrong order, or
            ``round_to`` or ``budget`` is below 1.
    """

    table: SensitivityTable
    target: Target
    scope: str = "all"
    measure: Measure | None = None
    round_to: int = 1
    locked: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    budget: int = DEFAULT_BUDGET
    stop: Stop = never_stop
    _measured: dict[tuple[tuple[str, Kept], ...], Measurement] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_counts(round_to=self.round_to, budget=self.budget)
        _check_ratios(self.summary, self.locked, self.bounds)

    @property
    def summary(self) -> ModelSummary:
        """Description of the model."""
        return self.table.summary

    # ---- limits on the ratios --------------------------------------------------------------------

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Return the groups whose ratio the planner may choose, in network order."""
        inner = self.scope == "inner"
        return tuple(
            g
            for g in self.summary.groups
            if g.group_id not in self.locked and not (inner and g.is_stream)
        )

    @cached_property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest prune ratio of every group.

        Beyond the table's largest ratio nothing was measured, so only locked groups and lower
        bounds may exceed it.
        """
        free = {g.group_id for g in self.groups()}
        top = max(self.table.ratios)
        limits = {}
        for group in self.summary.groups:
            name = group.group_id
            low, high = self.bounds.get(name, (0.0, top))
            if name in self.locked:
                low = high = self.locked[name]
            limits[name] = (low, max(low, min(high, top)) if name in free else low)
        return limits

    def clamp(self, ratios: Mapping[str, float]) -> Ratios:
        """Return a ratio for every group within its limits; missing ones are 0 before clamping."""
        return {
            name: min(max(ratios.get(name, 0.0), low), high)
            for name, (low, high) in self.limits.items()
        }

    def uniform_ratios(self, ratio: float) -> Ratios:
        """Return the same ratio for every group of ``groups``."""
        return {g.group_id: ratio for g in self.groups()}

    def removed(self, ratios: Mapping[str, float]) -> list[int]:
        """Return the number of units removed from each group, in network order."""
        clamped = self.clamp(ratios)
        return [
            _n_pruned(clamped[g.group_id], g.n_units, g.heads, self.round_to)
            for g in self.summary.groups
        ]

    def plan(self, ratios: Mapping[str, float], policy: str, note: str = "") -> PrunePlan:
        """Return the plan of these ratios, clamped to the limits."""
        return plan_from_ratios(
            self.summary,
            self.clamp(ratios),
            criterion=self.table.criterion,
            round_to=self.round_to,
            policy=policy,
            note=note,
        )

    # ---- savings ---------------------------------------------------------------------------------

    @cached_property
    def _drops(self) -> dict[tuple[str, int], float]:
        """Cache of single-group drops by group and removed units."""
        return {}

    @cached_property
    def forms(self) -> dict[str, WidthForm]:
        """The resources of the target as functions of the widths, the main one first."""
        return {
            resource: width_form(self.summary, resource)
            for resource in (self.target.resource, *self.target.savings)
        }

    @property
    def form(self) -> WidthForm:
        """The target's main resource as a function of the widths."""
        return self.forms[self.target.resource]

    @cached_property
    def full_widths(self) -> Array:
        """Unpruned width of every group, (n_groups,)."""
        return np.array([g.n_units for g in self.summary.groups], dtype=float)

    def savings_at(self, widths: Array) -> dict[str, float]:
        """Return the fraction that these widths save together, by resource of the target."""
        return {
            resource: 1 - float(form.value(widths)) / float(form.value(self.full_widths))
            for resource, form in self.forms.items()
        }

    def saving_at(self, widths: Array) -> float:
        """Return the fraction of the resource that these widths save together.

        With further savings in the target, the one that is furthest from its target counts, scaled
        to the main one: a plan that saves ``target.saving`` meets all of them.
        """
        saved = self.savings_at(widths)
        if not self.target.savings:
            return saved[self.target.resource]
        least = self.target.all_savings
        return least[self.target.resource] * min(saved[r] / least[r] for r in least)

    def saving(self, ratios: Mapping[str, float]) -> float:
        """Return the fraction of the resource that these ratios save together."""
        return self.saving_at(self.full_widths - np.array(self.removed(ratios)))

    def reaches(self, ratios: Mapping[str, float], saving: float) -> bool:
        """Return True if these ratios together save at least ``saving``."""
        return self.saving(ratios) >= saving - SLACK

    # ---- accuracy drops --------------------------------------------------------------------------

    def predicted_drop(self, ratios: Mapping[str, float]) -> float:
        """Return the sum of the single-group drops in the table, percentage points.

        Drops are interpolated linearly between measured ratios, from 0 at ratio 0; gains count as
        0.
        """
        total = 0.0
        for group, removed in zip(self.summary.groups, self.removed(ratios), strict=True):
            if removed:
                key = (group.group_id, removed)
                if key not in self._drops:
                    self._drops[key] = group_drop(self.table, group, removed / group.n_units)
                total += self._drops[key]
        return total

    def shown_drop(self, ratios: Mapping[str, float]) -> float:
        """Return the predicted drop that users see for the plan of these ratios, in points."""
        reached = {
            group.group_id: removed / group.n_units
            for group, removed in zip(self.summary.groups, self.removed(ratios), strict=True)
        }
        return predict_drop(self.table, reached)

    def measured(self, ratios: Mapping[str, float]) -> Measurement:
        """Return the measurement of these ratios; requires ``measure``."""
        return self.measured_plan(self.plan(ratios, ""))

    def measured_plan(self, plan: PrunePlan) -> Measurement:
        """Return the measurement of a plan; requires ``measure``, and is cached by kept units."""
        assert self.measure is not None
        key = _kept_key(plan)
        if key not in self._measured:
            self._measured[key] = self.measure(plan)
        return self._measured[key]

    def drop(self, ratios: Mapping[str, float]) -> float:
        """Return the drop of these ratios in percentage points.

        Measured with ``measure``, while the budget lasts; otherwise predicted. A prediction beside
        measurements is scaled by how far they exceed theirs (``predict.calibrate``).
        """
        if self.measure is None:
            return self.predicted_drop(ratios)
        if not self.spent or self.is_measured(ratios):
            measured = self.measured(ratios).drop
            assert measured is not None
            return measured.value
        return self.estimate(ratios)

    def estimate(self, ratios: Mapping[str, float]) -> float:
        """Return the predicted drop, scaled by the measured plans so far, in percentage points."""
        return self.predicted_drop(ratios) * calibrate(self.table, list(self._measured.values()))

    def within(self, ratios: Mapping[str, float], limit: float) -> bool:
        """Return True if the drop of these ratios is within a limit, in percentage points.

        With ``measure``, only a measured drop counts: when the budget is spent, nothing else is
        within.
        """
        if self.measure is not None and self.spent and not self.is_measured(ratios):
            return False
        return self.drop(ratios) <= limit

    @property
    def spent(self) -> bool:
        """Whether no further plan may be measured."""
        return self.remaining <= 0

    @property
    def remaining(self) -> int:
        """Number of plans that may still be measured."""
        return 0 if self.stop() else self.budget - len(self._measured)

    def in_scope(self, scope: str) -> Problem:
        """Return the problem in a scope, with its own budget and the measurements so far."""
        return replace(self, scope=scope, budget=self.budget + len(self._measured))

    def is_measured(self, ratios: Mapping[str, float]) -> bool:
        """Return True if the plan of these ratios has been measured."""
        return _kept_key(self.plan(ratios, "")) in self._measured

    def note(self) -> str:
        """Return the plan's note: predicted or measured."""
        if self.measure is None:
            return "predicted from the sensitivity table; not measured"
        if self.spent:
            n = len(self._measured)
            return f"measured on the planning split until the budget was spent ({n} plans)"
        return "measured on the planning split"


def unreachable(problem: Problem, maximum: float, how: str) -> TargetError:
    """Return the error for a saving beyond the maximum, a fraction."""
    what = problem.target.resource.replace("_", " in ")
    return TargetError(
        f"Saving {problem.target.saving or 0:.1%} of the {what} is not reachable {how}; "
        f"the maximum is {maximum:.1%}."
    )


def _check_ratios(
    summary: ModelSummary, locked: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]
) -> None:
    for group_id in (*locked, *bounds):
        if group_id not in summary.by_id:
            raise UnknownNameError("channel group", group_id, summary.by_id)
    for ratio in (*locked.values(), *(r for pair in bounds.values() for r in pair)):
        check_ratio(ratio)
    for group_id, (low, high) in bounds.items():
        if low > high:
            raise InvalidRatioError(
                f"The bounds of {group_id!r} are {low}:{high}; give the smaller ratio first."
            )


def _kept_key(plan: PrunePlan) -> tuple[tuple[str, Kept], ...]:
    return tuple(sorted(plan.kept.items()))


def smallest_uniform(problem: Problem, saving: float) -> float:
    """Return the smallest uniform ratio that saves at least ``saving``.

    Raises:
        TargetError: If the table's largest ratio does not save enough.
    """
    top = max(problem.table.ratios)
    candidates = _distinct_ratios(problem.groups(), top)
    maximum = problem.saving(problem.uniform_ratios(candidates[-1]))
    if maximum < saving - SLACK:
        raise unreachable(problem, maximum, f"with a uniform ratio of up to {top:.0%}")
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if problem.reaches(problem.uniform_ratios(candidates[middle]), saving):
            high = middle
        else:
            low = middle + 1
    return candidates[high]


def _distinct_ratios(groups: Iterable[ChannelGroup], top: float) -> list[float]:
    """Return all ratios up to ``top`` at which a group loses another unit, ascending."""
    steps = {k / g.n_units for g in groups for k in range(g.n_units)}
    return sorted({0.0, top} | {ratio for ratio in steps if ratio < top})


def largest_uniform(problem: Problem, max_drop: float) -> float:
    """Return the largest uniform ratio whose drop is within ``max_drop``, a fraction.

    Bisection assumes that the drop grows with the ratio. With noisy drops a larger ratio may also
    be within the limit, but the drop of the returned ratio always is, unless it is 0.
    """
    low, high = 0.0, max(problem.table.ratios)
    if problem.within(problem.uniform_ratios(high), 100 * max_drop):
        return high
    for _ in range(UNIFORM_STEPS):
        middle = (low + high) / 2
        if problem.within(problem.uniform_ratios(middle), 100 * max_drop):
            low = middle
        else:
            high = middle
    return low
