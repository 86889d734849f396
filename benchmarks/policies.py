"""Planners, criteria, recoveries and fine-tuning beside each other on the two demo models.

    python benchmarks/policies.py [--quick] [--json] [--cache DIR] [--out FILE] [--report]

One engine version and one result file. Every cell is kept under its settings as soon as it is
measured, so a stopped run goes on where it stopped; sweeps and trainings resume from the store in
``--cache``. Plans are made and chosen on the val split only; the test split (and its distorted
copy) is looked at once for every final model. ``--report`` measures nothing: it writes
``docs/results.md`` and its plots from the result file.
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
from benchmarks._policies_bench import N_PLANNING, SCOPES, Bench
from benchmarks._policies_page import write_page
from benchmarks._policies_report import (
    LOSS,
    RECOVERIES,
    SEEDS,
    TUNED,
    Results,
    accuracy_tables,
    headline,
)
from benchmarks._report import RESULTS
from psvit_core.importance import CRITERIA
from psvit_core.metrics.profile import machine
from psvit_core.planners import POLICIES
from psvit_core.store import Store

MODELS = ("e_spikeformer_digits", "sdt_v1_digits")
SAVINGS = (0.224, 0.2668, 0.4, 0.55, 0.7)
SCAN = (0.15, 0.3, 0.35, 0.45, 0.5, 0.6, 0.65)  # looked at as far as the loss of 3 pp needs it
FAR = (0.8, 0.85, 0.9)  # where plans lose much also after a recovery; predicted plans only
QUICK_IMAGES, QUICK_RATIOS = 40, (0.3, 0.6)


def crossing(cells: Cells, model: str, recovery: str = "none") -> tuple[float, float] | None:
    """The neighbouring savings between which the better published policy comes to lose 3 pp."""
    below = 0.0
    for saving in sorted({*SAVINGS, *SCAN}):
        drop = published_drop(cells, model, saving, recovery)
        if drop is not None and drop >= LOSS:
            return below, saving
        if drop is not None:
            below = saving
    return None


def published_drop(cells: Cells, model: str, saving: float, recovery: str) -> float | None:
    """Test drop (pp) of the better of psvit and prime, seed 0; None where neither is tested."""
    base = cells.get("baseline", model)
    found = []
    for policy in PUBLISHED:
        plan = cells.best_plan(model, policy, saving)
        cell = plan and cells.get("test", model, plan["id"], recovery, 0)
        if cell and base:
            n = base["n"]
            lost = unpack(base["digits right"], n).mean() - unpack(cell["digits right"], n).mean()
            found.append(100 * float(lost))
    return min(found, default=None)


def full_run(benches: list[Bench], cells: Cells) -> None:
    """Everything, the most wanted first; what decides which plan is tested, before its tests."""
    for b in benches:
        cells.make(["baseline", b.name], b.baseline_cell)
        plans(b, POLICIES, SAVINGS, ("predicted",))
        plans(b, ("optimal",), SAVINGS, ("measured",), ("all",))
        for saving in SAVINGS:
            b.test_plans(POLICIES, saving, 0, ("none",))
    for b in benches:
        headlines(b, ("predicted",), SCOPES)
        for saving in sorted({*SAVINGS, *SCAN}):  # all policies without measuring
            b.test_plans(POLICIES, saving, 0, ("none",), ("predicted",))
    slow, fast = benches  # most of the time goes into plans that are measured on the way
    plans(fast, PUBLISHED, SAVINGS, ("measured",), ("inner",))
    for b in benches:
        plans(b, ("optimal",), (0.7,), ("measured 80",), ("all",))
    recovered([fast], POLICIES, SAVINGS, SEEDS)
    recovered([slow], ("uniform", "optimal"), SAVINGS, SEEDS)
    for b in benches:
        for name in CRITERIA:
            b.criterion_cells(name)
        for saving in SAVINGS:
            b.unstructured_cell(saving)
    plans(slow, ("prime",), (0.55, 0.7), ("measured",), ("inner",))
    plans(fast, ("optimal",), (0.7,), ("measured 120",), ("all",))  # about as many as prime
    recovered(benches, POLICIES, SAVINGS, SEEDS)
    for b in benches:
        plans(b, (*PUBLISHED, "optimal"), FAR, ("predicted",))
    recovered(benches, (*PUBLISHED, "optimal"), FAR, SEEDS[:1])
    plans(slow, ("prime",), (0.6,), ("measured",), ("inner",))
    plans(slow, ("optimal",), (0.6,), ("measured 120",), ("all",))
    slow.test_plans(("prime", "optimal"), 0.6, 0, ("none",))
    tune(slow, 1.0)
    tune(fast, 1.0)
    tune(slow, 5.0)
    recovered([slow], (*PUBLISHED, "optimal"), (0.6,), SEEDS)
    recovered(benches, (*PUBLISHED, "optimal"), FAR[:2], SEEDS)
    tune(fast, 5.0)
    plans(slow, ("prime",), (0.4,), ("measured",), ("inner",))
    plans(slow, ("psvit",), (0.55, 0.7, 0.4), ("measured",), ("inner",))
    headlines(fast, ("measured",), ("inner",))
    headlines(slow, ("measured",), ("inner",), ("prime",))
    plans(slow, PUBLISHED, SAVINGS, ("measured",), ("inner",))
    recovered(benches, POLICIES, SAVINGS, SEEDS)
    for b in benches:
        headlines(b, ("measured",), SCOPES)
        plans(b, PUBLISHED, SAVINGS, ("measured",))
    recovered(benches, POLICIES, SAVINGS, SEEDS)


def recovered(
    benches: list[Bench],
    policies: Iterable[str],
    savings: Iterable[float],
    seeds: Iterable[int],
) -> None:
    """Test the chosen plans of these policies after every recovery, seed by seed."""
    names, savings = tuple(policies), tuple(savings)
    for seed in seeds:
        for saving in savings:
            for b in benches:
                b.test_plans(names, saving, seed, RECOVERIES[min(seed, 1) :])


def headlines(
    bench: Bench,
    hows: Iterable[str],
    scopes: Iterable[str],
    policies: Iterable[str] = PUBLISHED,
) -> None:
    """Plans where the better published policy comes to lose 3 pp, until that is between two of all.

    The savings between are looked at one by one; better plans may move the place.
    """
    hows, scopes, policies = tuple(hows), tuple(scopes), tuple(policies)
    done: set[float] = set()
    while found := crossing(bench.cells, bench.name):
        low, high = found
        between = [s for s in SCAN if low < s < high]
        wanted = [*between[len(between) // 2 :][:1], high, low]
        todo = [s for s in wanted if s and s not in done]
        if not todo:
            return
        saving = todo[0]
        done.add(saving)
        plans(bench, policies, (saving,), hows, scopes)
        more = ("measured 80",) if "measured" in hows else ()
        plans(bench, ("optimal",), (saving,), ("predicted", "measured", *more), ("all",))
        bench.test_plans((*PUBLISHED, "optimal"), saving, 0, ("none",))


def plans(
    bench: Bench,
    policies: Iterable[str],
    savings: Iterable[float],
    hows: Iterable[str],
    scopes: Iterable[str] = SCOPES,
) -> None:
    """Plans of all these."""
    for saving in savings:
        for policy in policies:
            for scope in scopes:
                for how in hows:
                    bench.plan_cell(policy, saving, scope, how)


def tune(bench: Bench, epochs: float) -> None:
    """Fine-tuning of uniform and optimal at three savings."""
    for saving in reversed(TUNED):
        for policy in ("uniform", "optimal"):
            bench.tuned_cell(policy, saving, epochs)


def main() -> None:
    """Measure what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's worth; not kept")
    parser.add_argument("--json", action="store_true", help="print the cells as one JSON object")
    parser.add_argument("--cache", default="cache/policies", help="folder of the store")
    parser.add_argument("--out", default=None, help="result file")
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
        full_run([Bench(model, cells, store) for model in MODELS], cells)
    if chosen.json:
        print(json.dumps({**cells.head, "cells": cells.cells}))
        return
    r = Results(cells)
    print("\n".join([*accuracy_tables(r, (0.4,) if chosen.quick else SAVINGS), *headline(r)]))


def head() -> dict[str, Any]:
    """What the result file says beside its cells."""
    return {
        "benchmark": "policies", "threads": 1, "machine": machine("cpu").processor,
        "versions": {p: version(p) for p in ("torch", "spikingjelly")},
        "planning images": N_PLANNING, "test sets": ["digits", "digits:distorted"],
    }  # fmt: skip


def quick_run(bench: Bench, cells: Cells) -> None:
    """A minute's worth: predicted plans of one model at one saving, on few images."""
    cells.make(["baseline", bench.name], bench.baseline_cell)
    plans(bench, POLICIES, (0.4,), ("predicted",))
    bench.test_plans(POLICIES, 0.4, 0, ("none", "bn"))


if __name__ == "__main__":
    main()
