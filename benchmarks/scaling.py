"""What a cluster does to a sweep: measured costs, a formula and a simulation, and a check.

    python benchmarks/scaling.py [--quick] [--json]
    python benchmarks/scaling.py --demo --data cifar10-jpeg:DIR [--limit N] [--ratios 0.25,0.5]

The first form measures on this machine what a cell, the full model, an image and a result cost for
a 55 M model at 224 px, extrapolates to ImageNet's 50,000 validation images on 1, 8 and 64 GPUs, and
writes the tables of docs/scaling.md. The GPU's speed is assumed: none was available.

The second form sweeps the CIFAR-10 demo on a local Ray of three nodes, removes one on the way, and
compares every number with a local sweep. Both store their figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch

from benchmarks._report import document_of, options, report, store_result
from benchmarks._scaling_model import Costs, Sweep, table
from benchmarks._scaling_page import write_page
from benchmarks.sweep import calibrate_norms, full_sweep, made_data
from psvit_core.callbacks import ignore_progress, keep_going
from psvit_core.cli.options import parse_ratios
from psvit_core.cluster.actors import CellResult
from psvit_core.cluster.pool import Event
from psvit_core.cluster.runtime import load_ray
from psvit_core.cluster.settings import EngineSettings
from psvit_core.cluster.sweep import ClusterCells
from psvit_core.data import EvalSet
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.records import SensitivityTable, Subject, SweepSettings
from psvit_core.runtime import Run
from psvit_core.sensitivity.spec import Cell, load_spec, row_of, sweep_keys
from psvit_core.sensitivity.work import CellWork
from psvit_core.storage.predictions import load_outcome
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODEL, QUICK_MODEL, DEMO = "meta_spikeformer_55m", "meta_spikeformer_15m", "sdt_v1_cifar10"
N_IMAGES, N_CELLS = 2, 12
WORKERS = (1, 8, 64)
IMAGENET = 50_000
STAGES = (64, 256, 1024, 4096, 16384, IMAGENET)
#: Assumed, and named so in the document.
GPU_SPEED = 150.0  # times one core of this machine
LINK = 1.25e9  # bytes a second: 10 Gbit/s
DELAY = 0.005  # seconds from a result to the next unit
GPU_START = 60.0  # seconds until a worker is ready: CUDA, torch, the model, its recording
DECODERS = 16  # processes that decode for the driver
LOSE_AT = 20  # results of the demo, after which a node is removed
BLOCK = 375  # images: three batches of 125, 226 MB at 224 px


def main() -> None:
    """Measure and extrapolate, or check the demo."""
    chosen = options(__doc__ or "", _add_options)
    torch.set_num_threads(1)
    if chosen.demo:
        document = demo(chosen)
        print(document["rows"])
    else:
        name = QUICK_MODEL if chosen.quick else MODEL
        costs, settings = measured_costs(name)
        report("scaling", table(costs, sweeps(), WORKERS), settings, chosen)
    if not chosen.quick:
        write_page()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--demo", action="store_true", help="sweep the demo on three nodes")
    parser.add_argument("--data", default=f"cifar10-jpeg:{Path.home()}", help="for --demo")
    parser.add_argument("--limit", type=int, default=250, help="images of --demo (default 250)")
    parser.add_argument(
        "--ratios", type=parse_ratios, default=(0.25, 0.5, 0.75), help="ratios of --demo"
    )


# ---- what things cost ------------------------------------------------------------------------


def sweeps() -> dict[str, Sweep]:
    """Return the two sweeps that are extrapolated."""
    return {
        "exact": Sweep(ends=(IMAGENET,), open_shares=(1.0,), block=BLOCK),
        "adaptive": Sweep(ends=STAGES, open_shares=open_shares(), block=BLOCK),
    }


def open_shares() -> tuple[float, ...]:
    """Return the share of cells that each stage runs.

    As in the shipped sweep of the CIFAR-10 demo, had it been adaptive, and its images the first of
    as many as are extrapolated to. Later stages run as many cells as the last one that it can tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = DemoStore(folder)
        specs = [load_spec(store, key) for key in sweep_keys(store)]
        spec = next(s for s in specs if s.summary.model == DEMO and not s.recovered_by)
        further = tuple(f"further {i}" for i in range(IMAGENET - len(spec.ids)))
        adaptive = dataclasses.replace(spec, mode="progressive", ids=(*spec.ids, *further))
        baseline = load_outcome(store, spec.baseline_key)
        assert baseline is not None
        left, shares = list(spec.cells()), [1.0]
        n_all = len(left)
        for end in (end for end in adaptive.stages if end <= len(spec.ids)):
            seen = list(spec.ids[:end])
            left = [
                cell
                for cell in left
                if (outcome := load_outcome(store, cell.key)) is not None
                and not row_of(adaptive, cell, outcome.among(seen), baseline).settled
            ]
            shares.append(len(left) / n_all)
        store.close()
    return tuple((shares + [shares[-1]] * len(STAGES))[: len(STAGES)])


