"""Sweeps as the pages show them: how far each has come, and which one a page uses.

A running sweep is read again and again, so each of its cells is read from the store once only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import streamlit as st

from psvit_core.errors import RecordError
from psvit_core.files import data_set_name
from psvit_core.jobs.client import Job
from psvit_core.records import (
    Conditions,
    Interval,
    ModelSummary,
    SensitivityRow,
    SensitivityTable,
    SweepSettings,
    counting_of,
    sweep_recovery,
)
from psvit_core.records.jobs import SweepRequest, SweepResult
from psvit_core.sensitivity.joint import read_joint
from psvit_core.sensitivity.spec import Cell, SweepSpec, load_spec, row_of, sweep_keys, table_of
from psvit_core.storage.predictions import Outcome, load_outcome
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import list_models, model_card
from ui.model import formats, recovery, state

CHOSEN = "sweep-chosen"  # session key of the sweep that the user chose, on any page
CONTROL = "random"  # the control criterion: only a last resort for plans


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """A sweep as far as it has come."""

    summary: ModelSummary
    ratios: tuple[float, ...]
    criterion: str
    rows: tuple[SensitivityRow, ...] = ()
    baseline: Interval | None = None  # accuracy; None before it is measured
    conditions: Conditions | None = None  # None before the worker has started
    key: str | None = None
    mode: str = "exact"
    table_so_far: SensitivityTable | None = None  # None before the baseline is measured

    @property
    def n_cells(self) -> int:
        """Number of cells when complete."""
        return len(self.summary.groups) * len(self.ratios)

    @property
    def complete(self) -> bool:
        """Whether every cell is measured and needs no more images."""
        return len(self.rows) == self.n_cells and all(row.settled for row in self.rows)

    @property
    def n_images(self) -> int:
        """Images of the whole sweep; 0 before the worker has started."""
        return self.conditions.n_images if self.conditions else 0

    @property
    def table(self) -> SensitivityTable | None:
        """The table for planners; None before the sweep is complete."""
        return self.table_so_far if self.complete else None


# ---- reading -------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Reads the cells of a sweep, each again only after it was rewritten."""

    spec: SweepSpec
    cells: dict[str, Cell] = field(default_factory=dict)  # in table order
    rows: dict[str, SensitivityRow] = field(default_factory=dict)
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the cells' entries
    runs: set[bytes] = field(default_factory=set)  # conditions under which the cells were run
    finished: SweepView | None = None  # the view of a complete sweep, which is final

    def __post_init__(self) -> None:
        for group in self.spec.summary.groups:
            for ratio in self.spec.ratios:
                # Named by group and ratio: cells with equal kept sets share a key in the store.
                self.cells[f"{group.group_id}|{ratio}"] = self.spec.cell(group, ratio)

    def view(self, store: Store) -> SweepView:
        """Return the sweep as it is in the store now."""
        if self.finished is not None:
            return self._with_joint(store, self.finished)
        stored = load_outcome(store, self.spec.baseline_key)
        baseline = stored.among(self.spec.ids) if stored else None
        if baseline is None or not len(baseline):
            return self._view(None)
        for name in self.cells:
            self._update(store, name, baseline)
        view = self._view(baseline)
        if view.complete and len(baseline) == len(self.spec.ids):
            self.finished = view
        return self._with_joint(store, view)

    def _with_joint(self, store: Store, view: SweepView) -> SweepView:
        """Add the joint plans, which run after the last cell."""
        table = view.table
        if table is None or table.joint == (rows := read_joint(store, self.spec.key)):
            return view
        view = replace(view, table_so_far=replace(table, joint=rows))
        self.finished = view if self.finished else None
        return view

    def _update(self, store: Store, name: str, baseline: Outcome) -> None:
        """Read one cell if its entry has changed since the last call."""
        cell = self.cells[name]
        version = store.arrays_stamp(cell.key)
        if version == self.versions.get(name):
            return
        outcome = load_outcome(store, cell.key)
        if outcome is not None and len(common := outcome.among(baseline.ids.tolist())):
            self.rows[name] = row_of(self.spec, cell, outcome, baseline)
            self.runs |= common.runs
        if outcome is None or len(outcome.among(self.spec.ids)) <= len(baseline):
            # Otherwise the cell is ahead of the baseline that was read: read it again next time.
            self.versions[name] = version

    def _view(self, baseline: Outcome | None) -> SweepView:
        spec = self.spec
        view = SweepView(
            summary=spec.summary,
            ratios=spec.ratios,
            criterion=spec.criterion,
            conditions=spec.conditions,
            key=spec.key,
            mode=spec.mode,
        )
        if baseline is None:
            return view
        rows = [self.rows[name] for name in self.cells if name in self.rows]
        table = table_of(spec, rows, baseline, self.runs)
        return replace(
            view,
            rows=table.rows,
            baseline=table.baseline_accuracy,
            conditions=table.conditions,
            table_so_far=table,
        )


@st.cache_resource(max_entries=16, show_spinner=False)
def _reader(folder: str, key: str, saved: float, _store: Store) -> _Reader:
    return _Reader(load_spec(_store, key))


