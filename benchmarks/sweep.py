"""The sensitivity sweep compared with a naive loop: speed, equality, memory.

    python benchmarks/sweep.py [--quick] [--json]

``_naive_loop`` is compared with ``psvit_core.sweep`` on the same thread. Both start from a loaded
model and loaded images, with all modules imported and native loops compiled. Times are CPU seconds
of one thread (wall time on an idle machine); ratios compare times of the same run.

Parts: ``demo`` (all groups x 9 ratios x 750 images; predictions compared cell by cell),
``full size`` (full-size models and one model of each further family, random weights with BatchNorms
set so that neurons fire; a subset of cells, extrapolated by their mean), ``profile`` (the sweep's
time by kind of operation), ``memory`` (growth of the process compared with the budget).
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks._naive_loop import evaluate, naive_cell, naive_loop, timed
from benchmarks._report import options, report
from psvit_core.callbacks import keep_going
from psvit_core.data import EvalSet, load_data
from psvit_core.incremental.cells import CellOutput, Task, TaskSource
from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.kernels import lif, native
from psvit_core.kernels.structs import Kind
from psvit_core.records import DEFAULT_RATIOS, SensitivityTable
from psvit_core.runtime import Run
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.spec import FIRST_STAGE, Cell, SweepSpec
from psvit_core.sensitivity.sweep import make_spec, sweep
from psvit_core.storage.predictions import Array, load_outcome
from psvit_core.storage.store import Store
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.registry import build_model

DEMOS = ("sdt_v1_digits", "e_spikeformer_digits")
FULL = ("spikformer_8_384", "meta_spikeformer_15m")
#: One model of each further family.
FAMILIES = (
    "spikingformer_cml_cifar10_4_384",
    "statten_cifar10_2_256",
    "max_former_cifar10_4_384",
    "ms_qkformer_cifar10_4_384",
    "e_spikeformer_large_83m",
    "spikingresformer_cifar10_ti",
)
FULL_IMAGES = 2
FULL_CELLS = 8  # measured cells of a full-size model
BUDGETS = (256 * 10**6, 2 * 10**9)


def main() -> None:
    """Run every part in its own process, one after the other."""
    if len(sys.argv) > 2 and sys.argv[1] == "--part":
        torch.set_num_threads(1)
        print(json.dumps(PARTS[sys.argv[2]](*sys.argv[3:])))
        return
    chosen = options(__doc__ or "")
    images = "100" if chosen.quick else "750"
    demos = DEMOS[1:] if chosen.quick else DEMOS
    parts: list[tuple[str, ...]] = [("demo", name, images) for name in demos]
    parts += [("profile", name, images) for name in demos]
    if not chosen.quick:
        parts += [("full", name) for name in (*FULL, *FAMILIES)]
        parts += [("memory", str(budget)) for budget in BUDGETS]
    rows: list[dict[str, Any]] = []
    for part in parts:
        command = [sys.executable, __file__, "--part", *part]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        print(
            *(f"{r['model']}: {r['what']}: {r['value']}" for r in rows[-9:]),
            sep="\n",
            file=sys.stderr,
        )
    settings = {
        "ratios": DEFAULT_RATIOS,
        "images": int(images),
        "split": "val",
        "threads": 1,
        "clock": "CPU seconds",
    }
    report("sweep", rows, settings, chosen)


def row(part: str, model: str, what: str, value: Any) -> dict[str, Any]:
    """Return one row of the result."""
    return {"part": part, "model": model, "what": what, "value": value}


# ---- demo models -----------------------------------------------------------------------------


def demo(name: str, n_images: str) -> list[dict[str, Any]]:
    """Measure speed and equality on a demo model."""
    model = load_model(name)
    data = load_data("digits", split="val").limit(int(n_images))
    lif.kernels()  # compiles once per machine
    spec = make_spec(model, data)  # triggers torch's late imports
    seconds: dict[str, float] = {}
    reported: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "first")
        begin = time.process_time()
        with timed(seconds, "exact"):
            exact = sweep(
                model,
                data,
                store=store,
                progress=lambda done, total, what: reported.append(
                    (done / total, time.process_time() - begin)
                ),
            )
        again = sweep(model, data, store=Store(Path(folder) / "second"))
        with timed(seconds, "first heatmap"):
            early = sweep(model, data.limit(FIRST_STAGE), store=Store(Path(folder) / "third"))
        with timed(seconds, "progressive"):
            progressive = sweep(
                model, data, mode="progressive", store=Store(Path(folder) / "fourth")
            )
        naive, predictions, size = naive_loop(model, data, spec)
        same = [share_equal(store, key, data, p) for key, p in predictions.items()]
    part = [
        ("cells", len(exact.rows)),
        ("naive loop (s)", round(naive, 1)),
        ("naive loop: batch size", size),
        ("exact sweep (s)", round(seconds["exact"], 1)),
        ("exact sweep: speed-up", round(naive / seconds["exact"], 1)),
        ("predictions equal to the naive loop's, worst cell (%)", round(100 * min(same), 2)),
        ("predictions equal to the naive loop's, all cells (%)", round(100 * np.mean(same), 3)),
        ("two runs bit-equal", exact == again),
        ("float64: predictions equal (100 images, 3 ratios)", equal_in_float64(model, data)),
        ("first heatmap (s)", round(seconds["first heatmap"], 2)),
        ("first heatmap: speed-up", round(naive / seconds["first heatmap"], 1)),
        ("first heatmap: rank correlation of KL with the exact table", correlation(early, exact)),
        ("progressive sweep (s)", round(seconds["progressive"], 1)),
        *progressive_rows(progressive, exact),
        ("time estimated after a tenth / true time", round(estimate(reported), 2)),
    ]
    return [row("demo", name, what, value) for what, value in part]


def share_equal(store: Store, key: str, data: EvalSet, naive: Array) -> float:
    """Return the share of a cell's predictions that equal the naive loop's."""
    outcome = load_outcome(store, key)
    assert outcome is not None
    return float((outcome.select(data.ids).predictions == naive).mean())


def equal_in_float64(model: SpikingModel, data: EvalSet) -> bool:
    """Return whether every prediction equals the naive loop's in float64."""
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
    """Return Spearman's rank correlation of the cells' KL."""
    found = spearmanr([r.kl for r in early.rows], [r.kl for r in exact.rows])
    return round(float(found.statistic), 3)


