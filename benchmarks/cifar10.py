"""The papers' comparison on a task on which every channel counts: the CIFAR-10 demo.

    python benchmarks/cifar10.py --data cifar10-jpeg:DIR [--store FOLDER] [--quick] [--json]

Plans of every policy at 22.4 % and 26.68 % saved (PSViT's and PrimeSVT's figures) and at the saving
where the better of the two loses 3 points, planned from the shipped sweep alone. That saving is
found on the validation pictures. Each plan is then judged once on the 10,000 test pictures, as
pruned, after ``auto`` and, at 26.68 %, after a short fine-tuning. Another plan of ``optimal`` loses
3 points after ``auto``, on the validation pictures. Zeros in single weights are the reference, at
the same bytes. A full run writes the section "CIFAR-10" of docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._cifar10_page import LOSS, NEXT, OURS, PUBLISHED, section
from benchmarks._cifar10_rows import TRAINING, finetuned, numbers, structured, unstructured
from benchmarks._report import document_of, replace_section, store_result
from psvit_core.planners import make_plan
from psvit_core.records import POLICIES, SensitivityTable, Subject, SweepSettings
from psvit_core.storage.shipped import DemoStore
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep

MODEL = "sdt_v1_cifar10"
SAVINGS = (0.224, 0.2668)
STEPS = 5  # of a bisection for the saving that loses ``LOSS`` points


def main() -> None:
    """Measure all rows; print them, and write the section of a full run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="cifar10-jpeg:DIR")
    parser.add_argument("--store", help="folder of results, to continue a run")
    parser.add_argument("--quick", action="store_true", help="64 pictures, one saving")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    limit = 64 if chosen.quick else None
    with tempfile.TemporaryDirectory() as folder:
        results = DemoStore(chosen.store or folder)
        subject = Subject(model=MODEL, data=chosen.data, limit=limit)
        val = Session(subject, results)
        table = run_sweep(val, SweepSettings(ratios=(0.5,)) if chosen.quick else SweepSettings())
        test = Session(dataclasses.replace(subject, split="test", recovery="auto"), results)
        unpruned = evaluate(test)
        search = [] if chosen.quick else search_of_loss(val, table, PUBLISHED, (0.2, 0.5))
        savings = SAVINGS[:1] if chosen.quick else (*SAVINGS, saving_of_loss(search))
        rows = []
        for saving in savings:
            rows += [structured(test, table, policy, saving) for policy in POLICIES]
            rows += unstructured(test, saving)
            print(f"{saving:.4f} saved: done", file=sys.stderr, flush=True)
        about = {
            "model": MODEL,
            "unpruned": numbers(unpruned.accuracy, 100),
            "bytes": unpruned.size.bytes,
            "search": search,
        }
        if not chosen.quick:
            about["smallest"] = smallest(val, test, about)
            add_trained(rows, val, test, table, Path(chosen.store or folder) / "finetuned")
            about["training"] = TRAINING.to_dict()
        results.close()
    document = document_of("cifar10", rows, about)
    if not chosen.quick:
        store_result(document)
        page = Path(__file__).resolve().parents[1] / "docs" / "results.md"
        replace_section(page, section(document), NEXT)
    print(json.dumps(document) if chosen.json else section(document))


def smallest(val: Session, test: Session, about: dict[str, Any]) -> dict[str, Any]:
    """Return the row of our smallest plan that loses ``LOSS`` on val when recovered.

    The recovered sweep makes its plans. ``about`` gets the steps of the search.
    """
    recovering = val.with_recovery("auto")
    table = run_sweep(recovering, SweepSettings())
    search = search_of_loss(recovering, table, (OURS,), (0.3, 0.8))
    about["recovered_search"] = search
    return structured(test, table, OURS, max(s for s, loss in search if loss <= LOSS))


def add_trained(
    rows: list[dict[str, Any]],
    val: Session,
    test: Session,
    table: SensitivityTable,
    folder: Path,
) -> None:
    """Add drops after fine-tuning to the rows of the policies at 26.68 % saved."""
    for row in reversed(rows):
        if row["saving"] == SAVINGS[1] and row["policy"] in POLICIES:
            row["finetuned"] = finetuned(val, test, table, row["policy"], row["saving"], folder)
            print(f"{row['policy']} fine-tuned", file=sys.stderr, flush=True)


def search_of_loss(
    val: Session, table: SensitivityTable, policies: Sequence[str], bounds: tuple[float, float]
) -> list[tuple[float, float]]:
    """Look for the saving at which the best of some policies loses ``LOSS`` on ``val``.

    Returns:
        (saving, points that the best one loses) of each step of a bisection.
    """
    (low, high), found = bounds, []
    for _ in range(STEPS):
        middle = (low + high) / 2
        losses = []
        for policy in policies:
            drop = evaluate(val, make_plan(table, policy, memory_saving=middle)).drop
            assert drop is not None
            losses.append(drop.value)
        found.append((middle, min(losses)))
        low, high = (middle, high) if min(losses) < LOSS else (low, middle)
        print(f"{middle:.3f} saved: {min(losses):.2f} points lost", file=sys.stderr, flush=True)
    return found


def saving_of_loss(search: Sequence[tuple[float, float]]) -> float:
    """Return the middle between the last savings with a smaller and with a larger loss."""
    low = max((saving for saving, loss in search if loss < LOSS), default=0.2)
    high = min((saving for saving, loss in search if loss >= LOSS), default=0.5)
    return round((low + high) / 2, 3)


if __name__ == "__main__":
    main()
