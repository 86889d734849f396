"""The run of a sensitivity sweep: every group at every ratio, stored as it is measured.

As many images as memory allows run together: the full model once, and each cell only from where it
differs (``incremental.executor``). In progressive mode the whole table exists after the first stage
and then gets more precise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.data import EvalSet
from psvit_core.data.ahead import Upcoming, placed
from psvit_core.data.evalset import visiting_order
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.evaluate import Prediction, check_labels, conditions_of, outcome_of, place_once
from psvit_core.groups import summarize
from psvit_core.importance import CRITERIA, rank
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.plan.build import default_criterion
from psvit_core.plan.size import plan_widths
from psvit_core.records import DEFAULT_RATIOS, WEIGHT_CRITERIA, SensitivityTable
from psvit_core.recover.cells import CellRefits, LayerWeights
from psvit_core.runtime import Portions, Run, out_of_memory_explained
from psvit_core.sensitivity.buffer import (
    ResultBuffer,
    SweepBaseline,
    group_lock,
    store_or_temporary,
)
from psvit_core.sensitivity.joint_run import with_joint_plans
from psvit_core.sensitivity.precision import compared, exact_part
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.progress import FanOuts, ProgressMeter
from psvit_core.sensitivity.recovered import SweepOptions, cell_refits, recovered
from psvit_core.sensitivity.spec import (
    MODES,
    Cell,
    SweepSpec,
    check_ratios,
    read_table,
    row_of,
    save_spec,
)
from psvit_core.storage.predictions import Array
from psvit_core.storage.store import Store, digest
from psvit_core.zoo.base import SpikingModel

_POLL_SECONDS = 0.2  # while another process runs the remaining cells


def refuse_test_split(data: EvalSet) -> None:
    """Raise ``DataError`` if the images are a test split."""
    if data.split == "test":
        raise DataError(
            "Sweeps and planners never use the test split: a choice made on it cannot be judged "
            "on it. Use --split val."
        )


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Settings for ranking the units of each group.

    Args:
        criterion: Importance criterion; if None, the best one for the given images.
        calib: Calibration images, for criteria that need them.
        seed: Seed of the criterion ``random``.
    """

    criterion: str | None = None
    calib: EvalSet | None = None
    seed: int = 0


def make_spec(
    model: SpikingModel,
    data: EvalSet,
    *,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    ranking: RankingOptions | None = None,
    run: Run | None = None,
    store: Store | None = None,
    mode: str = "exact",
    tick: Tick = keep_going,
) -> SweepSpec:
    """Rank the units of a model and define its sweep; arguments as for ``sweep``."""
    refuse_test_split(data)
    if mode not in MODES:
        raise UnknownNameError("sweep mode", mode, MODES)
    ranking = ranking or RankingOptions()
    calib, seed = ranking.calib, ranking.seed
    criterion = ranking.criterion or default_criterion(CRITERIA if calib else WEIGHT_CRITERIA)
    order = rank(model, criterion, calib=calib, run=run, seed=seed, store=store, tick=tick)
    by_images = CRITERIA[criterion].needs_images
    shuffled = tuple(data.ids[i] for i in visiting_order(data, None))
    return SweepSpec(
        summary=summarize(model, {criterion: order}),
        criterion=criterion,
        ratios=check_ratios(tuple(ratios)),
        conditions=conditions_of(model, data, run or Run()),
        ids=data.ids if model.batch_coupled else shuffled,
        mode=mode,
        calib=digest([calib.transform, *calib.ids]) if calib and by_images else "",
        seed=seed,
    )


def sweep(  # noqa: PLR0913 - a public signature
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
    recovery_images: EvalSet | None = None,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
) -> SensitivityTable:
    """Measure the sensitivity of every channel group at every ratio; return the complete table.

    A stopped sweep resumes, and an exact one continues a progressive one.

    Args:
        model: The model, in evaluation mode.
        data: Images to measure on; not the test split.
        ratios: Prune ratios (fraction removed), each in [0, 1).
        criterion: Criterion that ranks the units; if None, the best one for the given images.
        run: Device, batch, precision; the defaults if None.
        calib: Images for criteria that need them, e.g. ``load_data(spec, split="calib")``.
        seed: Seed of the criterion ``random``; part of the table.
        store: Where results are stored; a temporary store if None.
        mode: ``exact`` runs every image in every cell; ``progressive`` runs 64 in every cell, then
            more where the drop is not yet known well enough.
        memory_budget: Bytes for the values of a batch; a quarter of the free memory if None.
        recovery_images: If given, the readers of every cell are refitted to them.
        progress: Called with (images of cells done, total, description), weighted by cost.
        tick: Called before each batch; may raise ``CancelledError`` to stop.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1).
        DataError: If the data is a test split or does not fit the model, or calibration images are
            missing or of a split that accuracy is measured on.
    """
    run = run or Run()
    ranking = RankingOptions(criterion=criterion, calib=calib, seed=seed)
    spec = make_spec(
        model, data, ratios=ratios, ranking=ranking, run=run, mode=mode, store=store, tick=tick
    )
    if recovery_images is not None:
        spec = recovered(spec, recovery_images)
    with store_or_temporary(store) as results:
        save_spec(results, spec)
        return run_spec(
            spec,
            model,
            data,
            run=run,
            store=results,
            progress=progress,
            tick=tick,
            options=SweepOptions(memory_budget=memory_budget, recovery_images=recovery_images),
        )


