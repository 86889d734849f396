"""Intervals for accuracies and paired accuracy drops; pure Python, no torch.

All are two-sided 95 % intervals. A drop compares two models on the *same* images, so its interval
is paired; the naive Wald interval says "plus or minus 0" when no image changed sides, these do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from random import Random
from statistics import NormalDist
from typing import cast

from psvit_core.errors import RecordError

Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(n_correct: int, n_images: int) -> tuple[float, float]:
    """Wilson score interval of an accuracy, as fractions.

    Raises:
        RecordError: If ``n_images`` is 0 or ``n_correct`` is outside ``0..n_images``.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22; method 3 of Newcombe 1998.
    """
    if not 0 <= n_correct <= n_images or n_images == 0:
        raise RecordError(f"{n_correct} correct of {n_images} images is no accuracy.")
    p = n_correct / n_images
    z2 = Z95**2
    centre = (2 * n_correct + z2) / (2 * (n_images + z2))
    half = Z95 * sqrt(z2 + 4 * n_correct * (1 - p)) / (2 * (n_images + z2))
    # At p = 0 and 1 one limit is exactly 0 or 1; rounding must not move it outside.
    low = 0.0 if n_correct == 0 else centre - half
    high = 1.0 if n_correct == n_images else centre + half
    return max(0.0, low), min(1.0, high)


def cluster_interval(
    sums: Sequence[float], sizes: Sequence[int], resamples: int = 2000
) -> tuple[float, float]:
    """Interval of a mean over images that come in batches which influence each other.

    Args:
        sums: Sum over the images of each batch: correct ones, or baseline minus pruned.
        sizes: Images of each batch.
        resamples: Bootstrap resamples of whole batches; seeded.

    Returns:
        2.5th and 97.5th percentile of the bootstrap means. With fewer than two batches nothing is
        known: (-inf, inf).

    Source:
        Cluster bootstrap: Davison and Hinkley 1997, Bootstrap Methods, section 3.8.
    """
    n = len(sums)
    if n < 2:
        return float("-inf"), float("inf")
    random = Random(0)
    means = []
    for _ in range(resamples):
        chosen = random.choices(range(n), k=n)
        means.append(sum(sums[i] for i in chosen) / sum(sizes[i] for i in chosen))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def paired_drop_interval(
    both: int, only_baseline: int, only_pruned: int, neither: int
) -> tuple[float, float, float]:
    """Accuracy drop from baseline to pruned on the same images, with its interval.

    Args:
        both: Images that both models classify correctly.
        only_baseline: Images that only the baseline classifies correctly.
        only_pruned: Images that only the pruned model classifies correctly.
        neither: Images that neither classifies correctly.

    Returns:
        (drop, low, high) as fractions; positive: the pruned model is worse.

    Source:
        Newcombe 1998, Stat. Med. 17, 2635-2650, method 10 (Wilson limits with a
        continuity-corrected correlation).
    """
    n = both + only_baseline + only_pruned + neither
    n_baseline, n_pruned = both + only_baseline, both + only_pruned
    p1, p2 = n_baseline / n if n else 0.0, n_pruned / n if n else 0.0
    low1, high1 = wilson_interval(n_baseline, n)
    low2, high2 = wilson_interval(n_pruned, n)
    margins = n_baseline * (n - n_baseline) * n_pruned * (n - n_pruned)
    phi = 0.0
    if margins:
        excess = both * neither - only_baseline * only_pruned
        corrected = max(excess - n / 2, 0.0) if excess > 0 else float(excess)
        phi = corrected / sqrt(margins)
    down = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    up = (high1 - p1) ** 2 - 2 * phi * (high1 - p1) * (p2 - low2) + (p2 - low2) ** 2
    drop = (only_baseline - only_pruned) / n
    return drop, drop - sqrt(max(down, 0.0)), drop + sqrt(max(up, 0.0))


def drop_bounds_of_all(
    only_baseline: int, only_pruned: int, n_seen: int, n_all: int, alpha: float
) -> tuple[float, float]:
    """Bounds of the drop on all images of a split, from some of them drawn without replacement.

    The numbers of images that only one of the two models gets right are bounded each for itself
    (exact hypergeometric limits, a quarter of ``alpha`` on each side), so the result is
    conservative.

    Args:
        only_baseline: Seen images that only the baseline classifies correctly.
        only_pruned: Seen images that only the pruned model classifies correctly.
        n_seen: Images seen.
        n_all: Images of the split.
        alpha: Chance that the bounds do not hold.

    Returns:
        (low, high) as fractions; equal when all images were seen.

    Source:
        Konijn 1973, Statistical Theory of Sample Survey Design, on the exact test's inversion.
    """
    lost = _total_bounds(only_baseline, n_seen, n_all, alpha / 4)
    won = _total_bounds(only_pruned, n_seen, n_all, alpha / 4)
    return (lost[0] - won[1]) / n_all, (lost[1] - won[0]) / n_all


def _total_bounds(k: int, n_seen: int, n_all: int, tail: float) -> tuple[int, int]:
    """Bounds of how many of all images have a property that ``k`` of the seen ones have."""
    from scipy.stats import hypergeom  # not needed by who only reads tables of whole sweeps

    least, most = k, n_all - n_seen + k

    def plausible_low(total: int) -> bool:  # not too few for so many seen
        return cast(float, hypergeom.sf(k - 1, n_all, total, n_seen)) > tail

    def plausible_high(total: int) -> bool:
        return cast(float, hypergeom.cdf(k, n_all, total, n_seen)) > tail

    a, b = least, most
    while a < b:
        middle = (a + b) // 2
        if plausible_low(middle):
            b = middle
        else:
            a = middle + 1
    low = a
    a, b = least, most
    while a < b:
        middle = (a + b + 1) // 2
        if plausible_high(middle):
            a = middle
        else:
            b = middle - 1
    return low, a
