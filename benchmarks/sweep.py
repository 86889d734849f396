"""The sensitivity sweep beside the loop that everyone writes: speed, equality, memory.

    python benchmarks/sweep.py [--quick] [--json]

The naive loop, for each group and ratio: copy the model, prune it (real surgery), evaluate all
images with SpikingJelly's own neurons, under inference_mode, on the same thread, at its fastest
batch size. Ours: ``psvit_core.sweep``. Both start from a loaded model and loaded images, with all
modules imported and native loops compiled. Times are CPU seconds of one thread (what an idle
machine's clock shows); ratios are within this run.

Rows: ``demo`` (all groups x 9 ratios x 750 images; predictions compared cell by cell),
``full size`` (224 px, random weights with BatchNorms set so that neurons fire; a subset of cells,
extrapolated by their mean), ``profile`` (where the sweep's time goes), ``memory`` (growth of the
process beside the budget).
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks._report import options, report
from psvit_core import fused, native
from psvit_core.data import EvalSet, load_data
from psvit_core.native import ops
from psvit_core.neurons import eager_neurons
from psvit_core.outcomes import load_outcome
from psvit_core.records import SensitivityTable
from psvit_core.runtime import Run
from psvit_core.sensitivity import replay
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.sweep import make_spec, sweep
from psvit_core.sensitivity.table import DEFAULT_RATIOS, FIRST_LOOK, Cell, SweepSpec
from psvit_core.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.registry import build_model

DEMOS = ("sdt_v1_digits", "e_spikeformer_digits")
FULL = ("spikformer_8_384", "meta_spikeformer_15m")
FULL_IMAGES = 2
FULL_CELLS = 8  # measured of all cells of a full-size model
BATCHES = (32, 125, 250)
BUDGETS = (256 * 10**6, 2 * 10**9)


def main() -> None:
    """Run every part in a process of its own, one after the other."""
    if len(sys.argv) > 2 and sys.argv[1] == "--part":
        torch.set_num_threads(1)
        print(json.dumps(PARTS[sys.argv[2]](*sys.argv[3:])))
        return
    chosen = options(__doc__ or "")
    images = "100" if chosen.quick else "750"
    parts = [("demo", name, images) for name in (DEMOS[1:] if chosen.quick else DEMOS)]
    parts += [("profile", name, images) for name in (DEMOS[1:] if chosen.quick else DEMOS)]
    if not chosen.quick:
        parts += [("full", name) for name in FULL]
        parts += [("memory", str(budget)) for budget in BUDGETS]
    rows: list[dict[str, Any]] = []
    for part in parts:
        command = [sys.executable, __file__, "--part", *part]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        print(*(f"{r['model']}: {r['what']}: {r['value']}" for r in rows[-9:]), sep="\n",
              file=sys.stderr)  # fmt: skip
    settings = {"ratios": DEFAULT_RATIOS, "images": int(images), "split": "val", "threads": 1,
                "clock": "CPU seconds"}  # fmt: skip
    report("sweep", rows, settings, chosen)


def row(part: str, model: str, what: str, value: Any) -> dict[str, Any]:
    """One line of the result."""
    return {"part": part, "model": model, "what": what, "value": value}


@contextmanager
def timed(
    into: dict[str, float], name: str, clock: Callable[[], float] = time.process_time
) -> Iterator[None]:
    """Add the seconds of the block: CPU seconds, unless the clock is another."""
    begin = clock()
    yield
    into[name] = into.get(name, 0.0) + clock() - begin


# ---- the naive loop --------------------------------------------------------------------------


def evaluated(model: nn.Module, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits by SpikingJelly's neurons."""
    with torch.inference_mode(), eager_neurons():
        return torch.cat([model(x) for x in batches])


