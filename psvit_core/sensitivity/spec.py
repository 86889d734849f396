"""A sweep as data: its definition, and the table of its results so far; no torch.

The store contains results per cell and image. ``SweepSpec`` defines which cells and images make up
one sweep, so any process can build its table at any time, finished or not.

A progressive sweep runs in stages of 64, 256, 1024 ... images, always in the same order, and stops
running a cell once its accuracy drop is known well enough (``is_settled``).

The cells of a recovered sweep are measured after the layers that read the pruned group were
refitted (``recover.cells``). Its spec and its table say so in ``conditions.recovery``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from psvit_core.errors import InvalidRatioError, StoreError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.size import plan_size
from psvit_core.records import (
    ChannelGroup,
    Conditions,
    Interval,
    ModelSummary,
    PrecisionCheck,
    PrunePlan,
    Record,
    SensitivityRow,
    SensitivityTable,
    check_ratio,
    n_pruned,
)
from psvit_core.sensitivity.joint import read_joint
from psvit_core.stats import drop_bounds_of_all
from psvit_core.storage.predictions import Outcome, as_run, batches_key, load_outcome, outcome_key
from psvit_core.storage.store import ENGINE_VERSION, Store, digest

MODES = ("exact", "progressive")
FIRST_STAGE = 64  # images
_STAGE_GROWTH = 4  # each stage prepares every cell again, so there are few of them
_ALPHA = 0.05  # probability that a cell's bounds fail at any of its stages
# A cell is settled if its bounds are at most this wide (percentage points, half width), or this
# wide relative to its drop, or if its drop is certainly larger than the last value.
ENOUGH_HALF_WIDTH = 2.0
ENOUGH_SHARE = 0.3
TOO_MUCH = 10.0


def check_ratios(ratios: tuple[float, ...]) -> tuple[float, ...]:
    """Return the ratios sorted, without duplicates.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1), or there are none.
    """
    checked = tuple(sorted({check_ratio(r) for r in ratios}))
    if not checked:
        raise InvalidRatioError("A sweep needs at least one prune ratio, e.g. 0.25,0.5.")
    return checked


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One group at one prune ratio; all other groups stay whole."""

    group: ChannelGroup
    prune_ratio: float
    plan: PrunePlan
    key: str  # of its results in the store


@dataclass(frozen=True, kw_only=True)
class SweepSpec(Record):
    """Everything that determines a sweep's table."""

    document: ClassVar[str] = "sweep_spec"

    summary: ModelSummary
    criterion: str
    ratios: tuple[float, ...]
    conditions: Conditions
    ids: tuple[str, ...] = field(repr=False)  # images, in the order in which they run
    mode: str = "exact"  # not part of the key: both modes fill the same table
    calib: str = ""  # digest of the calibration images; empty if units are ranked by weights
    seed: int = 0  # of a random ranking
    #: What recovers the cells: method, ridge, digest of the calibration images. Empty: nothing.
    recovered_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, without ``recovered_by`` where it is empty."""
        data = super().to_dict()
        return data if self.recovered_by else {k: data[k] for k in data if k != "recovered_by"}

    @property
    def key(self) -> str:
        """Key of this sweep in the store."""
        c = self.conditions
        parts = [self.summary.weights_hash, self.criterion, list(self.ratios), list(self.ids)]
        batches = batches_key(self.summary.batch_coupled, c.batch, self.ids)
        ranked_on = [self.calib, self.seed] if self.calib or self.seed else []
        counting = [f"counting {c.counting}"] if c.counting > 1 else []
        run = [c.T, c.precision, c.transform, batches]
        recovered = [f"recovered {self.recovered_by}"] if self.recovered_by else []
        return "sweep/" + digest([*parts, *run, *ranked_on, *counting, *recovered])

    def cells(self) -> Iterator[Cell]:
        """Iterate over all cells, coarse to fine: first the middle ratio of every group."""
        for ratio in _coarse_to_fine(self.ratios):
            for group in self.summary.groups:
                yield self.cell(group, ratio)

    def cell(self, group: ChannelGroup, ratio: float) -> Cell:
        """Return the cell of a group at a ratio."""
        plan = plan_from_ratios(self.summary, {group.group_id: ratio}, criterion=self.criterion)
        return Cell(group=group, prune_ratio=ratio, plan=plan, key=self.key_of(plan))

    def key_of(self, plan: PrunePlan) -> str:
        """Return the store key of the results of the model under ``plan``.

        Recovery changes nothing where nothing is pruned: the baseline of a recovered sweep is that
        of the plain one.
        """
        recovered = f", recovered {self.recovered_by}" if self.recovered_by and plan.kept else ""
        return outcome_key(
            self.summary.weights_hash,
            plan.kept,
            transform=self.conditions.transform,
            T=self.conditions.T,
            precision=self.conditions.precision,
            form=f"replayed{recovered}",
            batches=batches_key(self.summary.batch_coupled, self.conditions.batch, self.ids),
            counting=self.conditions.counting,
        )

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of images after each stage of a progressive sweep; the last is all of them."""
        n_all, stages = len(self.ids), []
        size = FIRST_STAGE
        while size < n_all and not self.cluster:  # a few coupled batches are not a sample
            stages.append(size)
            size *= _STAGE_GROWTH
        return (*stages, n_all)

    @property
    def cluster(self) -> int | None:
        """Batch size if the images of a batch influence each other (for intervals), else None."""
        return self.conditions.batch if self.summary.batch_coupled else None

    @property
    def baseline_key(self) -> str:
        """Store key of the unpruned model's results (``storage.baselines`` has its logits)."""
        return self.key_of(plan_from_ratios(self.summary, {}, criterion=self.criterion))