def measured_costs(name: str) -> tuple[Costs, dict[str, Any]]:
    """Measure a model's costs on this machine; return them as on a GPU, with what was measured."""
    torch.manual_seed(0)
    card = model_card(name)
    model = build_model(card.family, **card.arguments)
    images = torch.rand(N_IMAGES, *model.input_shape)
    calibrate_norms(model, images)
    start = _seconds(lambda: full_sweep(model, images))
    spec, cells, runner = full_sweep(model, images)
    step = len(cells) / N_CELLS
    some = [cells[int(step * (i + 0.5))] for i in range(N_CELLS)]
    measured, outputs = _measured_cells(runner, some, images)
    measured |= {
        "recording and preparing, s": start,
        "decoding a JPEG, s of one core": _decode_seconds(),
        "adding a result, s of the driver per cell and image": _merge_seconds(
            model, made_data(images), spec, some, outputs
        ),
        "bytes of an image": images[0].numpy().nbytes,
        "bytes of a result per cell and image": float(np.mean([_bytes(o) for o in outputs]))
        / N_IMAGES,
        "bytes of the weights": sum(t.nbytes for t in model.state_dict().values()),
        "cells measured": N_CELLS,
        "images": N_IMAGES,
    }
    groups, ratios = len(spec.summary.groups), len(spec.ratios)
    settings = {
        "model": name,
        "parameters": card.parameters,
        "T": model.T,
        "groups": groups,
        "ratios": ratios,
        "measured": measured,
        "assumed": _assumed(),
    }
    return _costs(measured, groups, ratios), settings


def _measured_cells(
    runner: IncrementalExecutor, cells: list[Cell], images: torch.Tensor
) -> tuple[dict[str, Any], list[CellOutput]]:
    """Return what cells and the full model take, and the cells' outputs."""
    everything = np.arange(N_IMAGES)
    with torch.no_grad():
        runner.run_full_model(images)
        full = _seconds(lambda: runner.run_full_model(images)) / N_IMAGES
    outputs: list[CellOutput] = []
    seconds: list[float] = []
    prefixes: list[float] = []
    for cell in cells:
        group = cell.group.group_id
        task = Task(cell.plan.kept[group], everything, outputs.append)

        def run(tasks: list[Task], group: str = group) -> float:
            with torch.no_grad():
                return _seconds(
                    lambda: runner.run_cells(images, {group: lambda: tasks}, keep_going)
                )

        prefixes.append(run([]) / N_IMAGES)
        seconds.append(run([task]) / N_IMAGES - prefixes[-1])
    measured = {
        "cell, s of one core per image": max(float(np.mean(seconds)), 0.0),
        "full model, s of one core per image": full,
        "share of the full model before a group": min(float(np.mean(prefixes)) / full, 1.0),
    }
    return measured, outputs


def _costs(measured: dict[str, Any], groups: int, ratios: int) -> Costs:
    """Return the costs of a cluster of GPUs from what was measured and what is assumed."""
    return Costs(
        n_groups=groups,
        n_ratios=ratios,
        cell=measured["cell, s of one core per image"] / GPU_SPEED,
        full=measured["full model, s of one core per image"] / GPU_SPEED,
        prefix=measured["share of the full model before a group"],
        start=GPU_START,
        decode=measured["decoding a JPEG, s of one core"] / DECODERS,
        merge=measured["adding a result, s of the driver per cell and image"],
        image_bytes=measured["bytes of an image"],
        result_bytes=measured["bytes of a result per cell and image"],
        link=LINK,
        delay=DELAY,
    )


def _assumed() -> dict[str, Any]:
    return {
        "speed of a GPU, cores of this machine": GPU_SPEED,
        "link of the driver, bytes a second": LINK,
        "delay of a unit, s": DELAY,
        "start of a worker, s": GPU_START,
        "decoding processes": DECODERS,
        "images after each stage": STAGES,
        "share of cells in each stage (as in the CIFAR-10 demo)": open_shares(),
        "images of a block": BLOCK,
    }


def _seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _bytes(output: CellOutput) -> int:
    """Return the bytes in which a worker returns a result."""
    return len(pickle.dumps(CellResult("0" * 32, 0, N_IMAGES, output), protocol=5))


