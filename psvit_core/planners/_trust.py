"""Correcting the table by measured plans: the trust region of ``optimal``.

The table knows each group alone. A measured plan tells what its groups do together; each
measurement re-fits a factor per group (ridge regression towards one common factor), and the
knapsack is solved again with the corrected costs near the best plan so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from psvit_core.planners._base import SLACK
from psvit_core.planners._levels import Levels
from psvit_core.planners._resources import Array
from psvit_core.planners._search import solve
from psvit_core.records import Measurement

RADIUS = 0.3  # of a group's units, around the best plan; grows on success, shrinks on failure
_SWAPS = 40  # steps of each local search: every proposal is measured, so none need be perfect
_STIFFNESS = 0.1  # of the ridge towards one factor: as a tenth of a measured plan
_CLOSED = 0.01  # of the saving: what a bisection for the most saving ends at
_NOISE = 0.5  # standard deviation of the log factors where a proposal would repeat itself


@dataclass
class TrustRegion:
    """Measured plans of one problem and what they say of the groups' costs.

    Args:
        levels: Levels of the groups.
        seed: Of the random proposals.
    """

    levels: Levels
    seed: int = 0
    choices: list[Array] = field(default_factory=list)
    results: list[Measurement] = field(default_factory=list)
    radius: float = RADIUS

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    @property
    def left(self) -> int:
        """Measurements that the budget still allows."""
        return self.levels.problem.budget - len(self.results)

    def known(self, choice: Array) -> bool:
        """Whether a choice has been measured."""
        return any(np.array_equal(choice, c) for c in self.choices)

    def measure(self, choice: Array) -> Measurement:
        """Measure a choice and remember it."""
        result = self.levels.problem.measured(self.levels.ratios(choice))
        self.choices.append(choice)
        self.results.append(result)
        return result

    def kl(self, i: int) -> float:
        """Measured KL of the i-th plan, nats."""
        kl = self.results[i].kl
        assert kl is not None
        return kl

    def drop(self, i: int) -> float:
        """Measured drop of the i-th plan, percentage points."""
        drop = self.results[i].drop
        assert drop is not None
        return drop.value

    def factors(self) -> Array:
        """What each group's own KL is to be multiplied with, (n_groups,), positive.

        Least squares on the relative errors of the measured KLs, plans near the lowest KL weighing
        most, with a ridge towards one common factor for all groups.
        """
        rows = np.arange(len(self.levels.kls))
        own = np.stack([self.levels.kls[rows, c] for c in self.choices])  # (n_plans, n_groups)
        kl = np.maximum([self.kl(i) for i in range(len(own))], 1e-9)
        weight = np.sqrt(kl.min() / kl)
        common = float(np.exp(np.average(np.log(kl / (own.sum(1) + 1e-12)), weights=weight)))
        scaled = common * own / kl[:, None] * weight[:, None]
        error = weight - scaled.sum(axis=1)
        gram = scaled.T @ scaled + _STIFFNESS * np.mean(scaled**2) * np.eye(own.shape[1])
        return common * np.clip(1 + np.linalg.solve(gram, scaled.T @ error), 0.1, 10.0)

    def propose(self, saving: float, around: Array, starts: Iterable[Array] = ()) -> Array | None:
        """A choice that was not measured yet, cheapest by the corrected costs near ``around``.

        Where that one is known already, factors are drawn at random around the fitted ones.
        None where nothing new is found.
        """
        factors = self.factors()
        n_units = self.levels.problem.full_widths[:, None]
        at = self.levels.removed[np.arange(len(around)), around][:, None]
        far = np.abs(self.levels.removed - at) > self.radius * n_units
        for attempt in range(8):
            drawn = factors * np.exp(_NOISE * min(attempt, 2) / 2 * self._draw())
            costs = drawn[:, None] * self.levels.kls
            costs = costs + np.where(far, 10 * costs[:, -1].sum(), 0.0)
            found = solve(self.levels.knapsack(costs, saving), starts, swaps=_SWAPS)
            if found is not None and not self.known(found):
                return found
        return None

    def _draw(self) -> Array:
        return self._random.standard_normal(len(self.levels.kls))


def least_kl(region: TrustRegion, saving: float, portfolio: Iterable[Array]) -> Array:
    """The plan of least measured KL at a saving: the portfolio first, then the trust region."""
    for choice in portfolio:
        if region.left > 0 and not region.known(choice):
            region.measure(choice)
    best = min(range(len(region.results)), key=region.kl)
    while region.left > 0:
        found = region.propose(saving, region.choices[best])
        if found is None:
            break
        region.measure(found)
        better = region.kl(len(region.results) - 1) < region.kl(best)
        best = len(region.results) - 1 if better else best
        region.radius = float(np.clip(region.radius * (1.3 if better else 0.8), 0.05, 1.0))
    return region.choices[best]


def most_saving(
    region: TrustRegion, limit: float, portfolio: Iterable[Array], most: float
) -> Array | None:
    """The plan that saves most with a measured drop within ``limit`` (pp); None where none is.

    Bisection over the saving, each plan re-fitted to all measured so far; once it has closed, the
    saving just above the best is tried with other plans until the budget ends.
    """
    problem = region.levels.problem
    low, high = 0.0, most
    best: Array | None = None

    def holds(choice: Array) -> bool:
        """Measure a choice; keep it as the best if it is."""
        nonlocal low, best
        region.measure(choice)
        within = region.drop(len(region.results) - 1) <= limit + SLACK
        saved = problem.saving(region.levels.ratios(choice))
        if within and (best is None or saved > low):
            low, best = saved, choice
        return within

    for choice in portfolio:
        if region.left > 0 and not region.known(choice):
            holds(choice)
    region.radius = 1.0  # the saving itself moves
    while region.left > 0:
        if high - low < _CLOSED:
            high = min(most, low + 2 * _CLOSED)
        middle = (low + high) / 2
        found = region.propose(middle, best if best is not None else region.levels.choice({}))
        if found is None:
            break
        if not holds(found):
            high = max(low, middle)
    return best
