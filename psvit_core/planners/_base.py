"""What planners share: the target, the chosen plan, sizes over ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psvit_core.errors import InvalidRatioError, TargetError
from psvit_core.plans import plan_from_ratios
from psvit_core.records import (
    ChannelGroup,
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
    n_pruned,
)
from psvit_core.size import memory_saving

Measure = Callable[[PrunePlan], Measurement]
Ratios = dict[str, float]

SCOPES = ("all", "inner")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a plan must reach: exactly one of the two.

    Args:
        memory_saving: Fraction of the bytes to save at least, in (0, 1).
        max_drop: Accuracy drop to stay within, as a fraction (0.03 is 3 percentage points).
    """

    memory_saving: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.memory_saving, self.max_drop) if v is not None]
        if len(given) != 1 or not 0 < given[0] < 1:
            raise InvalidRatioError(
                "Give one target as a fraction in (0, 1): a memory saving (e.g. 0.224) or a "
                f"largest drop (e.g. 0.03); got memory_saving={self.memory_saving!r}, "
                f"max_drop={self.max_drop!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One planning task: the table, the target, which groups may be pruned.

    Args:
        table: Sensitivities and shapes of the model.
        target: What to reach.
        scope: ``all`` groups, or ``inner``: all but the residual streams.
        measure: Measures a plan on the planning split; None plans from the table alone, and the
            result is labelled predicted.
        round_to: Keep widths at multiples of this.
    """

    table: SensitivityTable
    target: Target
    scope: str = "all"
    measure: Measure | None = None
    round_to: int = 1

    @property
    def summary(self) -> ModelSummary:
        """The model."""
        return self.table.summary

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Groups that may be pruned, in network order."""
        inner = self.scope == "inner"
        return tuple(g for g in self.summary.groups if not (inner and g.kind == "residual"))

    def plan(self, ratios: Mapping[str, float], policy: str, note: str = "") -> PrunePlan:
        """The plan of these ratios."""
        return plan_from_ratios(
            self.summary, ratios, criterion=self.table.criterion, round_to=self.round_to,
            policy=policy, note=note,
        )  # fmt: skip

    def saving(self, ratios: Mapping[str, float]) -> float:
        """True joint memory saving of these ratios, a fraction."""
        return memory_saving(self.summary, self.plan(ratios, ""))

    def reaches(self, ratios: Mapping[str, float], saving: float) -> bool:
        """Whether the true joint memory saving of these ratios is at least ``saving``."""
        return self.saving(ratios) >= saving - 1e-9  # 1 - 0.8 is a little less than 0.2

    def uniform_ratios(self, ratio: float) -> Ratios:
        """One ratio for every group in scope."""
        return {g.group_id: ratio for g in self.groups()}

    def predicted_drop(self, ratios: Mapping[str, float]) -> float:
        """Sum of the groups' own measured drops, percentage points: a prediction.

        Between measured ratios linear, from 0 at ratio 0; gains count as 0.
        """
        return sum(group_drop(self.table, g, ratios.get(g.group_id, 0.0)) for g in self.groups())

    def drop(self, ratios: Mapping[str, float]) -> float:
        """Drop of these ratios in percentage points: measured where possible, else predicted."""
        if self.measure is None:
            return self.predicted_drop(ratios)
        measured = self.measure(self.plan(ratios, "")).drop
        assert measured is not None
        return measured.value

    def note(self) -> str:
        """How the plan's drop is known."""
        if self.measure is None:
            return "predicted from the sensitivity table; not measured"
        return "measured on the planning split"


def group_drop(table: SensitivityTable, group: ChannelGroup, ratio: float) -> float:
    """One group's own drop at a ratio, percentage points, interpolated between measured cells."""
    reached = n_pruned(ratio, group.n_units, group.heads) / group.n_units
    points = [(0.0, 0.0)]
    points += sorted(
        (row.n_pruned / group.n_units, max(row.drop.value, 0.0))
        for row in table.rows
        if row.group_id == group.group_id
    )
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if reached <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (reached - x0) / (x1 - x0)
    if len(points) == 1:
        raise TargetError(
            f"The table has no cell of {group.group_id!r} yet. Finish the sweep, then plan."
        )
    return points[-1][1]


def smallest_uniform(problem: Problem, saving: float) -> float:
    """The smallest one ratio whose joint memory saving reaches ``saving``.

    Raises:
        TargetError: If no ratio below 1 does.
    """
    candidates = sorted({k / g.n_units for g in problem.groups() for k in range(g.n_units)})
    most = problem.saving(problem.uniform_ratios(candidates[-1]))
    if most < saving:
        raise TargetError(
            f"Saving {saving:.1%} of the memory is not reachable by a uniform ratio over these "
            f"groups; the most is {most:.1%}."
        )
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if problem.reaches(problem.uniform_ratios(candidates[middle]), saving):
            high = middle
        else:
            low = middle + 1
    return candidates[high]


def largest_uniform(problem: Problem, max_drop: float, steps: int = 7) -> float:
    """A largest one ratio whose drop stays within ``max_drop`` (fraction), by bisection.

    Bisection takes the drop to grow with the ratio; noise may make the result one step off, but
    the drop of the returned ratio was really looked up and is within the limit.
    """
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        if problem.drop(problem.uniform_ratios(middle)) <= 100 * max_drop:
            low = middle
        else:
            high = middle
    return low
