"""Records of measurements and sweeps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from psvit_core.errors import RecordError
from psvit_core.records._base import Interval, Record, all_finite
from psvit_core.records.model import ModelSummary, PrunePlan


@dataclass(frozen=True, kw_only=True)
class Size(Record):
    """Exact size of a model, computed from its widths."""

    params: int  # parameters used at inference
    bytes: int  # of parameters and BatchNorm buffers, at the stated precision
    macs: int  # multiply-accumulates of one image and one time step


@dataclass(frozen=True, kw_only=True)
class Conditions(Record):
    """Conditions of a measurement."""

    data: str  # data specification
    split: str
    n_images: int
    T: int
    batch: int  # 0: results from different batch sizes
    precision: str  # float32, float64, bfloat16 or autocast
    device: str  # cpu, cuda, ... or mixed
    transform: str
    images: str = ""  # digest of the image ids; empty in older results
    counting: int = 1  # rule by which MACs and SOPs are counted (``names.counting_of``)
    recovery: str = "none"  # method of the recovery after pruning, one of ``names.RECOVERIES``
    weights: str = "float32"  # as stored, or one of ``names.STORED_WEIGHTS``; run in ``precision``

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, without the values that older results imply."""
        implied = {"counting": 1, "recovery": "none", "weights": "float32"}
        return {k: v for k, v in super().to_dict().items() if k not in implied or v != implied[k]}


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck(Record):
    """How often predictions in reduced precision are those of float32, on a sample of images."""

    n_images: int  # of the sample, the same for every network
    n_equal: int  # images with the prediction of float32, by the measured or unpruned network
    n_cells: int = 0  # of a sweep: its cells that were compared, too
    n_equal_cells: int = 0  # predictions of these cells, one per image, that are equal

    @property
    def agreement(self) -> float:
        """Fraction of equal predictions of the measured or unpruned network."""
        return self.n_equal / self.n_images

    @property
    def cells(self) -> float | None:
        """Fraction of equal predictions of the cells; None without cells."""
        return self.n_equal_cells / (self.n_images * self.n_cells) if self.n_cells else None

    @property
    def is_enough(self) -> bool:
        """Whether at least ``LEAST_AGREEMENT`` of the predictions are equal."""
        return min(self.agreement, 1.0 if self.cells is None else self.cells) >= LEAST_AGREEMENT

    @property
    def text(self) -> str:
        """The numbers in words."""
        of_cells = "" if self.cells is None else f"; of {self.n_cells} cells: {self.cells:.2%}"
        equal = f"{self.n_equal:,} of {self.n_images:,} ({self.agreement:.2%})"
        return f"predictions equal to float32: {equal}{of_cells}"


#: Fraction of predictions in reduced precision that are those of float32, below which numbers are
#: given with a warning.
LEAST_AGREEMENT = 0.98


@dataclass(frozen=True, kw_only=True)
class EnergyModel(Record):
    """Energy per operation and, in some models, per byte of memory access."""

    name: str
    mac_pj: float  # multiply-accumulate of a layer that reads real values, pJ
    sop_pj: float  # accumulate triggered by a spike, pJ
    source: str = ""
    byte_pj: float = 0.0  # a byte read or written (``MemoryAccess``), pJ; 0: arithmetic only

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as older versions wrote it where memory access is excluded."""
        data = super().to_dict()
        return data if self.byte_pj else {k: v for k, v in data.items() if k != "byte_pj"}


@dataclass(frozen=True, kw_only=True)
class MemoryAccess(Record):
    """Bytes that one image reads and writes, over all time steps, in fp32.

    Every use of a weight or bias reads it, and every neuron reads and writes its potential at each
    time step. Activations, operands of attention products, shortcuts, BatchNorms and caches are not
    counted.
    """

    weight_bytes: float  # read by the spikes and MACs of convolutions and linear layers
    bias_bytes: int  # read
    state_read_bytes: int
    state_write_bytes: int

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.weight_bytes + self.bias_bytes + self.state_read_bytes + self.state_write_bytes


ENERGY_45NM = EnergyModel(
    name="45nm-fp32",
    mac_pj=4.6,
    sop_pj=0.9,
    source="Horowitz 2014 (ISSCC), 32-bit float; the figures of the Spikformer and SDT papers",
)


@dataclass(frozen=True, kw_only=True)
class Quartiles(Record):
    """Median and quartiles of several runs; the field that contains them defines the unit."""

    median: float
    low: float  # 25th percentile
    high: float  # 75th percentile
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """Hardware and software of a timing, without the host name."""

    device: str  # cpu or cuda
    processor: str  # model name
    threads: int  # torch threads per operation
    torch: str  # version
    kernels: str  # implementation of the LIF neurons: native, compiled or plain

    @property
    def on_threads(self) -> str:
        """The number of threads, in words."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"


