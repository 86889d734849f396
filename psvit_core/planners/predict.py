"""What a plan is expected to cost, from the table alone: predictions, not measurements; no torch.

Groups are swept one at a time, so what several do together is an assumption. Two are used here.
Drops are added (``predict_drop``). KLs are combined by ``joint_kl``: their sum is right where
effects are independent, the square of the summed roots where they all point the same way. Beside
30 made plans of each of two demo models, 300 images, the roots put plans of all kinds in the better
order (rank correlation with the measured KL 0.98 and 0.98; the sum: 0.96 and 0.88).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psvit_core.errors import TargetError
from psvit_core.plans import reached_ratios
from psvit_core.records import (
    ChannelGroup,
    Interval,
    Measurement,
    SensitivityRow,
    SensitivityTable,
    n_pruned,
)

Array = np.ndarray[Any, Any]

_LEAST = 0.25  # pp: below it a ratio of two drops says nothing
_CLIP = (0.25, 8.0)  # a calibration outside is not believed


def group_drop(table: SensitivityTable, group: ChannelGroup, ratio: float) -> float:
    """One group's own drop at a ratio, percentage points.

    Linear between measured cells, from 0 at ratio 0; gains count as 0. Beyond the last cell, where
    nothing was measured, the last slope goes on.

    Raises:
        TargetError: If the table has no cell of the group.
    """
    return float(np.interp(n_pruned(ratio, group.n_units, group.heads), *group_curve(table, group)))


def group_curve(table: SensitivityTable, group: ChannelGroup) -> tuple[list[int], list[float]]:
    """The points of ``group_drop``: units that go, from none to all, and the drop there."""
    rows = group_rows(table, group)
    at = [0, *(r.n_pruned for r in rows)]
    drops = [0.0, *(max(r.drop.value, 0.0) for r in rows)]
    return [*at, group.n_units], [*drops, min(_gone_on(at, drops, group), largest_drop(table))]


def _gone_on(at: Sequence[int], values: Sequence[float], group: ChannelGroup) -> float:
    """The value where all units go, if the last slope goes on; never less than the last value."""
    if len(at) < 2:
        return values[-1]
    slope = max(values[-1] - values[-2], 0.0) / (at[-1] - at[-2])
    return float(values[-1] + slope * (group.n_units - at[-1]))


def largest_drop(table: SensitivityTable) -> float:
    """From the unpruned accuracy to that of a guess, percentage points: predictions end there."""
    return 100 * max(table.baseline_accuracy.value - 1 / table.summary.num_classes, 0.0)


def group_rows(table: SensitivityTable, group: ChannelGroup) -> list[SensitivityRow]:
    """A group's cells by what they remove, one for each reached count that removes something.

    Raises:
        TargetError: If the table has no cell of the group.
    """
    rows = table.by_group.get(group.group_id)
    if not rows:
        raise TargetError(
            f"The table has no cell of {group.group_id!r} yet. Finish the sweep, then plan."
        )
    return list({r.n_pruned: r for r in rows if r.n_pruned}.values())


def predicted_drops(
    table: SensitivityTable, ratios: Mapping[str, float], calibration: float = 1.0
) -> dict[str, float]:
    """Each group's predicted share of the drop, percentage points.

    Args:
        table: Sensitivities of the model.
        ratios: Prune ratio by ``group_id``; absent groups stay whole.
        calibration: A factor from ``calibrate``.
    """
    return {
        g.group_id: calibration * group_drop(table, g, ratios.get(g.group_id, 0.0))
        for g in table.summary.groups
    }


def predict_drop(
    table: SensitivityTable, ratios: Mapping[str, float], calibration: float = 1.0
) -> float:
    """Predicted accuracy drop of these prune ratios together, percentage points.

    The sum of the groups' own measured drops, linear between measured ratios, gains counted as 0.
    At most ``largest_drop``: sums know no such end. A prediction: groups interact, so the true drop
    of many groups is usually larger.
    """
    return min(sum(predicted_drops(table, ratios, calibration).values()), largest_drop(table))


def predict_drop_interval(
    table: SensitivityTable, ratios: Mapping[str, float], calibration: float = 1.0
) -> Interval:
    """A predicted drop with the range in which the measured one is expected, percentage points.

    Low and high stand off the sum of drops by the root of the summed squares of the half-widths of
    the cells' intervals. High is at least the drop that a cell of the joint KL would have, with the
    joint KL half-way (geometric mean) between independent and fully coherent groups; that
    accounts for interaction and dominates in deep plans. Where a group goes beyond its last cell,
    nothing was measured: high is ``largest_drop``, which none exceeds. A prediction, not a
    confidence interval.
    """
    value = predict_drop(table, ratios, calibration)
    below = above = 0.0
    beyond = False
    for group in table.summary.groups:
        reached = n_pruned(ratios.get(group.group_id, 0.0), group.n_units, group.heads)
        if reached:
            rows = group_rows(table, group)
            beyond |= not rows or reached > rows[-1].n_pruned
            for row in [r for r in rows if r.n_pruned >= reached][:1] or rows[-1:]:
                below += (row.drop.value - row.drop.low) ** 2
                above += (row.drop.high - row.drop.value) ** 2
    kls = list(group_kls(table, ratios).values())
    coherent = _drop_at(table, float(np.sqrt(joint_kl(kls, 1.0) * joint_kl(kls, 0.5))))
    high = max(value + calibration * float(np.sqrt(above)), coherent)
    low = max(value - calibration * float(np.sqrt(below)), 0.0)
    most = largest_drop(table)
    return Interval(value=value, low=low, high=most if beyond else min(high, most))


def group_kls(table: SensitivityTable, ratios: Mapping[str, float]) -> dict[str, float]:
    """Each group's own KL at its ratio, nats; see ``kl_at``."""
    return {
        g.group_id: float(
            kl_at(table, g, n_pruned(ratios.get(g.group_id, 0.0), g.n_units, g.heads))
        )
        for g in table.summary.groups
    }


