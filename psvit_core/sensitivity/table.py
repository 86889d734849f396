"""A sweep as data: what is to be measured, and the table of what has been; no torch.

The store holds results per cell and image. ``SweepSpec`` says which cells and images make up one
sweep, so a table - whole, or of what has been run so far - can be put together at any time by any
process.

A progressive sweep looks at its cells after 64, 256, 1024 ... images, always the same ones first,
and leaves a cell alone once enough is known of it (``is_settled``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from psvit_core.errors import InvalidRatioError, StoreError
from psvit_core.outcomes import Outcome, as_run, batches_key, load_outcome, outcome_key
from psvit_core.plans import plan_from_ratios
from psvit_core.records import (
    ChannelGroup,
    Conditions,
    Interval,
    ModelSummary,
    PrunePlan,
    Record,
    SensitivityRow,
    SensitivityTable,
    check_ratio,
    n_pruned,
)
from psvit_core.size import plan_size
from psvit_core.stats import drop_bounds_of_all
from psvit_core.store import Store, digest

DEFAULT_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


MODES = ("exact", "progressive")
FIRST_LOOK = 64  # images
_FURTHER = 4  # times as many at the next look: each look costs a cell's preparation again
_ALPHA = 0.05  # chance that the bounds of a cell do not hold at all of its looks
ENOUGH_HALF_WIDTH = 2.0  # pp: a cell is settled when its bounds are as narrow,
ENOUGH_SHARE = 0.3  # or as narrow as this share of its drop,
TOO_MUCH = 10.0  # pp: or when it surely loses more


def check_ratios(ratios: tuple[float, ...]) -> tuple[float, ...]:
    """Sorted distinct ratios; ``InvalidRatioError`` where one is outside [0, 1) or none is left."""
    checked = tuple(sorted({check_ratio(r) for r in ratios}))
    if not checked:
        raise InvalidRatioError("A sweep needs at least one prune ratio, e.g. 0.25,0.5.")
    return checked


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One group at one prune ratio, the rest untouched."""

    group: ChannelGroup
    prune_ratio: float
    plan: PrunePlan
    key: str  # where its results are kept


@dataclass(frozen=True, kw_only=True)
class SweepSpec(Record):
    """All that determines a sweep's table."""

    document: ClassVar[str] = "sweep_spec"

    summary: ModelSummary
    criterion: str
    ratios: tuple[float, ...]
    conditions: Conditions
    ids: tuple[str, ...] = field(repr=False)  # images, in the order in which they are run
    mode: str = "exact"  # how much is run; not part of the key: the table is the same one
    calib: str = ""  # digest of the images that the ranking was made on; none: of weights alone
    seed: int = 0

    @property
    def key(self) -> str:
        """Identifies this sweep in the store."""
        c = self.conditions
        parts = [self.summary.weights_hash, self.criterion, list(self.ratios), list(self.ids)]
        batches = batches_key(self.summary.batch_coupled, c.batch, self.ids)
        chosen_on = [self.calib, self.seed] if self.calib or self.seed else []
        return "sweep/" + digest([*parts, c.T, c.precision, c.transform, batches, *chosen_on])

    def cells(self) -> Iterator[Cell]:
        """All cells, coarse to fine: the middle ratio of every group first, then the others."""
        for ratio in _coarse_to_fine(self.ratios):
            for group in self.summary.groups:
                yield self.cell(group, ratio)

    def cell(self, group: ChannelGroup, ratio: float) -> Cell:
        """The cell of one group and ratio."""
        plan = plan_from_ratios(self.summary, {group.group_id: ratio}, criterion=self.criterion)
        return Cell(group=group, prune_ratio=ratio, plan=plan, key=self.key_of(plan))

    def key_of(self, plan: PrunePlan) -> str:
        """Where the results of the silenced model under ``plan`` are kept."""
        return outcome_key(
            self.summary.weights_hash, plan.kept, transform=self.conditions.transform,
            T=self.conditions.T, precision=self.conditions.precision, form="replayed",
            batches=batches_key(self.summary.batch_coupled, self.conditions.batch, self.ids),
        )  # fmt: skip

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of images after which a progressive sweep decides, the last: all of them."""
        n_all, looks = len(self.ids), []
        size = FIRST_LOOK
        while size < n_all and not self.cluster:  # coupled batches are no sample of their own
            looks.append(size)
            size *= _FURTHER
        return (*looks, n_all)

    @property
    def cluster(self) -> int | None:
        """Batch size where images of a batch influence each other, for the intervals."""
        return self.conditions.batch if self.summary.batch_coupled else None

    @property
    def baseline_key(self) -> str:
        """Where the unpruned model's results are kept."""
        return self.key_of(plan_from_ratios(self.summary, {}, criterion=self.criterion))