def run_spec(
    spec: SweepSpec,
    model: SpikingModel,
    data: EvalSet,
    *,
    run: Run,
    store: Store,
    progress: Progress = ignore_progress,
    tick: Tick = keep_going,
    options: SweepOptions | None = None,
) -> SensitivityTable:
    """Run the cells and joint plans of a sweep that the store lacks, then read the table.

    Several processes may run the same sweep at the same time; no cell runs twice.

    Raises:
        DataError: If the sweep is recovered and its calibration images are not given.
    """
    options = options or SweepOptions()
    placed = place_once(model, run, spec.summary.weights_hash)
    refits = _run_cells(spec, placed, data, run, store, progress, tick, options)
    table = read_table(store, spec)
    assert table is not None
    table = with_joint_plans(
        table, spec, model, data, run=run, store=store, refits=refits, tick=tick
    )
    if table.precision_check is not None or not run.is_reduced:
        return table
    exact = exact_part(spec)
    _run_cells(exact, placed, data, run.exact, store, ignore_progress, tick, options)
    return replace(table, precision_check=compared(store, spec, exact))


def _run_cells(
    spec: SweepSpec,
    model: SpikingModel,
    data: EvalSet,
    run: Run,
    store: Store,
    progress: Progress,
    tick: Tick,
    options: SweepOptions,
) -> CellRefits | None:
    """Run the cells of a sweep that the store lacks; return what recovers cells, if it does."""
    with store.using(), torch.no_grad(), run.autocast, out_of_memory_explained(run):
        work = _SweepRun(spec, model, data, run, store, progress, tick, options)
        try:
            work.run()
        finally:
            work.close()
    return work.refits


