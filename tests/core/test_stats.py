"""Intervals against SciPy, published examples, the formula written out anew, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from psvit_core.errors import RecordError
from psvit_core.stats import Z95, cluster_interval, paired_drop_interval, wilson_interval
from psvit_core.storage.predictions import Outcome

TABLES = st.tuples(*[st.integers(0, 400)] * 4).filter(any)


@pytest.mark.parametrize("n_images", [1, 2, 10, 75, 750, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97, 1.0])
def test_wilson_equals_scipy(n_images: int, share: float) -> None:
    n_correct = round(share * n_images)
    expected = binomtest(n_correct, n_images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(n_correct, n_images) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_equals_published_example() -> None:
    # Newcombe 1998, Stat. Med. 17, 857-872, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("n_images", [1, 3, 750, 10**6])
def test_wilson_stays_inside_and_is_not_a_point(n_images: int) -> None:
    low, high = wilson_interval(0, n_images)
    assert low == 0.0
    assert 0 < high < 1
    low, high = wilson_interval(n_images, n_images)
    assert high == 1.0
    assert 0 < low < 1


@pytest.mark.parametrize(("n_correct", "n_images"), [(0, 0), (-1, 10), (11, 10), (1, -1)])
def test_wilson_refuses_impossible_counts(n_correct: int, n_images: int) -> None:
    with pytest.raises(RecordError, match=f"{n_correct} correct of {n_images}"):
        wilson_interval(n_correct, n_images)


@pytest.mark.parametrize(
    ("table", "low", "high", "places"),
    [
        # Altman et al. 2000, Statistics with Confidence, table 6.2, method of Newcombe
        ((14, 5, 0, 22), 0.011, 0.226, 3),
        # Cavo et al. 2012; Fagerland, Lydersen & Laake, Statistical Analysis of Contingency
        # Tables, chapter 8, as their R package contingencytables prints it
        ((59, 6, 16, 80), -0.1186, -0.0046, 4),
    ],
)
def test_paired_equals_published_examples(
    table: tuple[int, int, int, int], low: float, high: float, places: int
) -> None:
    drop, got_low, got_high = paired_drop_interval(*table)
    assert drop == pytest.approx((table[1] - table[2]) / sum(table), abs=1e-15)
    assert (round(got_low, places), round(got_high, places)) == (low, high)


def newcombe_method_10(e: int, f: int, g: int, h: int) -> tuple[float, float]:
    """The paper's formula, in its notation: delta, epsilon from Wilson limits, phi corrected."""
    n = e + f + g + h

    def roots(r: int) -> tuple[float, float]:  # of |x - r/n| = z sqrt(x (1 - x) / n)
        a, b, c = n + Z95**2, -(2 * r + Z95**2), r * r / n
        spread = math.sqrt(max(b * b - 4 * a * c, 0.0))
        return (-b - spread) / (2 * a), (-b + spread) / (2 * a)

    (l2, u2), (l3, u3) = roots(e + f), roots(e + g)
    p2, p3 = (e + f) / n, (e + g) / n
    if 0 in (e + f, g + h, e + g, f + h):
        phi = 0.0
    else:
        numerator = float(e * h - f * g)
        if numerator > n / 2:
            numerator -= n / 2
        elif numerator > 0:
            numerator = 0.0
        phi = numerator / math.sqrt((e + f) * (g + h) * (e + g) * (f + h))
    dl2, du2, dl3, du3 = p2 - l2, u2 - p2, p3 - l3, u3 - p3
    delta = math.sqrt(max(dl2**2 - 2 * phi * dl2 * du3 + du3**2, 0.0))
    epsilon = math.sqrt(max(du2**2 - 2 * phi * du2 * dl3 + dl3**2, 0.0))
    return (f - g) / n - delta, (f - g) / n + epsilon


@given(TABLES)
def test_paired_equals_the_formula(table: tuple[int, int, int, int]) -> None:
    _, low, high = paired_drop_interval(*table)
    assert (low, high) == pytest.approx(newcombe_method_10(*table), abs=1e-7)


@given(TABLES)
def test_swapping_the_models_mirrors_the_interval(table: tuple[int, int, int, int]) -> None:
    both, only_baseline, only_pruned, neither = table
    drop, low, high = paired_drop_interval(both, only_baseline, only_pruned, neither)
    mirrored = paired_drop_interval(both, only_pruned, only_baseline, neither)
    assert mirrored == pytest.approx((-drop, -high, -low), abs=1e-9)


@given(TABLES)
def test_interval_holds_the_drop_and_stays_in_range(table: tuple[int, int, int, int]) -> None:
    drop, low, high = paired_drop_interval(*table)
    assert -1 - 1e-12 <= low <= drop <= high <= 1 + 1e-12


