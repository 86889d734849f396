"""Predictions made at once after a sweep, against the drops that are then measured.

    python benchmarks/predictions.py [--quick] [--json] [--store FOLDER]

60 plans a model, without recovery and with ``auto``: four policies at 10 to 80 % (32), plans by
hand (14) and policies with locked groups (14). None of them calibrates a prediction, and all are
predicted before any is measured.
``--store`` keeps sweeps and measurements, so that a stopped run continues. A full run writes the
section "Predictions" of docs/results.md (``_predictions_page``).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._predictions_page import NEXT, section, summary_rows
from benchmarks._report import document_of, replace_section, store_result
from psvit_core.errors import PsvitError
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.planners import make_plan, predict_drop_interval
from psvit_core.records import POLICIES, PrunePlan, SensitivityTable, Subject, SweepSettings
from psvit_core.sensitivity.joint_run import with_joint_plans
from psvit_core.storage.store import Store
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep

MODELS = ("sdt_v1_digits", "e_spikeformer_digits", "meta_spikeformer_digits")
SAVINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
N_BY_HAND = N_LOCKED = 14
SEED = 14
CONDITIONS = ("none", "auto")  # recovery without training
Row = dict[str, Any]


def main() -> None:
    """Measure the plans of every model; print a line a model and one for all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="6 plans of one model; stores nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--store", help="folder of sweeps and measurements, to continue a run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for model, recovery in product(MODELS[: 1 if chosen.quick else None], CONDITIONS):
            place = Path(chosen.store or folder)
            rows += predictions_of(model, recovery, place, quick=chosen.quick)
    plans = {"savings": SAVINGS, "by_hand": N_BY_HAND, "locked": N_LOCKED, "seed": SEED}
    document = document_of("predictions", rows, plans)
    if not chosen.quick:
        store_result(document)
        page = Path(__file__).resolve().parents[1] / "docs" / "results.md"
        replace_section(page, section(document), NEXT)
    if chosen.json:
        print(json.dumps(document))
        return
    for line in summary_rows(rows):
        print("  ".join(f"{name} {value}" for name, value in line.items()))


def predictions_of(model: str, recovery: str, folder: Path, *, quick: bool) -> list[Row]:
    """Sweep a model, predict all plans, then measure them; return one row per plan."""
    results = Store(folder / f"{model}-{recovery}")
    session = Session(Subject(model=model, recovery=recovery), results)
    table, seconds = timed_sweep(session)
    print(
        f"{model}, {recovery}: sweep {seconds[0]:.1f} s, joint plans {seconds[1]:.1f} s",
        file=sys.stderr,
    )
    plans = list(test_plans(table))
    plans = plans[:: len(plans) // 6][:6] if quick else plans
    alone = replace(table, joint=())
    predicted = []
    for kind, plan in plans:
        ratios = reached_ratios(table.summary, plan)
        predicted.append(
            (kind, plan, predict_drop_interval(table, ratios), predict_drop_interval(alone, ratios))
        )
    rows = []
    for kind, plan, now, before in predicted:
        drop = evaluate(session, plan, predicted=now).drop
        assert drop is not None
        of_table = {"sum": list(before.to_dict().values())}
        row: Row = {"model": model, "recovery": recovery, "kind": kind, "policy": plan.policy}
        row["drop"] = drop.value
        rows.append(row | {"predicted": list(now.to_dict().values())} | of_table)
        print(f"{model}, {recovery}: {len(rows)} of {len(plans)}", file=sys.stderr, flush=True)
    for row in rows:
        row["joint_plans"] = len(table.joint)
        row["recovered_again"] = sum(joint.auto_drop is not None for joint in table.joint)
        row["seconds"] = seconds
    results.close()
    return rows


def timed_sweep(session: Session) -> tuple[SensitivityTable, tuple[float, float]]:
    """Run a sweep; return its table and the processor seconds of its cells and joint plans.

    Those of a continued run are stored with it.
    """
    key, joint = "benchmark/seconds", [0.0]

    def timed(*arguments: Any, **options: Any) -> SensitivityTable:
        began = time.process_time()
        table = with_joint_plans(*arguments, **options)
        joint[0] = time.process_time() - began
        return table

    began = time.process_time()
    with patch("psvit_core.sensitivity.sweep.with_joint_plans", timed):
        table = run_sweep(session, SweepSettings())
    known = session.store.get(key)
    if known is None:
        known = [time.process_time() - began - joint[0], joint[0]]
        session.store.put(key, known)
    return table, (known[0], known[1])


def test_plans(table: SensitivityTable) -> Iterator[tuple[str, PrunePlan]]:
    """Iterate over (kind, plan) of all plans that are predicted."""
    rng = random.Random(SEED)
    groups = [g.group_id for g in table.summary.groups]
    for policy in POLICIES:
        for saving in SAVINGS:
            yield "policy", make_plan(table, policy, memory_saving=saving)
    for _ in range(N_BY_HAND):
        largest = rng.choice((0.2, 0.4, 0.6, 0.8))
        chosen = rng.sample(groups, rng.randint(2, len(groups)))
        ratios = {group: largest * rng.random() for group in chosen}
        plan = plan_from_ratios(table.summary, ratios, criterion=table.criterion)
        yield "by hand", plan
    found = 0
    while found < N_LOCKED:
        locked = {
            group: rng.choice((0.0, 0.25, 0.5))
            for group in rng.sample(groups, max(2, len(groups) // 6))
        }
        saving, policy = rng.choice(SAVINGS), POLICIES[found % len(POLICIES)]
        try:
            plan = make_plan(table, policy, memory_saving=saving, locked=locked)
        except PsvitError:
            continue  # these locks forbid the saving
        found += 1
        yield "locked", plan


if __name__ == "__main__":
    main()
