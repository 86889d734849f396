"""Compare planners, criteria, recoveries and fine-tuning on the two demo models.

    python benchmarks/policies.py [--quick] [--json] [--cache DIR] [--out FILE]
                                   [--model NAME] [--report]

Uses one engine version and one result file. Every cell is stored under its settings as soon as it
is measured, so a stopped run continues; sweeps and trainings resume from the store in ``--cache``.
Plans are made and chosen on the val split only. The test split (and its distorted copy) is used
once for every final model. ``--report`` measures nothing: it writes ``docs/results.md`` and its
plots from the result file. Two processes with different ``--model`` may write to one file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._cells import PUBLISHED, Cells, unpack
from benchmarks._policies_bench import (
    CRITERION,
    N_PLANNING,
    SCOPES,
    Bench,
    tuned_cell,
    unstructured_cell,
)
from benchmarks._policies_page import write_page
from benchmarks._policies_report import accuracy_table, at_the_loss, headline_table
from benchmarks._policies_results import EPOCHS, LOSS, RECOVERIES, SEEDS, TUNED, Results
from benchmarks._report import RESULTS
from psvit_core.importance import CRITERIA
from psvit_core.metrics.profile import machine
from psvit_core.records import POLICIES
from psvit_core.storage.store import Store

MODELS = ("e_spikeformer_digits", "sdt_v1_digits")
SAVINGS = (0.224, 0.2668, 0.4, 0.55, 0.7)
FAR = (0.8, 0.85, 0.9)  # large losses even after a recovery; predicted plans only
TRIED = (*PUBLISHED, "optimal")
CLOSE = 0.01  # the bisection for the loss of 3 pp stops at this width
QUICK_IMAGES, QUICK_RATIOS = 40, (0.3, 0.6)


def crossing(cells: Cells, model: str, savings: Iterable[float]) -> tuple[float, float] | None:
    """Return the two savings between which the better published policy reaches a loss of 3 pp."""
    below = 0.0
    for saving in sorted(savings):
        drop = published_drop(cells, model, saving)
        if drop is not None and drop >= LOSS:
            return below, saving
        if drop is not None:
            below = saving
    return None


def published_drop(cells: Cells, model: str, saving: float) -> float | None:
    """Return the test drop (pp) of the better of psvit and prime; None if neither is tested."""
    base = cells.get("baseline", model)
    found = []
    for policy in PUBLISHED:
        plan = cells.best_plan(model, policy, saving)
        cell = plan and cells.get("test", model, plan["id"], "none", 0)
        if cell and base:
            n = base["n"]
            lost = unpack(base["digits right"], n).mean() - unpack(cell["digits right"], n).mean()
            found.append(100 * float(lost))
    return min(found, default=None)


def full_run(b: Bench) -> None:
    """Run all cells of one model; those that choose plans before their tests."""
    b.cells.make(["baseline", b.name], b.baseline_cell)
    for saving in SAVINGS:
        every_plan(b, saving)
    for saving in FAR:
        plans(b, TRIED, saving, ("predicted",))
        b.test_plans(TRIED, saving, 0, ("none",))
    places = headlines(b)
    for name in CRITERIA:
        b.criterion_cells(name)
    for seed in SEEDS:
        for saving in (*SAVINGS, *FAR, *places):
            names = POLICIES if saving in SAVINGS else TRIED
            b.test_plans(names, saving, seed, RECOVERIES[min(seed, 1) :])
    for saving in SAVINGS:
        unstructured_cell(b, saving)
    for epochs in EPOCHS:
        for saving in reversed(TUNED):
            for policy in ("uniform", "optimal"):
                tuned_cell(b, policy, saving, epochs)


def every_plan(b: Bench, saving: float) -> None:
    """Make every policy's plans at a saving, predicted and measured, and test them."""
    plans(b, POLICIES, saving, ("predicted",))
    plans(b, PUBLISHED, saving, ("measured",))
    plans(b, ("optimal",), saving, ("measured", "measured 80"), ("all",))
    b.test_plans(POLICIES, saving, 0, ("none",))


def headlines(b: Bench) -> list[float]:
    """Bisect for the saving with a published loss of 3 pp, making every plan on the way."""
    tried = [*SAVINGS, *FAR]
    while found := crossing(b.cells, b.name, tried):
        low, high = found
        middle = round((low + high) / 2, 2)
        if high - low <= CLOSE + 1e-9 or middle in tried:
            break
        every_plan(b, middle)
        tried.append(middle)
    return tried[len(SAVINGS) + len(FAR) :]


def plans(
    bench: Bench,
    policies: Iterable[str],
    saving: float,
    hows: Iterable[str],
    scopes: Iterable[str] = SCOPES,
) -> None:
    """Make the plans of all these settings."""
    for policy in policies:
        for scope in scopes:
            for how in hows:
                bench.plan_cell(policy, saving, scope, how)


def main() -> None:
    """Measure what is missing, or write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="run for about a minute; do not store the result"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as one JSON object")
    parser.add_argument("--cache", default="cache/policies", help="folder of the store")
    parser.add_argument("--out", default=None, help="result file")
    parser.add_argument("--model", action="append", choices=MODELS, help="run only this model")
    parser.add_argument("--report", action="store_true", help="only write docs/results.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(chosen.out) if chosen.out else RESULTS / "policies.json"
    if chosen.report:
        docs = Path(__file__).resolve().parents[1] / "docs"
        print(write_page(Cells(path), docs, RESULTS / "planners.json", SAVINGS))
        return
    if chosen.quick:
        with tempfile.TemporaryDirectory() as folder:
            cells = Cells(Path(folder) / "policies.json", head())
            quick_run(Bench(MODELS[0], cells, Store(folder), QUICK_IMAGES, QUICK_RATIOS), cells)
    else:
        cells = Cells(path, head())
        store = Store(chosen.cache)
        for model in chosen.model or MODELS:
            full_run(Bench(model, cells, store))
    if chosen.json:
        print(json.dumps({**cells.head, "cells": cells.cells}))
        return
    r = Results(cells)
    print(accuracy_table(r, (0.4,) if chosen.quick else SAVINGS).markdown())
    print(headline_table(at_the_loss(r)).markdown())


def head() -> dict[str, Any]:
    """Return the head of the result file."""
    return {
        "benchmark": "policies",
        "threads": 1,
        "machine": machine("cpu").processor,
        "versions": {p: version(p) for p in ("torch", "spikingjelly")},
        "criterion": CRITERION,
        "planning images": N_PLANNING,
        "test sets": ["digits", "digits:distorted"],
    }


def quick_run(bench: Bench, cells: Cells) -> None:
    """Run for about a minute: predicted plans of one model at one saving, on few images."""
    cells.make(["baseline", bench.name], bench.baseline_cell)
    plans(bench, POLICIES, 0.4, ("predicted",))
    bench.test_plans(POLICIES, 0.4, 0, ("none", "bn"))


if __name__ == "__main__":
    main()
