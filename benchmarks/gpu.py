"""The sensitivity sweep, a fine-tuning step and a recovery on a GPU, against the naive loop on it.

    python benchmarks/gpu.py [--quick | --full] [--precision bfloat16] [--json]

Two full-size models at 224 px, T = 4: made pictures, untrained weights with BatchNorms set so that
neurons fire, float32 (TF32 off, torch's default). So this measures time, not accuracy. Times are
wall seconds of a device that nothing else uses, after a warm-up.

With ``--precision bfloat16`` both sides run under torch's autocast (SpikingJelly's neurons then
keep potentials of bfloat16, ours of float32), and a row says how many of our predictions are those
of float32. Recoveries fit in float32 in any case. The result is stored as ``gpu_bfloat16``.

By default, groups are sampled until the time is over (10 minutes in all). A group's nine cells run
on one batch, and three of them in the naive loop: copy, prune, evaluate with SpikingJelly's neurons
at its fastest batch. Values for all cells and 1,024 images are extrapolated from that and labelled
so. ``--full`` runs every cell on all images in both (hours). ``--quick`` takes three groups of one
model. Without CUDA, ``--device cpu --quick`` runs the same code on small models: a test of the
script, whose times say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch

from benchmarks._naive_loop import evaluate, naive_cell
from benchmarks._report import options, report
from benchmarks.sweep import calibrate_norms, full_sweep, logits_of_cells, made_data
from psvit_core.callbacks import keep_going
from psvit_core.evaluate import predict, predict_plan
from psvit_core.finetune.training import Training
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import FinetuneSettings, SensitivityTable
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import Cell
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODELS = ("spikformer_8_512", "meta_spikeformer_55m")
#: Arguments that make a model small enough for a test on a processor.
SMALL: dict[str, dict[str, Any]] = {
    "spikformer_8_512": {"depths": 1, "embed_dims": 32, "num_heads": 4, "num_classes": 10},
    "meta_spikeformer_55m": {"embed_dim": [8, 16, 32, 40], "num_classes": 10},
}
ALL_IMAGES = 1024
PRECISIONS = ("float32", "bfloat16")
NAIVE_RATIOS = (0.1, 0.5, 0.9)
NAIVE_BATCHES = (16, 32, 64, 128)
SECONDS = 560.0  # in which groups are sampled, with what follows them
STEPS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        device: Where.
        batch: Images of a batch, and of the sampled cells.
        n_all: Images of a whole sweep.
        full: Run every cell on all images.
        most_groups: Sampled groups at most.
        seconds: For the samples of one model.
        precision: float32 or bfloat16.
    """

    device: str
    batch: int
    n_all: int
    full: bool
    most_groups: int
    seconds: float
    precision: str = "float32"

    @property
    def run(self) -> Run:
        """Device, batch and precision."""
        return Run(device=self.device, batch=self.batch, precision=self.precision)

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Return the wall seconds of some work, its end on the device included."""
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin


def main() -> None:
    """Measure every model, or say why that is impossible."""
    chosen = options(__doc__ or "", add_options)
    on_cpu = torch.device(chosen.device).type == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise SystemExit(
            refused("PyTorch finds no CUDA device. Run this on a machine that has one.")
        )
    if on_cpu and not chosen.quick:
        raise SystemExit(refused("--device cpu only tries the script. Add --quick."))
    setting = setting_of(chosen, on_cpu)
    models = MODELS[:1] if chosen.quick and not on_cpu else MODELS
    rows = []
    for name in models:
        for row in measured(name, setting, small=on_cpu):
            rows.append(row)
            print(*row.values(), sep=" | ", file=sys.stderr)
    chosen.quick = chosen.quick or on_cpu  # never stored
    name = "gpu" if setting.precision == "float32" else f"gpu_{setting.precision}"
    report(name, rows, settings_of(setting), chosen)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--full", action="store_true", help="run every cell on all images")
    parser.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="float32 (default) or bfloat16"
    )
    parser.add_argument("--device", default="cuda", help="cuda (default); cpu tries the script")


def refused(reason: str) -> int:
    """Print why nothing was measured; return the exit status."""
    print(reason, file=sys.stderr)
    return 2


def setting_of(chosen: argparse.Namespace, on_cpu: bool) -> Setting:
    """Return what the options ask for."""
    if on_cpu:
        return Setting("cpu", 4, 8, chosen.full, 1, 10.0, chosen.precision)
    seconds = 15.0 if chosen.quick else SECONDS / len(MODELS)
    most = 3 if chosen.quick else 999
    return Setting(chosen.device, 64, ALL_IMAGES, chosen.full, most, seconds, chosen.precision)


def settings_of(setting: Setting) -> dict[str, Any]:
    """Return the conditions of the result: settings, card and versions."""
    found: dict[str, Any] = {
        "precision": setting.precision,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "batch": setting.batch,
        "images": setting.n_all,
        "clock": "wall seconds",
        "device": setting.device,
    }
    if setting.device != "cpu":
        card = torch.cuda.get_device_properties(setting.device)
        found |= {
            "card": card.name,
            "memory (GiB)": round(card.total_memory / 2**30),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return found


def measured(name: str, setting: Setting, small: bool) -> list[Row]:
    """Return the rows of one model."""
    began = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, as matrix products are
    model, images = subject(name, setting, small)
    rows = [row(name, "parameters (M)", parameters(model), "counted")]
    compare = whole if setting.full else sampled
    rows += [row(name, *found) for found in compare(model, images, setting, began)]
    seconds = step_seconds(model, images, setting)
    rows.append(row(name, f"fine-tuning step, batch {setting.batch // 2} (s)", seconds, "measured"))
    for what, seconds in plan_seconds(model, images, setting):
        rows.append(row(name, what, seconds, "measured"))
    seconds = recovery_seconds(model, images, setting)
    what = f"recovery lsq in float32, {setting.batch} images, half of all units pruned (s)"
    return [*rows, row(name, what, seconds, "measured")]


def row(model: str, what: str, value: Any, how: str) -> Row:
    """Return one row of the result."""
    return {"model": model, "what": what, "value": value, "how": how}


def parameters(model: SpikingModel) -> float:
    """Return millions of parameters."""
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 1)


def subject(name: str, setting: Setting, small: bool) -> tuple[SpikingModel, torch.Tensor]:
    """Return an untrained model on the device whose neurons fire, and a batch of images."""
    torch.manual_seed(0)
    card = model_card(name)
    smaller = {**SMALL[name], "img_size_h": 32, "img_size_w": 32} if small else {}
    model = build_model(card.family, **{**card.arguments, **smaller})
    images = torch.rand(setting.batch, *model.input_shape)
    model = model.to(setting.device)
    calibrate_norms(model, images[:16].to(setting.device))
    return model, images


# ---- the sweep and the naive loop ------------------------------------------------------------


def sampled(
    model: SpikingModel, images: torch.Tensor, setting: Setting, began: float
) -> list[tuple[str, Any, str]]:
    """Compare on sampled groups, one batch each, until this model's time is over."""
    _, cells, runner = full_sweep(model, images, setting.device, setting.precision)
    reduced = setting.precision != "float32"
    in_float32 = full_sweep(model, images, setting.device)[2] if reduced else None
    by_group: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.plan.kept:
            by_group[cell.group.group_id].append(cell)
    x = images.to(setting.device)
    size = fastest_batch(model, x, setting)
    order = np.random.RandomState(0).permutation(list(by_group))[: setting.most_groups]
    naive: list[float] = []
    ours: list[float] = []
    equal: list[float] = []
    exact: list[float] = []
    with setting.run.autocast:
        logits_of_cells(runner, by_group[order[0]], x)  # warms up, and compiles neurons
    with torch.no_grad(), setting.run.autocast:
        full = setting.seconds_of(lambda: runner.run_full_model(x))
    for group in order:
        some = by_group[group]
        ours += [group_seconds(runner, some, x, setting) / len(some)] * len(some)
        few = [cell for cell in some if cell.prune_ratio in NAIVE_RATIOS] or some[:1]
        with setting.run.autocast:
            found = logits_of_cells(runner, few, x)
        if in_float32 is not None:
            wanted = logits_of_cells(in_float32, few, x)
            exact += [share_equal(a, b) for a, b in zip(found, wanted, strict=True)]
        for cell, mine in zip(few, found, strict=True):
            seconds, logits = naive_seconds(model, cell, x.split(size), setting)
            naive.append(seconds)
            equal.append(share_equal(logits, mine))
        if time.perf_counter() - began > setting.seconds:
            break
    n_cells = sum(map(len, by_group.values()))
    batches = setting.n_all / len(images)
    slow = n_cells * statistics.mean(naive) * batches
    fast = (2 * full + n_cells * statistics.mean(ours)) * batches
    how = f"measured: {len(ours) // len(by_group[order[0]])} of {len(by_group)} groups"
    guess = f"extrapolated from {how.removeprefix('measured: ')}"
    whole_sweep = f"{n_cells} cells, {setting.n_all} images"
    return [
        ("full model, a batch (s)", round(full, 4), "measured"),
        (f"naive loop, a cell and batch, at batch {size} (s)", mean(naive), how),
        ("sweep, a cell and batch (s)", mean(ours), how),
        (f"naive loop, {whole_sweep} (s)", round(slow, 1), guess),
        (f"sweep, {whole_sweep} (s)", round(fast, 1), guess),
        ("sweep: times faster", round(slow / fast, 1), guess),
        (f"predictions equal, {setting.precision} (%)", percent(equal), how),
        *([("predictions equal to float32 (%)", percent(exact), how)] if exact else []),
    ]


