"""Measure a model or a plan. Torch is imported inside functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from psvit_core.callbacks import Tick, keep_going
from psvit_core.pareto import PlanOrigin
from psvit_core.records import (
    Interval,
    Measurement,
    MemoryAccess,
    Partial,
    PrunePlan,
    RecoverySettings,
)
from psvit_core.storage.frozen import freeze_prediction
from psvit_core.tasks.cautions import precision_warning, with_warnings
from psvit_core.tasks.prune import prune_model
from psvit_core.tasks.recover import keep_point, measure_recovered
from psvit_core.tasks.session import Session
from psvit_core.zoo.cards import ModelCard


def evaluate(
    session: Session,
    plan: PrunePlan | None = None,
    tick: Tick = keep_going,
    *,
    profile: bool = False,
    partial: Callable[[Partial], None] | None = None,
    origin: PlanOrigin | None = None,
    predicted: Interval | None = None,
    pruned: Callable[[Measurement], None] = lambda plain: None,
) -> Measurement:
    """Measure the model, or the model pruned by a plan, and add the plan to the archive.

    Under a session's recovery, the archive gets the plan without and with it.

    Args:
        session: The model and its images.
        plan: The plan; None measures the unpruned model, which the archive does not contain.
        tick: Called before each batch; may raise to stop.
        profile: Also measure run-time memory and latency.
        partial: Called with estimates while the images run.
        origin: How the plan was made, for the archive; its own policy and criterion when None.
        predicted: The drop predicted for the plan under the session's recovery, not fitted to a
            measurement of it, percentage points. A plan's first one is kept for good.
        pruned: Called with the measurement without recovery, if a recovery follows.

    Returns:
        The measurement; under a recovery it contains the one without.
    """
    from psvit_core.evaluate import measure

    recovery = session.recovery if plan else RecoverySettings()
    recovers = recovery.method != "none"
    if plan:
        predicted = freeze_prediction(session.store, plan, _decisive(session, recovery), predicted)

    result = measure(
        session.model,
        session.data,
        plan,
        run=session.run,
        store=session.store,
        summary=session.description,
        profile=profile,
        tick=tick,
        partial=partial,
    )
    if plan:
        result = dataclasses.replace(result, predicted=None if recovers else predicted)
        origin = origin or PlanOrigin(policy=plan.policy, criterion=plan.criterion)
        keep_point(session, result, origin)
        if recovers:
            pruned(result)
            result = measure_recovered(
                session, plan, recovery, origin, result, tick, predicted=predicted
            )
    result, chance = with_warnings(result, session.warnings, session.model.num_classes)
    session.caution(chance)
    _warn_of_precision(session, result, origin)
    return result


def _decisive(session: Session, recovery: RecoverySettings) -> list[int | str]:
    """Return the conditions that a frozen prediction belongs to."""
    method = [recovery.method] if recovery.method != "none" else []
    precision = [session.run.precision] if session.run.is_reduced else []
    return [session.model.T, *method, *precision]


def _warn_of_precision(session: Session, result: Measurement, origin: PlanOrigin | None) -> None:
    doubt = precision_warning(result.precision_check, result.conditions.precision)
    if doubt and not (origin and origin.tried):  # planners measure many candidates
        session.warn(doubt)


def count_memory(session: Session, plan: PrunePlan | None, tick: Tick = keep_going) -> MemoryAccess:
    """Count the memory accesses of the network that ``evaluate`` measures.

    The images run for it, and under a session's recovery the plan is recovered for it.

    Args:
        session: The model and its images.
        plan: The plan; None: the unpruned model.
        tick: Called before each batch; may raise to stop.

    Raises:
        InvalidEnergyError: If the model is a network of a user's own.
    """
    from psvit_core.evaluate import count_memory_access

    model = prune_model(session, plan, session.recovery, tick)[0] if plan else session.model
    return count_memory_access(model, session.data, run=session.run, tick=tick)


def compare_published(card: ModelCard, measured: Measurement) -> tuple[str, bool] | None:
    """Compare a baseline with the published top-1 at its time steps and image size.

    Args:
        card: The model's card.
        measured: Measurement of the unpruned model.

    Returns:
        (one line of text, True if the published value is in the measured 95 % interval), or None
        if nothing comparable was published or measured.
    """
    c, side = measured.conditions, card.transform.crop + 2 * card.transform.pad
    # Published networks have seen CIFAR-10's val, which is a part of the training pictures.
    unseen = ("test",) if card.data == "cifar10" else ("val", "test")
    if c.data.partition(":")[0] != card.data or c.split not in unseen:
        return None
    published = next((p for p in card.published if (p.T, p.px) == (c.T, side)), None)
    if published is None:
        return None
    a = measured.accuracy
    low, value, high = (100 * x for x in (a.low, a.value, a.high))
    line = (
        f"published {published.top1:.2f} % ({published.label}), measured {value:.2f} % "
        f"[{low:.2f}, {high:.2f}] on {c.n_images} images"
    )
    return line, low <= published.top1 <= high
