"""Predicted drops, calibrated with joint plans that the sweep measured; no torch.

The table's cells prune one group each, so what several groups lose together is not in them. A
sweep therefore also measures a few joint plans (``sensitivity.joint``). ``JointModel`` is a
Gaussian process regression over them:

- The drop is predicted on a logistic scale between 0 and the drop to chance level.
- The mean is linear in what the cells say (the drop of a single cell with the plan's KL, if the
  groups' effects were independent, and halfway to coherent) and in the plan's memory saving. It
  starts from the cells alone; the joint plans correct it.
- Plans that prune the groups alike, with a similar total of their KLs, err alike. So a plan near
  measured ones follows them and has a narrow range; far from them the range is wide.
- The regression errs in the logarithm of a drop. On the logistic scale, which ends at 0, small
  drops therefore err less: by the slope of ``log(drop + offset)`` over ``log(drop)``.
- How far is far is not known from a few plans: predictions are averaged over a grid of lengths,
  weighted by their likelihood.
- A joint plan's drop is known from a part of the images only. How well follows from the drop that
  the regression itself finds there, not from the measured one: a lucky 0 is not a certain one.

Joint plans of a recovered sweep are recovered like its cells, by a refit of the readers. Where that
loses much, ``auto`` takes a better method, by which the sweep recovers a few of them again
(``JointRow.auto_drop``). Predictions under ``auto`` follow those, and leave out the other plans
that lose much by the refit alone (``for_recovery``).

A table without joint plans is predicted by the sum of drops (``planners.predict``).
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import size_at
from psvit_core.planners.predict import (
    Array,
    group_kls,
    isotonic_drop,
    joint_kl,
    largest_drop,
    sum_interval,
    sum_of_drops,
)
from psvit_core.records import Interval, JointRow, Measurement, SensitivityTable, n_pruned

MIN_JOINT = 8  # fewer joint plans than this calibrate nothing
#: Drop of a recovered joint plan from which ``auto`` may do much better, percentage points.
MUCH_LOST = 3.0
#: Recoveries of plans that do no more for a large drop than the cells' own.
_LIKE_CELLS = ("none", "bn", "lsq", "both")

_OFFSET = 1.0  # pp; drops are compared on the scale log((drop + offset) / (rest + offset))
_MEAN = np.array([0.0, 0.5, 0.5, 0.0])  # of the coefficients, before any joint plan
_MEAN_VARIANCE = np.array([2.0, 0.3, 0.3, 0.3])
_RATIO_SCALE = 4.0  # a root mean square difference of 25 % between prune ratios is one unit
_LEAST_KL = 0.05  # square root, nats: smaller ones do not differ
_NOISE = 0.03  # on the logistic scale, of any plan: rounding flips single spikes
#: Lengths over the total KL (logarithm), squared lengths over ratios, sizes of deviations.
_GRID = tuple(itertools.product((0.7, 1.5, 3.0), (0.1, 0.3, 1.0, 3.0), (0.3, 0.6, 1.0)))
_USUAL_SIZE, _SIZE_SPREAD = 0.6, 0.5  # prior of the deviation's size, log-normal
_WIDTH = 1.645 * 1.2  # half-widths: 90 % of a normal, and more for what the model does not know
_LEAST_HALF_WIDTH = 0.3  # pp
_LEAST_SLOPE = 0.2  # cells without any drop do not make a plan's drop certain
_ROUNDS = 2  # of the regression: the second one has the first one's drops in the noise
_LEAST_LOG_WEIGHT = -7.0  # lengths that are less likely than the best by a factor of 1,000 drop out


def predict_drop(
    table: SensitivityTable, ratios: Mapping[str, float], calibration: float = 1.0
) -> float:
    """Predict the joint accuracy drop of prune ratios, percentage points.

    Arguments as for ``predict_drop_interval``, whose value this is.
    """
    model = joint_model(table)
    if model is None:
        return sum_of_drops(table, ratios, calibration)
    return model.drop(ratios).value


def predict_drop_interval(
    table: SensitivityTable, ratios: Mapping[str, float], calibration: float = 1.0
) -> Interval:
    """Predict the drop and the range in which the measured one is expected, percentage points.

    Args:
        table: Sensitivities of the model. If joint plans calibrate it (``is_calibrated``), the
            range is made to contain 9 of 10 measured drops; otherwise it is ``sum_interval``.
        ratios: Prune ratio by ``group_id``; absent groups are not pruned.
        calibration: Factor from ``calibrate``; only for tables without joint plans.
    """
    model = joint_model(table)
    return sum_interval(table, ratios, calibration) if model is None else model.drop(ratios)


def is_calibrated(table: SensitivityTable) -> bool:
    """Return whether joint plans calibrate the predictions from this table."""
    return len(table.joint) >= MIN_JOINT


def prediction_note(table: SensitivityTable) -> str:
    """Return what the range of a prediction is, in words."""
    if is_calibrated(table):
        n_plans = len(_calibrating(table.joint)[0])
        return (
            f"calibrated with {n_plans} joint plans that the sweep measured; 9 of 10 "
            "plans land inside the range"
        )
    return (
        "the sum of the groups' own drops: this sweep measured no joint plans, so the range is "
        "only a rough guide"
    )


def with_measured(table: SensitivityTable, measured: Sequence[Measurement]) -> SensitivityTable:
    """Return the table with measured plans among its joint plans, to recalibrate predictions.

    A prediction from the result must not be compared with any of these measurements.

    Args:
        table: A calibrated table.
        measured: Measurements; those of other models, without plan or without drop are ignored.
    """
    has_auto = any(row.auto_drop for row in table.joint)
    rows = [
        JointRow(
            policy=m.plan.policy,
            ratios=_pruned_only(reached_ratios(table.summary, m.plan)),
            drop=m.drop,
            kl=m.kl or 0.0,
            n_images=m.conditions.n_images,
            auto_drop=m.drop if has_auto else None,
        )
        for m in measured
        if m.plan and m.plan.kept and m.drop and m.weights_hash == table.summary.weights_hash
    ]
    return replace(table, joint=(*table.joint, *rows)) if rows else table


def for_recovery(table: SensitivityTable, method: str) -> SensitivityTable:
    """Return the table that predicts plans under a recovery.

    A table itself predicts those under ``auto`` where its sweep was recovered.

    Args:
        table: A table; one of a sweep that is recovered as the method demands.
        method: One of ``RECOVERIES``.
    """
    if method not in _LIKE_CELLS or not any(row.auto_drop for row in table.joint):
        return table
    return replace(table, joint=tuple(replace(row, auto_drop=None) for row in table.joint))


def _calibrating(rows: Sequence[JointRow]) -> tuple[list[JointRow], list[float]]:
    """Return the joint plans that the regression uses, and their drops."""
    if any(row.auto_drop for row in rows):
        rows = [row for row in rows if row.auto_drop or row.drop.value < MUCH_LOST]
    return list(rows), [row.calibrating_drop.value for row in rows]


def _pruned_only(ratios: Mapping[str, float]) -> dict[str, float]:
    return {group: ratio for group, ratio in ratios.items() if ratio}


# ---- the regression ------------------------------------------------------------------------------


Lengths = tuple[float, float, float]


@dataclass(frozen=True)
class _Points:
    """Plans as the regression sees them."""

    basis: Array  # (plans, 4): what the mean is linear in
    total: Array  # (plans, 1): logarithm of the total KL
    ratios: Array  # (plans, groups), scaled
    slope: Array  # (plans,): of the logistic scale over the logarithm of the drop

    def distances(self, other: _Points) -> _Distances:
        """Return what the covariance between the two sets of plans is computed from."""
        return _Distances(
            total=_squares(self.total, other.total),
            ratios=_squares(self.ratios, other.ratios),
            slopes=np.outer(self.slope, other.slope),
            mean=self.basis @ np.diag(_MEAN_VARIANCE) @ other.basis.T,
        )

    def variances(self) -> Array:
        """Return the variance of each plan's mean, before any joint plan."""
        return np.asarray(np.square(self.basis) @ _MEAN_VARIANCE)