def save_spec(store: Store, spec: SweepSpec) -> None:
    """Store a spec, so that any process can build its table.

    One that is stored already may keep its old time on a full disk.
    """
    with store.optional() if store.get(spec.key) else nullcontext():
        store.put(spec.key, {"spec": spec.to_dict(), "saved": time.time()})


def load_spec(store: Store, key: str) -> SweepSpec:
    """Load the spec under ``key``.

    Raises:
        StoreError: If the store has no such sweep.
    """
    entry = store.get(key)
    if entry is None:
        raise StoreError(f"The store {store.folder} has no sweep {key!r}. Start the sweep again.")
    return SweepSpec.from_dict(entry["spec"])


def sweep_keys(store: Store) -> list[str]:
    """Return the keys of all sweeps in the store, the most recently started first."""
    saved = store.read("sweep/", _saved)
    return sorted(saved, key=lambda key: saved[key], reverse=True)


def _saved(key: str, entry: Any) -> float:
    return float(entry["saved"])


def _coarse_to_fine(ratios: tuple[float, ...]) -> list[float]:
    """Order ratios: the middle one, then always the one farthest from those before it."""
    remaining = list(ratios)
    order = [remaining.pop(len(remaining) // 2)]
    while remaining:
        order.append(max(remaining, key=lambda r: min(abs(r - done) for done in order)))
        remaining.remove(order[-1])
    return order


def row_of(spec: SweepSpec, cell: Cell, outcome: Outcome, baseline: Outcome) -> SensitivityRow:
    """Return a cell's table row, from the images of the sweep that have both results.

    Both results may be read while a worker adds to them, so either may lack images.
    """
    chosen = outcome.among(baseline.among(spec.ids).ids.tolist())
    group = cell.group
    # Once all images have run, earlier stages decide nothing, and their bounds are expensive.
    stages = spec.stages[-1:] if len(chosen) == len(spec.ids) else spec.stages
    bounds = _drop_bounds(spec, chosen, baseline, stages)
    return SensitivityRow(
        group_id=group.group_id,
        prune_ratio=cell.prune_ratio,
        n_pruned=n_pruned(cell.prune_ratio, group.n_units, group.heads),
        accuracy=chosen.accuracy(spec.cluster),
        drop=chosen.drop_from(baseline, spec.cluster),
        kl=float(chosen.kl.mean()),
        agreement=chosen.agreement_with(baseline),
        size=plan_size(spec.summary, cell.plan),
        sops=float(chosen.sops.mean()),
        n_images=len(chosen),
        drop_of_all=bounds[-1] if bounds else None,
        settled=is_settled(spec, bounds, len(chosen)),
    )


def _drop_bounds(
    spec: SweepSpec, outcome: Outcome, baseline: Outcome, stages: Sequence[int]
) -> list[Interval]:
    """Bound the accuracy drop on all images of the sweep after each completed stage.

    The stages are fixed in advance and share the error probability, so all bounds of a cell are
    valid together.

    Args:
        spec: The sweep.
        outcome: The cell's results on the first images of the sweep, in its order.
        baseline: The baseline's results on at least these images.
        stages: Those of the sweep's stages to bound the drop at.

    Returns:
        One interval per completed stage, percentage points.
    """
    n_all, n_partial_stages = len(spec.ids), len(spec.stages) - 1
    ours, theirs = outcome.correct, baseline.select(outcome.ids.tolist()).correct
    bounds = []
    for n_images in stages:
        if n_images > len(outcome):
            break
        lost = int((theirs[:n_images] & ~ours[:n_images]).sum())
        won = int((~theirs[:n_images] & ours[:n_images]).sum())
        value = 100 * (lost - won) / n_images
        if n_images == n_all:
            bounds.append(Interval(value=value, low=value, high=value))
        else:
            alpha = _ALPHA / n_partial_stages
            low, high = drop_bounds_of_all(lost, won, n_images, n_all, alpha)
            bounds.append(Interval(value=value, low=100 * low, high=100 * high))
    return bounds


def is_settled(spec: SweepSpec, bounds: Sequence[Interval], n_images: int) -> bool:
    """Return whether a cell needs no more images in the sweep's mode."""
    if n_images == len(spec.ids):
        return True
    return spec.mode == "progressive" and any(
        b.low > TOO_MUCH
        or (b.high - b.low) / 2 <= max(ENOUGH_HALF_WIDTH, ENOUGH_SHARE * abs(b.value))
        for b in bounds
    )


def read_table(store: Store, spec: SweepSpec) -> SensitivityTable | None:
    """Read the table of all results so far, in network order; None before the first images.

    Raises:
        StoreError: If an entry of the store is damaged.
    """
    stored = load_outcome(store, spec.baseline_key)
    baseline = stored.among(spec.ids) if stored is not None else None
    if baseline is None or not len(baseline):
        return None
    rows: list[SensitivityRow] = []
    runs: set[bytes] = set()
    for group in spec.summary.groups:
        for ratio in spec.ratios:
            cell = spec.cell(group, ratio)
            outcome = load_outcome(store, cell.key)
            if outcome is not None and len(seen := outcome.among(baseline.ids.tolist())):
                rows.append(row_of(spec, cell, outcome, baseline))
                runs |= seen.runs
    table, known = table_of(spec, rows, baseline, runs), store.get(check_key(spec))
    check = PrecisionCheck.from_dict(known) if known else None
    return replace(table, joint=read_joint(store, spec.key), precision_check=check)


def check_key(spec: SweepSpec) -> str:
    """Return the store key of a sweep's check of its precision (``precision``)."""
    return "precision/" + digest([ENGINE_VERSION, spec.key])


def table_of(
    spec: SweepSpec, rows: Sequence[SensitivityRow], baseline: Outcome, runs: Set[bytes]
) -> SensitivityTable:
    """Build the table of a sweep.

    Args:
        spec: The sweep.
        rows: Rows of the cells that have results, in network order.
        baseline: The baseline's results on images of the sweep; at least one.
        runs: Devices and batches that the cells ran with (``Outcome.runs``).
    """
    return SensitivityTable(
        summary=spec.summary,
        criterion=spec.criterion,
        conditions=as_run(spec.conditions, runs | baseline.runs),
        ratios=spec.ratios,
        baseline_accuracy=baseline.accuracy(spec.cluster),
        rows=tuple(rows),
        seed=spec.seed,
        baseline_sops=float(baseline.sops.mean()),
        mode=spec.mode,
    )
