"""Sweeps as pages show them: as far as they have come, each cell read once."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import streamlit as st

from psvit_core.errors import RecordError
from psvit_core.jobs.client import Job
from psvit_core.jobs.engine import SweepSettings
from psvit_core.outcomes import Outcome, as_run, load_outcome
from psvit_core.records import (
    Conditions,
    Interval,
    ModelSummary,
    SensitivityRow,
    SensitivityTable,
)
from psvit_core.sensitivity.table import Cell, SweepSpec, load_spec, row_of, sweep_keys
from psvit_core.store import Store


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep as far as it has come: what the Sensitivity page shows."""

    summary: ModelSummary
    ratios: tuple[float, ...]
    criterion: str
    rows: tuple[SensitivityRow, ...] = ()
    baseline: Interval | None = None  # accuracy; None before it is measured
    conditions: Conditions | None = None  # None before the worker has started
    key: str | None = None
    mode: str = "exact"
    baseline_sops: float | None = None

    @property
    def n_cells(self) -> int:
        """Cells in all."""
        return len(self.summary.groups) * len(self.ratios)

    @property
    def complete(self) -> bool:
        """Whether every cell is there and needs no more images."""
        return len(self.rows) == self.n_cells and all(row.settled for row in self.rows)

    @property
    def n_images(self) -> int:
        """Images of the whole sweep; 0 before the worker has started."""
        return self.conditions.n_images if self.conditions else 0

    @property
    def table(self) -> SensitivityTable | None:
        """The table, for planners; None before the sweep is complete."""
        if not self.complete or self.baseline is None or self.conditions is None:
            return None
        return SensitivityTable(
            summary=self.summary,
            criterion=self.criterion,
            conditions=self.conditions,
            ratios=self.ratios,
            baseline_accuracy=self.baseline,
            rows=self.rows,
            baseline_sops=self.baseline_sops,
            mode=self.mode,
        )


@dataclass
class _Reader:
    """Reads a sweep's cells; one that was not written again is not read again."""

    spec: SweepSpec
    cells: list[Cell] = field(default_factory=list)
    rows: dict[str, SensitivityRow] = field(default_factory=dict)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    runs: set[bytes] = field(default_factory=set)  # with what the cells were run
    finished: SweepView | None = None  # of a complete sweep: it does not change any more

    def __post_init__(self) -> None:
        self.cells = [
            self.spec.cell(group, ratio)
            for group in self.spec.summary.groups
            for ratio in self.spec.ratios
        ]

    def view(self, store: Store) -> SweepView:
        if self.finished is not None:
            return self.finished
        spec = self.spec
        baseline = load_outcome(store, spec.baseline_key)
        whole = baseline.among(spec.ids) if baseline else None
        if whole is None or not len(whole):
            return view_of(spec)
        seen = whole.ids.tolist()
        for cell in self.cells:
            name = f"{cell.group.group_id}|{cell.prune_ratio}"  # equal kept sets share a key
            stamp = store.arrays_stamp(cell.key)
            if stamp != self.stamps.get(name):
                outcome = load_outcome(store, cell.key)
                if outcome is not None and len(chosen := outcome.among(seen)):
                    self.rows[name] = row_of(spec, cell, outcome, whole)
                    self.runs |= chosen.runs
                if outcome is None or len(outcome.among(spec.ids)) <= len(seen):
                    self.stamps[name] = stamp  # else the baseline is the older: look again
        names = (f"{cell.group.group_id}|{cell.prune_ratio}" for cell in self.cells)
        rows = tuple(self.rows[name] for name in names if name in self.rows)
        view = view_of(spec, rows, whole, self.runs)
        if view.complete and len(seen) == len(spec.ids):
            self.finished = view
        return view


def view_of(
    spec: SweepSpec, rows: tuple[SensitivityRow, ...] = (), baseline: Outcome | None = None,
    runs: Set[bytes] = frozenset(),
) -> SweepView:  # fmt: skip
    """The view of a sweep with these rows."""
    return SweepView(
        summary=spec.summary,
        ratios=spec.ratios,
        criterion=spec.criterion,
        rows=rows,
        baseline=baseline.accuracy(spec.cluster) if baseline else None,
        conditions=as_run(spec.conditions, runs | (baseline.runs if baseline else set())),
        key=spec.key,
        mode=spec.mode,
        baseline_sops=float(baseline.sops.mean()) if baseline else None,
    )


@st.cache_resource(max_entries=16, show_spinner=False)
def _reader(folder: str, key: str, saved: float, _store: Store) -> _Reader:
    return _Reader(load_spec(_store, key))


def _reader_of(store: Store, key: str) -> _Reader:
    """The reader of a sweep; a new one when the sweep was started again, maybe in another mode."""
    return _reader(str(store.folder), key, store.changes(key).get(key, 0.0), store)


def sweeps(store: Store, summary: ModelSummary) -> list[SweepView]:
    """All sweeps of these weights on validation images, the one started last first."""
    found = []
    for key in sweep_keys(store):
        try:
            reader = _reader_of(store, key)
        except RecordError:
            continue  # written by another version of the engine
        spec = reader.spec
        if (spec.summary.weights_hash, spec.conditions.split) == (summary.weights_hash, "val"):
            found.append(reader.view(store))
    return found


def sweep_view(store: Store, key: str) -> SweepView:
    """A sweep as far as it has come."""
    return _reader_of(store, key).view(store)


def running_view(store: Store, summary: ModelSummary, job: Job) -> SweepView:
    """The sweep of a job; all cells still to run until the worker has begun."""
    if key := job.result.get("sweep_key"):
        return sweep_view(store, key)
    settings = SweepSettings.from_dict(job.params["settings"])
    return SweepView(summary=summary, ratios=settings.ratios, criterion=settings.criterion or "")
