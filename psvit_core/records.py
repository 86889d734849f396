"""The data that flows through the explorer: frozen, JSON-able, versioned, without torch.

A decision is data (``PrunePlan``), a result is data (``SensitivityTable``, ``Measurement``). Every
record has ``to_dict`` and ``from_dict``; ``from_dict`` checks type, version and field names, so a
foreign or damaged document raises ``RecordError`` and never half-loads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from psvit_core.errors import InvalidPlanError, InvalidRatioError, RecordError
from psvit_core.files import write_text

Axis = tuple[str, int]  # (tensor name, axis)
Kept = tuple[int, ...]  # sorted unit indices that stay


def check_ratio(prune_ratio: float) -> float:
    """Return ``prune_ratio`` if it is in [0, 1), else raise ``InvalidRatioError``."""
    if not (isinstance(prune_ratio, (int, float)) and 0 <= prune_ratio < 1):
        raise InvalidRatioError(
            f"A prune ratio is the fraction removed, in [0, 1); got {prune_ratio!r}. "
            "Use for example 0.25 to remove a quarter of the channels."
        )
    return float(prune_ratio)


def n_pruned(prune_ratio: float, n_units: int, heads: int | None = None, round_to: int = 1) -> int:
    """How many units of a group a ratio removes: the one rounding rule.

    Rounds down, then down to a multiple of ``heads`` (each head loses the same number); at least
    one unit (one per head) stays.

    Args:
        prune_ratio: Fraction removed, in [0, 1).
        n_units: Units in the group.
        heads: Heads that must keep equal counts, or None.
        round_to: Keep a multiple of lcm(round_to, heads), rounding the kept width up; a group that
            no such width fits stays whole.
    """
    step = heads or 1
    removed = math.floor(check_ratio(prune_ratio) * n_units + 1e-9)
    removed = min(removed - removed % step, n_units - step)
    if round_to > 1:
        multiple = math.lcm(round_to, step)
        kept = -(-(n_units - removed) // multiple) * multiple
        removed = n_units - kept if kept <= n_units else 0
    return removed


class Record:
    """``to_dict``/``from_dict`` for frozen dataclasses, nested and versioned."""

    document: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, tagged with document type and version where the record has one."""
        assert dataclasses.is_dataclass(self)
        body = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if not self.document:
            return body
        return {"document": self.document, "version": self.version, **body}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read back ``to_dict``'s data.

        Raises:
            RecordError: If ``data`` is not this document and version with exactly its fields.
        """
        if not isinstance(data, Mapping):
            raise RecordError(f"A {cls._title()} is a JSON object, not {data!r:.40}.")
        body = dict(data)
        if cls.document:
            found = (body.pop("document", None), body.pop("version", None))
            if found != (cls.document, cls.version):
                raise RecordError(
                    f"Expected a {cls.document!r} document of version {cls.version}, found "
                    f"{found[0]!r} of version {found[1]!r}."
                )
        hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
        if set(body) - set(hints):
            raise RecordError(
                f"Unknown fields in {cls.__name__}: {sorted(set(body) - set(hints))}."
            )
        try:
            return cls(**{name: _typed(hints[name], value) for name, value in body.items()})
        except (TypeError, ValueError, KeyError) as error:
            raise RecordError(f"Not a valid {cls._title()}: {error}") from error

    @classmethod
    def _title(cls) -> str:
        return cls.document or cls.__name__

    def save(self, path: str | Path) -> Path:
        """Write as JSON, whole or not at all; raises ``OutputError`` where it cannot."""
        return write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by ``save``.

        Raises:
            RecordError: If the file is missing, not JSON or another record.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecordError(f"Cannot read {path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path} is not a JSON document ({error}).") from error
        return cls.from_dict(data)


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        if all(type(item) is int for item in value):
            return list(value)  # kept units: by far the most values of a plan
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Turn JSON data into the annotated type: tuples, nested records, optional values."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"expected a list, got {value!r:.40}")
        if arguments == (int, ...) and all(type(item) is int for item in value):
            return tuple(value)  # kept units: by far the most values of a plan
        if arguments[-1] is Ellipsis:
            return tuple(_typed(arguments[0], item) for item in value)
        return tuple(_typed(a, item) for a, item in zip(arguments, value, strict=True))
    if origin is dict:
        return {str(key): _typed(arguments[1], item) for key, item in dict(value).items()}
    if hint is Any:
        return value
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    ):
        raise TypeError(f"expected {hint.__name__}, got {value!r:.40}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval(Record):
    """A measured number with its 95 % interval, in the unit that its owner says."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Transform(Record):
    """What is done to an image before the network: resize, centre crop, pad, normalise."""

    resize: int  # shorter side, pixels
    crop: int  # square, pixels
    pad: int = 0  # zeros on every side, after the crop
    channels: int = 3  # 1: converted to grey
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def name(self) -> str:
        """One line that identifies the transform; part of every result's key."""
        stats = ",".join(f"{v:g}" for v in (*self.mean, *self.std))
        return (
            f"resize {self.resize} {self.interpolation}, crop {self.crop}, pad {self.pad}, "
            f"{self.channels} ch, normalise {stats}"
        )


