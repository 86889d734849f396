"""Planning time and optimality gap of every policy, from the table alone.

    python benchmarks/planners.py [--quick] [--json]

Full-size models (69 and 120 groups) with synthetic, seeded sensitivities at 9 ratios; the model
with 120 groups is a Meta-SpikeFormer with repeated deep blocks. Times are CPU seconds of one
thread, so that other processes matter less. "above bound" is the excess of the total KL of
``optimal`` over a lower bound (Lagrangian relaxation). The true optimum lies between, so this is
the largest possible gain.
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
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import plan_size
from psvit_core.planners import PLANNERS, Problem, group_kls
from psvit_core.records import (
    ChannelGroup,
    Conditions,
    Interval,
    ModelSummary,
    SensitivityRow,
    SensitivityTable,
    Target,
    n_pruned,
)
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODEL = "meta_spikeformer_15m"
RATIOS = tuple(round(0.1 * i, 1) for i in range(1, 10))
SAVINGS = (0.2668, 0.55)
N_GROUPS = 120
SEED = 0
CONDITIONS = Conditions(
    data="made",
    split="val",
    n_images=100,
    T=4,
    batch=10,
    precision="float32",
    device="cpu",
    transform="none",
)


def main() -> None:
    """Plan with every policy for both tables and all savings."""
    chosen = options(__doc__ or "")
    torch.set_num_threads(1)
    small = zoo_summary(MODEL)
    summaries = [small] if chosen.quick else [small, widened(small, N_GROUPS)]
    rows = [
        row(synthetic_table(summary), policy, saving)
        for summary in summaries
        for saving in SAVINGS
        for policy in PLANNERS
    ]
    settings = {"ratios": len(RATIOS), "seed": SEED, "threads": 1, "model": MODEL}
    report("planners", rows, settings, chosen)


def row(table: SensitivityTable, policy: str, saving: float) -> dict[str, Any]:
    """Time one policy at one saving."""
    problem = Problem(table=table, target=Target(saving=saving))
    start = time.process_time()
    plan = PLANNERS[policy](problem)
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
    """Return the summary of a registered model with units ranked by index."""
    card = model_card(name)
    model = build_model(card.family, **card.arguments)
    ranking = {g.group_id: tuple(range(g.n_units)) for g in model.channel_groups()}
    return summarize(model, {"l2": ranking})


def widened(summary: ModelSummary, n_groups: int) -> ModelSummary:
    """Return the model with its last groups and their tensors repeated, up to ``n_groups``.

    A repeated group reads and writes the same residual stream as the original.
    """
    inner = [g for g in summary.groups if not g.is_stream]
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


def synthetic_table(summary: ModelSummary) -> SensitivityTable:
    """Return seeded sensitivities: KLs are powers of the ratio, with scales from 0.001 to 1."""
    random = np.random.default_rng(SEED)
    rows = []
    for group in summary.groups:
        scale = 10 ** random.uniform(-3, 0) * (3 if group.is_stream else 1)
        power = random.uniform(1.5, 4)
        for ratio in RATIOS:
            kl = scale * ratio**power * random.uniform(0.8, 1.2)
            rows.append(synthetic_row(summary, group, ratio, kl))
    return SensitivityTable(
        summary=summary,
        criterion="l2",
        conditions=CONDITIONS,
        ratios=RATIOS,
        baseline_accuracy=exactly(0.9),
        rows=tuple(rows),
    )


def synthetic_row(
    summary: ModelSummary, group: ChannelGroup, prune_ratio: float, kl: float, sops: float = 0.0
) -> SensitivityRow:
    """Return the row of a cell with this KL and a drop in proportion to it."""
    return SensitivityRow(
        group_id=group.group_id,
        prune_ratio=prune_ratio,
        n_pruned=n_pruned(prune_ratio, group.n_units, group.heads),
        accuracy=exactly(0.9),
        drop=exactly(30 * kl),
        kl=kl,
        agreement=0.9,
        size=plan_size(summary, None),
        sops=sops,
        n_images=100,
    )


def exactly(value: float) -> Interval:
    """Return an interval of zero width."""
    return Interval(value=value, low=value, high=value)


if __name__ == "__main__":
    main()
