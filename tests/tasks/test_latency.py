"""Latency tables on a counted clock: what a layer takes follows from its shapes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from psvit_core.errors import CancelledError, DataError, InvalidPlanError
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.metrics import layer_times
from psvit_core.metrics.layer_times import LEVELS, groups_of_layers, mixed_levels
from psvit_core.metrics.profile import latencies_in_turns
from psvit_core.neurons import LIF
from psvit_core.plan.build import plan_from_ratios
from psvit_core.plan.latency import REST, PredictedLatency
from psvit_core.records import (
    LatencyTable,
    ModelSummary,
    PlanSettings,
    PrunePlan,
    Subject,
    SweepSettings,
)
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks import latency as tasks
from psvit_core.tasks import plan as planning
from psvit_core.tasks.latency import find_latency, measure_latency
from psvit_core.tasks.plan import run_plan
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.base import SpikingModel
from tests.pareto.test_pareto import tiny_engine
from tests.tiny import tiny_model


class Clock:
    """A clock that only computation moves: other load slows everything by ``load``."""

    def __init__(self) -> None:
        self.now, self.load = 0.0, 1.0

    def run(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Take 2 ms for each million products of a layer with weights, 1 ns for each spike."""
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            per_output = module.weight[0].numel()
            self.now += self.load * (1e-6 + 2e-9 * per_output * output.numel())
        elif isinstance(module, LIF):
            self.now += self.load * 1e-9 * output.numel()
        elif isinstance(module, SpikingModel):
            self.now += self.load * 5e-6  # between layers, whatever the widths are


@contextmanager
def counted(runs: int = 1) -> Iterator[Clock]:
    """Count the time in the block, in which each network is timed so often."""
    found = Clock()
    hook = register_module_forward_hook(found.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: found.now)
        patch.setattr(tasks, "MIN_RUNS", runs)
        patch.setattr(tasks, "MAX_RUNS", runs)
        yield found
    hook.remove()


def session_of(model: SpikingModel, folder: Path) -> Session:
    return Session(Subject(model="sdt_v1_digits"), Store(folder), _model=model.eval())


def summary_of(model: SpikingModel) -> ModelSummary:
    return summarize(model, {"l2": rank(model, "l2")})


def taken(clock: Clock, model: nn.Module, x: Tensor) -> float:
    """Return the milliseconds of a forward pass on the clock."""
    start, load, clock.load = clock.now, clock.load, 1.0
    with torch.no_grad():
        model(x)
    clock.load = load
    return 1000 * (clock.now - start)


def uneven(summary: ModelSummary) -> PrunePlan:
    ratios = {g.group_id: (0.15 + 0.13 * i) % 0.9 for i, g in enumerate(summary.groups)}
    # Layers that read and write a stream are squares of its width: exact on the grid alone.
    ratios |= {g.group_id: 0.5 for g in summary.groups if g.is_stream}
    return plan_from_ratios(summary, ratios, criterion="l2")


@pytest.mark.slow
def test_load_that_comes_and_goes_changes_nothing(tmp_path: Path) -> None:
    """The times are products of two widths, which the grid interpolates exactly."""
    model = tiny_model("sdt_v1").eval()
    turns, n_groups = iter(range(1_000_000)), len(summary_of(model).groups)
    with counted(runs=3) as clock:

        def other_load() -> None:  # in one of the four runs of each network, and while half run
            turn = next(turns) - n_groups
            clock.load = (3.0 if turn % 4 == 1 else 1.0) * (2.0 if turn > 36 else 1.0)

        table = measure_latency(session_of(model, tmp_path), tick=other_load)
        x = torch.zeros(1, *model.input_shape)
        whole = taken(clock, model, x)
        plan = uneven(summary_of(model))
        truth = taken(clock, apply_plan(model, plan), x)
    predicted = PredictedLatency(table)
    layers = predicted.layers(None)
    assert table.total_ms in (pytest.approx(whole), pytest.approx(2 * whole))
    assert sum(layers.values()) == pytest.approx(table.total_ms)
    assert layers[REST] == table.rest_ms == pytest.approx(0.005 * table.total_ms / whole)
    assert truth < 0.7 * whole
    assert predicted(plan) / table.total_ms == pytest.approx(truth / whole, rel=1e-6)
    assert 1 - predicted.saving(plan) == pytest.approx(truth / whole, rel=1e-6)


