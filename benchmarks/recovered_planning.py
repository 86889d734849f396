"""Plans from a recovered sweep against plans from a plain one; and the cost of the sweeps.

    python benchmarks/recovered_planning.py [--quick] [--json] [--models M,M] [--folder DIR]

``optimal`` plans from either table alone, without measuring. Its plans are recovered by ``auto`` on
256 calibration images and measured on the 750 validation images. ``gain`` is how many percentage
points fewer the plan from the recovered table loses, with its paired 95 % interval over the images.
Seeds choose the calibration images; both sweeps use those of seed 0.

``cost`` is the processor time of a recovered sweep, relative to the plain one before it in the same
run, on one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch

from benchmarks._report import RESULTS, report, stored
from psvit_core.data import EvalSet, load_data
from psvit_core.plan.build import reached_ratios
from psvit_core.planners import make_plan
from psvit_core.records import PrunePlan, SensitivityTable
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.sensitivity.sweep import sweep
from psvit_core.stats import paired_drop_interval
from psvit_core.storage.predictions import kl_divergence
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model

NAME = "recovered_planning"
MODELS = ("sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits")
SAVINGS = (0.4, 0.6, 0.75, 0.85, 0.9)
SEEDS = (0, 1, 2)
N_CALIB = 256
RUN = Run(batch=125)
Array = np.ndarray[Any, Any]


def main() -> None:
    """Compare both tables on every model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one model, 64 images, one saving")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--models", default=",".join(MODELS), help="the others keep their rows")
    parser.add_argument("--folder", help="store to work in, so that a stopped run can continue")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="number of seeds")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    models = MODELS[:1] if chosen.quick else chosen.models.split(",")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            rows += list(rows_of(model, chosen, Path(chosen.folder or folder)))
    if not chosen.quick and (RESULTS / f"{NAME}.json").exists():
        kept = [row for row in stored(NAME)["rows"] if row["model"] not in models]
        rows = sorted([*rows, *kept], key=lambda row: MODELS.index(row["model"]))
    settings = {
        "policy": "optimal",
        "recovery": "auto",
        "calibration images": N_CALIB,
        "split": "val",
    }
    report(NAME, rows, settings, chosen)


def rows_of(name: str, chosen: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the row of each saving and seed of one model."""
    model = load_model(name)
    val = load_data("digits", limit=64) if chosen.quick else load_data("digits")
    plain, cost_plain = swept(model, val, None, folder / "plain")
    recovered, cost = swept(model, val, calib(0), folder / "recovered")
    reference = logits_of(model, val)
    for saving in SAVINGS[1:2] if chosen.quick else SAVINGS:
        plans = [make_plan(table, "optimal", memory_saving=saving) for table in (plain, recovered)]
        for seed in SEEDS[: 1 if chosen.quick else chosen.seeds]:
            found = [recovered_logits(model, plan, seed, val) for plan in plans]
            row = {
                "model": name,
                "saving": saving,
                "seed": seed,
                **compared(val.labels, reference, found[0][0], found[1][0]),
                "used": " / ".join(used for _, used in found),
                "distance": round(distance(plain, plans), 3),
                "cost": round(cost / cost_plain, 2) if cost_plain else None,
            }
            print(row, file=sys.stderr, flush=True)
            yield row


def swept(
    model: SpikingModel, val: EvalSet, images: EvalSet | None, folder: Path
) -> tuple[SensitivityTable, float]:
    """Return a sweep's table and its processor seconds."""
    store, began = Store(folder), time.process_time()
    table = sweep(model, val, calib=calib(0), store=store, recovery_images=images)
    seconds = time.process_time() - began
    store.close()
    return table, seconds


def recovered_logits(
    model: SpikingModel, plan: PrunePlan, seed: int, val: EvalSet
) -> tuple[Array, str]:
    """Return the logits of a plan's recovered model, and the method that was used."""
    small = apply_plan(model, plan)
    work, done = recover(small, model, plan, calib(seed), method="auto", run=RUN, seed=seed)
    return logits_of(work, val), done.used


@torch.no_grad()
def logits_of(model: SpikingModel, data: EvalSet) -> Array:
    """Return the logits, (n_images, n_classes)."""
    model.eval()
    return torch.cat([model(x) for x in data.batches(RUN.batch, RUN.dtype)]).numpy()


def compared(
    labels: Sequence[int], reference: Array, plain: Array, recovered: Array
) -> dict[str, Any]:
    """Return the drops and KLs of both plans, and the paired difference of their drops."""
    right, ours, theirs = (x.argmax(1) == np.array(labels) for x in (reference, recovered, plain))
    counts = [int((a & b).sum()) for a in (ours, ~ours) for b in (theirs, ~theirs)]
    gain, low, high = (100 * x for x in paired_drop_interval(*counts))
    return {
        "drop, plain table (pp)": round(100 * float(right.mean() - theirs.mean()), 2),
        "drop, recovered table (pp)": round(100 * float(right.mean() - ours.mean()), 2),
        "gain": round(gain, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "KL, plain": round(float(kl_divergence(reference, plain).mean()), 4),
        "KL, recovered": round(float(kl_divergence(reference, recovered).mean()), 4),
    }


def distance(table: SensitivityTable, plans: Sequence[PrunePlan]) -> float:
    """Return the mean absolute difference of two plans' prune ratios."""
    one, other = (reached_ratios(table.summary, plan) for plan in plans)
    groups = [g.group_id for g in table.summary.groups]
    return float(np.mean([abs(one.get(g, 0.0) - other.get(g, 0.0)) for g in groups]))


def calib(seed: int) -> EvalSet:
    """Return calibration images: the data's own for seed 0, else a choice of training images."""
    if seed == 0:
        return load_data("digits", split="calib")
    return load_data("digits", split="train").limit(N_CALIB, seed=seed)


if __name__ == "__main__":
    main()
