"""Latency predicted from a table of timed layers, against the pruned network's measured latency.

    python benchmarks/latency_table.py [--quick] [--json]

Uniform plans, and plans with a random ratio for each group, which no table was made from. Torch on
one thread, one image. Each plan's network and the unpruned one run by turns, so the measured ratio
does not depend on the table's times.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._latency_page import TABLE_NEXT, table_section
from benchmarks._report import options, replace_section, report, stored
from psvit_core.export.traced import random_images
from psvit_core.metrics.profile import latencies_in_turns, machine
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.latency import PredictedLatency
from psvit_core.plan.size import plan_size
from psvit_core.records import ModelSummary, PrunePlan, Subject
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.latency import measure_latency
from psvit_core.tasks.session import Session, summarize_model
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODELS = ("sdt_v1_digits", "e_spikeformer_digits", "sdt_v1_cifar10", "meta_spikeformer_15m")
UNIFORM, N_RANDOM = (0.25, 0.5, 0.7), 5
_MOST = 0.85  # largest random ratio
_RUNS = {"meta_spikeformer_15m": 5}  # timed runs of a plan; otherwise for about a second


def main() -> None:
    """Compare all plans; print them, and write the section of a full run."""
    chosen = options(__doc__ or "")
    torch.set_num_threads(1)
    settings = {"machine": machine().to_dict(), "load": os.getloadavg()}
    names = MODELS[:1] if chosen.quick else MODELS
    rows = [row for name in names for row in rows_of(name, quick=chosen.quick)]
    report("latency_table", rows, settings, chosen)
    if not chosen.quick:
        page = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
        replace_section(page, table_section(stored("latency_table")), TABLE_NEXT)


def rows_of(name: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield one row for each plan of a model."""
    card = model_card(name)
    torch.manual_seed(0)
    given = None if card.weights else build_model(card.family, **card.arguments).eval()
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Subject(model=name), Store(folder), _model=given)
        start = time.monotonic()
        table = measure_latency(session)
        seconds = time.monotonic() - start
        session.store.close()
    predicted, summary = PredictedLatency(table), summarize_model(session)
    for title, plan in plans_of(summary, 2 if quick else N_RANDOM):
        small = apply_plan(session.model, plan)
        times = latencies_in_turns(
            (small, session.model), random_images(session.model, 1), runs=_RUNS.get(name)
        )
        ratio = times[0] / times[1]
        row = {
            "model": name,
            "table (s)": round(seconds, 1),
            "unpruned (ms)": round(times[1], 2),
            "between layers": round(table.rest_ms / table.total_ms, 3),
            "plan": title,
            "MAC ratio": round(plan_size(summary, plan).macs / plan_size(summary, None).macs, 3),
            "predicted ratio": round(1 - predicted.saving(plan), 3),
            "measured ratio": round(ratio, 3),
            "error": round((1 - predicted.saving(plan)) / ratio - 1, 3),
        }
        print(*row.values(), file=sys.stderr, flush=True)
        yield row


def plans_of(summary: ModelSummary, n_random: int) -> Iterator[tuple[str, PrunePlan]]:
    """Yield uniform plans, then plans of random ratios, with their titles."""
    groups = [g.group_id for g in summary.groups]
    for ratio in UNIFORM:
        plan = plan_from_ratios(summary, dict.fromkeys(groups, ratio), criterion="l2")
        yield f"uniform {ratio:.0%}", plan
    for seed in range(n_random):
        drawn = random.Random(seed)
        ratios = {group: drawn.uniform(0, _MOST) for group in groups}
        yield f"random {seed}", plan_from_ratios(summary, ratios, criterion="l2")


if __name__ == "__main__":
    main()
