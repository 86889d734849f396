"""Predictions that were made before a measurement; no torch.

The first one of a plan is kept and never rewritten: a later prediction may have been fitted to the
measurement that it would be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

from psvit_core.records import Interval, PrunePlan
from psvit_core.storage.store import Store, digest


def freeze_prediction(
    store: Store, plan: PrunePlan, conditions: Sequence[object], predicted: Interval | None
) -> Interval | None:
    """Keep a plan's prediction before it is measured; return the one that is kept.

    Args:
        store: The store.
        plan: The plan.
        conditions: What else decides the drop, such as the time steps; JSON values.
        predicted: The drop predicted now, percentage points; None without a prediction.

    Returns:
        The first prediction of this plan that was kept; None if there was none.
    """
    kept = {group: list(units) for group, units in plan.kept.items()}
    key = "frozen/" + digest([plan.weights_hash, kept, list(conditions)])
    known = store.get(key)
    if known is not None:
        return Interval.from_dict(known)
    if predicted is not None:
        with store.optional():
            store.put(key, predicted.to_dict())
    return predicted