class _SweepRun:
    """One process's part of a sweep."""

    def __init__(
        self,
        spec: SweepSpec,
        model: SpikingModel,
        data: EvalSet,
        run: Run,
        store: Store,
        progress: Progress,
        tick: Tick,
        options: SweepOptions,
    ) -> None:
        self._spec, self._model, self._run, self._store = spec, model, run, store
        self._tick = tick
        self.refits = cell_refits(spec, model, run, options.recovery_images)
        self._refitted: dict[str, dict[str, LayerWeights]] = {}  # by key of a recovered cell
        position = {name: i for i, name in enumerate(data.ids)}
        self._data = data.take([position[name] for name in spec.ids])
        check_labels(model, data)
        self._executor, batch = prepare(spec, model, self._data, run, options.memory_budget)
        self._portions = Portions(batch, least=batch if spec.cluster else 1)
        self._upcoming = Upcoming(self._data, run)
        self._baseline = SweepBaseline(spec, store)
        self._buffer = ResultBuffer(spec, store)
        self._open = {cell.key: cell for cell in spec.cells()}
        self._fan_outs = FanOuts(model)
        self._meter = ProgressMeter(progress, len(self._open) * len(spec.ids))

    def close(self) -> None:
        """Write all results so far; run nothing more."""
        self._upcoming.close()
        self.write()

    def write(self) -> None:
        """Write all results so far."""
        self._baseline.write()
        self._buffer.write()

    def _write_if_due(self) -> None:
        if self._buffer.is_due():
            self.write()

    def run(self) -> None:
        """Run stage after stage until every cell is settled."""
        progressive = self._spec.mode == "progressive"
        begin, n_all = 0, len(self._spec.ids)
        for end in self._spec.stages if progressive else (n_all,):
            self._run_images(np.arange(begin, end))
            self.write()
            if end < n_all:
                self._close_settled_cells()
            begin = end
        self._meter.finish()

    def _close_settled_cells(self) -> None:
        baseline = self._baseline.outcome()
        for key, cell in list(self._open.items()):
            outcome = self._buffer.outcome(key)
            if outcome and row_of(self._spec, cell, outcome, baseline).settled:
                del self._open[key]

    def _run_images(self, images: Array) -> None:
        """Run all open cells on some images, in batches; wait for cells of other processes."""
        size = self._portions.size
        batches = [images[i : i + size] for i in range(0, len(images), size)]
        while batches:
            following = [*batches[1:], images[:0]]
            waiting = [
                batch
                for batch, after in zip(batches, following, strict=True)
                if self._run_in_portions(batch, after)
            ]
            if len(waiting) == len(batches):
                self._tick()
                self.write()
                time.sleep(_POLL_SECONDS)
            batches = waiting

    def _run_in_portions(self, batch: Array, following: Array) -> bool:
        """Run a batch, in portions once the device was out of memory; returns as ``_run_batch``."""

        def run(low: int, high: int) -> bool:
            return self._run_batch(batch[low:high], following)

        return any(list(self._portions.over(len(batch), run)))

    def _run_batch(self, batch: Array, following: Array) -> bool:
        """Run all open cells on a batch; return whether another process runs some of them."""
        wanted = {
            group: cells
            for group, cells in self._open_by_group().items()
            if any(len(self._buffer.missing(cell.key, batch)) for cell in cells)
        }
        if not wanted and not len(self._baseline.missing(batch)):
            return False
        self._tick()
        part = self._data.take(batch.tolist())
        x = placed(self._upcoming.images(batch.tolist(), following.tolist()), self._run)
        if len(self._baseline.missing(batch)) or not self._meter.costs:
            self._run_baseline(batch, part, x)
        self._count_work()
        self._refit_cells()
        busy: list[str] = []
        with ExitStack() as running:

            def start(group: str) -> list[Task]:
                """Lock a group and return its tasks; none if another process has the lock."""
                running.close()  # the previous group is done
                self._write_if_due()
                lock = group_lock(self._store, self._spec, group)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    busy.append(group)
                    return []
                running.callback(self._buffer.release_after_write, lock)
                return self._tasks(wanted[group], part, batch)

            groups = {group: partial(start, group) for group in wanted}
            self._executor.run_cells(x, groups, self._tick)
        self._write_if_due()
        return bool(busy)

    def _refit_cells(self) -> None:
        """Refit all recovered cells that lack results, before the first of them runs."""
        if self.refits is None or self._refitted:
            return
        images = np.arange(len(self._spec.ids))
        lacking = {
            key: cell.plan.kept
            for key, cell in self._open.items()
            if cell.plan.kept and len(self._buffer.missing(key, images))
        }
        self._refitted = self.refits.of(lacking, self._tick)

    def _open_by_group(self) -> dict[str, list[Cell]]:
        groups: dict[str, list[Cell]] = {}
        for cell in self._open.values():
            groups.setdefault(cell.group.group_id, []).append(cell)
        return groups

    def _run_baseline(self, batch: Array, part: EvalSet, x: Tensor) -> None:
        logits, reached = self._executor.run_full_model(x)
        counts = np.zeros((len(part), len(reached)))  # no columns if no layer reads spikes
        for column, count in enumerate(reached.values()):
            counts[:, column] = count
        sops = counts @ self._fan_outs.at(reached, {})
        prediction = Prediction(logits=logits, sops=sops, firing={})
        outcome = outcome_of(part, prediction, logits, self._run)
        self._baseline.add(batch, logits, reached, outcome)
        self._meter.costs |= {
            key: self._executor.cost(cell.group.group_id, cell.prune_ratio)
            for key, cell in self._open.items()
        }

    def _tasks(self, cells: Sequence[Cell], part: EvalSet, batch: Array) -> list[Task]:
        """Return tasks for cells that lack results; cells that remove nothing get them at once."""
        tasks = []
        for cell in cells:
            missing = self._buffer.missing(cell.key, batch)
            if not len(missing):
                continue
            kept = cell.plan.kept.get(cell.group.group_id)
            if kept is None:
                self._add_result(cell, part, batch, missing, None)
                continue
            positions = np.searchsorted(batch, missing)
            if self._spec.cluster:
                positions = np.arange(len(batch))  # coupled images run in whole batches
            layers = self._refitted.get(cell.key)
            edits = self.refits.tensors(layers) if self.refits and layers else {}
            tasks.append(Task(kept, positions, self._on_done(cell, part, batch), edits))
        return tasks

    def _on_done(self, cell: Cell, part: EvalSet, batch: Array) -> Callable[[CellOutput], None]:
        def add_result(output: CellOutput) -> None:
            self._add_result(cell, part, batch, batch[output.requested], output)

        return add_result

    def _add_result(
        self, cell: Cell, part: EvalSet, batch: Array, images: Array, output: CellOutput | None
    ) -> None:
        """Merge a cell's output into the baseline's values; unaffected values stay the same."""
        logits = self._baseline.logits[images].copy()
        reached = self._baseline.reached[images].copy()
        if output is not None:
            column = self._baseline.column
            for name, count in output.recounted.items():
                reached[:, column[name]] = count
            if len(output.images):
                rows = np.searchsorted(images, batch[output.images])
                logits[rows] = output.logits
                for name, count in output.reached.items():
                    reached[rows, column[name]] = count
        widths = plan_widths(self._spec.summary, cell.plan)
        sops = reached @ self._fan_outs.at(self._baseline.readers, widths)
        prediction = Prediction(logits=logits, sops=sops, firing={})
        chosen = part.take(np.searchsorted(batch, images).tolist())
        baseline_logits = self._baseline.logits[images]
        self._buffer.add(cell.key, outcome_of(chosen, prediction, baseline_logits, self._run))
        self._write_if_due()
        self._meter.advance(cell, len(images))

    def _count_work(self) -> None:
        images = np.arange(len(self._spec.ids))
        missing = {key: len(self._buffer.missing(key, images)) for key in self._open}
        self._meter.set_remaining(missing, len(images))