DIGITS_TRANSFORM = Transform(
    resize=28, crop=28, pad=2, channels=1, interpolation="bilinear", mean=(0.1307,), std=(0.3081,)
)


DIGITS_48_TRANSFORM = Transform(
    resize=48, crop=48, channels=1, interpolation="bilinear", mean=(0.1307,), std=(0.3081,)
)


@dataclass(frozen=True, kw_only=True)
class ChannelGroup(Record):
    """Units that must be removed together, across layers."""

    group_id: str  # dotted, e.g. "block.0.mlp.hidden"
    kind: str  # residual, conv, mlp, qk, v, ...
    n_units: int
    heads: int | None  # None, or every one of this many heads keeps the same count
    writers: tuple[tuple[str, int], ...]  # (tensor, axis) that produce the units
    readers: tuple[tuple[str, int], ...]  # (tensor, axis) that consume them
    block: str  # where it stands, for display: "Block 3"
    title: str  # what it is, for display: "MLP hidden"

    @property
    def label(self) -> str:
        """Block and title in one line."""
        return f"{self.block} · {self.title}"


@dataclass(frozen=True, kw_only=True)
class TensorShape(Record):
    """One tensor of the state dict and which group each of its axes belongs to."""

    name: str
    role: str  # weight (conv or linear), affine, buffer, counter or unused
    sizes: tuple[int, ...]
    groups: tuple[str | None, ...]  # per axis


@dataclass(frozen=True, kw_only=True)
class ComputeTerm(Record):
    """Multiply-accumulates of one layer: ``factor`` times the widths of ``groups``."""

    layer: str
    factor: float  # MACs a unit of every group: kernel x positions x ungrouped axes
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeTable(Record):
    """All that decides the size and the compute of a model at any widths."""

    tensors: tuple[TensorShape, ...]
    terms: tuple[ComputeTerm, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Record):
    """What a screen or a planner needs of a model, without its weights."""

    document: ClassVar[str] = "model_summary"

    model: str  # registered name or path of a pruned file
    family: str
    weights_hash: str
    T: int
    input_shape: tuple[int, ...]  # (channels, height, width)
    num_classes: int
    real_fed: dict[str, int]  # layers that read real values, not spikes -> runs an image
    batch_coupled: bool  # whether an image's logits depend on the batch around it
    groups: tuple[ChannelGroup, ...]
    shapes: ShapeTable
    rankings: dict[str, dict[str, tuple[int, ...]]]  # criterion -> group -> units, best first

    @cached_property
    def by_id(self) -> dict[str, ChannelGroup]:
        """Groups by ``group_id``."""
        return {g.group_id: g for g in self.groups}

    def ranking(self, criterion: str) -> dict[str, tuple[int, ...]]:
        """Units of each group, most important first.

        Raises:
            InvalidPlanError: If this summary was made without that criterion.
        """
        if criterion not in self.rankings:
            raise InvalidPlanError(
                f"{self.model} has no ranking by {criterion!r}; there are: "
                f"{', '.join(self.rankings)}."
            )
        return self.rankings[criterion]


