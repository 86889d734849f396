"""Accuracy that each recovery without training returns at a high saving.

    python benchmarks/recovery.py [--data cifar10-jpeg:DIR] [--quick] [--json]

The plan is ``optimal`` at the saving, measured on the validation images while planning. Each method
fits to 256 calibration images, with three seeds; the drop is measured on the 750 test images, which
nothing else has seen. With ``--data`` the CIFAR-10 demo too: its plan is from the shipped sweep
alone, and the drop is on the 5,000 validation pictures. The printed drop is the mean over the
seeds, with the mean of the ends of their paired 95 % intervals. ``relative`` is the drop divided by
that of the best of the earlier methods (``bn``, ``lsq``, ``both``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._recovery_page import NEXT, section
from benchmarks._report import options, replace_section, report, stored
from psvit_core.data import EvalSet
from psvit_core.evaluate import measure
from psvit_core.planners import make_plan
from psvit_core.records import RECOVERIES, Measurement, PrunePlan, Subject, SweepSettings
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage.shipped import DemoStore
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.base import SpikingModel

MODELS, CIFAR10 = ("e_spikeformer_digits", "sdt_v1_digits"), "sdt_v1_cifar10"
SAVING = 0.9
SEEDS = (0, 1, 2)
N_CALIB = 256
RUN = Run(batch=125)
EARLIER = ("bn", "lsq", "both")


def main() -> None:
    """Measure every method on every model."""
    chosen = options(__doc__ or "", add_data)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    seeds = SEEDS[:1] if chosen.quick else SEEDS
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for name in MODELS[:1] if chosen.quick else MODELS:
            rows += with_ratios(list(rows_of(name, "digits", seeds, store)))
        if chosen.data:
            rows += with_ratios(list(rows_of(CIFAR10, chosen.data, seeds, DemoStore(folder))))
    settings = {
        "memory saving": SAVING,
        "policy": "optimal",
        "calibration images": N_CALIB,
        "seeds": seeds,
    }
    report("recovery", rows, settings, chosen)
    if not chosen.quick:
        page = Path(__file__).resolve().parents[1] / "docs" / "results.md"
        replace_section(page, section(stored("recovery")), NEXT)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--data``."""
    parser.add_argument("--data", help="pictures of the CIFAR-10 demo, cifar10-jpeg:DIR")


def rows_of(name: str, data: str, seeds: tuple[int, ...], store: Store) -> Iterator[dict[str, Any]]:
    """Yield the row of each method on one model."""
    session = Session(Subject(model=name, data=data), store)
    model, val = session.model, session.data
    if name == CIFAR10:
        table = run_sweep(session, SweepSettings())
        plan, judged = make_plan(table, "optimal", memory_saving=SAVING), val
    else:
        plan, judged = plan_of(model, val, store), session.load_images("test", None)
    small = apply_plan(model, plan)
    for method in RECOVERIES:
        started, found = time.perf_counter(), []
        used = set()
        for seed in seeds:
            images = session.calib(N_CALIB, seed)
            work, done = recover(small, model, plan, images, method=method, run=RUN, seed=seed)
            used.add(done.used)
            found.append(measure(model, judged, plan, result=work, run=RUN, store=store))
        row = {
            "model": name,
            "method": method,
            "used": ", ".join(sorted(used)),
            "drop (pp)": round(mean(drops(found, "value")), 2),
            "low": round(mean(drops(found, "low")), 2),
            "high": round(mean(drops(found, "high")), 2),
            "split": judged.split,
            "images": len(judged),
            "seconds": round((time.perf_counter() - started) / len(seeds), 1),
        }
        print(row, file=sys.stderr, flush=True)
        yield row


def drops(found: list[Measurement], end: str) -> list[float]:
    """Return the value or an end of the interval of every measured drop."""
    return [getattr(m.drop, end) for m in found if m.drop]


def plan_of(model: SpikingModel, val: EvalSet, store: Store) -> PrunePlan:
    """Return the plan, made on the validation images."""
    table = sweep(model, val, store=store)
    return make_plan(
        table,
        "optimal",
        memory_saving=SAVING,
        measure=lambda plan: measure(model, val, plan, run=RUN, store=store),
    )


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each method's drop relative to the best earlier method's."""
    best = min(row["drop (pp)"] for row in rows if row["method"] in EARLIER)
    return [{**row, "relative": round(row["drop (pp)"] / best, 2)} for row in rows]


if __name__ == "__main__":
    main()
