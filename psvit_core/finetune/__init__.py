"""Fine-tuning a pruned model: AdamW, cosine schedule, distillation from the unpruned model.

The neurons train with the surrogate gradients that their families were published with. After each
epoch all that decides the future is kept in one file, so that a killed run goes on to the very
state that it would have reached.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.evaluate import Tick, go_on
from psvit_core.finetune.augment import own_randomness, random_affine
from psvit_core.finetune.training import (
    CURVE_FILE,
    STATE_FILE,
    FinetuneResult,
    Progress,
    Training,
    distillation,
    finetune_key,
)
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run
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
    "random_affine",
]

AUGMENTATIONS = ("auto", "affine", "flip", "none")


def finetune(
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
    progress: Progress = lambda done, total, what: None,
    tick: Tick = go_on,
    stop: Callable[[], bool] = lambda: False,
) -> FinetuneResult:
    """Train ``model`` further on ``train``, judged on ``val`` after each epoch.

    Args:
        model: A pruned model (or any other); stays untouched.
        train: Training images, as the network sees them; augmented here.
        val: Images that choose the best epoch and stop early, of the split ``val``.
        epochs: In place of those of ``settings``.
        teacher: What is distilled from, usually the unpruned model; None: labels only.
        settings: How; the defaults when None.
        folder: Where the state is kept after each epoch and the curve as it grows; None: nowhere.
        resume: Go on from the state in ``folder``, if there is one; otherwise start anew.
        run: Device, batch of the validation, precision (``autocast`` scales the loss), decoding.
        progress: Called after each step.
        tick: Called before each step; may raise to stop. The last epoch's state is kept.
        stop: Asked before each step; true ends the training there, as if it were the last one.

    Raises:
        DataError: If the images do not fit, or ``val`` is not the split ``val``.
        CheckpointError: If ``folder`` holds another training.
        JobError: If the loss is no number any more.
    """
    settings = settings or FinetuneSettings()
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs)
    check_settings(settings)
    check_images(model, train, val, settings)
    with own_randomness(settings.seed):
        training = Training(model, train, val, teacher, settings, run or Run(), folder)
        training.begin(resume, tick)
        while not training.over:
            training.run_epoch(progress, tick, stop)
    return training.result()


def check_settings(settings: FinetuneSettings) -> None:
    """Raise ``DataError`` or ``UnknownNameError`` at settings that nothing can be trained with."""
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
        ("erase", 0 <= s.erase <= 1, "in [0, 1]"),
        ("alpha", 0 <= s.alpha <= 1, "in [0, 1]"),
        ("temperature", 0 < s.temperature < math.inf, "above 0"),
        ("patience", s.patience is None or s.patience >= 1, "at least 1"),
        ("train_images", s.train_images is None or s.train_images >= 1, "at least 1"),
        ("batch", s.mixup == 0 or s.batch % 2 == 0, "even with mixup"),
    )
    for name, good, rule in rules:
        if not good:
            raise DataError(f"Fine-tuning needs {name} {rule}; got {getattr(s, name)!r}.")
    if s.augment not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", s.augment, AUGMENTATIONS)


def check_images(
    model: SpikingModel, train: EvalSet, val: EvalSet, settings: FinetuneSettings
) -> None:
    """Raise ``DataError`` at images that a model cannot be trained on and chosen by."""
    if train.split in ("val", "test") or val.split != "val":
        raise DataError(
            f"Fine-tuning trains on the split train and chooses on val, not on {train.split} and "
            f"{val.split}: accuracy could not be judged on them any more. Use --split val."
        )
    if max((*train.labels, *val.labels)) >= model.num_classes:
        raise DataError(
            f"{train.spec} has labels up to {max((*train.labels, *val.labels))}, but {model.name} "
            f"has {model.num_classes} outputs. Give images of the classes that it was trained on."
        )
    if settings.mixup and len(train) < settings.batch:
        raise DataError(f"Mixup needs a whole batch; {len(train)} images are fewer. Lower batch.")