def naive_cell(model: SpikingModel, cell: Cell, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """What everyone's loop does for one cell."""
    small = apply_plan(copy.deepcopy(model), cell.plan) if cell.plan.kept else model
    return evaluated(small, batches)


def fastest_batch(model: SpikingModel, data: EvalSet) -> int:
    """The batch size at which the naive loop is fastest."""
    seconds: dict[str, float] = {}
    for size in BATCHES:
        batches = list(data.batches(size))
        evaluated(model, batches[:1])
        for _ in range(2):
            with timed(seconds, str(size)):
                evaluated(model, batches)
    return min(BATCHES, key=lambda size: seconds[str(size)])


def naive_loop(
    model: SpikingModel, data: EvalSet, spec: SweepSpec
) -> tuple[float, dict[str, np.ndarray[Any, Any]], int]:
    """Seconds, predictions in the order of ``data`` by cell key, and the batch size."""
    size = fastest_batch(model, data)
    batches = list(data.batches(size))
    seconds: dict[str, float] = {}
    predictions = {}
    with timed(seconds, "naive"):
        evaluated(model, batches)
        for cell in spec.cells():
            predictions[cell.key] = naive_cell(model, cell, batches).argmax(1).numpy()
    return seconds["naive"], predictions, size


# ---- the demos -------------------------------------------------------------------------------


def demo(name: str, n_images: str) -> list[dict[str, Any]]:
    """Speed and equality on a demo model."""
    model = load_model(name)
    data = load_data("digits", split="val").limit(int(n_images))
    fused.kernels()  # compiled once a machine
    spec = make_spec(model, data)  # imports what torch imports late
    seconds: dict[str, float] = {}
    told: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "first")
        begin = time.process_time()
        with timed(seconds, "exact"):
            exact = sweep(
                model, data, store=store,
                progress=lambda done, total, what: told.append(
                    (done / total, time.process_time() - begin)
                ),
            )  # fmt: skip
        again = sweep(model, data, store=Store(Path(folder) / "second"))
        with timed(seconds, "first heatmap"):
            early = sweep(model, data.limit(FIRST_LOOK), store=Store(Path(folder) / "third"))
        with timed(seconds, "progressive"):
            sharper = sweep(model, data, mode="progressive", store=Store(Path(folder) / "fourth"))
        naive, predictions, size = naive_loop(model, data, spec)
        same = [share_equal(store, key, data, p) for key, p in predictions.items()]
    part = [
        ("cells", len(exact.rows)),
        ("naive loop (s)", round(naive, 1)),
        ("its batch size", size),
        ("exact sweep (s)", round(seconds["exact"], 1)),
        ("exact: times faster", round(naive / seconds["exact"], 1)),
        ("predictions equal to the naive loop's, worst cell (%)", round(100 * min(same), 2)),
        ("predictions equal to the naive loop's, all cells (%)", round(100 * np.mean(same), 3)),
        ("bit-equal to itself", exact == again),
        ("float64: predictions equal (100 images, 3 ratios)", equal_in_float64(model, data)),
        ("first heatmap (s)", round(seconds["first heatmap"], 2)),
        ("first heatmap: times sooner", round(naive / seconds["first heatmap"], 1)),
        ("its rank correlation of KL with the exact table", correlation(early, exact)),
        ("progressive sweep (s)", round(seconds["progressive"], 1)),
        *progressive_rows(sharper, exact),
        ("estimate after a tenth / true time", round(estimate(told), 2)),
    ]
    return [row("demo", name, what, value) for what, value in part]


def share_equal(store: Store, key: str, data: EvalSet, naive: np.ndarray[Any, Any]) -> float:
    """Share of a cell's predictions that equal the naive loop's."""
    outcome = load_outcome(store, key)
    assert outcome is not None
    return float((outcome.select(data.ids).predictions == naive).mean())


def equal_in_float64(model: SpikingModel, data: EvalSet) -> bool:
    """Whether every prediction of every cell equals the naive loop's in float64."""
    model = copy.deepcopy(model).double()
    few, run = data.limit(100), Run(precision="float64")
    ratios = (0.2, 0.5, 0.8)
    spec = make_spec(model, few, ratios=ratios, run=run)
    batches = list(few.batches(100, torch.float64))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        sweep(model, few, ratios=ratios, run=run, store=store)
        return all(
            share_equal(store, cell.key, few, naive_cell(model, cell, batches).argmax(1).numpy())
            == 1
            for cell in spec.cells()
        )


def correlation(early: SensitivityTable, exact: SensitivityTable) -> float:
    """Spearman's rank correlation of the cells' KL."""
    found = spearmanr([r.kl for r in early.rows], [r.kl for r in exact.rows])
    return round(float(found.statistic), 3)


