"""Estimates of a running measurement: the figures so far, with bounds on the final ones."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from psvit_core.data import EvalSet
from psvit_core.records import Interval, Partial
from psvit_core.stats import (
    accuracy_bounds_of_all,
    drop_bounds_of_all,
    look_sizes,
    mean_bounds_of_batches,
)
from psvit_core.storage.predictions import Array, Outcome

Seen = Callable[[Array], None]  # called after each batch with its logits

_PARTIAL_SECONDS = 0.1  # shortest time between two partial results; the first comes at once
_ALPHA = 0.05  # probability that not all partial results of a measurement hold


class Watch:
    """Reports partial results, rarely enough to cost little.

    Args:
        report: Called with each partial result.
        batch: Images per batch.
    """

    def __init__(self, report: Callable[[Partial], None], batch: int) -> None:
        self._report, self._batch = report, batch
        self._next = 0.0  # earliest time of the next report, by time.monotonic
        self._before = 0  # images that the baseline has run

    def before(self, n_images: int) -> Callable[[int, int], None]:
        """Return the callback for the baseline's run, which ``n_images`` further images follow."""

        def seen(done: int, todo: int) -> None:
            self._before = done
            self._when_due(lambda: Partial(done=done, total=todo + n_images))

        return seen

    def subject(self, data: EvalSet, baseline: Outcome | None, cluster: int | None) -> Seen:
        """Return the callback for the measured model's run.

        Args:
            data: The images, in the order in which they run.
            baseline: The unpruned model's results; None without a plan.
            cluster: Batch size if the images of a batch influence each other.
        """
        labels = np.array(data.labels)
        theirs = baseline.select(data.ids).correct if baseline else None
        predictions: list[int] = []
        looks = set(look_sizes(len(data), self._batch))
        alpha = _ALPHA / max(len(looks), 1)
        self._next = 0.0  # report its first batch at once

        def estimate() -> Partial:
            n = len(predictions)
            correct = np.array(predictions) == labels[:n]
            drop = None
            if theirs is not None:
                d = _bounded(correct, theirs[:n], len(data), cluster, alpha)
                drop = Interval(value=100 * d.value, low=100 * d.low, high=100 * d.high)
            return Partial(
                done=self._before + n,
                total=self._before + len(data),
                n_images=n,
                accuracy=_bounded(correct, None, len(data), cluster, alpha),
                drop=drop,
            )

        def seen(logits: Array) -> None:
            predictions.extend(logits.argmax(axis=1).tolist())
            if len(predictions) in looks:  # all images are not a partial result
                self._when_due(estimate)

        return seen

    def _when_due(self, make: Callable[[], Partial]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._report(make())
        cost = time.monotonic() - now  # the bounds on many images are slow
        self._next = time.monotonic() + max(_PARTIAL_SECONDS, 10 * cost)


def _bounded(
    correct: Array, baseline: Array | None, n_all: int, cluster: int | None, alpha: float
) -> Interval:
    """Return a figure of the first images, with bounds on that of all images; fractions.

    Args:
        correct: Whether the model classifies each of the first images correctly.
        baseline: The same for the baseline; the figure is then the drop, else the accuracy.
        n_all: All images; the first ones are a random sample of them.
        cluster: Batch size if the images of a batch influence each other.
        alpha: Probability that the bounds do not hold.
    """
    n = len(correct)
    ours = correct.astype(int)
    values = ours if baseline is None else baseline.astype(int) - ours
    value = float(values.mean())
    if cluster:
        parts = [values[low : low + cluster] for low in range(0, n, cluster)]
        sums, sizes = [float(p.sum()) for p in parts], [len(p) for p in parts]
        least = 0.0 if baseline is None else -1.0
        low, high = mean_bounds_of_batches(sums, sizes, n_all, least, alpha)
    elif baseline is None:
        low, high = accuracy_bounds_of_all(int(ours.sum()), n, n_all, alpha)
    else:
        lost, won = int((values > 0).sum()), int((values < 0).sum())
        low, high = drop_bounds_of_all(lost, won, n, n_all, alpha)
    return Interval(value=value, low=min(low, value), high=max(high, value))
