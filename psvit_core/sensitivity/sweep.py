"""Running a sensitivity sweep: every group at every ratio, one at a time, kept as it finishes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

from psvit_core.data import EvalSet
from psvit_core.errors import DataError
from psvit_core.evaluate import Baseline, Tick, conditions_of, go_on, outcome_of, place, predict
from psvit_core.groups import summarize
from psvit_core.importance import CRITERIA, DEFAULT_CRITERION, rank
from psvit_core.outcomes import load_outcome, save_outcome
from psvit_core.records import SensitivityTable
from psvit_core.runtime import Run
from psvit_core.sensitivity.table import (
    DEFAULT_RATIOS,
    Cell,
    SweepSpec,
    check_ratios,
    read_table,
    save_spec,
)
from psvit_core.size import plan_widths
from psvit_core.store import Store, digest
from psvit_core.surgery import Silenced, silencing_edits
from psvit_core.zoo.base import SpikingModel

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
    criterion: str = DEFAULT_CRITERION,
    run: Run | None = None,
    calib: EvalSet | None = None,
    seed: int = 0,
    store: Store | None = None,
    tick: Tick = go_on,
) -> SweepSpec:
    """What a sweep of ``model`` over ``data`` consists of; arguments as of ``sweep``."""
    refuse_test(data)
    ranking = rank(model, criterion, calib=calib, run=run, seed=seed, store=store, tick=tick)
    by_images = CRITERIA[criterion].needs_images
    return SweepSpec(
        summary=summarize(model, {criterion: ranking}),
        criterion=criterion,
        ratios=check_ratios(tuple(ratios)),
        conditions=conditions_of(model, data, run or Run()),
        ids=data.ids,
        calib=digest([calib.transform, *calib.ids]) if calib and by_images else "",
        seed=seed,
    )


def sweep(
    model: SpikingModel,
    data: EvalSet,
    *,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    criterion: str = DEFAULT_CRITERION,
    run: Run | None = None,
    calib: EvalSet | None = None,
    seed: int = 0,
    store: Store | None = None,
    progress: Progress = silent,
    tick: Tick = go_on,
) -> SensitivityTable:
    """Sensitivity of every channel group at every ratio.

    Each finished cell is kept in the store at once; what is there is not run again, so a killed
    or cancelled sweep goes on where it stopped.

    Args:
        model: The model, in evaluation mode.
        data: Images to measure on; not the test split.
        ratios: Prune ratios (fraction removed), each in [0, 1).
        criterion: Importance criterion that ranks the units.
        run: Device, batch, precision; the defaults when None.
        calib: Images for criteria that need some, e.g. ``load_data(spec, split="calib")``.
        seed: For the criterion ``random``; named in the table.
        store: Where cells are kept; a temporary one when None.
        progress: Called with (cells done, cells in all, what) after each.
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
        store=store, tick=tick,
    )  # fmt: skip
    if store is not None:
        save_spec(store, spec)
        return run_spec(spec, model, data, run=run, store=store, progress=progress, tick=tick)
    with tempfile.TemporaryDirectory() as folder:
        own = Store(folder)
        table = run_spec(spec, model, data, run=run, store=own, progress=progress, tick=tick)
        own.close()
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
) -> SensitivityTable:
    """Fill the cells of ``spec`` that the store lacks, then read the table."""
    placed = place(model, run)
    baseline = Baseline(placed, data, run, store, tick)
    total = len(spec.summary.groups) * len(spec.ratios)
    for done, cell in enumerate(spec.cells(), start=1):
        _run_cell(spec, cell, placed, data, baseline, run, store, tick)
        progress(done, total, f"{cell.group.label} at {cell.prune_ratio:.0%}")
    table = read_table(store, spec)
    assert table is not None
    return table


def _run_cell(
    spec: SweepSpec,
    cell: Cell,
    model: SpikingModel,
    data: EvalSet,
    baseline: Baseline,
    run: Run,
    store: Store,
    tick: Tick,
) -> None:
    known = load_outcome(store, cell.key)
    todo = known.missing(data.ids) if known else range(len(data))
    if not todo:
        return
    part = data.take(todo)
    silent = Silenced(model, silencing_edits(model, cell.plan, spec.summary.groups))
    widths = plan_widths(spec.summary, cell.plan)
    prediction = predict(silent.eval(), part, run, widths=widths, tick=tick)
    fresh = outcome_of(part, prediction, baseline.logits(part))
    save_outcome(store, cell.key, known.joined(fresh) if known else fresh)
