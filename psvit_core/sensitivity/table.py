"""A sweep as data: what is to be measured, and the table of what has been; no torch.

The store holds results per cell and image. ``SweepSpec`` says which cells and images make up one
sweep, so a table - whole, or of the cells finished so far - can be put together at any time by any
process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from psvit_core.errors import InvalidRatioError, StoreError
from psvit_core.outcomes import Outcome, batches_key, load_outcome, outcome_key
from psvit_core.plans import plan_from_ratios
from psvit_core.records import (
    ChannelGroup,
    Conditions,
    ModelSummary,
    PrunePlan,
    Record,
    SensitivityRow,
    SensitivityTable,
    check_ratio,
    n_pruned,
)
from psvit_core.size import plan_size
from psvit_core.store import Store, digest

DEFAULT_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


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
    ids: tuple[str, ...] = field(repr=False)  # images, in order
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
            T=self.conditions.T, precision=self.conditions.precision, form="silenced",
            batches=batches_key(self.summary.batch_coupled, self.conditions.batch, self.ids),
        )  # fmt: skip

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
    saved = {key: store.get(key)["saved"] for key in store.keys("sweep/")}
    return sorted(saved, key=lambda key: saved[key], reverse=True)


def _coarse_to_fine(ratios: tuple[float, ...]) -> list[float]:
    """The middle first, then each time the ratio farthest from those already there."""
    left = list(ratios)
    order = [left.pop(len(left) // 2)]
    while left:
        order.append(max(left, key=lambda r: min(abs(r - done) for done in order)))
        left.remove(order[-1])
    return order


def row_of(spec: SweepSpec, cell: Cell, outcome: Outcome, baseline: Outcome) -> SensitivityRow:
    """The table row of a cell's results, on the sweep's images that have been run."""
    todo = set(outcome.missing(spec.ids))
    chosen = outcome.select([name for i, name in enumerate(spec.ids) if i not in todo])
    group = cell.group
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
    )


def read_table(store: Store, spec: SweepSpec) -> SensitivityTable | None:
    """The table of the cells finished so far, in network order; None before the baseline is done.

    Raises:
        StoreError: If an entry of the store is damaged.
    """
    baseline = load_outcome(store, spec.baseline_key)
    if baseline is None or baseline.missing(spec.ids):
        return None
    rows = []
    for group in spec.summary.groups:
        for ratio in spec.ratios:
            cell = spec.cell(group, ratio)
            outcome = load_outcome(store, cell.key)
            if outcome is not None and not outcome.missing(spec.ids):
                rows.append(row_of(spec, cell, outcome, baseline))
    whole = baseline.select(spec.ids)
    return SensitivityTable(
        summary=spec.summary,
        criterion=spec.criterion,
        conditions=spec.conditions,
        ratios=spec.ratios,
        baseline_accuracy=whole.accuracy(spec.cluster),
        rows=tuple(rows),
        seed=spec.seed,
        baseline_sops=float(whole.sops.mean()),
    )
