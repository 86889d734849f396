"""Plans from a table, measured on an engine where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.errors import InvalidPlanError
from psvit_core.pareto import Made
from psvit_core.records import (
    Measurement,
    ModelSummary,
    PrunePlan,
    SensitivityTable,
)

if TYPE_CHECKING:
    pass
from psvit_core.jobs.engine import Engine, PlanSettings, Progress, Tick
from psvit_core.jobs.tasks import evaluate

#: Conditions of a sweep that decide its numbers, and what chooses them.
_DECIDES = {
    "data": "--data", "split": "--split", "T": "--time-steps", "precision": "--precision",
    "transform": "--image-size, or other data",
}  # fmt: skip


def check_swept(table: SensitivityTable, summary: ModelSummary) -> None:
    """Raise ``InvalidPlanError`` unless a table is of these weights."""
    if table.summary.weights_hash != summary.weights_hash:
        raise InvalidPlanError(
            f"The sweep is of {table.summary.model} with other weights than {summary.model}. "
            "Sweep this model, or name the one that was swept."
        )


def check_table(table: SensitivityTable, engine: Engine) -> None:
    """Raise unless what is measured on an engine can stand beside a table.

    Weights, images and how they are run must be the same; not the batch, the device or how many
    images of the split there are.

    Raises:
        InvalidPlanError: Naming what differs.
    """
    from psvit_core.evaluate import conditions_of

    check_swept(table, engine.description)
    swept, here = table.conditions, conditions_of(engine.model, engine.data, engine.run)
    differing = [
        f"{name} {getattr(swept, name)}, here {getattr(here, name)} ({option})"
        for name, option in _DECIDES.items()
        if _settled(name, getattr(swept, name)) != _settled(name, getattr(here, name))
    ]
    if differing:
        raise InvalidPlanError(
            f"The sweep was measured with {'; '.join(differing)}: its drops are not those of what "
            "is measured here. Give what was given to the sweep, or sweep again."
        )


def _settled(name: str, value: object) -> object:
    """A condition as it is compared: a folder's or file's path may be spelt in many ways."""
    if name != "data":
        return value
    kind, _, place = str(value).partition(":")
    return kind, str(Path(place).resolve()) if place else ""


def run_plan(
    engine: Engine | None,
    table: SensitivityTable,
    settings: PlanSettings,
    progress: Progress = lambda done, total, what: None,
    tick: Tick = lambda: None,
    *,
    profile: bool = False,
) -> tuple[PrunePlan, Measurement | None]:
    """Choose a plan; with an engine, measured while planning and at the end (then profiled).

    Raises:
        InvalidPlanError: If the table does not fit the engine (``check_table``).
    """
    from psvit_core.planners import make_plan

    made = made_by(settings, table)
    measure = _measuring(engine, made, progress, tick) if engine else None
    if engine:
        check_table(table, engine)
    cost = _timing(engine, tick) if engine and settings.resource == "latency" else None
    plan = make_plan(
        table, settings.policy, memory_saving=settings.memory_saving, max_drop=settings.max_drop,
        scope=settings.scope, measure=measure, round_to=settings.round_to, saving=settings.saving,
        resource=settings.resource, locked=settings.locked, bounds=settings.bounds,
        budget=settings.budget_evaluations, cost=cost,
    )  # fmt: skip
    if engine is None:
        return plan, None
    return plan, evaluate(engine, plan, tick, profile=profile, made=made)


def made_by(settings: PlanSettings, table: SensitivityTable) -> Made:
    """How the plan of these settings comes to be, for the archive."""
    return Made(
        policy=settings.policy, criterion=table.criterion, scope=settings.scope,
        memory_saving=settings.memory_saving, max_drop=settings.max_drop, saving=settings.saving,
        resource=settings.resource, locked=settings.locked, bounds=settings.bounds,
        round_to=settings.round_to, seed=table.seed,
    )  # fmt: skip


def _measuring(
    engine: Engine, made: Made, progress: Progress, tick: Tick
) -> Callable[[PrunePlan], Measurement]:
    """What measures the plans that a planner tries; counts them as progress."""
    from psvit_core.sensitivity.sweep import refuse_test

    refuse_test(engine.data)
    measured = count(1)
    made = dataclasses.replace(made, tried=True)

    def measure(plan: PrunePlan) -> Measurement:
        result = evaluate(engine, plan, tick, made=made)
        progress(next(measured), 0, "plans measured")
        return result

    return measure


def _timing(engine: Engine, tick: Tick) -> Callable[[PrunePlan], float]:
    """What gives a plan's latency on this device, unpruned 1; equal widths are timed once."""
    from psvit_core.evaluate import place
    from psvit_core.metrics.profile import latencies_in_turns
    from psvit_core.surgery import apply_plan

    run, whole = engine.run, place(engine.model, engine.run)
    x = next(engine.data.take([0]).batches(1, run.dtype)).to(run.device)
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def latency(plan: PrunePlan) -> float:
        widths = tuple(sorted((group, len(units)) for group, units in plan.kept.items()))
        if widths not in known:
            small = place(apply_plan(engine.model, plan), run)
            with run.autocast:
                mine, unpruned = latencies_in_turns((small, whole), x, tick=tick)
            known[widths] = mine / unpruned
        return known[widths]

    return latency