@dataclass(frozen=True)
class _Distances:
    """Squared distances between two sets of plans, (plans, plans) each."""

    total: Array
    ratios: Array
    slopes: Array  # products of slopes
    mean: Array  # covariance of the means

    def covariance(self, lengths: Lengths) -> Array:
        """Return the covariance between the two sets of plans, before any joint plan."""
        by_total, by_ratios, size = lengths
        distance = self.total / by_total**2 + self.ratios / by_ratios
        return np.asarray(size**2 * self.slopes * np.exp(-distance / 2) + self.mean)


def _squares(a: Array, b: Array) -> Array:
    """Return the squared distances between the rows of two arrays."""
    return np.asarray(((a[:, None] - b[None]) ** 2).sum(-1))


@dataclass(frozen=True)
class _Row:
    """What the cells and the sizes say about a plan."""

    low: float  # pp, drop of a single cell with the plan's KL if groups are independent
    middle: float  # pp, the same if they are halfway to coherent
    saving: float  # of memory
    kl: float  # nats, if groups are independent


@dataclass(frozen=True)
class _Fit:
    """The regression with one choice of lengths."""

    lengths: Lengths
    inverse: Array  # of the joint plans' covariance
    likelihood: float  # logarithm, with the prior of the deviation's size


class JointModel:
    """Predicts drops of plans from a table and its joint plans.

    Args:
        table: A table with joint plans.
    """

    def __init__(self, table: SensitivityTable) -> None:
        self.table = table
        self._most = largest_drop(table)
        self._cells = sorted((r.kl, max(r.drop.value, 0.0)) for r in table.rows)
        self._whole = size_at(table.summary.shapes, {}).bytes
        joint, measured = _calibrating(table.joint)
        self._known = self._points([row.ratios for row in joint])
        self._between = self._known.distances(self._known)
        drops = np.clip(measured, 0, self._most)
        images = [row.effective_images or row.n_images for row in joint]
        self._error = self._scaled(drops) - self._known.basis @ _MEAN
        for _ in range(_ROUNDS):
            self._fit_all(self._noise(drops, np.array(images, dtype=float)))
            drops = self._points_of(self._predicted(self._known)[0])

    def _fit_all(self, noise: Array) -> None:
        """Fit every choice of lengths; keep those that weigh something."""
        fits = [self._fit(lengths, noise) for lengths in _GRID]
        best = max(fit.likelihood for fit in fits)
        self._fits = [f for f in fits if f.likelihood - best > _LEAST_LOG_WEIGHT]
        weights = np.exp([fit.likelihood - best for fit in self._fits])
        self._weights = weights / weights.sum()

    def _fit(self, lengths: Lengths, noise: Array) -> _Fit:
        covariance = self._between.covariance(lengths) + np.diag(noise)
        inverse = np.linalg.inv(covariance)
        size = np.log(lengths[2] / _USUAL_SIZE) / _SIZE_SPREAD
        misfit = self._error @ inverse @ self._error
        determinant = np.linalg.slogdet(covariance)[1]
        return _Fit(lengths, inverse, float(-0.5 * (determinant + misfit + size**2)))

    def drop(self, ratios: Mapping[str, float]) -> Interval:
        """Predict a plan's drop and its range, percentage points.

        A plan of one group is a cell of the sweep, or lies between two: ``sum_interval``.
        """
        removed = [
            g
            for g in self.table.summary.groups
            if n_pruned(ratios.get(g.group_id, 0.0), g.n_units, g.heads)
        ]
        if len(removed) < 2:
            return sum_interval(self.table, ratios)
        values, deviations = self._predicted(self._points([ratios]))
        value, half = values[0], _WIDTH * deviations[0]
        low, mid, high = self._points_of(np.array([value - half, value, value + half])).tolist()
        return Interval(
            value=mid,
            low=low - _LEAST_HALF_WIDTH,  # below 0: pruning may gain a few images
            high=min(high + _LEAST_HALF_WIDTH, self._most),
        )

    def _predicted(self, plans: _Points) -> tuple[Array, Array]:
        """Return mean and standard deviation of each plan's drop on the logistic scale."""
        means, variances = [], []
        shared, own = plans.distances(self._known), plans.variances()
        for fit in self._fits:
            covariance = shared.covariance(fit.lengths)
            explained = np.einsum("ij,jk,ik->i", covariance, fit.inverse, covariance)
            rest = own + np.square(fit.lengths[2] * plans.slope) - explained
            means.append(plans.basis @ _MEAN + covariance @ (fit.inverse @ self._error))
            variances.append(np.maximum(rest, 0.0) + _NOISE**2)
        mean = self._weights @ np.array(means)
        spread = self._weights @ (np.array(variances) + np.square(np.array(means) - mean))
        return mean, np.sqrt(spread)

    def _points(self, plans: Sequence[Mapping[str, float]]) -> _Points:
        rows = [self._row(ratios) for ratios in plans]
        groups = self.table.summary.groups
        ratios = np.array([[plan.get(g.group_id, 0.0) for g in groups] for plan in plans])
        basis = np.array(
            [[1, self._scaled(r.low), self._scaled(r.middle), 4 * (r.saving - 0.5)] for r in rows]
        )
        total = np.array([[2 * np.log(np.sqrt(r.kl) + _LEAST_KL)] for r in rows])
        drops = self._points_of(basis @ _MEAN)
        slope = np.maximum(drops / (drops + _OFFSET), _LEAST_SLOPE)
        return _Points(basis, total, ratios * _RATIO_SCALE / np.sqrt(len(groups)), slope)

    def _row(self, ratios: Mapping[str, float]) -> _Row:
        kls = list(group_kls(self.table, ratios).values())
        independent, coherent = joint_kl(kls, 1.0), joint_kl(kls, 0.5)
        widths = {
            g.group_id: g.n_units - n_pruned(ratios.get(g.group_id, 0.0), g.n_units, g.heads)
            for g in self.table.summary.groups
        }
        saving = 1 - size_at(self.table.summary.shapes, widths).bytes / self._whole
        middle = float(np.sqrt(independent * coherent))
        low, mid = (isotonic_drop(self._cells, kl) for kl in (independent, middle))
        return _Row(low, mid, saving, independent)

    def _scaled(self, drops: Any) -> Any:
        """Return drops in percentage points on the logistic scale."""
        inside = np.clip(drops, 0, self._most)
        return np.log((inside + _OFFSET) / (self._most + _OFFSET - inside))

    def _points_of(self, scaled: Array) -> Array:
        """Return values of the logistic scale in percentage points."""
        odds = np.exp(scaled)
        drops = (odds * (self._most + _OFFSET) - _OFFSET) / (1 + odds)
        return np.clip(drops, 0.0, self._most)

    def _noise(self, drops: Array, images: Array) -> Array:
        """Return the variance of joint drops on a part of the sweep's images, scaled.

        Of ``n`` images drawn from ``N`` without replacement, with a share of the drop discordant;
        0.1 points more, as images are also won.
        """
        of_all = max(self.table.conditions.n_images, 1)
        part = np.maximum(1 / images - 1 / of_all, 0.0) + 4e-6
        deviation = 100 * np.sqrt((drops / 100 + 0.001) * part)
        slope = 1 / (drops + _OFFSET) + 1 / (self._most + _OFFSET - drops)
        return np.asarray((deviation * slope) ** 2 + _NOISE**2)


_MODELS: OrderedDict[int, JointModel] = OrderedDict()  # by the table's id, most recently used last
_MOST_MODELS = 16  # each has dozens of matrices of (joint plans)^2
_lock = threading.Lock()


def joint_model(table: SensitivityTable) -> JointModel | None:
    """Return the table's regression, fitted once; None without enough joint plans."""
    if not is_calibrated(table):
        return None
    # Threads often ask for the same one at once; LAPACK keeps 32 MB for each thread that calls it.
    with _lock:
        if id(table) not in _MODELS:  # a model holds its table, so the id is not used again
            _MODELS[id(table)] = JointModel(table)
        _MODELS.move_to_end(id(table))
        while len(_MODELS) > _MOST_MODELS:
            _MODELS.popitem(last=False)
        return _MODELS[id(table)]