def test_a_table_that_was_interrupted_predicts_and_is_measured_once(tmp_path: Path) -> None:
    model = tiny_model("sdt_v1").eval()
    session = session_of(model, tmp_path)
    n_groups = len(summary_of(session.model).groups)  # runs without weights, one for each
    n_runs, done = 0, []

    def stop_after(runs: int) -> Callable[[], None]:
        def tick() -> None:
            nonlocal n_runs
            n_runs += 1
            if n_runs > runs:
                raise CancelledError("enough")

        return tick

    with counted() as clock:
        assert find_latency(session) is None
        with pytest.raises(CancelledError):
            measure_latency(
                session, progress=lambda *x: done.append(x), tick=stop_after(n_groups + 21)
            )
        assert [x[:2] for x in done] == [(i + 1, LEVELS**2) for i in range(10)]  # 2 runs each
        n_runs = 0
        table = measure_latency(session, tick=stop_after(n_groups + 30))  # of the other 15
        assert n_runs == n_groups + 30
        plan, x = uneven(summary_of(model)), torch.zeros(1, *model.input_shape)
        truth = taken(clock, apply_plan(model, plan), x)
        assert table.total_ms == pytest.approx(taken(clock, model, x))
    predicted = PredictedLatency(table)
    assert sum(predicted.layers(None).values()) == pytest.approx(table.total_ms)
    assert predicted.layers(None)[REST] == pytest.approx(0.005)
    assert predicted(plan) == pytest.approx(truth, rel=1e-6)
    assert truth < 0.7 * table.total_ms
    assert find_latency(session) == measure_latency(session, tick=stop_after(0)) == table
    assert table == LatencyTable.from_dict(table.to_dict())
    assert not list(session.store.keys("latency-part/"))
    assert find_latency(session, batch=2) is None
    with pytest.raises(DataError, match="at least 1"):
        find_latency(session, batch=0)
    torch.set_num_threads((before := torch.get_num_threads()) + 1)
    try:
        assert find_latency(session) is None  # as on another machine
    finally:
        torch.set_num_threads(before)


def test_layers_depend_on_the_groups_of_their_weights() -> None:
    """Compare with the shape table, which the families declare."""
    model = tiny_model("sdt_v1").eval()
    summary = summary_of(model)
    found = groups_of_layers(
        model,
        {g.group_id: g.n_units // 2 for g in summary.groups if not g.heads}
        | {g.group_id: g.n_units - g.heads for g in summary.groups if g.heads},
    )
    assert layer_times._NOTHING[0] not in {type(m) for n, m in model.named_modules() if n in found}
    declared: dict[str, set[str]] = {}
    for tensor in summary.shapes.tensors:
        name = tensor.name.rpartition(".")[0]
        if name in found and tensor.role == "weight":
            declared.setdefault(name, set()).update(g for g in tensor.groups if g in summary.by_id)
    assert len(declared) > 8
    for name, groups in declared.items():
        assert groups <= set(found[name]), name
        assert len(found[name]) <= 2, name


def test_two_groups_of_a_layer_meet_at_all_levels() -> None:
    groups = [f"g{i}" for i in range(12)]
    layers = [(groups[i], groups[i + 1]) for i in range(11)] + [(groups[0], groups[5], groups[9])]
    found = mixed_levels(groups, layers)
    assert len(found) == LEVELS**2
    assert set(found[0].values()) == {0}
    for layer in layers:
        for a in layer:
            for b in layer:
                if a != b:
                    assert len({(levels[a], levels[b]) for levels in found}) == LEVELS**2


@pytest.mark.slow
def test_a_latency_target_needs_no_joint_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_engine(Store(tmp_path))
    sweep = run_sweep(session, SweepSettings(ratios=(0.3, 0.6), criterion="l2"))
    settings = PlanSettings(policy="uniform", saving=0.2, resource="latency", budget_evaluations=2)
    with counted():
        table = measure_latency(session)

    def joint(*_: object, **__: object) -> None:
        raise AssertionError("a plan was timed")

    monkeypatch.setattr(planning, "latency_timer", joint)
    x = torch.zeros(1, *session.model.input_shape)
    for some in (session, None):
        plan, _ = run_plan(some, sweep, settings, latency=None if some else table)
        assert "latency predicted" in plan.note
        with counted() as clock:
            small = taken(clock, apply_plan(session.model, plan), x)
            assert small <= 0.8 * taken(clock, session.model, x) * (1 + 1e-6)
    other = dataclasses.replace(table, weights_hash="other")
    with pytest.raises(InvalidPlanError, match="Time the swept model"):
        run_plan(None, sweep, settings, latency=other)


def test_runs_can_be_counted() -> None:
    model = tiny_model("sdt_v1").eval()
    ticks: list[int] = []
    x = torch.zeros(1, *model.input_shape)
    with counted() as clock:
        [found] = latencies_in_turns([model], x, runs=3, tick=lambda: ticks.append(1))
        assert found == pytest.approx(taken(clock, model, x))
    assert len(ticks) == 3 + 2  # two are not timed