@dataclass(frozen=True, kw_only=True)
class Profile(Record):
    """Run-time memory and latency; dictionary keys are batch sizes."""

    state_bytes: int  # membrane potentials of one image
    peak_activation_bytes: dict[str, int]  # largest total of live tensors, without weights
    latency_ms: dict[str, Quartiles]  # of one forward pass
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class Measurement(Record):
    """Results of one model or plan, compared with the baseline on the same images."""

    document: ClassVar[str] = "measurement"

    model: str
    weights_hash: str
    conditions: Conditions
    accuracy: Interval  # fraction
    size: Size
    sops: float  # accumulates triggered by spikes; one image, all time steps
    macs_real: float  # MACs of layers that read real values; one image, all time steps
    energy_pj: float  # theoretical, by ``energy_model``
    firing: dict[str, float]  # neuron layer -> firing rate
    memory_saving: float = 0.0  # 1 - bytes / baseline bytes
    # Compared with the baseline on the same images; None for the baseline itself.
    baseline_accuracy: Interval | None = None  # fraction
    drop: Interval | None = None  # percentage points, paired
    kl: float | None = None  # mean KL divergence from the baseline's outputs, nats
    agreement: float | None = None  # fraction of images with the baseline's prediction
    plan: PrunePlan | None = None
    # The drop predicted before this measurement, pp; None if there was no prediction, and in older
    # results. It is never rewritten.
    predicted: Interval | None = None
    # class -> (images, correct, correct by the baseline); None without plan and in older results
    per_class: dict[str, tuple[int, int, int]] | None = None
    # (class, predicted class, images, images of the baseline) of wrong predictions, those that
    # differ most first; None without plan and in older results
    confusions: tuple[tuple[str, str, int, int], ...] | None = None
    top5: Interval | None = None  # fraction; None below 20 classes and in older results
    baseline_top5: Interval | None = None  # fraction, on the same images
    energy_model: EnergyModel = ENERGY_45NM
    profile: Profile | None = None  # measured on request
    memory: MemoryAccess | None = None  # counted on request
    warnings: tuple[str, ...] = ()  # why the numbers may be wrong; not stored with results
    recovered_by: str = ""  # method that ``auto`` chose, or that was asked for; empty: no recovery
    # With ``conditions.recovery``: the plan measured without it, on the same images, itself without
    # the plan and the machine's profile.
    unrecovered: Measurement | None = None
    #: Of a reduced precision; None in the others and in older results.
    precision_check: PrecisionCheck | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as older versions wrote it without a check of precision."""
        return _without_none(super().to_dict(), "precision_check")

    @property
    def plain(self) -> Measurement | None:
        """The plan measured without recovery; None if only the recovered model is known."""
        if self.conditions.recovery == "none":
            return self
        before = self.unrecovered
        if before is None:
            return None
        return dataclasses.replace(before, plan=self.plan, profile=self.profile)

    def under(self, recovery: str, asked: str = "none") -> Measurement | None:
        """Return the plan's measurement under a recovery; None if this one does not contain it.

        Args:
            recovery: One of ``RECOVERIES``.
            asked: The recovery that was asked for, which may not have been possible.
        """
        if recovery == "none":
            return self.plain
        return self if recovery in (self.conditions.recovery, asked) else None

    @property
    def class_changes(self) -> dict[str, float] | None:
        """Change of each class's accuracy; None if ``per_class`` is unknown."""
        if self.per_class is None:
            return None
        return {name: class_change(counts) for name, counts in self.per_class.items()}


def class_change(counts: tuple[int, int, int]) -> float:
    """Return the change of a class's accuracy against the baseline.

    Args:
        counts: Images of the class, correct ones, and those correct by the baseline.

    Returns:
        Percentage points; negative if the class loses accuracy.
    """
    n_images, correct, baseline_correct = counts
    return 100 * (correct - baseline_correct) / n_images