def progressive_rows(
    progressive: SensitivityTable, exact: SensitivityTable
) -> list[tuple[str, Any]]:
    """Return the images used, and how often the bounds of cells that stopped early are valid."""
    early = [
        (mine, true)
        for mine, true in zip(progressive.rows, exact.rows, strict=True)
        if mine.n_images < true.n_images
    ]
    used = sum(r.n_images for r in progressive.rows) / sum(r.n_images for r in exact.rows)
    valid = [
        mine.drop_of_all.low - 1e-9 <= true.drop.value <= mine.drop_of_all.high + 1e-9
        for mine, true in early
        if mine.drop_of_all
    ]
    return [
        ("cells that stopped early", len(early)),
        ("of these, valid bounds (%)", round(100 * float(np.mean(valid)), 1) if valid else None),
        ("images used (% of exact)", round(100 * used, 1)),
    ]


def estimate(reported: Sequence[tuple[float, float]]) -> float:
    """Return the total time estimated after the first tenth, relative to the true time.

    As in the app, the estimate uses the pace since the first cell: loading and preparing have
    another pace.
    """
    first, begin = reported[0]
    share, now = next((s, t) for s, t in reported if s - first >= 0.1)
    return (now + (now - begin) / (share - first) * (1 - share)) / reported[-1][1]


# ---- full size -------------------------------------------------------------------------------


def full(name: str) -> list[dict[str, Any]]:
    """Measure a full-size model on a few images and a subset of its cells."""
    torch.manual_seed(0)
    card = model_card(name)
    model = build_model(card.family, **card.arguments)
    images = torch.rand(FULL_IMAGES, *model.input_shape)
    calibrate_norms(model, images)
    seconds: dict[str, float] = {}
    evaluate(model, [images])  # lets torch choose its kernels
    spec, cells, runner = full_sweep(model, images)
    n_all, step = len(cells), len(cells) / FULL_CELLS
    some = [cells[int(step * (i + 0.5))] for i in range(FULL_CELLS)]
    with timed(seconds, "naive"):
        naive = [naive_cell(model, cell, [images]).numpy() for cell in some]
    with torch.no_grad():
        runner.run_full_model(images)
        with timed(seconds, "full model"):
            runner.run_full_model(images)
    with timed(seconds, "cells"):
        ours = logits_of_cells(runner, some, images)
    # Per batch: the full model's outputs, its values for the cells, then every cell.
    beyond = seconds["cells"] - 2 * seconds["full model"]
    fast = 2 * seconds["full model"] + n_all * max(beyond, 0) / FULL_CELLS
    slow = n_all * seconds["naive"] / FULL_CELLS
    same = np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(naive, ours, strict=True)])
    model, images = model.double(), images.double()
    spec, cells, runner = full_sweep(model, images)
    few = [cells[int(step * (i + 0.5))] for i in range(0, FULL_CELLS, 2)]
    true = [naive_cell(model, cell, [images]).numpy() for cell in few]
    pairs = zip(true, logits_of_cells(runner, few, images), strict=True)
    part = [
        ("groups", len(spec.summary.groups)),
        ("cells", n_all),
        ("cells measured", FULL_CELLS),
        (
            "naive loop: seconds per cell and image",
            round(seconds["naive"] / FULL_CELLS / FULL_IMAGES, 2),
        ),
        ("sweep, extrapolated: seconds per cell and image", round(fast / n_all / FULL_IMAGES, 2)),
        ("sweep, extrapolated: speed-up", round(slow / fast, 1)),
        ("float64: predictions equal", all((a.argmax(1) == b.argmax(1)).all() for a, b in pairs)),
        ("float32, untrained weights: predictions equal (%)", round(100 * float(same))),
    ]
    return [row("full size", name, what, value) for what, value in part]