def progressive_rows(sharper: SensitivityTable, exact: SensitivityTable) -> list[tuple[str, Any]]:
    """Images used, and whether the bounds of cells that stopped early hold."""
    early = [
        (mine, true)
        for mine, true in zip(sharper.rows, exact.rows, strict=True)
        if mine.n_images < true.n_images
    ]
    used = sum(r.n_images for r in sharper.rows) / sum(r.n_images for r in exact.rows)
    held = [
        mine.drop_of_all.low - 1e-9 <= true.drop.value <= mine.drop_of_all.high + 1e-9
        for mine, true in early
        if mine.drop_of_all
    ]
    return [
        ("cells that stopped early", len(early)),
        ("their bounds hold (%)", round(100 * float(np.mean(held)), 1) if held else None),
        ("images used (% of exact)", round(100 * used, 1)),
    ]


def estimate(told: Sequence[tuple[float, float]]) -> float:
    """The time that the first tenth foretells, over the true one; by the pace since the first cell.

    As in the app: loading and preparing say nothing about the pace.
    """
    first, begin = told[0]
    share, now = next((s, t) for s, t in told if s - first >= 0.1)
    return (now + (now - begin) / (share - first) * (1 - share)) / told[-1][1]


# ---- full size -------------------------------------------------------------------------------


def full(name: str) -> list[dict[str, Any]]:
    """A full-size model on a few images and a subset of its cells."""
    torch.manual_seed(0)
    card = model_card(name)
    model = build_model(card.family, **{**card.arguments, "T": 4})
    images = torch.rand(FULL_IMAGES, *model.input_shape)
    make_it_fire(model, images)
    seconds: dict[str, float] = {}
    evaluated(model, [images])  # kernels are chosen
    spec, cells, runner = full_sweep(model, images)
    n_all, step = len(cells), len(cells) / FULL_CELLS
    some = [cells[int(step * (i + 0.5))] for i in range(FULL_CELLS)]
    with timed(seconds, "naive"):
        naive = [naive_cell(model, cell, [images]).numpy() for cell in some]
    with torch.no_grad():
        runner.whole(images)
        with timed(seconds, "whole"):
            runner.whole(images)
    with timed(seconds, "cells"):
        ours = logits_of_cells(runner, some, images)
    # Once a batch: the full model's answers, and its values for the cells; then every cell.
    beyond = seconds["cells"] - 2 * seconds["whole"]
    fast = 2 * seconds["whole"] + n_all * max(beyond, 0) / FULL_CELLS
    slow = n_all * seconds["naive"] / FULL_CELLS
    same = np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(naive, ours, strict=True)])
    model, images = model.double(), images.double()
    spec, cells, runner = full_sweep(model, images)
    few = [cells[int(step * (i + 0.5))] for i in range(0, FULL_CELLS, 2)]
    true = [naive_cell(model, cell, [images]).numpy() for cell in few]
    pairs = zip(true, logits_of_cells(runner, few, images), strict=True)
    part = [
        ("groups", len(spec.summary.groups)),
        ("cells in all", n_all),
        ("cells measured", FULL_CELLS),
        ("naive: seconds a cell and image", round(seconds["naive"] / FULL_CELLS / FULL_IMAGES, 2)),
        ("ours, extrapolated: seconds a cell and image", round(fast / n_all / FULL_IMAGES, 2)),
        ("extrapolated: times faster", round(slow / fast, 1)),
        ("float64: predictions equal", all((a.argmax(1) == b.argmax(1)).all() for a, b in pairs)),
        ("float32, untrained weights: predictions equal (%)", round(100 * float(same))),
    ]
    return [row("full size", name, what, value) for what, value in part]


def full_sweep(
    model: SpikingModel, images: torch.Tensor
) -> tuple[SweepSpec, list[Cell], replay.Replay]:
    """A sweep over made images, its cells, and what runs them."""
    data = EvalSet(
        spec="made", split="val", transform="none", ids=tuple(map(str, range(len(images)))),
        labels=(0,) * len(images), classes=("a",), load=lambda i: images[i],
    )  # fmt: skip
    run = Run(batch=len(images), precision=str(images.dtype).removeprefix("torch."))
    spec = make_spec(model, data, run=run)
    runner, _ = prepare(spec, model, data, run)
    assert isinstance(runner, replay.Replay)
    return spec, list(spec.cells()), runner


