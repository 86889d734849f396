"""What planners share: the target, the limits set by hand, plans and savings over ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from psvit_core.errors import InvalidRatioError, TargetError, UnknownNameError
from psvit_core.planners._resources import RESOURCES, Array, WidthForm, width_form
from psvit_core.planners.predict import group_drop
from psvit_core.plans import plan_from_ratios
from psvit_core.records import (
    ChannelGroup,
    Kept,
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
    check_ratio,
    n_pruned,
)

Measure = Callable[[PrunePlan], Measurement]
Cost = Callable[[PrunePlan], float]
Ratios = dict[str, float]

_n_pruned = lru_cache(maxsize=1 << 16)(n_pruned)  # planners ask for the same ones very often

SCOPES = ("all", "inner", "best")  # best: of the two, see make_plan
DEFAULT_BUDGET = 20
SLACK = 1e-9  # 1 - 0.8 is a little less than 0.2


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a plan must reach: exactly one of ``saving`` and ``max_drop``.

    Args:
        saving: Fraction of the resource to save at least, in (0, 1).
        max_drop: Accuracy drop to stay within, as a fraction (0.03 is 3 percentage points), while
            the most of the resource is saved.
        resource: ``memory`` (bytes in float32), ``memory_int8``, ``macs``, ``energy``, ``latency``.
    """

    saving: float | None = None
    max_drop: float | None = None
    resource: str = "memory"

    def __post_init__(self) -> None:
        if self.resource not in RESOURCES:
            raise UnknownNameError("resource", self.resource, RESOURCES)
        given = [v for v in (self.saving, self.max_drop) if v is not None]
        if len(given) != 1 or not 0 < given[0] < 1:
            raise InvalidRatioError(
                "Give one target as a fraction in (0, 1): a saving (e.g. 0.224) or a "
                f"largest drop (e.g. 0.03); got saving={self.saving!r}, "
                f"max_drop={self.max_drop!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One planning task: the table, the target, which groups may be pruned and how far.

    Args:
        table: Sensitivities and shapes of the model.
        target: What to reach; its resource must have a closed form.
        scope: ``all`` groups, or ``inner``: all but the residual streams.
        measure: Measures a plan on the planning split; None plans from the table alone, and the
            result is labelled predicted. Asked once for each distinct plan.
        round_to: Keep widths at multiples of this.
        locked: Prune ratio by ``group_id`` of groups that stay exactly there.
        bounds: Least and largest prune ratio by ``group_id``; a group out of scope stays at its
            least.
        budget: Most plans that ``optimal`` measures.

    Raises:
        UnknownNameError: If ``locked`` or ``bounds`` name a group that the model does not have.
        InvalidRatioError: If a ratio of them is outside [0, 1), a least is above its largest, or
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
    _measured: dict[tuple[tuple[str, Kept], ...], Measurement] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_counts(round_to=self.round_to, budget=self.budget)
        for group_id in (*self.locked, *self.bounds):
            if group_id not in self.summary.by_id:
                raise UnknownNameError("channel group", group_id, self.summary.by_id)
        for ratio in (*self.locked.values(), *(r for pair in self.bounds.values() for r in pair)):
            check_ratio(ratio)
        for group_id, (low, high) in self.bounds.items():
            if low > high:
                raise InvalidRatioError(
                    f"The bounds of {group_id!r} are {low}:{high}; give the lower ratio first."
                )

    @property
    def summary(self) -> ModelSummary:
        """The model."""
        return self.table.summary

    # ---- which ratios are allowed ----------------------------------------------------------------

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Groups that the planner may choose a ratio for, in network order."""
        inner = self.scope == "inner"
        return tuple(
            g for g in self.summary.groups
            if g.group_id not in self.locked and not (inner and g.kind == "residual")
        )  # fmt: skip

    @cached_property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Least and largest prune ratio of every group.

        Nothing was measured beyond the table's largest ratio: no group goes there unless it is
        told to by hand.
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

    def fit(self, ratios: Mapping[str, float]) -> Ratios:
        """A ratio for every group, these where they are given, within the limits."""
        return {
            name: min(max(ratios.get(name, 0.0), low), high)
            for name, (low, high) in self.limits.items()
        }

    def check_least(self) -> None:
        """Raise ``TargetError`` where what is set by hand alone is beyond the accuracy limit."""
        if self.target.max_drop is not None and any(low for low, _ in self.limits.values()):
            least = self.drop({})
            if least > 100 * self.target.max_drop:
                raise TargetError(
                    f"Staying within {100 * self.target.max_drop:.2f} points is not reachable: the "
                    f"locked ratios and least bounds alone lose {least:.2f}. Loosen them."
                )

    def uniform_ratios(self, ratio: float) -> Ratios:
        """One ratio for every group that may be chosen."""
        return {g.group_id: ratio for g in self.groups()}

    def removed(self, ratios: Mapping[str, float]) -> list[int]:
        """Units that go from each group in network order."""
        fitted = self.fit(ratios)
        return [
            _n_pruned(fitted[g.group_id], g.n_units, g.heads, self.round_to)
            for g in self.summary.groups
        ]

    def plan(self, ratios: Mapping[str, float], policy: str, note: str = "") -> PrunePlan:
        """The plan of these ratios, within the limits."""
        return plan_from_ratios(
            self.summary, self.fit(ratios), criterion=self.table.criterion, round_to=self.round_to,
            policy=policy, note=note,
        )  # fmt: skip

    # ---- what ratios save ------------------------------------------------------------------------

    @cached_property
    def _drops(self) -> dict[tuple[str, int], float]:
        """Own drops that were looked up, by group and units that go."""
        return {}

    @cached_property
    def form(self) -> WidthForm:
        """The resource of the target at any widths."""
        return width_form(self.summary, self.target.resource)

    @cached_property
    def full_widths(self) -> Array:
        """Units of every group, (n_groups,)."""
        return np.array([g.n_units for g in self.summary.groups], dtype=float)

    def saving_at(self, widths: Array) -> float:
        """Fraction of the resource that these widths save: true joint size."""
        return 1 - float(self.form.value(widths)) / float(self.form.value(self.full_widths))

    def saving(self, ratios: Mapping[str, float]) -> float:
        """Fraction of the resource that these ratios save: true joint size."""
        return self.saving_at(self.full_widths - np.array(self.removed(ratios)))

    def reaches(self, ratios: Mapping[str, float], saving: float) -> bool:
        """Whether the true joint saving of these ratios is at least ``saving``."""
        return self.saving(ratios) >= saving - SLACK

    def unreachable(self, most: float, how: str) -> TargetError:
        """The error that says the most."""
        what = self.target.resource.replace("_", " in ")
        return TargetError(
            f"Saving {self.target.saving or 0:.1%} of the {what} is not reachable {how}; "
            f"the most is {most:.1%}."
        )

    # ---- what ratios cost ------------------------------------------------------------------------

    def predicted_drop(self, ratios: Mapping[str, float]) -> float:
        """Sum of the groups' own measured drops, percentage points: a prediction.

        Between measured ratios linear, from 0 at ratio 0; gains count as 0.
        """
        total = 0.0
        for group, removed in zip(self.summary.groups, self.removed(ratios), strict=True):
            if removed:
                key = (group.group_id, removed)
                if key not in self._drops:
                    self._drops[key] = group_drop(self.table, group, removed / group.n_units)
                total += self._drops[key]
        return total

    def measured(self, ratios: Mapping[str, float]) -> Measurement:
        """The measurement of these ratios, made once; there must be ``measure``."""
        return self.measured_plan(self.plan(ratios, ""))

    def measured_plan(self, plan: PrunePlan) -> Measurement:
        """The measurement of a plan, made once for each choice of units."""
        assert self.measure is not None
        key = tuple(sorted(plan.kept.items()))
        if key not in self._measured:
            self._measured[key] = self.measure(plan)
        return self._measured[key]

    def drop(self, ratios: Mapping[str, float]) -> float:
        """Drop of these ratios in percentage points: measured where possible, else predicted."""
        if self.measure is None:
            return self.predicted_drop(ratios)
        measured = self.measured(ratios).drop
        assert measured is not None
        return measured.value

    def note(self) -> str:
        """How the plan's drop is known."""
        if self.measure is None:
            return "predicted from the sensitivity table; not measured"
        return "measured on the planning split"


def check_counts(*, round_to: int = 1, budget: int = 1) -> None:
    """Raise ``InvalidRatioError`` at counts below 1; arguments as of ``Problem``."""
    if round_to < 1:
        raise InvalidRatioError(
            f"Widths are kept at multiples of round_to, at least 1; got {round_to}. 1 allows any."
        )
    if budget < 1:
        raise InvalidRatioError(
            f"The budget is the most plans that are measured, at least 1; got {budget}. To plan "
            "without measuring, name no model."
        )


def smallest_uniform(problem: Problem, saving: float) -> float:
    """The smallest one ratio whose joint saving reaches ``saving``.

    Raises:
        TargetError: If no ratio below 1 does.
    """
    candidates = _steps(problem.groups(), max(problem.table.ratios))
    most = problem.saving(problem.uniform_ratios(candidates[-1]))
    if most < saving - SLACK:
        top = max(problem.table.ratios)
        raise problem.unreachable(most, f"by a uniform ratio of up to {top:.0%} over these groups")
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if problem.reaches(problem.uniform_ratios(candidates[middle]), saving):
            high = middle
        else:
            low = middle + 1
    return candidates[high]


def _steps(groups: Iterable[ChannelGroup], top: float) -> list[float]:
    """Every ratio at which some group loses one unit more, and ``top``, the largest."""
    steps = {k / g.n_units for g in groups for k in range(g.n_units)}
    return sorted({0.0, top} | {ratio for ratio in steps if ratio < top})


def largest_uniform(problem: Problem, max_drop: float, steps: int = 7) -> float:
    """A largest one ratio whose drop stays within ``max_drop`` (fraction), by bisection.

    Bisection takes the drop to grow with the ratio; noise may make the result one step off, but
    the drop of the returned ratio was really looked up and is within the limit.
    """
    low, high = 0.0, max(problem.table.ratios)
    if problem.drop(problem.uniform_ratios(high)) <= 100 * max_drop:
        return high
    for _ in range(steps):
        middle = (low + high) / 2
        if problem.drop(problem.uniform_ratios(middle)) <= 100 * max_drop:
            low = middle
        else:
            high = middle
    return low
