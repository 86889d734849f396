"""The trust region of ``optimal``: corrects the table's costs with measured plans.

The table contains the cost of each group alone; a measured plan shows their joint cost. Every
measurement refits one factor per group (ridge regression towards a common factor), and the knapsack
is solved again with the corrected costs near the best plan so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from psvit_core.planners._base import SLACK
from psvit_core.planners._levels import Levels
from psvit_core.planners._resources import Array
from psvit_core.planners._several import cheapest
from psvit_core.records import Measurement

RADIUS = 0.3  # fraction of a group's units; grows after improvements, shrinks otherwise
_SWAPS = 40  # steps of each local search; proposals are measured, so they need not be optimal
_RIDGE = 0.1  # weight of the common factor, relative to one measured plan
_SAVING_TOLERANCE = 0.01  # interval of savings at which bisection ends
_NOISE = 0.5  # standard deviation of the log factors of random proposals


@dataclass
class TrustRegion:
    """Measured plans of one problem, and the corrected costs fitted to them.

    Args:
        levels: Levels of the groups.
        seed: Seed of the random proposals.
        choices: Measured choices of levels.
        results: Their measurements.
        radius: Largest distance of a proposal, as a fraction of each group's units.
    """

    levels: Levels
    seed: int = 0
    choices: list[Array] = field(default_factory=list)
    results: list[Measurement] = field(default_factory=list)
    radius: float = RADIUS

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    @property
    def remaining(self) -> int:
        """Number of measurements left in the budget; the first is always allowed."""
        problem = self.levels.problem
        if not self.results:
            return max(problem.remaining, 1)
        return min(problem.budget - len(self.results), problem.remaining)

    def is_measured(self, choice: Array) -> bool:
        """Return True if the choice has been measured."""
        return any(np.array_equal(choice, c) for c in self.choices)

    def measure(self, choice: Array) -> Measurement:
        """Measure a choice and add it to the results."""
        result = self.levels.problem.measured(self.levels.ratios(choice))
        self.choices.append(choice)
        self.results.append(result)
        return result

    def kl(self, i: int) -> float:
        """Return the measured KL of the i-th plan, nats."""
        kl = self.results[i].kl
        assert kl is not None
        return kl

    def drop(self, i: int) -> float:
        """Return the measured drop of the i-th plan, percentage points."""
        drop = self.results[i].drop
        assert drop is not None
        return drop.value

    def fit_factors(self) -> Array:
        """Fit the positive factors that correct each group's KL, (n_groups,).

        Least squares on the relative errors of the measured KLs, with more weight on plans of low
        KL and a ridge penalty towards a common factor.
        """
        rows = np.arange(len(self.levels.kls))
        own = np.stack([self.levels.kls[rows, c] for c in self.choices])  # (n_plans, n_groups)
        kl = np.maximum([self.kl(i) for i in range(len(own))], 1e-9)
        weight = np.sqrt(kl.min() / kl)
        common = float(np.exp(np.average(np.log(kl / (own.sum(1) + 1e-12)), weights=weight)))
        scaled = common * own / kl[:, None] * weight[:, None]
        error = weight - scaled.sum(axis=1)
        gram = scaled.T @ scaled + _RIDGE * np.mean(scaled**2) * np.eye(own.shape[1])
        return common * np.clip(1 + np.linalg.solve(gram, scaled.T @ error), 0.1, 10.0)

    def propose(self, saving: float, around: Array, starts: Iterable[Array] = ()) -> Array | None:
        """Propose the cheapest unmeasured choice near another one, by the corrected costs.

        If the cheapest choice was already measured, the factors are perturbed at random.

        Args:
            saving: Smallest saving of the resource, a fraction.
            around: Centre of the region, (n_groups,).
            starts: Additional starting choices of the search.

        Returns:
            A choice (n_groups,); None if all attempts find measured ones.
        """
        factors = self.fit_factors()
        n_units = self.levels.problem.full_widths[:, None]
        at = self.levels.removed[np.arange(len(around)), around][:, None]
        far = np.abs(self.levels.removed - at) > self.radius * n_units
        for attempt in range(8):
            drawn = factors * np.exp(_NOISE * min(attempt, 2) / 2 * self._draw())
            costs = drawn[:, None] * self.levels.kls
            costs = costs + np.where(far, 10 * costs[:, -1].sum(), 0.0)
            found = cheapest(self.levels, costs, saving, starts, swaps=_SWAPS)
            if found is not None and not self.is_measured(found):
                return found
        return None

    def _draw(self) -> Array:
        return self._random.standard_normal(len(self.levels.kls))


def least_kl(region: TrustRegion, saving: float, portfolio: Iterable[Array]) -> Array:
    """Return the choice of least measured KL at a saving, within the target's drop if possible.

    Args:
        region: The trust region.
        saving: Smallest saving of the resource, a fraction.
        portfolio: Choices to measure first.
    """
    for choice in portfolio:
        if region.remaining > 0 and not region.is_measured(choice):
            region.measure(choice)

    def rank(i: int) -> tuple[float, float]:
        """Return what ranks a measured plan: its excess over the drop's limit, then its KL."""
        most = region.levels.problem.target.max_drop
        return max(region.drop(i) - 100 * most - SLACK, 0.0) if most else 0.0, region.kl(i)

    best = min(range(len(region.results)), key=rank)
    while region.remaining > 0:
        found = region.propose(saving, region.choices[best])
        if found is None:
            break
        region.measure(found)
        better = rank(len(region.results) - 1) < rank(best)
        best = len(region.results) - 1 if better else best
        region.radius = float(np.clip(region.radius * (1.3 if better else 0.8), 0.05, 1.0))
    return region.choices[best]


def most_saving(
    region: TrustRegion, limit: float, portfolio: Iterable[Array], most: float
) -> Array | None:
    """Return the choice that saves most with a measured drop within a limit; None if none is.

    Bisects the saving and refits the costs after every measurement. When the interval is small, the
    remaining budget is spent on other plans that save slightly more than the best.

    Args:
        region: The trust region.
        limit: Largest drop, percentage points.
        portfolio: Choices to measure first.
        most: Largest saving that is possible, a fraction.
    """
    problem = region.levels.problem
    low, high = 0.0, most
    best: Array | None = None

    def within_limit(choice: Array) -> bool:
        """Measure a choice and update the best one."""
        nonlocal low, best
        region.measure(choice)
        within = region.drop(len(region.results) - 1) <= limit + SLACK
        saved = problem.saving(region.levels.ratios(choice))
        if within and (best is None or saved > low):
            low, best = saved, choice
        return within

    for choice in portfolio:
        if region.remaining > 0 and not region.is_measured(choice):
            within_limit(choice)
    region.radius = 1.0  # no restriction: the saving changes in every step
    while region.remaining > 0:
        if high - low < _SAVING_TOLERANCE:
            high = min(most, low + 2 * _SAVING_TOLERANCE)
        middle = (low + high) / 2
        found = region.propose(middle, best if best is not None else region.levels.choice_of({}))
        if found is None:
            break
        if not within_limit(found):
            high = max(low, middle)
    return best