def share_equal(a: Any, b: Any) -> float:
    """Return the share of images with equal predictions, given logits (n_images, num_classes)."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def percent(shares: Sequence[float]) -> float:
    """Return the mean of shares in percent, rounded."""
    return round(100 * statistics.mean(shares), 2)


def mean(seconds: Sequence[float]) -> float:
    """Return a rounded mean."""
    return round(statistics.mean(seconds), 4)


def group_seconds(
    runner: IncrementalExecutor, cells: Sequence[Cell], x: torch.Tensor, setting: Setting
) -> float:
    """Return the seconds of a group's cells on a batch, beyond the values that they start from."""
    group = cells[0].group.group_id
    with torch.no_grad(), setting.run.autocast:
        prefix = setting.seconds_of(
            lambda: runner.run_cells(x, {group: partial(list[Any])}, keep_going)
        )
        full = setting.seconds_of(lambda: runner.run_full_model(x))
        # This runs the full model first, for the logits of images that a cell does not change.
        whole = setting.seconds_of(lambda: logits_of_cells(runner, cells, x))
    return max(whole - prefix - full, 0.0)


def naive_seconds(
    model: SpikingModel, cell: Cell, batches: Sequence[torch.Tensor], setting: Setting
) -> tuple[float, Any]:
    """Return the seconds of a cell in the naive loop, and its logits."""
    found: list[torch.Tensor] = []
    with setting.run.autocast:
        seconds = setting.seconds_of(lambda: found.append(naive_cell(model, cell, batches)))
    return seconds, found[0].float().cpu().numpy()


