"""The heavy work behind the command line and the app's worker: names in, records out.

Every task takes its settings as plain data, the store, and callbacks for progress and stopping, so
that a shell and a background process run the very same code. Torch is imported inside, so that this
module can be named without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.errors import DataError, ModelError, UnknownNameError
from psvit_core.files import check_model_file
from psvit_core.pareto import Made, add_point
from psvit_core.plans import default_criterion
from psvit_core.records import (
    RECOVERIES,
    Measurement,
    Partial,
    PrunePlan,
    RecoveryReport,
    SensitivityTable,
)
from psvit_core.sensitivity.table import save_spec
from psvit_core.zoo.cards import ModelCard

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.zoo.base import SpikingModel
from psvit_core.jobs.engine import Engine, Progress, RecoverySettings, SweepSettings, Tick


def evaluate(
    engine: Engine,
    plan: PrunePlan | None = None,
    tick: Tick = lambda: None,
    *,
    profile: bool = False,
    partial: Callable[[Partial], None] | None = None,
    made: Made | None = None,
) -> Measurement:
    """Measure the model, or what a plan makes of it; every measured plan goes into the archive.

    Args:
        engine: The model and its images.
        plan: The plan; None measures the model itself.
        tick: Called before each batch; may raise to stop.
        profile: As for ``evaluate.measure``.
        partial: As for ``evaluate.measure``.
        made: How the plan came to be, for the archive; by its own policy when None.
    """
    from psvit_core.evaluate import measure

    result = measure(
        engine.model, engine.data, plan, run=engine.run, store=engine.store,
        summary=engine.description, profile=profile, tick=tick, partial=partial,
    )  # fmt: skip
    if plan:
        made = made or Made(policy=plan.policy, criterion=plan.criterion)
        add_point(engine.store, result, made, batch_coupled=engine.model.batch_coupled)
    return result


def compare_published(card: ModelCard, measured: Measurement) -> tuple[str, bool] | None:
    """How a baseline stands beside the published top-1 at its time steps and image size.

    Returns:
        (one line, whether the published value lies in the measured 95 % interval), or None where
        nothing comparable was published or measured.
    """
    c, side = measured.conditions, card.transform.crop + 2 * card.transform.pad
    if c.data.partition(":")[0] != card.data or c.split not in ("val", "test"):
        return None
    for p in card.published:
        if (p.T, p.px) == (c.T, side):
            a = measured.accuracy
            low, value, high = (100 * x for x in (a.low, a.value, a.high))
            inside = low <= p.top1 <= high
            doubt = "" if p.verified else ", not verified"
            line = f"published {p.top1:.2f} % ({p.source}{doubt}), measured {value:.2f} % "
            return line + f"[{low:.2f}, {high:.2f}] on {c.n_images} images", inside
    return None


def run_sweep(
    engine: Engine,
    settings: SweepSettings,
    started: Callable[[str], None] = lambda key: None,
    progress: Progress = lambda done, total, what: None,
    tick: Tick = lambda: None,
) -> SensitivityTable:
    """Run or resume a sweep; ``started`` is told its key in the store before the first cell."""
    from psvit_core.sensitivity.sweep import make_spec, run_spec

    if not engine.model.channel_groups():
        raise ModelError(
            f"{engine.model.name} has no channel group that can be removed exactly. The command "
            "groups says why."
        )
    criterion, calib = _ranked_by(engine, settings)
    spec = make_spec(
        engine.model, engine.data, ratios=settings.ratios, criterion=criterion,
        calib=calib, run=engine.run, seed=settings.seed, store=engine.store, mode=settings.mode,
        tick=tick,
    )  # fmt: skip
    save_spec(engine.store, spec)
    started(spec.key)
    return run_spec(
        spec, engine.model, engine.data, run=engine.run, store=engine.store,
        progress=progress, tick=tick, memory_budget=settings.memory_budget,
    )  # fmt: skip


def _ranked_by(engine: Engine, settings: SweepSettings) -> tuple[str, EvalSet | None]:
    """The criterion of a sweep with the images that it needs; a default by what the data holds."""
    from psvit_core.importance import CRITERIA, WEIGHT_CRITERIA, criterion

    chosen = settings.criterion
    if chosen is not None and not criterion(chosen).needs_images:
        return chosen, None
    try:
        calib = engine.calib(settings.calib_images, settings.seed)
    except DataError as error:
        if chosen is not None:
            raise
        by_weights = default_criterion(WEIGHT_CRITERIA)
        engine.warn(f"Units are ranked by {by_weights}, for want of calibration images: {error}")
        return by_weights, None
    return chosen or default_criterion(CRITERIA), calib


def pruned(
    engine: Engine,
    plan: PrunePlan,
    recovery: RecoverySettings | None = None,
    tick: Tick = lambda: None,
) -> tuple[SpikingModel, RecoveryReport | None]:
    """What a plan leaves of the model, recovered, and how that went (None: not asked for)."""
    from psvit_core.recover import recover
    from psvit_core.surgery import apply_plan

    settings = recovery or RecoverySettings()
    check_recovery(settings)
    if settings.method == "none":
        return apply_plan(engine.model, plan), None
    calib = engine.calib(settings.n_images, settings.seed)  # first: frames set the time steps
    small = apply_plan(engine.model, plan)
    return recover(
        small, engine.model, plan, calib, method=settings.method, run=engine.run,
        seed=settings.seed, tick=tick,
    )  # fmt: skip


def check_recovery(settings: RecoverySettings) -> None:
    """Raise unless there is such a recovery."""
    if settings.method not in RECOVERIES:
        raise UnknownNameError("recovery", settings.method, RECOVERIES)


def prune(
    engine: Engine,
    plan: PrunePlan,
    out: str | Path,
    recovery: RecoverySettings | None = None,
    tick: Tick = lambda: None,
) -> tuple[Path, RecoveryReport | None]:
    """Apply a plan, recover, and write the pruned checkpoint, whose provenance tells of both."""
    from psvit_core.export.pruned import save_pruned

    check_model_file(out)
    small, report = pruned(engine, plan, recovery, tick)
    return save_pruned(small, out), report
