"""Measure recovered and fine-tuned models, and add them to the archive of the unpruned model.

Torch is imported inside functions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psvit_core.callbacks import Tick, keep_going
from psvit_core.errors import StoreError
from psvit_core.pareto import PlanOrigin, add_point
from psvit_core.records import (
    FinetuneReport,
    Interval,
    Measurement,
    PrunePlan,
    RecoveryReport,
    RecoverySettings,
)
from psvit_core.storage.store import ENGINE_VERSION, digest
from psvit_core.tasks.prune import prune_model
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.zoo.base import SpikingModel


def measure_recovered(
    session: Session,
    plan: PrunePlan,
    recovery: RecoverySettings,
    origin: PlanOrigin,
    plain: Measurement,
    tick: Tick = keep_going,
    *,
    predicted: Interval | None = None,
) -> Measurement:
    """Measure a plan's recovered model once and store the result.

    Args:
        session: The model and its images.
        plan: The plan.
        recovery: Recovery settings.
        origin: How the plan was made.
        plain: The plan's measurement without recovery; its run-time memory and latency hold here.
        tick: Called before each batch; may raise to stop.
        predicted: The drop predicted for the recovered model before this measurement.

    Returns:
        The measurement of the recovered model, which contains ``plain``.
    """
    from psvit_core.evaluate import measure

    calib = session.calib(recovery.n_images, recovery.seed)
    key = _recovered_key(session, plan, recovery, plain, calib)
    known = session.store.get(key)
    if known is None:
        small, report = prune_model(session, plan, recovery, tick)
        found = measure(
            session.model,
            session.data,
            plan,
            result=small,
            run=session.run,
            store=session.store,
            summary=session.description,
            tick=tick,
        )
        used = report.used if report else "none"
        known = {"measurement": found.to_dict(), "since": since_pruning(small), "used": used}
        with session.store.optional():
            session.store.put(key, known)
    found = Measurement.from_dict(known["measurement"])
    measured = dataclasses.replace(
        recovered_by(found, recovery.method, known.get("used", ""), plain),  # old entries lack it
        plan=plan,
        profile=plain.profile,
        predicted=predicted,
    )
    origin = dataclasses.replace(origin, **known["since"])
    keep_point(session, measured, origin)
    return measured


def keep_point(
    session: Session,
    measured: Measurement,
    origin: PlanOrigin,
    *,
    batch_coupled: bool | None = None,
    weights_hash: str | None = None,
) -> None:
    """Add a measured plan to its archive, as ``add_point``; by default that of a session's model.

    Raises:
        StoreError: If it cannot be written, unless the session takes that (``unkept``).
    """
    try:
        if batch_coupled is None:
            batch_coupled = session.model.batch_coupled
        store = session.store
        add_point(store, measured, origin, batch_coupled=batch_coupled, weights_hash=weights_hash)
    except StoreError as error:
        if session.unkept is None or not error.unwritable:
            raise
        session.unkept(error)


def _recovered_key(
    session: Session,
    plan: PrunePlan,
    recovery: RecoverySettings,
    plain: Measurement,
    calib: EvalSet,
) -> str:
    from psvit_core.recover import VERSION
    from psvit_core.recover.readers import RIDGE

    parts = [
        ENGINE_VERSION,
        VERSION,
        RIDGE,
        session.description.weights_hash,
        plan.to_dict()["kept"],
        plain.conditions.to_dict(),
        list(session.data.ids),
        recovery.to_dict(),
        calib.transform,
        list(calib.ids),
    ]
    return f"recovered/{digest(parts)}"


def recovered_by(
    measured: Measurement, method: str, used: str, plain: Measurement | None
) -> Measurement:
    """Return the measurement of a recovered model with its recovery as a condition.

    Args:
        measured: The measurement.
        method: The recovery that was asked for.
        used: The method that ``auto`` chose, or ``method``.
        plain: The plan's measurement without recovery; None if it is not known.
    """
    return dataclasses.replace(
        measured,
        conditions=dataclasses.replace(measured.conditions, recovery=method),
        recovered_by=used,
        unrecovered=dataclasses.replace(plain, plan=None, profile=None) if plain else None,
    )


def measure_trained(
    session: Session,
    trained: SpikingModel,
    base: SpikingModel | None,
    plan: PrunePlan | None,
    tick: Tick = keep_going,
    plain: Measurement | None = None,
) -> Measurement:
    """Measure a recovered or fine-tuned model on the session's images.

    Args:
        session: The model that was trained, or that ``plan`` is for, and its images.
        trained: The trained model, with its provenance.
        base: The unpruned model to compare with, if available; ignored if ``plan`` is not for it.
        plan: The plan that pruned ``base``; taken from the provenance when None.
        tick: Called before each batch; may raise to stop.
        plain: The plan's measurement without recovery, if it is known.
    """
    from psvit_core.evaluate import measure_against

    plan = plan or provenance_plan(trained)
    origins, run, store = [origin_of(base, plan)], session.run, session.store
    [found] = measure_against(trained, origins, session.data, run=run, store=store, tick=tick)
    measured = as_trained(found, trained, plan, plain)
    origin = PlanOrigin(policy=plan.policy, criterion=plan.criterion, **since_pruning(trained))
    coupled = trained.batch_coupled
    keep_point(session, measured, origin, batch_coupled=coupled, weights_hash=plan.weights_hash)
    return measured


def origin_of(base: SpikingModel | None, plan: PrunePlan) -> tuple[SpikingModel, PrunePlan] | None:
    """Return a network with the plan that was made for it; None if it was made for another one."""
    from psvit_core.zoo.checkpoint import weights_hash

    return (base, plan) if base is not None and weights_hash(base) == plan.weights_hash else None


def as_trained(
    measured: Measurement, trained: SpikingModel, plan: PrunePlan, plain: Measurement | None = None
) -> Measurement:
    """Return the measurement of a recovered or trained network with its plan and recovery."""
    if measured.plan is None:  # measured alone
        measured = dataclasses.replace(measured, model=plan.model, plan=plan)
    recoveries = trained.provenance.get("recoveries", [])
    if recoveries and not trained.provenance.get("finetunes"):
        last = RecoveryReport.from_dict(recoveries[-1])
        measured = recovered_by(measured, last.method, last.used, plain)
    return measured


def measure_file(
    session: Session,
    plan: PrunePlan,
    path: Path,
    tick: Tick = keep_going,
    plain: Measurement | None = None,
) -> Measurement:
    """Measure a file that was written by a plan, compared with the session's unpruned model.

    Args:
        session: The unpruned model and its images.
        plan: The plan.
        path: The written file.
        tick: Called before each batch; may raise to stop.
        plain: The plan's measurement without recovery.
    """
    return measure_trained(session, load_written(session, path), session.model, plan, tick, plain)


def load_written(session: Session, path: Path) -> SpikingModel:
    """Load a pruned file, with the provenance in it and the time steps of the session's model."""
    from psvit_core.zoo.checkpoint import load_model

    small = load_model(path)
    if "T" in small.arguments:
        small.set_time_steps(session.model.T)
    return small


