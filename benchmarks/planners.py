"""Planner time and optimality gap: every policy, from the table alone.

    python benchmarks/planners.py [--quick] [--json]

Summaries of full-size models (69 groups and more) with a made, seeded sensitivity of 9 ratios; the
120-group one is a Meta-SpikeFormer whose deep blocks are repeated. CPU seconds of one thread, since
other work may share the machine. "above bound" is how much more than a lower bound the summed KL of
``optimal`` is: the linear program over convex hulls of the costs and McCormick envelopes of the
products of widths. The true optimum lies between, so it is the most that could be gained.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch

from benchmarks._report import options, report
from psvit_core.groups import summarize
from psvit_core.planners import POLICIES, Problem, Target, group_kls
from psvit_core.plans import reached_ratios
from psvit_core.records import (
    Conditions,
    Interval,
    ModelSummary,
    SensitivityRow,
    SensitivityTable,
    n_pruned,
)
from psvit_core.size import plan_size
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODEL = "meta_spikeformer_15m"
RATIOS = tuple(round(0.1 * i, 1) for i in range(1, 10))
SAVINGS = (0.2668, 0.55)
N_GROUPS = 120
SEED = 0


def main() -> None:
    """Plan on both tables at every saving."""
    chosen = options(__doc__ or "")
    torch.set_num_threads(1)
    small = zoo_summary(MODEL)
    summaries = [small] if chosen.quick else [small, widened(small, N_GROUPS)]
    rows = [
        row(made_table(summary), policy, saving)
        for summary in summaries
        for saving in SAVINGS
        for policy in POLICIES
    ]
    settings = {"ratios": len(RATIOS), "seed": SEED, "threads": 1, "model": MODEL}
    report("planners", rows, settings, chosen)


def row(table: SensitivityTable, policy: str, saving: float) -> dict[str, Any]:
    """One policy at one saving."""
    problem = Problem(table=table, target=Target(saving=saving))
    start = time.process_time()
    plan = POLICIES[policy](problem)
    seconds = time.process_time() - start
    ratios = reached_ratios(table.summary, plan)
    kl = sum(group_kls(table, ratios).values())
    gap = re.search(r"at most ([\d.]+%) above the least", plan.note)
    return {
        "groups": len(table.summary.groups),
        "policy": policy,
        "target": f"{saving:.2%}",
        "saved": f"{problem.saving(ratios):.2%}",
        "sum of KLs": round(kl, 5),
        "CPU (s)": round(seconds, 3),
        "above bound": gap[1] if gap else "",
    }


def zoo_summary(name: str) -> ModelSummary:
    """A registered model's summary, its units ranked as they stand."""
    card = model_card(name)
    model = build_model(card.family, **card.arguments)
    ranking = {g.group_id: tuple(range(g.n_units)) for g in model.channel_groups()}
    return summarize(model, {"l2": ranking})


def widened(summary: ModelSummary, n_groups: int) -> ModelSummary:
    """The model with its last groups, and the tensors that they own, repeated until ``n_groups``.

    A repeated group reads and writes the same residual stream as the one it copies.
    """
    inner = [g for g in summary.groups if g.kind != "residual"]
    extra = inner[len(inner) - (n_groups - len(summary.groups)) :]
    copied = {g.group_id: f"{g.group_id}.again" for g in extra}
    tensors = [
        dataclasses.replace(
            t, name=f"{t.name}.again", groups=tuple(copied.get(g or "", g) for g in t.groups)
        )
        for t in summary.shapes.tensors
        if any(g in copied for g in t.groups)
    ]
    ranking = summary.rankings["l2"]
    return dataclasses.replace(
        summary,
        groups=(
            *summary.groups,
            *(dataclasses.replace(g, group_id=copied[g.group_id]) for g in extra),
        ),
        shapes=dataclasses.replace(summary.shapes, tensors=(*summary.shapes.tensors, *tensors)),
        rankings={"l2": ranking | {copied[g.group_id]: ranking[g.group_id] for g in extra}},
    )


def made_table(summary: ModelSummary) -> SensitivityTable:
    """A seeded sensitivity: KL grows as a power of the ratio, the scale differs 1000-fold."""
    random = np.random.default_rng(SEED)
    rows = []
    for group in summary.groups:
        scale = 10 ** random.uniform(-3, 0) * (3 if group.kind == "residual" else 1)
        power = random.uniform(1.5, 4)
        for ratio in RATIOS:
            kl = scale * ratio**power * random.uniform(0.8, 1.2)
            rows.append(
                SensitivityRow(
                    group_id=group.group_id, prune_ratio=ratio,
                    n_pruned=n_pruned(ratio, group.n_units, group.heads),
                    accuracy=exactly(0.9), drop=exactly(30 * kl), kl=kl, agreement=0.9,
                    size=plan_size(summary, None), sops=0.0, n_images=100,
                )
            )  # fmt: skip
    conditions = Conditions(
        data="made", split="val", n_images=100, T=4, batch=10, precision="float32", device="cpu",
        transform="none",
    )  # fmt: skip
    return SensitivityTable(
        summary=summary, criterion="l2", conditions=conditions, ratios=RATIOS,
        baseline_accuracy=exactly(0.9), rows=tuple(rows),
    )  # fmt: skip


def exactly(value: float) -> Interval:
    """A number without doubt."""
    return Interval(value=value, low=value, high=value)


if __name__ == "__main__":
    main()