@dataclass(frozen=True, kw_only=True)
class PrunePlan(Record):
    """Which units of which groups stay; an absent group stays whole."""

    document: ClassVar[str] = "prune_plan"

    model: str
    weights_hash: str  # of the model that ``kept`` indexes
    criterion: str
    kept: dict[str, tuple[int, ...]]
    policy: str = "by hand"
    note: str = ""  # how it was made; "predicted" or "measured" for planned ones

    def check(self, groups: tuple[ChannelGroup, ...], weights_hash: str) -> None:
        """Raise ``InvalidPlanError`` unless this plan fits those groups and weights."""
        if self.weights_hash != weights_hash:
            raise InvalidPlanError(
                f"This plan was made for {self.model} with weights {self.weights_hash[:12]}, not "
                f"for weights {weights_hash[:12]}. Make a plan for this model."
            )
        by_id = {g.group_id: g for g in groups}
        for group_id, kept in self.kept.items():
            group = by_id.get(group_id)
            if group is None:
                raise InvalidPlanError(
                    f"The model has no channel group {group_id!r}. Make a plan for this model."
                )
            check_kept(group, kept)


def check_kept(group: ChannelGroup, kept: Kept) -> None:
    """Raise ``InvalidPlanError`` unless ``kept`` is a legal choice of units of ``group``."""
    n = group.n_units
    where = f"Group {group.group_id!r} has units 0..{n - 1}"
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= n:
        raise InvalidPlanError(
            f"{where}; kept indices must be sorted, distinct, inside and at least one, "
            f"got {str(kept)[:60]}."
        )
    if group.heads:
        width = n // group.heads
        counts = {sum(i // width == h for i in kept) for h in range(group.heads)}
        if len(counts) > 1:
            raise InvalidPlanError(
                f"{where} in {group.heads} heads; every head must keep the same number, "
                f"got {sorted(counts)}."
            )


@dataclass(frozen=True, kw_only=True)
class Size(Record):
    """What a model takes: closed form, exact."""

    params: int  # parameters that inference reads
    bytes: int  # of those and the BatchNorm buffers, at the stated precision
    macs: int  # one image, one time step


@dataclass(frozen=True, kw_only=True)
class Conditions(Record):
    """How a number was measured."""

    data: str  # data specification
    split: str
    n_images: int
    T: int
    batch: int
    precision: str  # float32 or float64
    device: str
    transform: str


@dataclass(frozen=True, kw_only=True)
class EnergyModel(Record):
    """What one operation costs; arithmetic only, no memory access."""

    name: str
    mac_pj: float  # multiply-accumulate of a layer that reads real values, pJ
    sop_pj: float  # accumulate that a spike triggers, pJ
    source: str = ""


ENERGY_45NM = EnergyModel(
    name="45nm-fp32",
    mac_pj=4.6,
    sop_pj=0.9,
    source="Horowitz 2014 (ISSCC), 32-bit float; the figures of the Spikformer and SDT papers",
)


@dataclass(frozen=True, kw_only=True)
class Quartiles(Record):
    """A measured number over several runs, in the unit that its owner says."""

    median: float
    low: float  # 25th percentile
    high: float  # 75th percentile
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """Where a time was measured; names no host."""

    device: str  # cpu or cuda
    processor: str  # its model name
    threads: int  # torch's, for one operation
    torch: str  # version
    kernels: str  # of the LIF neurons: plain or compiled


@dataclass(frozen=True, kw_only=True)
class Profile(Record):
    """Memory at run time and latency; dictionaries are keyed by images a batch."""

    state_bytes: int  # membrane potentials of one image: neurons with state x bytes
    peak_activation_bytes: dict[str, int]  # most bytes of live tensors, weights left out
    latency_ms: dict[str, Quartiles]  # one forward pass of a batch
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class Measurement(Record):
    """Measured facts of one model or plan, beside the baseline on the same images."""

    document: ClassVar[str] = "measurement"

    model: str
    weights_hash: str
    conditions: Conditions
    accuracy: Interval  # fraction
    size: Size
    sops: float  # accumulates triggered by spikes, one image, all T
    macs_real: float  # multiply-accumulates of layers that read real values, one image, all T
    energy_pj: float  # theoretical, arithmetic only, by ``energy_model``
    firing: dict[str, float]  # neuron layer -> firing rate
    memory_saving: float = 0.0  # 1 - bytes / bytes of the unpruned model
    # Against the baseline on the same images; None where there is no other model to compare with.
    baseline_accuracy: Interval | None = None  # fraction
    drop: Interval | None = None  # percentage points, paired
    kl: float | None = None  # mean KL divergence from the baseline's outputs, nats
    agreement: float | None = None  # fraction of images with the baseline's prediction
    plan: PrunePlan | None = None
    # class -> (images, correct, correct of the baseline); None without plan or before it was kept
    per_class: dict[str, tuple[int, int, int]] | None = None
    energy_model: EnergyModel = ENERGY_45NM
    profile: Profile | None = None  # measured by request, on one machine


@dataclass(frozen=True, kw_only=True)
class Partial(Record):
    """A measurement on its way: what the images so far say."""

    done: int  # images run, the baseline's included
    total: int  # of so many
    n_images: int = 0  # that the estimates stand on
    accuracy: Interval | None = None  # fraction; None while the baseline is run
    drop: Interval | None = None  # percentage points, paired; None without a plan


@dataclass(frozen=True, kw_only=True)
class SensitivityRow(Record):
    """One cell: one group at one prune ratio, the rest untouched, no fine-tuning."""

    group_id: str
    prune_ratio: float  # asked
    n_pruned: int  # reached
    accuracy: Interval  # fraction
    drop: Interval  # percentage points, paired
    kl: float  # nats
    agreement: float
    size: Size  # of the pruned model
    sops: float
    n_images: int
    # Bounds of the drop on all images of the sweep, pp; equal when all were seen. They hold at
    # every look of a progressive sweep at once (95 %).
    drop_of_all: Interval | None = None
    settled: bool = True  # needs no more images in this sweep's mode


@dataclass(frozen=True, kw_only=True)
class SensitivityTable(Record):
    """A sweep's result; with it alone a plan can be made."""

    document: ClassVar[str] = "sensitivity_table"

    summary: ModelSummary
    criterion: str
    conditions: Conditions
    ratios: tuple[float, ...]
    baseline_accuracy: Interval
    rows: tuple[SensitivityRow, ...]
    seed: int = 0
    baseline_sops: float | None = None  # of the unpruned model; None: swept before it was kept
    mode: str = "exact"

    @property
    def finished(self) -> bool:
        """Whether every cell is there and needs no more images."""
        n_cells = len(self.summary.groups) * len(self.ratios)
        return len(self.rows) == n_cells and all(row.settled for row in self.rows)

    @cached_property
    def cells(self) -> dict[tuple[str, float], SensitivityRow]:
        """Rows by (group_id, prune_ratio)."""
        return {(r.group_id, r.prune_ratio): r for r in self.rows}

    @cached_property
    def by_group(self) -> dict[str, tuple[SensitivityRow, ...]]:
        """Rows of each group that has any, by units removed, then ratio."""
        found: dict[str, list[SensitivityRow]] = {}
        for row in self.rows:
            found.setdefault(row.group_id, []).append(row)
        return {
            group: tuple(sorted(rows, key=lambda row: (row.n_pruned, row.prune_ratio)))
            for group, rows in found.items()
        }


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