@pytest.mark.parametrize("table", [(700, 0, 0, 50), (750, 0, 0, 0), (0, 0, 0, 750), (1, 0, 0, 0)])
def test_no_discordant_pairs_is_not_certainty(table: tuple[int, int, int, int]) -> None:
    drop, low, high = paired_drop_interval(*table)
    assert drop == 0
    assert low < -1e-3
    assert high > 1e-3


def test_three_points_on_750_images_are_known_to_about_one_and_a_half() -> None:
    drop, low, high = paired_drop_interval(700, 30, 8, 12)
    assert 100 * drop == pytest.approx(2.93, abs=0.01)
    assert 1.3 < 100 * (high - low) / 2 < 1.8


@pytest.mark.parametrize("table", [(0, 0, 0, 0), (-1, 0, 0, 5)])
def test_paired_refuses_impossible_counts(table: tuple[int, int, int, int]) -> None:
    with pytest.raises(RecordError):
        paired_drop_interval(*table)


@pytest.mark.parametrize(
    "shares",
    [(0.90, 0.04, 0.02, 0.04), (0.95, 0.01, 0.01, 0.03), (0.60, 0.20, 0.05, 0.15)],
    ids=["small drop", "no drop", "large drop"],
)
def test_paired_interval_covers_the_truth(shares: tuple[float, float, float, float]) -> None:
    n_runs, n_images, truth = 4000, 750, shares[1] - shares[2]
    covered = 0
    for counts in np.random.RandomState(20).multinomial(n_images, shares, size=n_runs).tolist():
        _, low, high = paired_drop_interval(*counts)
        covered += low <= truth <= high
    # 95 % nominal; 4,000 runs know a coverage to about 0.7 points
    assert 0.93 <= covered / n_runs <= 0.985


def test_cluster_interval_covers_when_batches_hang_together() -> None:
    # Batches share their luck: Wilson, which takes images as independent, is far too narrow.
    random = np.random.RandomState(0)
    covered = {"cluster": 0, "wilson": 0}
    for _ in range(200):
        shares = random.beta(8, 2, size=30)
        sums = [int(random.binomial(16, share)) for share in shares]
        low, high = cluster_interval(sums, [16] * 30, resamples=400)
        covered["cluster"] += low <= 0.8 <= high
        low, high = wilson_interval(sum(sums), 16 * 30)
        covered["wilson"] += low <= 0.8 <= high
    assert covered["cluster"] >= 0.9 * 200
    assert covered["wilson"] < covered["cluster"]


def test_cluster_interval_of_one_batch_knows_nothing() -> None:
    assert cluster_interval([7], [10]) == (-math.inf, math.inf)


def test_batches_that_agree_are_not_certainty() -> None:
    assert cluster_interval([0] * 5, [16] * 5) == wilson_interval(0, 80)
    assert cluster_interval([16] * 5, [16] * 5) == wilson_interval(80, 80)
    assert cluster_interval([5, 5], [10, 10]) == wilson_interval(10, 20)
    newcombe = paired_drop_interval(70, 5, 5, 0)[1:]
    assert cluster_interval([0] * 5, [16] * 5, independent=newcombe) == newcombe


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=2, max_size=12))
def test_cluster_interval_contains_wilson(batches: list[tuple[int, int]]) -> None:
    sizes = [size for _, size in batches]
    sums = [min(correct, size) for correct, size in batches]
    low, high = cluster_interval(sums, sizes, resamples=100)
    wilson = wilson_interval(sum(sums), sum(sizes))
    assert low <= wilson[0] <= wilson[1] <= high


def test_batches_that_differ_widen_the_interval() -> None:
    low, high = cluster_interval([0, 16] * 10, [16] * 20)
    wilson = wilson_interval(160, 320)
    assert low < wilson[0] - 0.1
    assert high > wilson[1] + 0.1


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60), st.integers(1, 9)
)
def test_outcomes_of_coupled_batches_are_never_too_sure(
    answers: list[tuple[bool, bool]], batch: int
) -> None:
    ours, theirs = (outcome([answer[i] for answer in answers]) for i in (0, 1))
    for of_batches, of_images in (
        (ours.accuracy(batch), ours.accuracy()),
        (ours.drop_from(theirs, batch), ours.drop_from(theirs)),
    ):
        assert of_batches.value == pytest.approx(of_images.value, abs=1e-12)
        assert of_batches.low <= of_images.low + 1e-12
        assert of_batches.high >= of_images.high - 1e-12


def outcome(correct: list[bool]) -> Outcome:
    labels, zeros = np.zeros(len(correct), dtype=int), np.zeros(len(correct))
    predictions = np.where(correct, 0, 1)
    ids = np.array([f"{i}" for i in range(len(correct))])
    return Outcome(ids=ids, labels=labels, predictions=predictions, kl=zeros, sops=zeros)
