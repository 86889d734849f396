"""Records of recovery and fine-tuning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from psvit_core.records._base import Interval, Record
from psvit_core.records.results import Conditions

#: Recoveries without training; ``psvit_core.recover`` says what they do.
RECOVERIES = ("none", "bn", "lsq", "both", "auto")


@dataclass(frozen=True, kw_only=True)
class LayerRefit(Record):
    """One layer's least-squares refit: squared errors over the squares of what was wished for."""

    layer: str
    before: float
    after: float  # never above ``before``
    kept: bool  # whether the new weights were taken


@dataclass(frozen=True, kw_only=True)
class RecoveryReport(Record):
    """What a recovery without training gained, and what it cost."""

    document: ClassVar[str] = "recovery_report"

    model: str  # that was pruned
    method: str  # asked: none, bn, lsq, both or auto
    used: str  # none, bn, lsq or both
    conditions: Conditions  # of the calibration images
    calib_id: str  # digest of the calibration images' names
    seed: int  # that chose them
    n_fit: int  # images that it was fitted to
    n_held_out: int  # images that the KL was measured on; all where there are too few to split
    kl: dict[str, float]  # method -> mean KL from the original's outputs, held-out images, nats
    layers: tuple[LayerRefit, ...]  # of the least squares, in network order
    seconds: dict[str, float]  # step -> wall clock
    statistics_bytes: int  # largest statistics held at a time
    held_bytes: int  # activations of halted batches, by a rough count

    @property
    def kl_before(self) -> float:
        """Mean KL of the pruned model without recovery, nats."""
        return self.kl["none"]

    @property
    def kl_after(self) -> float:
        """Mean KL of the recovered model, nats."""
        return self.kl[self.used]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Record):
    """How a pruned model is trained further."""

    epochs: float = 5.0  # a fraction is that fraction of an epoch's steps
    lr: float = 1e-3  # largest learning rate
    batch: int = 64  # images a step
    accumulate: int = 1  # steps whose gradients are added up for one update
    weight_decay: float = 0.01  # of all but biases and BatchNorms
    warmup: float = 0.1  # fraction of the updates over which the learning rate rises
    clip: float = 1.0  # largest norm of the gradient; 0: any
    label_smoothing: float = 0.05
    augment: str = "auto"  # affine, flip or none; auto: affine for grey, flip for colour images
    mixup: float = 0.0  # alpha; 0: off
    erase: float = 0.0  # probability of random erasing
    teacher: str = "original"  # what is distilled from: original, none, a model's name or file
    teacher_checkpoint: str | None = None  # weights of a teacher given by name
    alpha: float = 0.5  # weight of the distillation; 1 - alpha that of the labels
    temperature: float = 2.0  # of the distillation
    patience: int | None = None  # stop after so many epochs without a better validation accuracy
    train_images: int | None = None  # a stratified subset; None: all
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EpochRecord(Record):
    """A point of the training curves: within an epoch, or at its end, then with validation."""

    step: int  # batches so far
    epoch: float  # passes over the training images so far
    lr: float
    seconds: float  # of training and validation so far, over all runs
    train_loss: float | None = None  # mean since the last point, at an epoch's end over the epoch
    val_loss: float | None = None  # cross entropy, nats
    val_accuracy: Interval | None = None  # fraction


@dataclass(frozen=True, kw_only=True)
class FinetuneReport(Record):
    """What a fine-tuning did."""

    document: ClassVar[str] = "finetune_report"

    model: str  # that was trained further
    settings: FinetuneSettings
    conditions: Conditions  # of the training images; ``batch`` is that of the validation
    teacher: str | None  # name of the model that was distilled from
    best_epoch: float  # by validation accuracy, then loss; 0: the model as it came
    epochs: tuple[EpochRecord, ...]  # ends of epochs, the state before training first
    stopped_early: bool = False


def read_curve(path: str | Path) -> tuple[EpochRecord, ...]:
    """The points that a running fine-tuning has written so far: one JSON object a line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(EpochRecord.from_dict(json.loads(line)) for line in lines)