def made_data(images: torch.Tensor, split: str = "val") -> EvalSet:
    """Return generated images as data of one class."""
    return EvalSet(
        spec="made",
        split=split,
        transform="none",
        ids=tuple(map(str, range(len(images)))),
        labels=(0,) * len(images),
        classes=("a",),
        load=lambda i: images[i],
    )


def full_sweep(
    model: SpikingModel, images: torch.Tensor, device: str = "cpu", precision: str = ""
) -> tuple[SweepSpec, list[Cell], IncrementalExecutor]:
    """Return a sweep over generated images, its cells, and their executor.

    Args:
        model: The model, on the device.
        images: Images, on the processor.
        device: Where it runs.
        precision: Of the run; the images' if empty.
    """
    data = made_data(images)
    precision = precision or str(images.dtype).removeprefix("torch.")
    run = Run(batch=len(images), precision=precision, device=device)
    spec = make_spec(model, data, run=run)
    runner, _ = prepare(spec, model, data, run)
    assert isinstance(runner, IncrementalExecutor)
    return spec, list(spec.cells()), runner


def logits_of_cells(
    runner: IncrementalExecutor, cells: Sequence[Cell], images: torch.Tensor
) -> list[Array]:
    """Return the logits of every cell for all images."""
    with torch.no_grad():
        base, _ = runner.run_full_model(images)
        found = {cell.key: base.copy() for cell in cells}
        tasks: dict[str, list[Task]] = defaultdict(list)
        everything = np.arange(len(images))
        for cell in cells:

            def update(output: CellOutput, key: str = cell.key) -> None:
                if len(output.images):
                    found[key][output.images] = output.logits

            group = cell.group.group_id
            tasks[group].append(Task(cell.plan.kept[group], everything, update))
        groups: dict[str, TaskSource] = {
            g: partial(list, of_group) for g, of_group in tasks.items()
        }
        runner.run_cells(images, groups, keep_going)
    return [found[cell.key] for cell in cells]


def calibrate_norms(model: SpikingModel, images: torch.Tensor) -> None:
    """Set the BatchNorms' statistics on the images, so that neurons fire as after training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()
        model(images)
    model.eval()


# ---- profile ---------------------------------------------------------------------------------

KINDS = {
    "conv": "convolutions and the neurons after them",
    "depthwise": "depthwise convolutions",
    "matmul": "matrix products",
    "lif": "other neurons",
    "map": "other elementwise operations",
    "sum": "sums: spike counts, SDSA",
    "pool": "pooling",
    "load": "selecting images and channels of the full model's values",
    "store": "returning logits and spike counts",
}
PRODUCTS = ("conv", "depthwise", "matmul")


def profile(name: str, n_images: str) -> list[dict[str, Any]]:
    """Measure the sweep by kind of operation, in wall time: needs an idle machine."""
    model = load_model(name)
    data = load_data("digits", split="val").limit(int(n_images))
    sweep(model, data.limit(10), ratios=(0.5,))
    clock = torch.zeros(max(Kind) + 1, dtype=torch.float64)
    seconds: dict[str, float] = {}
    run_program, full_model = native.run_program, IncrementalExecutor.run_full_model

    def run_full_model(self: IncrementalExecutor, x: torch.Tensor) -> Any:
        with timed(seconds, "the full model, for the baseline", time.perf_counter):
            return full_model(self, x)

    with (
        mock.patch.object(native, "run_program", partial(run_program, seconds=clock)),
        mock.patch.object(IncrementalExecutor, "run_full_model", run_full_model),
        timed(seconds, "all", time.perf_counter),
    ):
        sweep(model, data)
    everything = seconds.pop("all")
    by_kind = {kind.name.lower(): float(clock[kind]) for kind in Kind}
    seconds.update({text: by_kind[kind] for kind, text in KINDS.items()})
    seconds["lowering programs, start values, storing results"] = everything - sum(seconds.values())
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
    """Compare the growth of the process during a sweep with the budget."""
    name, size = DEMOS[0], int(budget)
    model = load_model(name)
    data = load_data("digits", split="train")
    sweep(model, data.limit(4), ratios=(0.5,))
    run = Run(batch=len(data))  # only the budget limits the batch
    _, batch = prepare(make_spec(model, data, run=run), model, data, run, size)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    sweep(model, data.limit(2 * batch), ratios=(0.1, 0.5), run=run, memory_budget=size)
    part = [
        ("budget (MB)", round(size / 1e6)),
        ("batch that fits", batch),
        ("growth of the process (MB)", round((resident("VmHWM") - before) / 1e6)),
    ]
    return [row("memory", name, what, value) for what, value in part]


def resident(what: str) -> int:
    """Return this process's resident size in bytes: VmRSS now, VmHWM at its peak (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


PARTS: dict[str, Any] = {"demo": demo, "full": full, "profile": profile, "memory": memory}

if __name__ == "__main__":
    main()
