"""Records of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

from psvit_core.errors import RecordError
from psvit_core.records._base import Interval, Record, all_finite
from psvit_core.records.model import ModelSummary, PrunePlan


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
    batch: int  # 0: of results that were run with different ones
    precision: str  # float32 or float64
    device: str  # or mixed
    transform: str
    images: str = ""  # digest of their names, so which they are; empty: before it was kept


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

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """As of every record; the file must also be a table that can be planned from."""
        table = super().load(path)
        try:
            table.check()
        except RecordError as error:
            raise RecordError(
                f"{path} is no sound sensitivity table: {error} Sweep again."
            ) from error
        return table

    def check(self) -> None:
        """Raise ``RecordError`` unless all parts agree with each other and all numbers are finite.

        Planners rely on it; ``load`` sees to it. A table need not be finished.
        """
        if self.criterion not in self.summary.rankings:
            raise RecordError(f"Its model has no ranking by its criterion {self.criterion!r}.")
        self.summary.check()
        if not self.ratios or not all(0 <= ratio < 1 for ratio in self.ratios):
            raise RecordError(f"Its prune ratios are {self.ratios}; at least one, in [0, 1).")
        for row in self.rows:
            group = self.summary.by_id.get(row.group_id)
            if group is None or not 0 <= row.n_pruned < group.n_units or row.n_images < 1:
                raise RecordError(
                    f"It has a cell of {row.group_id!r} with {row.n_pruned} units removed on "
                    f"{row.n_images} images."
                )
            if not all_finite(row.to_dict()):
                raise RecordError(
                    f"The cell of {row.group_id!r} at {row.prune_ratio} holds numbers that are "
                    "infinite or none."
                )
        if not all_finite([self.baseline_accuracy.to_dict(), self.baseline_sops]):
            raise RecordError("The baseline's numbers are infinite or none.")

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