def fastest_batch(model: SpikingModel, x: torch.Tensor, setting: Setting) -> int:
    """Return the batch at which the naive loop evaluates fastest, of those that fit."""
    seconds = {}
    for size in sorted({min(size, len(x)) for size in NAIVE_BATCHES}):
        try:
            with setting.run.autocast:
                evaluate(model, x.split(size))  # warms up
                seconds[size] = setting.seconds_of(partial(evaluate, model, x.split(size)))
        except torch.OutOfMemoryError:
            break
    if not seconds:
        raise SystemExit(refused(f"{model.name} does not fit on this device, even {x[:1].shape}."))
    return min(seconds, key=lambda size: seconds[size])


def whole(
    model: SpikingModel, images: torch.Tensor, setting: Setting, began: float
) -> list[tuple[str, Any, str]]:
    """Run every cell on all images, in both."""
    many = images.repeat(-(-setting.n_all // len(images)), 1, 1, 1)[: setting.n_all]
    many = (many + 0.1 * torch.rand_like(many)).clamp(0, 1)
    data, run = made_data(many), setting.run
    _, cells, _ = full_sweep(model, images, setting.device, setting.precision)
    size = fastest_batch(model, images.to(setting.device), setting)
    batches = [x.to(setting.device) for x in many.split(size)]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        tables: list[SensitivityTable] = []
        fast = setting.seconds_of(lambda: tables.append(sweep(model, data, run=run, store=store)))
        store.close()
    check = tables[0].precision_check
    naive = [naive_seconds(model, cell, batches, setting)[0] for cell in cells if cell.plan.kept]
    slow = sum(naive)
    what = f"{len(naive)} cells, {setting.n_all} images"
    return [
        (f"naive loop, {what}, at batch {size} (s)", round(slow, 1), "measured"),
        (f"sweep, {what}, joint plans included (s)", round(fast, 1), "measured"),
        ("sweep: times faster", round(slow / fast, 1), "measured"),
        *([("check of the precision", check.text, "measured")] if check else []),
    ]


# ---- plans, training and recovery ------------------------------------------------------------


def step_seconds(model: SpikingModel, images: torch.Tensor, setting: Setting) -> float:
    """Return the median seconds of a fine-tuning step without a teacher."""
    batch = setting.batch // 2
    train = made_data(images.repeat(STEPS, 1, 1, 1), "train")
    settings = FinetuneSettings(epochs=9, batch=batch, autocast="off")
    run = replace(setting.run, batch=batch)
    training = Training(model, train, train.take(range(batch)), None, settings, run, None)
    training.model.train()
    items = training.batches.epoch(0, STEPS + 1)
    seconds = []
    for x, labels in items:
        learn = partial(training._learn_batch, x, labels, 0, training.per_epoch)
        seconds.append(setting.seconds_of(learn))
    return round(statistics.median(seconds[1:]), 4)  # the first one warms up


def plan_seconds(
    model: SpikingModel, images: torch.Tensor, setting: Setting
) -> list[tuple[str, float]]:
    """Return what a plan takes on a batch of images, without building its network and with it."""
    summary = summarize(model, {"l2": rank(model, "l2")})
    half = {group.group_id: 0.5 for group in summary.groups}
    plan = plan_from_ratios(summary, half, criterion="l2")
    data, run = made_data(images), setting.run

    def built() -> object:
        return predict(apply_plan(model, plan), data, run)

    def recorded() -> object:
        return predict_plan(model, data, plan, run)

    found = []
    for what, work in (("without building it", recorded), ("built", built)):
        work()  # warms up
        found.append((f"a plan of half of all units, {what} (s)", setting.seconds_of(work)))
    return [(what, round(seconds, 4)) for what, seconds in found]


def recovery_seconds(model: SpikingModel, images: torch.Tensor, setting: Setting) -> float:
    """Return the seconds of the recovery ``lsq`` on a batch of images."""
    summary = summarize(model, {"l2": rank(model, "l2")})
    half = {group.group_id: 0.5 for group in summary.groups}
    plan = plan_from_ratios(summary, half, criterion="l2")
    small, run = apply_plan(model, plan), Run(device=setting.device, batch=16)
    calib = made_data(images, "train")
    seconds = setting.seconds_of(lambda: recover(small, model, plan, calib, method="lsq", run=run))
    return round(seconds, 2)


if __name__ == "__main__":
    main()
