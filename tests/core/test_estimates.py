"""Intervals of a running measurement, by simulation: the final figure lies in all of them at once.

Populations have a known number of lost and won images. Their images run in a random order, and one
looks whenever a result may be shown, which is more often than any user can.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from psvit_core import stats
from psvit_core.estimates import Watch
from psvit_core.records import Interval, Partial
from psvit_core.stats import drop_bounds_of_all, look_sizes, paired_drop_interval
from psvit_core.storage.predictions import Outcome

N_IMAGES, N_RUNS = 750, 40
BATCHES = (125, 50)
#: Images that only the unpruned model gets right, and only the pruned one, of 750.
POPULATIONS = [(2, 1), (22, 7), (100, 15)]


@pytest.fixture(autouse=True)
def quick_and_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report at every look, whatever the time, and compute equal bounds once."""
    monkeypatch.setattr(stats, "_total_bounds", cache(stats._total_bounds))

    def report(watch: Watch, make: Callable[[], Partial]) -> None:
        watch._report(make())

    monkeypatch.setattr(Watch, "_when_due", report)


class Images:
    """As much of an ``EvalSet`` as a running measurement asks for; the right class is 0."""

    def __init__(self, ids: Any) -> None:
        self.ids, self.labels = tuple(ids), [0] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


def looks_of(ours: Any, theirs: Any, batch: int) -> list[Partial]:
    """Return all partial results of a run whose images come in this order.

    Args:
        ours: Whether the measured model is right, (n_images,) bool.
        theirs: The same for the unpruned model.
        batch: Images per batch.
    """
    zeros, ids = np.zeros(len(ours)), np.arange(len(ours)).astype(str)
    base = Outcome(ids=ids, labels=zeros, predictions=~theirs, kl=zeros, sops=zeros)
    data: Any = Images(ids)
    found: list[Partial] = []
    seen = Watch(found.append, batch).subject(data, base, None)
    for first in range(0, len(ours), batch):
        wrong = ~ours[first : first + batch]
        seen(np.stack([~wrong, wrong], axis=1).astype(float))
    return found


def runs_of(lost: int, won: int, batch: int) -> list[list[Partial]]:
    """Return the partial results of ``N_RUNS`` orders of one population's images."""
    rng = np.random.default_rng([lost, won, batch])
    ours, theirs = np.ones(N_IMAGES, dtype=bool), np.ones(N_IMAGES, dtype=bool)
    ours[:lost], theirs[lost : lost + won] = False, False
    both_wrong = slice(N_IMAGES - 40, N_IMAGES)
    ours[both_wrong] = theirs[both_wrong] = False
    orders = (rng.permutation(N_IMAGES) for _ in range(N_RUNS))
    return [looks_of(ours[order], theirs[order], batch) for order in orders]


@pytest.mark.parametrize("batch", BATCHES)
def test_the_final_figures_lie_in_the_intervals_of_all_looks(batch: int) -> None:
    for lost, won in POPULATIONS:
        runs = runs_of(lost, won, batch)
        drop = 100 * (lost - won) / N_IMAGES
        accuracy = 1 - (lost + 40) / N_IMAGES
        for final, of in ((drop, "drop"), (accuracy, "accuracy")):
            held = sum(
                all(i.low - 1e-9 <= final <= i.high + 1e-9 for i in intervals(looks, of))
                for looks in runs
            )
            # a true 95 % gives fewer only once in a thousand
            assert held >= binom.ppf(0.001, N_RUNS, 0.95), (lost, won, of, held)
        assert all([p.n_images for p in looks] == look_sizes(N_IMAGES, batch) for looks in runs)


def intervals(looks: list[Partial], of: str) -> list[Interval]:
    """Return one figure's interval at each look."""
    return [getattr(look, of) for look in looks]


@pytest.mark.parametrize("batch", BATCHES)
def test_looking_often_costs_little_width(batch: int) -> None:
    """After a third of the images: against one look, and against the usual paired interval.

    The usual one is of the 250 images alone, as if they were all; it allows no second look.
    """
    alpha = 0.05 / len(look_sizes(N_IMAGES, batch))
    for lost, won in POPULATIONS:
        against_one_look, against_paired = [], []
        for seed in range(20):
            seen = np.random.default_rng([seed, lost]).permutation(N_IMAGES)[:250]
            n_lost = int((seen < lost).sum())
            n_won = int((seen < lost + won).sum()) - n_lost
            widths = [
                np.diff(drop_bounds_of_all(n_lost, n_won, 250, N_IMAGES, a))[0]
                for a in (alpha, 0.05)
            ]
            _, low, high = paired_drop_interval(250 - n_lost - n_won, n_lost, n_won, 0)
            against_one_look.append(widths[0] / widths[1])
            against_paired.append(widths[0] / (high - low))
        assert 1 < np.median(against_one_look) < 2
        assert np.median(against_paired) < 2
