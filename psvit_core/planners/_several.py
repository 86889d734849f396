"""The knapsack under several resource limits at once, for ``optimal``.

A weighted sum of the limits (a surrogate limit) is a single one, which ``_search`` solves. The
weights grow where a limit is violated. Every solution is then raised until it meets all limits, and
lowered again where they leave room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from psvit_core.planners._levels import Levels
from psvit_core.planners._resources import Array, WidthForm
from psvit_core.planners._search import Knapsack, repaired, solve

_ROUNDS = 4
_LEAST_WEIGHT = 0.1
_SWAPS = 40  # steps of each local search
_STEEPNESS = 20  # power of a limit's use by which its weight grows


def cheapest(
    levels: Levels, costs: Array, saving: float, starts: Iterable[Array] = (), *, swaps: int = 150
) -> Array | None:
    """Return a cheap choice that meets every saving of the target, (n_groups,).

    Args:
        levels: Levels of the groups.
        costs: (n_groups, n_levels), non-decreasing.
        saving: Smallest saving of the main resource; further ones are scaled with it
            (``Problem.saving_at``).
        starts: Additional starting choices. The result never costs more than one that fits.
        swaps: Largest number of steps of each local search.

    Returns:
        None if even the last levels save less.
    """
    main = levels.knapsack(costs, saving)
    if not levels.problem.target.savings:
        return solve(main, starts, swaps=swaps)
    limits = limits_of(levels, costs, saving)
    if not all(one.fits(main.last_levels) for one in limits):
        return None
    pool = [s for s in starts if all(one.fits(s) for one in limits)]
    weights = np.eye(len(limits))[_binding(limits)]  # often one limit implies the others
    for _ in range(_ROUNDS):
        mixed = dataclasses.replace(main, form=_mixed(limits, weights), limit=1.0)
        found = solve(mixed, pool, swaps=min(swaps, _SWAPS))
        if found is None:
            break
        use = np.array([float(one.form.value(one.widths_of(found))) for one in limits])
        if np.all(use <= 1 + 1e-12):
            return found  # of all choices within the weighted sum, so of all within the limits
        pool.append(_lowered(limits, _raised(limits, found)))
        weights = np.maximum(weights, _LEAST_WEIGHT) * use**_STEEPNESS
        weights = weights / weights.sum()
    return min(pool, key=main.cost, default=_raised(limits, main.last_levels))


def _binding(limits: Sequence[Knapsack]) -> int:
    """Return the limit that is hardest to meet: the one nearest to its largest saving."""
    most = limits[0].last_levels
    return int(np.argmax([float(one.form.value(one.widths_of(most))) for one in limits]))


def limits_of(levels: Levels, costs: Array, saving: float) -> list[Knapsack]:
    """Return one knapsack for each resource; those of several are scaled to a limit of 1."""
    problem, main = levels.problem, levels.knapsack(costs, saving)
    if not problem.target.savings:
        return [main]
    least = problem.target.all_savings
    scale = saving / least[problem.target.resource]
    found = []
    for resource, form in problem.forms.items():
        whole = float(form.value(problem.full_widths))
        limit = (1 - scale * least[resource]) * whole
        scaled = WidthForm(form.constant / limit, form.linear / limit, form.pairs / limit)
        found.append(dataclasses.replace(main, form=scaled, limit=1.0))
    return found


def _mixed(limits: Sequence[Knapsack], weights: Array) -> WidthForm:
    forms = [one.form for one in limits]
    return WidthForm(
        constant=float(sum(w * f.constant for w, f in zip(weights, forms, strict=True))),
        linear=np.sum([w * f.linear for w, f in zip(weights, forms, strict=True)], axis=0),
        pairs=np.sum([w * f.pairs for w, f in zip(weights, forms, strict=True)], axis=0),
    )


def _raised(limits: Sequence[Knapsack], choice: Array) -> Array:
    """Return the choice with groups raised until it meets all limits."""
    for one in limits:
        choice = repaired(one, choice)  # raising lowers the use of every resource
    return choice


def _lowered(limits: Sequence[Knapsack], choice: Array) -> Array:
    """Return the choice with groups lowered where all limits leave room, most costly first."""
    choice, costs = choice.copy(), limits[0].costs
    at = np.arange(len(choice))
    for group in np.argsort(-costs[at, choice], kind="stable"):
        while choice[group] > 0:
            lower = choice.copy()
            lower[group] -= 1
            if not all(one.fits(lower) for one in limits):
                break
            choice = lower
    return choice