def save_spec(store: Store, spec: SweepSpec) -> None:
    """Keep a spec, so that any process can put its table together."""
    store.put(spec.key, {"spec": spec.to_dict(), "saved": time.time()})


def load_spec(store: Store, key: str) -> SweepSpec:
    """The spec under ``key``.

    Raises:
        StoreError: If there is none.
    """
    entry = store.get(key)
    if entry is None:
        raise StoreError(f"The store {store.folder} has no sweep {key!r}. Start it again.")
    return SweepSpec.from_dict(entry["spec"])


def sweep_keys(store: Store) -> list[str]:
    """Keys of all sweeps in the store, the one started last first."""
    saved = store.read("sweep/", _saved)
    return sorted(saved, key=lambda key: saved[key], reverse=True)


def _saved(key: str, entry: Any) -> float:
    return float(entry["saved"])


def _coarse_to_fine(ratios: tuple[float, ...]) -> list[float]:
    """The middle first, then each time the ratio farthest from those already there."""
    left = list(ratios)
    order = [left.pop(len(left) // 2)]
    while left:
        order.append(max(left, key=lambda r: min(abs(r - done) for done in order)))
        left.remove(order[-1])
    return order


def row_of(spec: SweepSpec, cell: Cell, outcome: Outcome, baseline: Outcome) -> SensitivityRow:
    """The table row of a cell's results, on the sweep's images that have been run.

    Both may be read while a worker goes on, so one may know images that the other does not yet.
    """
    chosen = outcome.among(baseline.among(spec.ids).ids.tolist())
    group = cell.group
    # Where all images were seen, earlier looks decide nothing, and their bounds cost much.
    looks = spec.looks[-1:] if len(chosen) == len(spec.ids) else spec.looks
    bounds = bounds_of_all(spec, chosen, baseline, looks)
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


def bounds_of_all(
    spec: SweepSpec, outcome: Outcome, baseline: Outcome, looks: Sequence[int] | None = None
) -> list[Interval]:
    """Bounds of the drop on all images of the sweep at every look so far, percentage points.

    The looks are fixed beforehand and share the error, so all of a cell's bounds hold together.

    Args:
        spec: The sweep.
        outcome: The cell's results on the first images of the sweep, in its order.
        baseline: The baseline's results on these.
        looks: Only these of the sweep's looks; all when None.
    """
    n_all, n_looks = len(spec.ids), len(spec.looks) - 1
    ours, theirs = outcome.correct, baseline.select(outcome.ids.tolist()).correct
    found = []
    for look in spec.looks if looks is None else looks:
        if look > len(outcome):
            break
        lost = int((theirs[:look] & ~ours[:look]).sum())
        won = int((~theirs[:look] & ours[:look]).sum())
        value = 100 * (lost - won) / look
        if look == n_all:
            found.append(Interval(value=value, low=value, high=value))
        else:
            low, high = drop_bounds_of_all(lost, won, look, n_all, _ALPHA / n_looks)
            found.append(Interval(value=value, low=100 * low, high=100 * high))
    return found


def is_settled(spec: SweepSpec, bounds: Sequence[Interval], n_images: int) -> bool:
    """Whether a cell needs no more images in the sweep's mode."""
    if n_images == len(spec.ids):
        return True
    return spec.mode == "progressive" and any(
        b.low > TOO_MUCH
        or (b.high - b.low) / 2 <= max(ENOUGH_HALF_WIDTH, ENOUGH_SHARE * abs(b.value))
        for b in bounds
    )


def read_table(store: Store, spec: SweepSpec) -> SensitivityTable | None:
    """The table of what has been run so far, in network order; None before the first images.

    Raises:
        StoreError: If an entry of the store is damaged.
    """
    baseline = load_outcome(store, spec.baseline_key)
    if baseline is None:
        return None
    whole = baseline.among(spec.ids)
    if not len(whole):
        return None
    rows, runs = [], set(whole.runs)
    for group in spec.summary.groups:
        for ratio in spec.ratios:
            cell = spec.cell(group, ratio)
            outcome = load_outcome(store, cell.key)
            if outcome is not None and len(seen := outcome.among(whole.ids.tolist())):
                rows.append(row_of(spec, cell, outcome, whole))
                runs |= seen.runs
    return SensitivityTable(
        summary=spec.summary,
        criterion=spec.criterion,
        conditions=as_run(spec.conditions, runs),
        ratios=spec.ratios,
        baseline_accuracy=whole.accuracy(spec.cluster),
        rows=tuple(rows),
        seed=spec.seed,
        baseline_sops=float(whole.sops.mean()),
        mode=spec.mode,
    )
