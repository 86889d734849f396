"""The run of a sensitivity sweep: every group at every ratio, stored as it is measured.

``work`` says which cells are due and stores finished ones; ``local`` measures them in this process,
``psvit_core.cluster`` on others. In progressive mode the whole table exists after the first stage
and then gets more precise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from psvit_core.callbacks import Progress, Tick, ignore_progress, keep_going
from psvit_core.data import EvalSet
from psvit_core.data.evalset import visiting_order
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.evaluate import conditions_of, place_once
from psvit_core.groups import summarize
from psvit_core.importance import CRITERIA, rank
from psvit_core.plan.build import default_criterion
from psvit_core.records import DEFAULT_RATIOS, WEIGHT_CRITERIA, SensitivityTable
from psvit_core.recover.cells import CellRefits
from psvit_core.runtime import Run, out_of_memory_explained
from psvit_core.sensitivity.buffer import (
    store_or_temporary,
)
from psvit_core.sensitivity.joint_run import with_joint_plans
from psvit_core.sensitivity.local import LocalCells
from psvit_core.sensitivity.precision import compared, exact_part
from psvit_core.sensitivity.recovered import SweepOptions, cell_refits, recovered
from psvit_core.sensitivity.spec import (
    MODES,
    SweepSpec,
    check_ratios,
    read_table,
    save_spec,
)
from psvit_core.sensitivity.work import CellWork, Measurer
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
        refits = cell_refits(spec, model, run, options.recovery_images)
        work = CellWork(spec, model, data, run, store, progress, refits)
        measurer: Measurer | None = None
        try:
            if options.measurer is not None:
                measurer = options.measurer(work, tick)
            else:
                measurer = LocalCells(work, model, tick, options.memory_budget)
            _run_stages(work, measurer)
        finally:
            if measurer is not None:
                measurer.close()
            work.write()
    return refits


def _run_stages(work: CellWork, measurer: Measurer) -> None:
    """Measure stage after stage until every cell is settled."""
    begin, n_all = 0, len(work.spec.ids)
    for end in work.spec.stages if work.spec.mode == "progressive" else (n_all,):
        measurer.measure(np.arange(begin, end))
        work.write()
        if end < n_all:
            work.close_settled()
        begin = end
    work.meter.finish()