def logits_of_cells(
    runner: replay.Replay, cells: Sequence[Cell], images: torch.Tensor
) -> list[np.ndarray[Any, Any]]:
    """Logits of every cell for all images."""
    with torch.no_grad():
        base, _ = runner.whole(images)
        found = {cell.key: base.copy() for cell in cells}
        tasks: dict[str, list[replay.Task]] = defaultdict(list)
        everything = np.arange(len(images))
        for cell in cells:

            def keep(answer: replay.Answer, key: str = cell.key) -> None:
                if len(answer.images):
                    found[key][answer.images] = answer.logits

            group = cell.group.group_id
            tasks[group].append(replay.Task(cell.plan.kept[group], everything, keep))
        groups = {group: partial(list, of_group) for group, of_group in tasks.items()}
        runner.run(images, groups, lambda: None)
    return [found[cell.key] for cell in cells]


def make_it_fire(model: SpikingModel, images: torch.Tensor) -> None:
    """Set the BatchNorms' statistics on the images, as training would have."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()
        model(images)
    model.eval()


# ---- where the time goes ---------------------------------------------------------------------

KINDS = {
    "conv": "convolutions, and the neurons behind them",
    "depthwise": "depthwise convolutions",
    "matmul": "matrix products",
    "lif": "other neurons",
    "map": "other steps number by number",
    "sum": "sums: spike counts, SDSA",
    "pool": "pooling",
    "load": "taking images and channels of the full model's values",
    "store": "giving back logits and spike counts",
}
PRODUCTS = ("conv", "depthwise", "matmul")


def profile(name: str, n_images: str) -> list[dict[str, Any]]:
    """Seconds of the sweep by kind of operation (wall time: an idle machine is asked for)."""
    model = load_model(name)
    data = load_data("digits", split="val").limit(int(n_images))
    sweep(model, data.limit(10), ratios=(0.5,))
    clock = torch.zeros(len(ops.KINDS), dtype=torch.float64)
    seconds: dict[str, float] = {}
    run_program, whole_model = native.run_program, replay.Replay.whole

    def watched(*rest: Any) -> None:
        run_program(*rest, seconds=clock)

    def whole(self: replay.Replay, x: torch.Tensor) -> Any:
        with timed(seconds, "the full model, for the answers without pruning", time.perf_counter):
            return whole_model(self, x)

    with (
        mock.patch.object(native, "run_program", watched),
        mock.patch.object(replay.Replay, "whole", whole),
        timed(seconds, "all", time.perf_counter),
    ):
        sweep(model, data)
    everything = seconds.pop("all")
    by_kind = dict(zip(ops.KINDS, clock.tolist(), strict=True))
    seconds.update({text: by_kind[kind] for kind, text in KINDS.items()})
    seconds["writing programs, values to start from, keeping results"] = everything - sum(
        seconds.values()
    )
    floor = sum(by_kind[kind] for kind in PRODUCTS)
    lines: list[tuple[str, Any]] = [
        (f"{what} (%)", round(100 * s / everything, 1))
        for what, s in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    lines += [
        ("sweep (s)", round(everything, 1)),
        ("sweep / its convolutions and matrix products", round(everything / floor, 2)),
    ]
    return [row("profile", name, what, value) for what, value in lines]


# ---- memory ----------------------------------------------------------------------------------


def memory(budget: str) -> list[dict[str, Any]]:
    """Growth of the process while it sweeps, beside the budget."""
    name, size = DEMOS[0], int(budget)
    model = load_model(name)
    data = load_data("digits", split="train")
    sweep(model, data.limit(4), ratios=(0.5,))
    run = Run(batch=len(data))  # so that only the budget asks for less
    _, batch = prepare(make_spec(model, data, run=run), model, data, run, size)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    sweep(model, data.limit(2 * batch), ratios=(0.1, 0.5), run=run, memory_budget=size)
    part = [
        ("budget (MB)", round(size / 1e6)),
        ("batch that fits", batch),
        ("growth of the process (MB)", round((resident("VmHWM") - before) / 1e6)),
    ]
    return [row("memory", name, what, value) for what, value in part]


def resident(what: str) -> int:
    """Resident size of this process, bytes: VmRSS now, VmHWM at its peak (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


PARTS: dict[str, Any] = {"demo": demo, "full": full, "profile": profile, "memory": memory}

if __name__ == "__main__":
    main()
