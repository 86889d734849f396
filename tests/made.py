"""Synthetic sensitivity tables and measurements, shared by several tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.planners import CONDITIONS as CONDITIONS
from benchmarks.planners import exactly as exactly
from psvit_core.jobs.client import Job
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import plan_size
from psvit_core.planners import group_drop
from psvit_core.records import (
    ChannelGroup,
    ComputeTerm,
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityRow,
    SensitivityTable,
    ShapeTable,
    Subject,
    SweepSettings,
    TensorShape,
)

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
N = 20


def hand_made(slopes: dict[str, float]) -> SensitivityTable:
    """Return a table of groups of 20 units whose sizes add up; drops are ``100 slope ratio^2``."""
    groups = tuple(
        ChannelGroup(
            group_id=name,
            kind="residual" if name == "stream" else "mlp",
            n_units=N,
            heads=None,
            writers=((f"{name}.weight", 0),),
            readers=(),
            block=name,
            title="hidden",
        )
        for name in slopes
    )
    tensors = tuple(
        TensorShape(name=f"{name}.weight", role="weight", sizes=(N, 50), groups=(name, None))
        for name in slopes
    )
    summary = ModelSummary(
        model="made",
        family="made",
        weights_hash="0",
        T=4,
        input_shape=(1, 8, 8),
        num_classes=10,
        real_fed={},
        batch_coupled=False,
        groups=groups,
        shapes=ShapeTable(
            tensors=tensors,
            terms=tuple(ComputeTerm(layer=n, factor=50.0, groups=(n,)) for n in slopes),
        ),
        rankings={"l2": {name: tuple(range(N)) for name in slopes}},
    )
    rows = tuple(
        SensitivityRow(
            group_id=name,
            prune_ratio=r,
            n_pruned=round(r * N),
            accuracy=exactly(0.9),
            drop=exactly(100 * slope * r * r),
            kl=slope * r * r,
            agreement=0.9,
            size=plan_size(summary, None),
            sops=0.0,
            n_images=100,
        )
        for name, slope in slopes.items()
        for r in RATIOS
    )
    return SensitivityTable(
        summary=summary,
        criterion="l2",
        conditions=CONDITIONS,
        ratios=RATIOS,
        baseline_accuracy=exactly(0.98),
        rows=rows,
    )


TABLE = hand_made({"robust": 0.001, "middle": 0.05, "fragile": 0.5, "stream": 1.0})


def measured_as(
    table: SensitivityTable, interaction: float = 1.0, log: list[PrunePlan] | None = None
) -> Callable[[PrunePlan], Measurement]:
    """Return a ``measure`` whose drops are the table's times an interaction factor."""

    def measure(plan: PrunePlan) -> Measurement:
        if log is not None:
            log.append(plan)
        ratios = reached_ratios(table.summary, plan)
        drop = interaction * sum(
            group_drop(table, g, ratios[g.group_id]) for g in table.summary.groups
        )
        return Measurement(
            model="made",
            weights_hash="0",
            conditions=CONDITIONS,
            accuracy=exactly(0.9),
            size=plan_size(table.summary, plan),
            sops=0,
            macs_real=0,
            energy_pj=0,
            firing={},
            drop=exactly(drop),
            kl=drop / 100,
            plan=plan,
        )

    return measure


def make_job(**fields: Any) -> Job:
    """Return a sweep's job with these fields."""
    task = fields.get("task", "sweep")
    # Without a readable request it would be a job of another version, which is listed apart.
    asked = {"settings": SweepSettings().to_dict()} if task == "sweep" else {}
    params = {"subject": Subject().to_dict(), **asked}
    return Job(**{"id": "a", "task": task, "title": "", "params": params, **fields})
