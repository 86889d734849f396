"""Fine-tuning behind the command line and the worker: a pruned model in, a trained one in files.

Torch is imported inside, as in ``tasks``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.errors import CheckpointError, InvalidPlanError, ModelError, PsvitError
from psvit_core.files import check_model_file
from psvit_core.jobs.engine import (
    Engine,
    Progress,
    RecoverySettings,
    Tick,
)
from psvit_core.jobs.improved import measure_trained
from psvit_core.jobs.tasks import evaluate, pruned
from psvit_core.records import (
    FinetuneReport,
    FinetuneSettings,
    Measurement,
    PrunePlan,
    RecoveryReport,
)

if TYPE_CHECKING:
    from psvit_core.data import EvalSet
    from psvit_core.zoo.base import SpikingModel


@dataclass(frozen=True)
class Finetuned:
    """What ``run_finetune`` wrote."""

    out: Path  # the best epoch's model
    last: Path  # the last epoch's
    report: FinetuneReport
    recovery: RecoveryReport | None
    measurement: Measurement  # of the best epoch's model, as in the archive
    plain: Measurement | None = None  # of the plan alone; None where nothing was pruned here
    recovered: Measurement | None = None  # after recovery, before training; None without recovery


def run_finetune(
    engine: Engine,
    settings: FinetuneSettings,
    out: str | Path,
    *,
    plan: PrunePlan | None = None,
    recovery: RecoverySettings | None = None,
    resume: bool = True,
    started: Callable[[Path], None] = lambda curve: None,
    progress: Progress = lambda done, total, what: None,
    tick: Tick = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Finetuned:
    """Train a pruned model further, or first make it by a plan and recover it; resumes.

    The best epoch's model goes into the archive of the model that was pruned; so do the plan alone
    and what recovery made of it, so that each step's gain is known.

    Args:
        engine: The pruned model, or the model that ``plan`` is for; its images choose the epoch.
        settings: How to train.
        out: File for the best epoch's model; the last one's goes beside it, ``NAME.last.SUFFIX``.
        plan: What to prune first; None where the engine's model is pruned already.
        recovery: What to do between pruning and training; nothing when None.
        resume: Go on where a killed or cancelled training of the same settings stopped.
        started: Told the file that the training's curve is written to as it grows.
        progress: Called after each step.
        tick: Called before each step; may raise to stop.
        stop: Asked before each step; true ends the training there, and the best is written.

    Raises:
        CheckpointError: If there is no plan and the engine's model was not pruned.
        InvalidPlanError: If there is a recovery and no plan.
        DataError: If the engine's images are not of the split ``val``.
    """
    from psvit_core.export.pruned import save_pruned
    from psvit_core.finetune import (
        CURVE_FILE,
        STATE_FILE,
        check_images,
        check_settings,
        finetune,
        finetune_key,
    )

    out = check_model_file(out)
    last = check_model_file(out.with_name(f"{out.stem}.last{out.suffix}"))
    check_settings(settings)
    if plan is None and recovery is not None and recovery.method != "none":
        raise InvalidPlanError(
            f"Recovery ({recovery.method}) comes right after pruning, and without a plan nothing "
            "is pruned here. Name the plan and the model that it is for, or leave recovery away."
        )
    if plan is None and not engine.model.provenance:
        raise CheckpointError(
            f"{engine.model.name} was not pruned. Prune it first, or give a pruned file."
        )
    val, train = engine.data, _training_images(engine, settings.train_images)
    check_images(engine.model, train, val, settings)  # before anything is recovered
    plain = evaluate(engine, plan, tick) if plan else None
    small, report = (engine.model, None) if plan is None else pruned(engine, plan, recovery, tick)
    recovered = None
    if report is not None and report.used != "none":
        recovered = measure_trained(engine, small, engine.model, plan, tick)
    teacher = _teacher(engine, settings, small)
    key = finetune_key(small, train, val, teacher, settings, engine.run)
    folder = engine.store.place("finetune", key, CURVE_FILE).parent
    started(folder / CURVE_FILE)
    _compile_for_training(engine)
    result = finetune(
        small, train, val, teacher=teacher, settings=settings, folder=folder,
        resume=resume, run=engine.run, progress=progress, tick=tick, stop=stop,
    )  # fmt: skip
    save_pruned(result.last, last)
    save_pruned(result.model, out)
    (folder / STATE_FILE).unlink(missing_ok=True)  # several times the model's size
    base = engine.model if plan else teacher
    measured = measure_trained(engine, result.model, base, plan, tick)
    return Finetuned(
        out=out, last=last, report=result.report, recovery=report, measurement=measured,
        plain=plain, recovered=recovered,
    )  # fmt: skip


def _training_images(engine: Engine, n_images: int | None) -> EvalSet:
    from psvit_core.data import load_data

    card, s = engine.card, engine.subject
    return load_data(
        s.data or card.data, split="train", transform=card.transform, limit=n_images,
        on_bad=s.bad_images,
    )  # fmt: skip


def _teacher(
    engine: Engine, settings: FinetuneSettings, small: SpikingModel
) -> SpikingModel | None:
    """The model that is distilled from; None where none is wanted or the original is not here."""
    from psvit_core.zoo.checkpoint import load_model, weights_hash

    if settings.teacher == "none" or settings.alpha == 0:
        return None
    if settings.teacher != "original":
        teacher = load_model(settings.teacher, settings.teacher_checkpoint)
    elif small is not engine.model:
        return engine.model
    else:
        origin = small.provenance
        try:
            heads = small.arguments.get("num_heads")
            teacher = load_model(origin["origin"], engine.subject.checkpoint, num_heads=heads)
            same = weights_hash(teacher) == origin["origin_weights_hash"]
        except PsvitError:  # no such name, no such file, or other weights than that model's
            same = False
        if not same:
            engine.warn(
                f"The weights of {origin['origin']} that this model was pruned from are not here, "
                "so nothing is distilled from them. Name a teacher with its checkpoint."
            )
            return None
    if (teacher.num_classes, teacher.input_shape) != (small.num_classes, small.input_shape):
        raise ModelError(
            f"{teacher.name} takes images {teacher.input_shape} and has {teacher.num_classes} "
            f"outputs; {small.name} takes {small.input_shape} and has {small.num_classes}. Distil "
            "from a model of the same images and classes."
        )
    if "T" in teacher.arguments:
        teacher.set_time_steps(small.T)
    return teacher


def _compile_for_training(engine: Engine) -> None:
    """Use compiled LIF kernels for training: compiling takes seconds once a process."""
    from psvit_core import fused, neurons

    has_lif = any(isinstance(module, neurons.LIF) for module in engine.model.modules())
    if has_lif and engine.run.device == "cpu":
        fused.use_compiled()
