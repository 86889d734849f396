"""Prune a model by a plan, recover it, and write the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.callbacks import Tick, keep_going
from psvit_core.files import check_model_file
from psvit_core.records import PrunePlan, RecoveryReport, RecoverySettings, check_recovery
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from psvit_core.zoo.base import SpikingModel


def prune_model(
    session: Session,
    plan: PrunePlan,
    recovery: RecoverySettings | None = None,
    tick: Tick = keep_going,
    *,
    on_cluster: bool = False,
) -> tuple[SpikingModel, RecoveryReport | None]:
    """Apply a plan to the session's model and recover the result.

    Args:
        session: The model, which stays unchanged, and its images.
        plan: The plan.
        recovery: Recovery settings; None: no recovery.
        tick: Called before each batch; may raise to stop.
        on_cluster: Recover on the session's cluster, if it has one and no other job of this
            process is using it. It takes seconds to start.

    Returns:
        (the pruned model, the recovery's report or None without one).
    """
    from psvit_core.recover import recover
    from psvit_core.surgery import apply_plan

    settings = recovery or RecoverySettings()
    check_recovery(settings)
    if settings.method == "none":
        return apply_plan(session.model, plan), None
    calib = session.calib(settings.n_images, settings.seed)  # first: frames set the time steps
    if on_cluster and _may_use_cluster(session):
        from psvit_core.tasks.training_workers import recover_on_cluster

        return recover_on_cluster(session, plan, settings, tick)
    small = apply_plan(session.model, plan)
    return recover(
        small,
        session.model,
        plan,
        calib,
        method=settings.method,
        run=session.run,
        seed=settings.seed,
        tick=tick,
    )


def _may_use_cluster(session: Session) -> bool:
    """Return whether a recovery runs on the session's cluster.

    Models with code of their own stay here. So does a recovery inside another job of this process:
    that job may occupy all workers while it waits for the recovery, which would wait for ever.
    """
    if not session.engine.is_ray or session.subject.plugin is not None:
        return False
    from psvit_core.cluster.pool import in_use

    return not in_use()


def write_pruned(
    session: Session,
    plan: PrunePlan,
    out: str | Path,
    recovery: RecoverySettings | None = None,
    tick: Tick = keep_going,
) -> tuple[Path, RecoveryReport | None]:
    """Prune and recover as ``prune_model``, and write the checkpoint with its provenance.

    A session with a cluster recovers there.

    Returns:
        (the file's path, the recovery's report or None without one).
    """
    from psvit_core.zoo.pruned import check_arguments, save_pruned

    check_model_file(out)
    check_arguments(session.model)
    small, report = prune_model(session, plan, recovery, tick, on_cluster=True)
    return save_pruned(small, out), report