def _without_none(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return data without an entry that is None."""
    return data if data[name] is not None else {k: v for k, v in data.items() if k != name}


@dataclass(frozen=True, kw_only=True)
class Partial(Record):
    """Estimates of a running measurement from the images so far."""

    done: int  # images run, including the baseline's
    total: int  # images to run
    n_images: int = 0  # images behind the estimates
    accuracy: Interval | None = None  # fraction; None while the baseline runs
    drop: Interval | None = None  # percentage points, paired; None without a plan


@dataclass(frozen=True, kw_only=True)
class SensitivityRow(Record):
    """One cell of a sweep: one group pruned at one ratio, all others unpruned, no fine-tuning."""

    group_id: str
    prune_ratio: float  # requested
    n_pruned: int  # removed units
    accuracy: Interval  # fraction
    drop: Interval  # percentage points, paired
    kl: float  # nats
    agreement: float
    size: Size  # of the pruned model
    sops: float
    n_images: int
    # Bounds of the drop on all images of the sweep, pp; equal once all images were run. They hold
    # simultaneously at all stages of a progressive sweep (95 %).
    drop_of_all: Interval | None = None
    settled: bool = True  # needs no more images in the sweep's mode


@dataclass(frozen=True, kw_only=True)
class JointRow(Record):
    """A plan of several groups that a sweep measured, to calibrate predictions."""

    policy: str  # that made it, or ``mixed``
    ratios: dict[str, float]  # reached prune ratio of every pruned group
    drop: Interval  # percentage points, estimated for all images of the sweep
    kl: float  # nats
    n_images: int  # that it ran on
    #: Images of a simple random sample with the same standard error; 0: ``n_images``.
    effective_images: float = 0.0
    #: The drop after the recovery that ``auto`` takes where the cells' recovery loses much; None if
    #: that did not run.
    auto_drop: Interval | None = None

    @property
    def calibrating_drop(self) -> Interval:
        """The drop that predictions follow."""
        return self.auto_drop or self.drop


@dataclass(frozen=True, kw_only=True)
class SensitivityTable(Record):
    """Result of a sweep, sufficient to create plans."""

    document: ClassVar[str] = "sensitivity_table"

    summary: ModelSummary
    criterion: str
    conditions: Conditions
    ratios: tuple[float, ...]
    baseline_accuracy: Interval
    rows: tuple[SensitivityRow, ...]
    seed: int = 0
    baseline_sops: float | None = None  # of the unpruned model; None in older tables
    mode: str = "exact"
    joint: tuple[JointRow, ...] = ()  # none in older tables and of small sweeps
    #: Of a finished sweep in a reduced precision; None in the others.
    precision_check: PrecisionCheck | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, as older versions wrote it without a check of precision."""
        return _without_none(super().to_dict(), "precision_check")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a table and check that plans can be created from it.

        Raises:
            RecordError: If the file is not a table or is inconsistent.
        """
        table = super().load(path)
        try:
            table.check()
        except RecordError as error:
            raise RecordError(
                f"{path} is not a valid sensitivity table: {error} Sweep again."
            ) from error
        return table

    def check(self) -> None:
        """Raise ``RecordError`` unless all parts are consistent and all numbers finite.

        The table may be unfinished.
        """
        if self.criterion not in self.summary.rankings:
            raise RecordError(f"Its model has no ranking by the criterion {self.criterion!r}.")
        self.summary.check()
        if not self.ratios or not all(0 <= ratio < 1 for ratio in self.ratios):
            raise RecordError(
                f"Its prune ratios must be in [0, 1), at least one; got {self.ratios}."
            )
        for row in self.rows:
            group = self.summary.by_id.get(row.group_id)
            if group is None or not 0 <= row.n_pruned < group.n_units or row.n_images < 1:
                raise RecordError(
                    f"It has a cell of {row.group_id!r} with {row.n_pruned} units removed on "
                    f"{row.n_images} images."
                )
            if not all_finite(row.to_dict()):
                raise RecordError(
                    f"The cell of {row.group_id!r} at {row.prune_ratio} contains infinite or "
                    "undefined numbers."
                )
        for joint in self.joint:
            known = all(
                group in self.summary.by_id and 0 <= ratio < 1
                for group, ratio in joint.ratios.items()
            )
            if not known or joint.n_images < 1 or not all_finite(joint.to_dict()):
                raise RecordError(
                    f"It has a joint plan of {joint.policy!r} with unknown groups or numbers that "
                    "are invalid."
                )
        if not all_finite([self.baseline_accuracy.to_dict(), self.baseline_sops]):
            raise RecordError("The baseline contains infinite or undefined numbers.")

    @property
    def finished(self) -> bool:
        """True if every cell has a result that needs no more images."""
        n_cells = len(self.summary.groups) * len(self.ratios)
        return len(self.rows) == n_cells and all(row.settled for row in self.rows)

    @cached_property
    def cells(self) -> dict[tuple[str, float], SensitivityRow]:
        """Rows by (group_id, prune_ratio)."""
        return {(r.group_id, r.prune_ratio): r for r in self.rows}

    @cached_property
    def by_group(self) -> dict[str, tuple[SensitivityRow, ...]]:
        """Rows of each measured group, sorted by removed units, then ratio."""
        found: dict[str, list[SensitivityRow]] = {}
        for row in self.rows:
            found.setdefault(row.group_id, []).append(row)
        return {
            group: tuple(sorted(rows, key=lambda row: (row.n_pruned, row.prune_ratio)))
            for group, rows in found.items()
        }
