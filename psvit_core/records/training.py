"""Records of recovery and fine-tuning."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from psvit_core.errors import RecordError
from psvit_core.records._base import Interval, Record
from psvit_core.records.model import Transform
from psvit_core.records.results import Conditions


@dataclass(frozen=True, kw_only=True)
class LayerRefit(Record):
    """Least-squares refit of one layer: squared errors relative to the squared target outputs."""

    layer: str
    before: float
    after: float  # never above ``before``
    kept: bool  # the new weights replaced the old ones


@dataclass(frozen=True, kw_only=True)
class RecoveryReport(Record):
    """Gain and cost of a recovery without training."""

    document: ClassVar[str] = "recovery_report"

    model: str  # the pruned model
    method: str  # requested: none, bn, lsq, both or auto
    used: str  # chosen: none, bn, lsq or both
    conditions: Conditions  # of the calibration images
    calib_id: str  # digest of the calibration images' names
    seed: int  # of the choice of images
    n_fit: int  # images used for fitting
    n_held_out: int  # images used for the KL; all images if there are too few to split
    kl: dict[str, float]  # method -> mean KL from the original's outputs on held-out images, nats
    layers: tuple[LayerRefit, ...]  # refitted layers, in network order
    seconds: dict[str, float]  # step -> wall-clock time
    statistics_bytes: int  # peak memory of the statistics
    held_bytes: int  # memory of stored activations, estimated

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
    """Hyperparameters of training."""

    epochs: float = 5.0  # may be fractional
    lr: float = 1e-3  # largest learning rate
    batch: int = 64  # batch size
    accumulate: int = 1  # batches per update (gradient accumulation)
    weight_decay: float = 0.01  # not applied to biases and BatchNorms
    warmup: float = 0.1  # fraction of the updates over which the learning rate rises
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    label_smoothing: float = 0.05
    augment: str = (
        "auto"  # affine, crop (and flip), flip, none; auto: affine for greyscale, or flip
    )
    mixup: float = 0.0  # alpha of mixup; 0: off
    cutmix: float = 0.0  # alpha of cutmix; 0: off
    erase: float = 0.0  # probability of random erasing
    teacher: str = "original"  # distillation teacher: original, none, a model's name or file
    teacher_checkpoint: str | None = None  # checkpoint of a teacher given by name
    alpha: float = 0.5  # weight of the distillation loss; 1 - alpha: of the label loss
    temperature: float = 2.0  # of the distillation loss
    patience: int | None = None  # epochs without improvement before stopping; None: never
    train_images: int | None = None  # size of a stratified subset; None: all
    seed: int = 0
    optimizer: str = "adamw"  # name in timm
    schedule: str = "cosine"  # of the learning rate; name in timm
    min_lr: float = 0.0  # learning rate at the end
    #: Precision of forward and backward passes on the CPU: bfloat16 or off (that of the run); auto:
    #: bfloat16 where the processor has it. Reports state what it was.
    autocast: str = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Record):
    """A training from the beginning: the network, its images and the hyperparameters.

    The network is a registered one, or a family with its constructor's arguments.
    """

    document: ClassVar[str] = "train_config"

    name: str  # of the files that are written
    model: str | None = None  # registered name
    family: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of the family
    data: str  # specification of the data set
    transform: Transform | None = None  # None: that of the registered model
    weights: str | None = None  # file of the same network to begin with
    #: End of a parameter's name -> value that all of its elements begin with.
    start: dict[str, float] = field(default_factory=dict)
    batch: int = 125  # batch size of validation
    settings: FinetuneSettings


@dataclass(frozen=True, kw_only=True)
class EpochRecord(Record):
    """A point of the training curves, within an epoch or (with validation) at its end."""

    step: int  # batches so far
    epoch: float  # epochs so far
    lr: float
    seconds: float  # training and validation time so far, including resumed runs
    train_loss: float | None = None  # mean since the last point, at an epoch's end over the epoch
    val_loss: float | None = None  # cross entropy, nats
    val_accuracy: Interval | None = None  # fraction


@dataclass(frozen=True, kw_only=True)
class FinetuneReport(Record):
    """Result of fine-tuning."""

    document: ClassVar[str] = "finetune_report"

    model: str  # the trained model
    settings: FinetuneSettings
    conditions: Conditions  # of the training images; ``batch`` is the validation batch size
    teacher: str | None  # name of the distillation teacher
    best_epoch: float  # by validation accuracy, then loss; 0: before training
    epochs: tuple[EpochRecord, ...]  # before training, then the end of every epoch
    stopped_early: bool = False
    trials: int = 1  # settings tried; above 1, these had the best validation accuracy

    @property
    def best_accuracy(self) -> Interval:
        """Validation accuracy of the best epoch, a fraction.

        Raises:
            RecordError: If the report, which may come from a file, does not have it.
        """
        for record in self.epochs:
            if record.epoch == self.best_epoch and record.val_accuracy is not None:
                return record.val_accuracy
        raise RecordError(
            f"The report of fine-tuning {self.model} has no validation accuracy of its best epoch, "
            f"{self.best_epoch:g}. It was damaged or changed."
        )


def read_curve(path: str | Path) -> tuple[EpochRecord, ...]:
    """Return the points written so far by fine-tuning; none if the file does not exist.

    Damaged lines are left out: a training that goes on writes them again.

    Args:
        path: Text file with one JSON object per line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    points = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError, RecordError):
            points.append(EpochRecord.from_dict(json.loads(line)))
    return tuple(points)