def _merge_seconds(
    model: Any, data: EvalSet, spec: Any, cells: list[Any], outputs: list[CellOutput]
) -> float:
    """Return the driver's seconds for one result on one image, with writing, in blocks.

    A result of ``BLOCK`` images is added as ``ClusterCells`` does, for each measured cell.
    """
    repeat = np.arange(BLOCK) % N_IMAGES
    ids = tuple(map(str, range(BLOCK)))
    large = dataclasses.replace(
        data, ids=ids, labels=(0,) * BLOCK, load=lambda i: data.load(i % N_IMAGES)
    )
    wide = dataclasses.replace(spec, ids=ids)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        work = CellWork(wide, model, large, Run(), store, ignore_progress, None)
        like = outputs[0]
        batch = np.arange(BLOCK)
        logits = np.zeros((BLOCK, like.logits.shape[1] if like.logits.size else 1000), np.float32)
        readers = {n for output in outputs for n in (*output.reached, *output.recounted)}
        work.add_baseline(batch, logits, {name: np.zeros(BLOCK) for name in sorted(readers)})
        work.set_costs(lambda group, ratio: 1.0)
        due = [wide.cell(cell.group, cell.prune_ratio) for cell in cells]

        def add_all() -> None:
            for cell, output in zip(due, outputs, strict=True):
                everything = np.arange(BLOCK)
                affected = np.flatnonzero(np.isin(repeat, output.images))
                rows = np.searchsorted(output.images, repeat[affected])
                whole = CellOutput(
                    affected,
                    output.logits[rows] if len(affected) else output.logits,
                    {n: np.asarray(c)[rows] for n, c in output.reached.items()},
                    everything,
                    {n: np.asarray(c)[repeat] for n, c in output.recounted.items()},
                )
                work.add_result(cell, everything, whole)
            work.write()

        found = _seconds(add_all) / len(due) / BLOCK
        store.close()
    return found


def _decode_seconds() -> float:
    """Return the seconds in which one core reads an ImageNet-sized JPEG and crops it."""
    import io

    from PIL import Image

    random = np.random.RandomState(0)
    picture = Image.fromarray(random.randint(0, 256, (12, 15, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    picture.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)

    def read() -> None:
        for _ in range(20):
            image = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
            small = image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
            torch.tensor(np.asarray(small)).permute(2, 0, 1).float()

    return _seconds(read) / 20


# ---- the demo on three nodes -----------------------------------------------------------------


def demo(chosen: argparse.Namespace) -> dict[str, Any]:
    """Sweep the CIFAR-10 demo on three nodes, one of them removed; compare with a local sweep."""
    subject = Subject(model=DEMO, data=chosen.data, limit=chosen.limit)
    settings = SweepSettings(ratios=chosen.ratios)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(subject, Store(Path(folder, "local")))
        begin = time.perf_counter()
        local = run_sweep(session, settings)
        local_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        ours, lost, repeated = _on_three_nodes(subject, settings, Store(Path(folder, "ray")))
        seconds = time.perf_counter() - begin
    rows = [
        {"what": "groups", "value": len(local.summary.groups)},
        {"what": "cells", "value": len(local.rows)},
        {"what": "images", "value": local.conditions.n_images},
        {"what": "tables equal", "value": ours == local},
        {"what": "units of the lost node", "value": lost},
        {"what": "results of a cell and image that came twice", "value": repeated},
        {"what": "local (s)", "value": round(local_seconds)},
        {"what": "three nodes, with their start (s)", "value": round(seconds)},
        {"what": "peak memory of the driver (MB)", "value": _peak_megabytes()},
    ]
    about = {"model": DEMO, "ratios": list(chosen.ratios), "nodes": 3, "cores of a node": 1}
    document = document_of("scaling_demo", rows, about)
    if not chosen.quick:
        store_result(document)
    return document


def _peak_megabytes() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def _on_three_nodes(
    subject: Subject, settings: SweepSettings, store: Store
) -> tuple[SensitivityTable, int, int]:
    """Return the table, the units that were lost with a node, and results that came twice."""
    ray = load_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.wait_for_nodes()
    session = Session(subject, store, engine=EngineSettings(name="ray"))
    seen: set[tuple[str, int]] = set()
    counts = {"lost": 0, "twice": 0, "results": 0}
    take, add = ClusterCells._take, CellWork.add_result

    def watched_take(self: ClusterCells, event: Event[Any]) -> None:
        take(self, event)
        counts["lost"] += event.is_lost
        counts["results"] += event.is_result
        if event.is_result and counts["results"] == LOSE_AT:
            cluster.remove_node(nodes.pop())

    def watched_add(self: CellWork, cell: Any, batch: Any, output: CellOutput) -> None:
        for i in batch[output.requested].tolist():
            counts["twice"] += (cell.key, i) in seen
            seen.add((cell.key, i))
        add(self, cell, batch, output)

    ClusterCells._take, CellWork.add_result = watched_take, watched_add  # type: ignore[method-assign]
    try:
        found = run_sweep(session, settings)
    finally:
        ClusterCells._take, CellWork.add_result = take, add  # type: ignore[method-assign]
        ray.shutdown()
        cluster.shutdown()
    return found, counts["lost"], counts["twice"]


if __name__ == "__main__":
    main()