def since_pruning(model: SpikingModel) -> dict[str, Any]:
    """Return the recoveries and training in a model's provenance, as fields of ``PlanOrigin``."""
    from psvit_core.zoo.checkpoint import weights_hash

    recoveries = [RecoveryReport.from_dict(r) for r in model.provenance.get("recoveries", [])]
    trainings = [FinetuneReport.from_dict(r) for r in model.provenance.get("finetunes", [])]
    changed = any(r.used != "none" for r in recoveries) or any(t.best_epoch for t in trainings)
    return {
        "recovery": ", then ".join(_recovery_text(r) for r in recoveries) or "none",
        "finetuning": ", then ".join(_training_text(t) for t in trainings),
        "epochs": sum(t.best_epoch for t in trainings),
        "weights": weights_hash(model) if changed else "",
    }


def _recovery_text(report: RecoveryReport) -> str:
    used = report.used if report.used == report.method else f"{report.method} ({report.used})"
    return f"{used}, seed {report.seed}" if report.seed else used


def _training_text(report: FinetuneReport) -> str:
    s = report.settings
    best = f", best after {report.best_epoch:g}" if report.best_epoch != s.epochs else ""
    teacher = f", distilled from {report.teacher}" if report.teacher else ""
    epochs = "1 epoch" if s.epochs == 1 else f"{s.epochs:g} epochs"
    of = f", best of {report.trials} trials" if report.trials > 1 else ""
    return f"{epochs}{best}, lr {s.lr:g}{teacher}{of}"


def provenance_plan(small: SpikingModel) -> PrunePlan:
    """Return the plan from the unpruned ancestor to a pruned model, from its provenance."""
    origin, last = small.provenance, PrunePlan.from_dict(small.provenance["plans"][-1])
    return PrunePlan(
        model=origin["origin"],
        weights_hash=origin["origin_weights_hash"],
        criterion=last.criterion,
        policy=last.policy,
        note=last.note,
        kept={group: tuple(units) for group, units in origin["kept"].items()},
    )