def kl_at(table: SensitivityTable, group: ChannelGroup, removed: int | Array) -> Array:
    """A group's own KL where ``removed`` units go, nats, never falling with it.

    Between cells the root of the KL is linear (KL grows with the square of a small disturbance); a
    cell below an earlier one counts as that one (running maximum), so that luck is not trusted.
    Beyond the last cell the last slope goes on.
    """
    rows = group_rows(table, group)
    roots = list(np.sqrt(np.maximum.accumulate([0.0, *(max(r.kl, 0.0) for r in rows)])))
    at = [0, *(r.n_pruned for r in rows)]
    end = _gone_on(at, roots, group)
    return np.asarray(np.interp(removed, [*at, group.n_units], [*roots, end])) ** 2


def drop_at(table: SensitivityTable, group: ChannelGroup, removed: Array) -> Array:
    """A group's own drop where ``removed`` units go, percentage points, never falling with it."""
    at, drops = group_curve(table, group)
    return np.interp(removed, at, np.maximum.accumulate(drops))


def joint_kl(kls: Sequence[float], power: float) -> float:
    """KL of groups together: ``(sum of kl ** power) ** (1 / power)``; 1 independent, 0.5 coherent.

    A prediction, in nats.
    """
    return float(np.sum(np.power(kls, power)) ** (1 / power))


def _drop_at(table: SensitivityTable, kl: float) -> float:
    """The drop that the table's cells have at a KL: isotonic regression over all cells."""
    cells = sorted((r.kl, max(r.drop.value, 0.0)) for r in table.rows)
    blocks: list[tuple[float, int]] = []  # (mean drop, cells), rising
    for _, drop in cells:
        mean, count = drop, 1
        while blocks and blocks[-1][0] >= mean:
            above, n = blocks.pop()
            mean, count = (mean * count + above * n) / (count + n), count + n
        blocks.append((mean, count))
    drops = np.repeat([m for m, _ in blocks], [n for _, n in blocks])
    return float(np.interp(kl, [0.0, *(k for k, _ in cells)], [0.0, *drops]))


def calibrate(table: SensitivityTable, measured: Sequence[Measurement]) -> float:
    """How far measured drops stand above the sums of single drops: a factor for predictions.

    The median over measured plans of measured to predicted drop, both at least a quarter of a
    point, clipped to [0.25, 8]. 1 where no measurement has a plan of this model and a drop. Good
    for plans like the measured ones only: interaction grows with the saving.
    """
    factors = []
    for m in measured:
        if m.plan is None or m.drop is None or m.weights_hash != table.summary.weights_hash:
            continue
        predicted = predict_drop(table, reached_ratios(table.summary, m.plan))
        factors.append(max(m.drop.value, _LEAST) / max(predicted, _LEAST))
    return float(np.clip(np.median(factors), *_CLIP)) if factors else 1.0
