"""Training: timm's optimisers and schedules, distillation; of new and of pruned models.

Neurons train with the surrogate gradients of their family's publication. The whole training state
is saved to one file after each epoch and every five minutes, so that an interrupted run resumes to
the same final state.

On the CPU, neurons and BatchNorms run in native loops with channels last (``kernels``), and batches
are prepared ahead in a thread. With ``autocast`` of bfloat16, the forward and backward pass have
that precision, while weights, their updates and validation have float32.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from psvit_core.callbacks import Progress, Stop, Tick, ignore_progress, keep_going, never_stop
from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.finetune.batches import n_steps
from psvit_core.finetune.loss import distillation
from psvit_core.finetune.precision import AUTOCASTS, resolved
from psvit_core.finetune.training import CURVE_FILE, FinetuneResult, Training, finetune_key
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run, out_of_memory_explained
from psvit_core.storage.inventory import STATE_FILE
from psvit_core.zoo.base import SpikingModel

__all__ = [
    "CURVE_FILE",
    "STATE_FILE",
    "FinetuneResult",
    "check_images",
    "check_settings",
    "distillation",
    "finetune",
    "finetune_key",
    "n_steps",
]

AUGMENTATIONS = ("auto", "affine", "crop", "flip", "none")
SCHEDULES = ("cosine", "tanh", "poly")  # of timm, those that need no further settings


def finetune(  # noqa: PLR0913  # public signature
    model: SpikingModel,
    train: EvalSet,
    val: EvalSet,
    *,
    epochs: float | None = None,
    teacher: SpikingModel | None = None,
    settings: FinetuneSettings | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    run: Run | None = None,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
    stop: Stop = never_stop,
) -> FinetuneResult:
    """Train a copy of ``model`` on ``train`` and evaluate it on ``val`` after each epoch.

    Args:
        model: A pruned model, or any other; not modified.
        train: Training images in the network's input format; augmented here.
        val: Images of the split ``val``, for the choice of the best epoch and early stopping.
        epochs: Number of epochs; replaces the value in ``settings``.
        teacher: Model to distill from, usually the unpruned one; None trains on labels only.
        settings: Training settings; the defaults when None.
        folder: Folder for the state after each epoch and the learning curve; None saves nothing.
        resume: Continue from the state in ``folder`` if it exists; otherwise start over.
        run: Device, validation batch size, precision (``autocast`` scales the loss), workers.
        progress: Called after each step.
        tick: Called before each step; may raise to stop. The state of the last epoch stays saved.
        stop: Called before each step; returns True to end the training with a last evaluation.

    Returns:
        The best and the last model, the report and the learning curve.

    Raises:
        DataError: If the images do not fit the model, or ``val`` is not the split ``val``.
        CheckpointError: If ``folder`` contains a different training.
        DeviceError: If the device has not enough memory for a batch. A batch is not divided, since
            BatchNorms would have other statistics.
        JobError: If the loss becomes NaN or infinite.
    """
    settings = settings or FinetuneSettings()
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs)
    check_settings(settings)
    check_images(model, train, val, settings)
    run = run or Run()
    training = Training(model, train, val, teacher, resolved(settings, run), run, folder)
    with out_of_memory_explained(run, settings.batch):
        training.begin(resume, tick)
        while not training.over:
            training.run_epoch(progress, tick, stop)
    return training.result()


def check_settings(settings: FinetuneSettings) -> None:
    """Raise ``DataError`` or ``UnknownNameError`` if the settings are invalid."""
    s = settings
    rules: tuple[tuple[str, bool, str], ...] = (
        ("epochs", 0 < s.epochs < math.inf, "above 0, e.g. 0.5"),
        ("lr", 0 < s.lr < math.inf, "above 0, e.g. 0.001"),
        ("batch", s.batch >= 1, "at least 1"),
        ("accumulate", s.accumulate >= 1, "at least 1"),
        ("weight_decay", 0 <= s.weight_decay < math.inf, "at least 0"),
        ("warmup", 0 <= s.warmup < 1, "in [0, 1)"),
        ("clip", s.clip >= 0, "at least 0"),
        ("label_smoothing", 0 <= s.label_smoothing < 1, "in [0, 1)"),
        ("mixup", 0 <= s.mixup < math.inf, "at least 0"),
        ("cutmix", 0 <= s.cutmix < math.inf, "at least 0"),
        ("min_lr", 0 <= s.min_lr <= s.lr, "from 0 to lr"),
        ("erase", 0 <= s.erase <= 1, "in [0, 1]"),
        ("alpha", 0 <= s.alpha <= 1, "in [0, 1]"),
        ("temperature", 0 < s.temperature < math.inf, "above 0"),
        ("patience", s.patience is None or s.patience >= 1, "at least 1"),
        ("train_images", s.train_images is None or s.train_images >= 1, "at least 1"),
        ("batch", not (s.mixup or s.cutmix) or s.batch % 2 == 0, "even with mixup"),
    )
    for name, good, rule in rules:
        if not good:
            raise DataError(f"Fine-tuning needs {name} {rule}; got {getattr(s, name)!r}.")
    if s.augment not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", s.augment, AUGMENTATIONS)
    if s.autocast not in AUTOCASTS:
        raise UnknownNameError("autocast", s.autocast, AUTOCASTS)
    _check_timm_names(s)


def _check_timm_names(settings: FinetuneSettings) -> None:
    from timm.optim import list_optimizers  # type: ignore[attr-defined]

    optimizers = [str(name) for name in list_optimizers()]
    if settings.optimizer not in optimizers:
        raise UnknownNameError("optimizer", settings.optimizer, optimizers)
    if settings.schedule not in SCHEDULES:
        raise UnknownNameError("schedule", settings.schedule, SCHEDULES)


def check_images(
    model: SpikingModel, train: EvalSet, val: EvalSet, settings: FinetuneSettings
) -> None:
    """Raise ``DataError`` if the images cannot train and validate the model."""
    if train.split in ("val", "test") or val.split != "val":
        raise DataError(
            f"Fine-tuning needs the splits train and val; got {train.split} and {val.split}. "
            "Keep test images for the final accuracy. Use --split val."
        )
    if max((*train.labels, *val.labels)) >= model.num_classes:
        raise DataError(
            f"{train.spec} has labels up to {max((*train.labels, *val.labels))}, but {model.name} "
            f"has {model.num_classes} outputs. Use images of the classes that it was trained on."
        )
    if (settings.mixup or settings.cutmix) and len(train) < settings.batch:
        raise DataError(
            f"Mixup needs a whole batch of {settings.batch} images; got {len(train)}. "
            "Lower the batch size."
        )
