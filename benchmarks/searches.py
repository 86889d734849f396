"""Searches with real measurements, stopped at 20 plans and not, and what they were said to take.

    python benchmarks/searches.py [--quick] [--json]

PSViT's and PrimeSVT's search at three savings, each in a store of its own that has only the sweep,
so that nothing is reused; ``optimal`` with 20 plans beside them. On the third model only the
searches of 20 plans: a whole one takes more than a quarter of an hour there. The drop is that of
the plan found, on all 750 validation images. ``estimate`` is the time that the command line prints
before a search, at most; ``of it`` is how much of it the search took.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._report import options, replace_section, report, stored
from benchmarks._searches_page import NEXT, section
from psvit_core.records import PlanSettings, SensitivityTable, Subject, SweepSettings
from psvit_core.storage.store import Store
from psvit_core.tasks.plan import planning_estimate, run_plan
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep

MODELS = ("sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits")
WHOLE = MODELS[:2]  # whole searches too
SAVINGS = (0.5, 0.7, 0.8)
FEW, ALL = 20, 100_000  # measured plans at most
SEARCHES = (("psvit", FEW), ("psvit", ALL), ("prime", FEW), ("prime", ALL), ("optimal", FEW))


def main() -> None:
    """Run every search; print the table, and write it into docs/results.md."""
    chosen = options(__doc__ or "")
    torch.set_num_threads(1)
    rows = []
    for model in MODELS[:1] if chosen.quick else MODELS:
        for row in rows_of(model, SAVINGS[:1] if chosen.quick else SAVINGS, quick=chosen.quick):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    report("searches", rows, {"savings": SAVINGS, "few": FEW, "split": "val"}, chosen)
    if not chosen.quick:
        page = Path(__file__).resolve().parents[1] / "docs" / "results.md"
        replace_section(page, section(stored("searches")), NEXT)


def rows_of(model: str, savings: tuple[float, ...], *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each search on one model; ``quick``: none of the whole searches."""
    with tempfile.TemporaryDirectory() as folder:
        table = run_sweep(Session(Subject(model=model), Store(folder)), SweepSettings())
    for saving in savings:
        for policy, most in SEARCHES:
            if most == ALL and (quick or model not in WHOLE):
                continue
            settings = PlanSettings(policy=policy, memory_saving=saving, budget_evaluations=most)
            yield {"model": model, **searched(model, table, settings)}


def searched(model: str, table: SensitivityTable, settings: PlanSettings) -> dict[str, Any]:
    """Run one search in an empty store and return its row."""
    measured = 0

    def count(done: int, total: int, what: str) -> None:
        nonlocal measured
        measured = done

    with tempfile.TemporaryDirectory() as folder:
        session = Session(Subject(model=model), Store(folder))
        estimate = planning_estimate(session, table, settings)
        began = time.perf_counter()
        plan, found = run_plan(session, table, settings, count)
        seconds = time.perf_counter() - began
    assert found is not None and found.drop is not None
    return {
        "saving": settings.memory_saving,
        "policy": plan.policy,
        "limit": FEW if settings.budget_evaluations == FEW else "none",
        "plans": measured,
        "drop (pp)": round(found.drop.value, 2),
        "seconds": round(seconds, 1),
        "estimate": round(estimate.seconds, 1),
        "of it": round(seconds / estimate.seconds, 2),
    }


if __name__ == "__main__":
    main()
