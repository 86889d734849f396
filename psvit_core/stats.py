"""Confidence intervals for accuracies and paired accuracy drops, in pure Python.

All intervals are two-sided with 95 % confidence unless stated otherwise. A drop compares two models
on the *same* images, so its interval is paired. The simple Wald interval has zero width when both
models get the same images right; the intervals here do not, nor do those over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from random import Random
from statistics import NormalDist
from typing import cast

from psvit_core.errors import RecordError

Z95 = NormalDist().inv_cdf(0.975)


def wilson_interval(n_correct: int, n_images: int) -> tuple[float, float]:
    """Return the Wilson score interval of an accuracy, as fractions.

    Args:
        n_correct: Images classified correctly.
        n_images: All images.

    Returns:
        (low, high) in [0, 1].

    Raises:
        RecordError: If ``n_images`` is 0 or ``n_correct`` is outside ``0..n_images``.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22; method 3 of Newcombe 1998.
    """
    if not 0 <= n_correct <= n_images or n_images == 0:
        raise RecordError(f"{n_correct} correct of {n_images} images is not an accuracy.")
    p = n_correct / n_images
    z2 = Z95**2
    centre = (2 * n_correct + z2) / (2 * (n_images + z2))
    half = Z95 * sqrt(z2 + 4 * n_correct * (1 - p)) / (2 * (n_images + z2))
    # At p = 0 and 1 one limit is exactly 0 or 1; keep rounding from moving it.
    low = 0.0 if n_correct == 0 else centre - half
    high = 1.0 if n_correct == n_images else centre + half
    return max(0.0, low), min(1.0, high)


def cluster_interval(
    sums: Sequence[float],
    sizes: Sequence[int],
    resamples: int = 2000,
    *,
    independent: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Return the interval of a mean over images whose results depend on their batch.

    Batches that happen to agree say little about how batches vary: a bootstrap of five batches
    without a correct image is a point. The result therefore contains the interval for independent
    images.

    Args:
        sums: Sum over the images of each batch: correct ones, or baseline minus pruned.
        sizes: Number of images in each batch.
        resamples: Seeded bootstrap resamples of whole batches.
        independent: Interval as if the images were independent; None: Wilson's, with ``sums`` as
            correct images.

    Returns:
        2.5th and 97.5th percentile of the bootstrap means, moved out to ``independent`` where they
        lie inside; (-inf, inf) for fewer than two batches.

    Raises:
        RecordError: If ``independent`` is None and the sums are not numbers of correct images.

    Source:
        Cluster bootstrap: Davison and Hinkley 1997, Bootstrap Methods, section 3.8.
    """
    n = len(sums)
    if n < 2:
        return float("-inf"), float("inf")
    low, high = independent or wilson_interval(round(sum(sums)), sum(sizes))
    random = Random(0)
    means = []
    for _ in range(resamples):
        chosen = random.choices(range(n), k=n)
        means.append(sum(sums[i] for i in chosen) / sum(sizes[i] for i in chosen))
    means.sort()
    return min(low, means[int(0.025 * resamples)]), max(high, means[int(0.975 * resamples) - 1])


def paired_drop_interval(
    both: int, only_baseline: int, only_pruned: int, neither: int
) -> tuple[float, float, float]:
    """Return the accuracy drop from baseline to pruned on the same images, with its interval.

    Args:
        both: Images that both models classify correctly.
        only_baseline: Images that only the baseline classifies correctly.
        only_pruned: Images that only the pruned model classifies correctly.
        neither: Images that neither classifies correctly.

    Returns:
        (drop, low, high) as fractions; positive if the pruned model is worse.

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
    """Bound the drop on a split from a random sample of its images without replacement.

    The counts of images that only one of the two models gets right are bounded separately (exact
    hypergeometric limits, a quarter of ``alpha`` on each side), so the result is conservative.

    Args:
        only_baseline: Sampled images that only the baseline classifies correctly.
        only_pruned: Sampled images that only the pruned model classifies correctly.
        n_seen: Sampled images.
        n_all: All images of the split.
        alpha: Probability that the bounds do not hold.

    Returns:
        (low, high) as fractions; equal if all images were sampled.

    Source:
        Konijn 1973, Statistical Theory of Sample Survey Design, on the exact test's inversion.
    """
    lost = _total_bounds(only_baseline, n_seen, n_all, alpha / 4)
    won = _total_bounds(only_pruned, n_seen, n_all, alpha / 4)
    return (lost[0] - won[1]) / n_all, (lost[1] - won[0]) / n_all


def accuracy_bounds_of_all(
    n_correct: int, n_seen: int, n_all: int, alpha: float
) -> tuple[float, float]:
    """Bound the accuracy on a split from a random sample of its images without replacement.

    Args:
        n_correct: Sampled images that are classified correctly.
        n_seen: Sampled images.
        n_all: All images of the split.
        alpha: Probability that the bounds do not hold.

    Returns:
        (low, high) as fractions; equal if all images were sampled.
    """
    low, high = _total_bounds(n_correct, n_seen, n_all, alpha / 2)
    return low / n_all, high / n_all


def mean_bounds_of_batches(
    sums: Sequence[float], sizes: Sequence[int], n_all: int, least: float, alpha: float
) -> tuple[float, float]:
    """Bound a mean over all images from some batches, if the images of a batch depend on it.

    Args:
        sums: Sum over the images of each batch so far; batches come in random order.
        sizes: Number of images in each batch, equal but for the last one of the split.
        n_all: All images of the split.
        least: Least value of an image, 0 or -1; the largest is 1.
        alpha: Probability that the bounds do not hold.

    Source:
        Serfling 1974, Ann. Stat. 2, 39-48 (Hoeffding's inequality without replacement).
    """
    full = sizes[0]
    n_full = n_all // full  # batches of the whole split, without a shorter last one
    seen = [s / full for s, size in zip(sums, sizes, strict=True) if size == full]
    mean = sum(seen) / len(seen)
    unseen = 1 - (len(seen) - 1) / n_full if len(seen) < n_full else 0.0
    half = (1 - least) * sqrt(unseen * log(2 / alpha) / (2 * len(seen)))
    share = n_full * full / n_all
    low = share * max(mean - half, least) + (1 - share) * least
    high = share * min(mean + half, 1.0) + (1 - share)
    return low, high


def look_sizes(n_all: int, batch: int) -> list[int]:
    """Return the numbers of images after which an estimate may be shown: fixed in advance.

    Each look is at least a tenth further than the one before. If each look's bounds fail with
    probability ``alpha / len(look_sizes(...))``, all of them hold together with ``1 - alpha``,
    whenever one looks or stops.
    """
    sizes, n = [], batch
    while n < n_all:
        sizes.append(n)
        n += max(1, n // (10 * batch)) * batch
    return sizes


def _total_bounds(k: int, n_seen: int, n_all: int, tail: float) -> tuple[int, int]:
    """Bound how many of all images have a property that ``k`` sampled images have."""
    from scipy.stats import hypergeom  # slow to import; only progressive sweeps need it

    least, most = k, n_all - n_seen + k

    def not_too_small(total: int) -> bool:
        return cast(float, hypergeom.sf(k - 1, n_all, total, n_seen)) > tail

    def not_too_large(total: int) -> bool:
        return cast(float, hypergeom.cdf(k, n_all, total, n_seen)) > tail

    low, high = least, most
    while low < high:
        middle = (low + high) // 2
        if not_too_small(middle):
            high = middle
        else:
            low = middle + 1
    smallest = low
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        if not_too_large(middle):
            low = middle
        else:
            high = middle - 1
    return smallest, low