def _reader_of(store: Store, key: str) -> _Reader:
    """Return the reader of a sweep; a new one after a restart, which may have another mode."""
    return _reader(str(store.folder), key, store.changes(key).get(key, 0.0), store)


def list_sweeps(store: Store, summary: ModelSummary, *, every: bool = False) -> list[SweepView]:
    """Return the sweeps of these weights on validation images, the last started first.

    Sweeps that counted MACs and synaptic operations by an older rule are left out.

    Args:
        store: The store.
        summary: The model.
        every: Also return sweeps under another recovery than the numbers on the pages. Without it,
            they are read only if there is no other complete one, because that takes long.
    """
    readers = [r for r in _readers_of(store, summary) if _is_current(r, summary)]
    wanted = sweep_recovery(recovery.used())
    own = [r.view(store) for r in readers if r.spec.conditions.recovery == wanted]
    if not every and any(view.complete for view in own):
        return own
    return [reader.view(store) for reader in readers]


def count_older_sweeps(store: Store, summary: ModelSummary) -> int:
    """Return the number of sweeps that ``list_sweeps`` leaves out for their counting rule."""
    readers = _readers_of(store, summary)
    return sum(not _is_current(reader, summary) for reader in readers)


def _is_current(reader: _Reader, summary: ModelSummary) -> bool:
    return reader.spec.conditions.counting == counting_of(summary.family)


def _readers_of(store: Store, summary: ModelSummary) -> list[_Reader]:
    found = []
    for key in sweep_keys(store):
        try:
            reader = _reader_of(store, key)
        except RecordError:
            continue  # written by another version of the engine
        spec = reader.spec
        if (spec.summary.weights_hash, spec.conditions.split) == (summary.weights_hash, "val"):
            found.append(reader)
    return found


def sweep_view(store: Store, key: str) -> SweepView:
    """Return a sweep as far as it has come."""
    return _reader_of(store, key).view(store)


def running_view(store: Store, summary: ModelSummary, job: Job) -> SweepView:
    """Return the sweep of a job, without cells until the worker has started."""
    if isinstance(job.outcome, SweepResult) and job.outcome.sweep_key:
        return sweep_view(store, job.outcome.sweep_key)
    settings = job.request.settings if isinstance(job.request, SweepRequest) else SweepSettings()
    return SweepView(summary=summary, ratios=settings.ratios, criterion=settings.criterion or "")


# ---- choosing ------------------------------------------------------------------------------------


def best_sweep(views: Sequence[SweepView], data: str = "") -> SweepView | None:
    """Return the most informative complete sweep; None if no sweep is complete.

    Sweeps on the given data come before others, any criterion before the random control. Then the
    order is by images, by ratios, and exact before progressive. Of equals the first wins.

    Args:
        views: Sweeps, the newest first.
        data: Data specification in use, or its kind; empty for any.
    """

    def rank(view: SweepView) -> tuple[bool, bool, int, int, bool]:
        name = data_name(view)
        same = not data or data_set_name(data) in (data_set_name(name), name.partition(":")[0])
        exact = view.mode == "exact"
        return same, view.criterion != CONTROL, view.n_images, len(view.ratios), exact

    return max((view for view in views if view.complete), key=rank, default=None)


def current_sweep(views: Sequence[SweepView]) -> SweepView | None:
    """Return the complete sweep chosen in this session, or the best; None if none is complete.

    Only sweeps under the recovery that numbers include are considered.
    """
    views = under_recovery(views)
    key = state.get(CHOSEN)
    chosen = next((v for v in views if v.complete and v.key == key), None)
    data = (state.get(state.DATA) or "").strip()
    if not data and views and views[0].summary.model in list_models():
        data = model_card(views[0].summary.model).data
    return chosen or best_sweep(views, data)


def under_recovery(views: Sequence[SweepView]) -> list[SweepView]:
    """Return the sweeps whose cells were recovered as the numbers on the pages are."""
    wanted = sweep_recovery(recovery.used())
    return [v for v in views if v.conditions is None or v.conditions.recovery == wanted]


def forget_choice() -> None:
    """Clear the session's choice: Sensitivity shows the newest sweep, other pages use the best."""
    state.put(CHOSEN, None)


def data_name(view: SweepView) -> str:
    """Return the data specification of a sweep; empty before its worker has started."""
    return view.conditions.data if view.conditions else ""


def sweep_title(view: SweepView) -> str:
    """Return a one-line title: criterion, ratios, images, mode."""
    ratios = (
        ", ".join(f"{100 * r:g}" for r in view.ratios) + formats.NBSP + "%"
        if len(view.ratios) <= 4
        else f"{len(view.ratios)} ratios"
    )
    n_images = f"{view.n_images:,} images" if view.n_images else ""
    mode = "progressive" if view.mode == "progressive" else ""
    refitted = view.conditions is not None and view.conditions.recovery != "none"
    cells = "readers refitted" if refitted else ""
    return " · ".join(filter(None, [view.criterion, ratios, n_images, mode, cells]))
