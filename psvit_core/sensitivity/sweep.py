"""Running a sensitivity sweep: every group at every ratio, kept as it is measured.

As many images as memory allows are run together: the full model once, and every cell only where it
differs from it (``replay``). A cell is kept as soon as it has run. In progressive mode the whole
table is there after the first look and gets sharper.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from psvit_core.data import EvalSet
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.evaluate import (
    Prediction,
    Tick,
    check_labels,
    conditions_of,
    go_on,
    outcome_of,
    place,
    visiting_order,
)
from psvit_core.groups import axis_groups, summarize
from psvit_core.importance import CRITERIA, WEIGHT_CRITERIA, rank
from psvit_core.metrics.spikes import fan_out
from psvit_core.outcomes import Array
from psvit_core.plans import default_criterion
from psvit_core.records import SensitivityTable
from psvit_core.runtime import Run, channels_last
from psvit_core.sensitivity.board import Baseline, Board, cells_lock
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.replay import Answer, Task
from psvit_core.sensitivity.table import (
    DEFAULT_RATIOS,
    MODES,
    Cell,
    SweepSpec,
    check_ratios,
    read_table,
    row_of,
    save_spec,
)
from psvit_core.size import plan_widths
from psvit_core.store import Store, digest
from psvit_core.zoo.base import SpikingModel

log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.2  # between two looks at what another process is doing

Progress = Callable[[int, int, str], None]  # (done, total, what)


def silent(done: int, total: int, what: str) -> None:
    """Report nothing."""


def refuse_test(data: EvalSet) -> None:
    """Sweeps and planners never see the test split."""
    if data.split == "test":
        raise DataError(
            "Sweeps and planners never use the test split: what is chosen on it could not be "
            "judged on it. Use --split val."
        )


def make_spec(
    model: SpikingModel,
    data: EvalSet,
    *,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    criterion: str | None = None,
    run: Run | None = None,
    calib: EvalSet | None = None,
    seed: int = 0,
    store: Store | None = None,
    mode: str = "exact",
    tick: Tick = go_on,
) -> SweepSpec:
    """What a sweep of ``model`` over ``data`` consists of; arguments as of ``sweep``."""
    refuse_test(data)
    if mode not in MODES:
        raise UnknownNameError("sweep mode", mode, MODES)
    criterion = criterion or default_criterion(CRITERIA if calib else WEIGHT_CRITERIA)
    ranking = rank(model, criterion, calib=calib, run=run, seed=seed, store=store, tick=tick)
    by_images = CRITERIA[criterion].needs_images
    order = visiting_order(data, None)
    return SweepSpec(
        summary=summarize(model, {criterion: ranking}),
        criterion=criterion,
        ratios=check_ratios(tuple(ratios)),
        conditions=conditions_of(model, data, run or Run()),
        ids=data.ids if model.batch_coupled else tuple(data.ids[i] for i in order),
        mode=mode,
        calib=digest([calib.transform, *calib.ids]) if calib and by_images else "",
        seed=seed,
    )


def sweep(
    model: SpikingModel,
    data: EvalSet,
    *,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    criterion: str | None = None,
    run: Run | None = None,
    calib: EvalSet | None = None,
    seed: int = 0,
    store: Store | None = None,
    mode: str = "exact",
    memory_budget: int | None = None,
    progress: Progress = silent,
    tick: Tick = go_on,
) -> SensitivityTable:
    """Sensitivity of every channel group at every ratio.

    Results are kept in the store as they come; what is there is not run again, so a killed or
    cancelled sweep goes on where it stopped, and an exact one where a progressive one did.

    Args:
        model: The model, in evaluation mode.
        data: Images to measure on; not the test split.
        ratios: Prune ratios (fraction removed), each in [0, 1).
        criterion: Importance criterion that ranks the units; the best that needs no images when
            None, with ``calib`` the best of all (``plans.DEFAULT_CRITERIA``).
        run: Device, batch, precision; the defaults when None.
        calib: Images for criteria that need some, e.g. ``load_data(spec, split="calib")``.
        seed: For the criterion ``random``; named in the table.
        store: Where cells are kept; a temporary one when None.
        mode: ``exact``: every image in every cell. ``progressive``: 64 images in every cell, then
            more where little is known yet (``table.is_settled``).
        memory_budget: Bytes that the values of a batch may take; a quarter of what is free when
            None. Smaller batches are used where it asks for them.
        progress: Called with (images of cells done, in all, what), weighted by what they cost.
        tick: Called before each batch; may raise ``CancelledError`` to stop.

    Returns:
        The whole table.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1).
        DataError: If the data is a test split or does not fit the model, or the criterion needs
            calibration images.
    """
    run = run or Run()
    spec = make_spec(
        model, data, ratios=ratios, criterion=criterion, run=run, calib=calib, seed=seed,
        store=store, mode=mode, tick=tick,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        home = store or Store(folder)
        save_spec(home, spec)
        table = run_spec(
            spec, model, data, run=run, store=home, progress=progress, tick=tick,
            memory_budget=memory_budget,
        )  # fmt: skip
        if store is None:
            home.close()
        return table


def run_spec(
    spec: SweepSpec,
    model: SpikingModel,
    data: EvalSet,
    *,
    run: Run,
    store: Store,
    progress: Progress = silent,
    tick: Tick = go_on,
    memory_budget: int | None = None,
) -> SensitivityTable:
    """Run what ``spec`` asks for and the store lacks, then read the table.

    Several processes may do this at the same time; none does a cell twice.
    """
    with torch.no_grad(), run.autocast:
        work = _Work(spec, place(model, run), data, run, store, progress, tick, memory_budget)
        try:
            work.run()
        finally:
            work.write()
    table = read_table(store, spec)
    assert table is not None
    return table


class _Work:
    """One process's share of a sweep."""

    def __init__(
        self,
        spec: SweepSpec,
        model: SpikingModel,
        data: EvalSet,
        run: Run,
        store: Store,
        progress: Progress,
        tick: Tick,
        memory_budget: int | None,
    ) -> None:
        self._spec, self._model, self._run, self._store = spec, model, run, store
        self._progress, self._tick = progress, tick
        place_of = {name: i for i, name in enumerate(data.ids)}
        self._data = data.take([place_of[name] for name in spec.ids])
        check_labels(model, data)
        self._cells, self._batch = prepare(spec, model, self._data, run, memory_budget)
        self._baseline = Baseline(spec, store)
        self._board = Board(spec, store)
        self._open = {cell.key: cell for cell in spec.cells()}
        self._fans = _Fans(model)
        self._costs: dict[str, float] = {}
        self._spent = self._to_do = 0.0
        self._told, self._total = 0, len(self._open) * len(spec.ids)  # images of cells

    def write(self) -> None:
        """Write all results so far."""
        self._baseline.write()
        self._board.write()

    def _write_if_due(self) -> None:
        if self._board.is_due():
            self.write()

    def run(self) -> None:
        """Look after look, until every cell is settled."""
        looks = self._spec.looks if self._spec.mode == "progressive" else [len(self._spec.ids)]
        before = 0
        for look in looks:
            self._run_images(np.arange(before, look))
            self.write()
            self._settle()
            before = look
        if self._told < self._total:  # settled cells leave images that nobody needs
            self._progress(self._total, self._total, "")

    def _settle(self) -> None:
        """Leave alone the cells of which enough is known."""
        baseline = self._baseline.outcome()
        for key, cell in list(self._open.items()):
            outcome = self._board.outcome(key)
            if outcome and row_of(self._spec, cell, outcome, baseline).settled:
                del self._open[key]

    def _run_images(self, images: Array) -> None:
        """All open cells on some images, in batches; those of other processes are waited for."""
        size = self._batch
        chunks = [images[i : i + size] for i in range(0, len(images), size)]
        while chunks:
            waiting = [chunk for chunk in chunks if self._run_chunk(chunk)]
            if len(waiting) == len(chunks):
                self._tick()
                self.write()
                time.sleep(_WAIT_SECONDS)
            chunks = waiting

    def _run_chunk(self, chunk: Array) -> bool:
        """All open cells on a chunk; whether another process is at some of them."""
        wanted = {
            group: cells
            for group, cells in self._by_group().items()
            if any(len(self._board.missing(cell.key, chunk)) for cell in cells)
        }
        if not wanted and not len(self._baseline.missing(chunk)):
            return False
        self._tick()
        part = self._data.take(chunk.tolist())
        (x,) = part.batches(len(part), self._run.dtype, self._run.workers)
        x = channels_last(x.to(self._run.device))
        if len(self._baseline.missing(chunk)) or not self._costs:
            self._run_baseline(chunk, part, x)
        self._count_work()
        busy: list[str] = []
        with ExitStack() as running:

            def claim(group: str) -> list[Task]:
                running.close()  # the group before is done
                lock = cells_lock(self._store, self._spec, group)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    busy.append(group)
                    return []
                running.callback(self._board.hold, lock)  # until its results are written
                return self._tasks(wanted[group], part, chunk)

            self._cells.run(x, {g: partial(claim, g) for g in wanted}, self._tick)
        self._write_if_due()
        return bool(busy)

    def _by_group(self) -> dict[str, list[Cell]]:
        groups: dict[str, list[Cell]] = {}
        for cell in self._open.values():
            groups.setdefault(cell.group.group_id, []).append(cell)
        return groups

    def _run_baseline(self, chunk: Array, part: EvalSet, x: Tensor) -> None:
        logits, reached = self._cells.whole(x)
        counts = np.zeros((len(part), len(reached)))  # without columns where no layer reads spikes
        for column, count in enumerate(reached.values()):
            counts[:, column] = count
        sops = counts @ self._fans.at(reached, {})
        prediction = Prediction(logits=logits, sops=sops, firing={})
        outcome = outcome_of(part, prediction, logits, self._run)
        self._baseline.add(chunk, logits, reached, outcome)
        self._costs |= {
            key: self._cells.cost(cell.group.group_id, cell.prune_ratio)
            for key, cell in self._open.items()
        }

    def _tasks(self, cells: Sequence[Cell], part: EvalSet, chunk: Array) -> list[Task]:
        """A group's cells as far as they lack results; those that remove nothing have them."""
        tasks = []
        for cell in cells:
            missing = self._board.missing(cell.key, chunk)
            if not len(missing):
                continue
            kept = cell.plan.kept.get(cell.group.group_id)
            if kept is None:
                self._keep(cell, part, chunk, missing, None)
                continue
            position = np.searchsorted(chunk, missing)
            if self._spec.cluster:
                position = np.arange(len(chunk))  # whole batches only
            tasks.append(Task(kept, position, self._keeper(cell, part, chunk)))
        return tasks

    def _keeper(self, cell: Cell, part: EvalSet, chunk: Array) -> Callable[[Answer], None]:
        def keep(answer: Answer) -> None:
            self._keep(cell, part, chunk, chunk[answer.counted], answer)

        return keep

    def _keep(
        self, cell: Cell, part: EvalSet, chunk: Array, images: Array, answer: Answer | None
    ) -> None:
        """Put a cell's answer beside the baseline; what it does not speak of is as there."""
        logits = self._baseline.logits[images].copy()
        reached = self._baseline.reached[images].copy()
        if answer is not None:
            column = self._baseline.column
            for name, count in answer.recounted.items():
                reached[:, column[name]] = count
            if len(answer.images):
                rows = np.searchsorted(images, chunk[answer.images])
                logits[rows] = answer.logits
                for name, count in answer.reached.items():
                    reached[rows, column[name]] = count
        widths = plan_widths(self._spec.summary, cell.plan)
        place = np.searchsorted(chunk, images)
        prediction = Prediction(
            logits=logits, sops=reached @ self._fans.at(self._baseline.readers, widths), firing={}
        )
        outcome = outcome_of(
            part.take(place.tolist()), prediction, self._baseline.logits[images], self._run
        )
        self._board.add(cell.key, outcome)
        self._write_if_due()
        self._advance(cell, len(images))

    # ---- progress ----------------------------------------------------------------------------

    def _advance(self, cell: Cell, n_images: int) -> None:
        """Tell how far the sweep is: in images of cells, each cell counting what it costs."""
        self._spent += self._costs[cell.key] * n_images
        share = self._spent / max(self._spent + self._to_do, self._spent, 1e-9)
        self._to_do -= self._costs[cell.key] * n_images
        # Estimates change, but progress never goes back.
        self._told = max(self._told, int(self._total * min(share, 1.0) + 1e-6))
        self._progress(self._told, self._total, cell.group.label)

    def _count_work(self) -> None:
        """What is to do at most, and at first what earlier runs have done."""
        images = np.arange(len(self._spec.ids))
        self._to_do = sum(
            self._costs[key] * len(self._board.missing(key, images)) for key in self._open
        )
        if not self._spent:
            self._spent = sum(self._costs[key] for key in self._open) * len(images) - self._to_do


class _Fans:
    """Output channels that a spike reaches at each reader, at any widths."""

    def __init__(self, model: SpikingModel) -> None:
        self._model = model
        self._owners = axis_groups(model.channel_groups())
        self._whole: dict[str, int] = {}

    def at(self, readers: Iterable[str], widths: Mapping[str, int]) -> Array:
        """(n_readers,) float64."""
        return np.array([self._fan(name, widths) for name in readers], dtype=np.float64)

    def _fan(self, reader: str, widths: Mapping[str, int]) -> int:
        if reader not in self._whole:
            self._whole[reader] = fan_out(self._model, reader)
        owner = self._owners.get((f"{reader}.weight", 0), "")
        return widths.get(owner, self._whole[reader]) if self._whole[reader] > 1 else 1
