"""Checks of a target before and after planning: what is possible, and what stands in the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from psvit_core.errors import TargetError
from psvit_core.planners._base import SLACK, Problem
from psvit_core.records import CLOSED_FORMS, SensitivityTable, Target

_NAMED = 3  # locks and bounds in a message


@dataclass(frozen=True, kw_only=True)
class Binding:
    """A lock or bound that lowers the largest saving."""

    group_id: str
    kind: str  # lock or bound
    without: float  # largest saving without it, a fraction


@dataclass(frozen=True, kw_only=True)
class SavingRange:
    """The savings that plans can reach under locks and bounds, fractions of one resource."""

    low: float  # saved by locks and lower bounds alone
    high: float
    free: float  # the largest saving without any lock or bound
    binding: tuple[Binding, ...] = ()  # what lowers ``high``, most harmful first

    def contains(self, saving: float) -> bool:
        """Return True if a plan can be made for this saving."""
        return self.low - SLACK <= saving <= self.high + SLACK


def saving_range(
    table: SensitivityTable,
    *,
    resource: str = "memory",
    scope: str = "all",
    round_to: int = 1,
    locked: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> SavingRange:
    """Return the range of savings that is possible with these locks and bounds, and what binds.

    Args:
        table: Sensitivities of the model.
        resource: ``memory``, ``memory_int8`` or ``macs``.
        scope: ``all`` or ``inner``.
        round_to: Round widths to multiples of this.
        locked: Fixed prune ratio by ``group_id``.
        bounds: Smallest and largest prune ratio by ``group_id``.
    """
    problem = Problem(
        table=table,
        target=Target(saving=0.5, resource=resource),
        scope=scope,
        round_to=round_to,
        locked=locked or {},
        bounds=bounds or {},
    )
    return range_of(problem, resource)


def range_of(problem: Problem, resource: str) -> SavingRange:
    """Return the range of savings of a resource that a problem's locks and bounds leave."""

    def largest(locked: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> float:
        target = Target(saving=0.5, resource=resource)
        freed = dataclasses.replace(problem, target=target, locked=locked, bounds=bounds)
        return freed.saving({g: high for g, (_, high) in freed.limits.items()})

    def without(group_id: str) -> float:
        locked = {g: r for g, r in problem.locked.items() if g != group_id}
        bounds = {g: pair for g, pair in problem.bounds.items() if g != group_id}
        return largest(locked, bounds)

    alone = dataclasses.replace(problem, target=Target(saving=0.5, resource=resource))
    high = largest(problem.locked, problem.bounds)
    limited = dict.fromkeys([*problem.locked, *problem.bounds])
    found = [
        Binding(group_id=g, kind="lock" if g in problem.locked else "bound", without=without(g))
        for g in limited
    ]
    binding = sorted((b for b in found if b.without > high + SLACK), key=lambda b: -b.without)
    free = largest({}, {}) if limited else high
    return SavingRange(low=alone.saving({}), high=high, free=free, binding=tuple(binding))


def check_target(problem: Problem) -> None:
    """Check that each limit of a target can be met by itself.

    Raises:
        TargetError: If a saving is out of range, or if locks and lower bounds alone exceed the
            accuracy limit. The message says what is possible, and which locks and bounds bind.
    """
    for resource, saving in problem.target.all_savings.items():
        if resource not in CLOSED_FORMS:
            continue
        possible = range_of(problem, resource)
        if possible.high < saving - SLACK:
            raise TargetError(_out_of_range(problem, resource, saving, possible))
    most = problem.target.max_drop
    if most is not None and any(low for low, _ in problem.limits.values()):
        least = problem.drop({})
        if least > 100 * most:
            raise TargetError(
                f"A drop within {100 * most:.2f} points is not reachable: the locked ratios and "
                f"lower bounds alone lose {least:.2f}. Relax them."
            )


def _out_of_range(problem: Problem, resource: str, saving: float, possible: SavingRange) -> str:
    what, top = resource.replace("_", " in "), max(problem.table.ratios)
    text = (
        f"Saving {saving:.1%} of the {what} is not reachable with ratios up to {top:.0%}; the "
        f"maximum is {possible.high:.1%}."
    )
    if possible.low > SLACK:
        text += f" Locks and lower bounds alone save {possible.low:.1%}."
    if not possible.binding:
        return text + " Lower the target."
    named = "; ".join(
        f"the {b.kind} of {b.group_id!r} (without it {b.without:.1%})"
        for b in possible.binding[:_NAMED]
    )
    more = len(possible.binding) - _NAMED
    text += f" What binds: {named}{f'; and {more} more' if more > 0 else ''}."
    return f"{text} Without any lock or bound: {possible.free:.1%}."
