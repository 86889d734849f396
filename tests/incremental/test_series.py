"""Programs that follow each other: the bits of programs that are written from nothing."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from psvit_core.incremental.arena import ChangedError, FixedArena
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.incremental.program import ProgramRunner
from psvit_core.incremental.series import ProgramSeries
from psvit_core.kernels import native
from psvit_core.runtime import Run
from psvit_core.sensitivity.prepare import prepare
from psvit_core.sensitivity.sweep import make_spec
from tests.tiny import tiny_data, tiny_model

pytestmark = pytest.mark.skipif(
    not native.available(torch.empty(0)), reason="no C compiler on this machine"
)
N_IMAGES = 5


def executor_of(name: str) -> tuple[IncrementalExecutor, Tensor, dict[str, list[tuple[int, ...]]]]:
    """A tiny model's executor, images, and the units that the cells of each group keep."""
    model, data = tiny_model(name), tiny_data(name, N_IMAGES)
    spec = make_spec(model, data, ratios=(0.25, 0.5, 0.75), run=Run(batch=N_IMAGES))
    runner, _ = prepare(spec, model, data, Run(batch=N_IMAGES))
    assert isinstance(runner, IncrementalExecutor)
    (x,) = data.batches(N_IMAGES)
    kept: dict[str, list[tuple[int, ...]]] = {}
    for cell in spec.cells():
        if cell.plan.kept:
            kept.setdefault(cell.group.group_id, []).append(next(iter(cell.plan.kept.values())))
    return runner, x, kept


def run_tasks(
    runner: IncrementalExecutor, x: Tensor, group: str, tasks: list[tuple[tuple[int, ...], Any]]
) -> list[CellOutput]:
    """Run cells of a group: units that stay, and new weights."""
    found: dict[int, CellOutput] = {}

    def keep(output: CellOutput, number: int) -> None:
        found[number] = output

    made = [
        Task(kept, np.arange(N_IMAGES), functools.partial(keep, number=i), edits)
        for i, (kept, edits) in enumerate(tasks)
    ]
    with torch.no_grad():
        runner.run_cells(x, {group: lambda: made}, lambda: None)
    return [found[i] for i in range(len(tasks))]


def assert_same(a: CellOutput, b: CellOutput) -> None:
    assert np.array_equal(a.images, b.images)
    assert np.array_equal(a.logits, b.logits)
    for ours, theirs in ((a.reached, b.reached), (a.recounted, b.recounted)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v3", "spikingresformer_cifar"])
def test_a_cell_after_others_has_the_bits_of_a_cell_alone(name: str) -> None:
    runner, x, kept = executor_of(name)
    assert runner.is_native
    for group, units in list(kept.items())[::3]:
        readers = {n for n, _ in runner.propagations[group].group.readers}
        edits = {n: 1.5 * runner.weights[n] for n in readers}  # as in a recovered cell
        tasks = [(u, e) for u in units for e in ({}, edits)]
        together = run_tasks(runner, x, group, tasks)
        for task, output in zip(tasks, together, strict=True):
            (alone,) = run_tasks(runner, x, group, [task])
            assert_same(output, alone)


def test_only_nodes_with_other_operands_are_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, x, kept = executor_of("sdt_v1")
    group, units = next((g, u) for g, u in kept.items() if "mlp" in g)
    written: list[int] = []
    write = ProgramRunner.write

    def counted(self: ProgramRunner, builder: Any, node: Any) -> None:
        written.append(node.out)
        write(self, builder, node)

    monkeypatch.setattr(ProgramRunner, "write", counted)
    run_tasks(runner, x, group, [(units[0], {})])
    alone = len(written)
    written.clear()
    run_tasks(runner, x, group, [(u, {}) for u in units])
    assert alone < len(written) < alone * (1 + len(units)) / 2


def test_a_wider_cell_is_written_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, x, kept = executor_of("sdt_v1")
    group, units = next((g, u) for g, u in kept.items() if "mlp" in g)
    runs: dict[ProgramSeries, list[tuple[tuple[Any, ...], dict[int, Tensor]]]] = {}
    run, write_all = ProgramSeries.run, ProgramSeries._write_all

    def watched(self: ProgramSeries, *args: Any) -> dict[int, Tensor]:
        runs.setdefault(self, []).append((args, run(self, *args)))
        return runs[self][-1][1]

    monkeypatch.setattr(ProgramSeries, "run", watched)
    run_tasks(runner, x, group, [(u, {}) for u in units])  # the widest cell first
    monkeypatch.setattr(ProgramSeries, "run", run)
    whole: list[ProgramSeries] = []

    def counted(self: ProgramSeries, *args: Any) -> Any:
        whole.append(self)
        return write_all(self, *args)

    monkeypatch.setattr(ProgramSeries, "_write_all", counted)
    for before, of_widths in runs.items():
        arguments = before._programs, before._positions, before._leaves
        again = ProgramSeries(*arguments, before._per_run, before._n_images)
        for args, expected in reversed(of_widths):
            found = again.run(*args)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[i], expected[i]) for i in found)
    assert len(whole) == sum(map(len, runs.values()))


def test_an_arena_repeats_its_allocations() -> None:
    arena = FixedArena([(0, 32), (64, 16)])
    assert [arena.allocate(20), arena.allocate(16)] == [0, 64]
    arena.check_complete()
    with pytest.raises(ChangedError, match="no such"):
        arena.allocate(1)
    with pytest.raises(ChangedError, match="33 elements instead of 32"):
        FixedArena([(0, 32)]).allocate(33)
    with pytest.raises(ChangedError, match="missing"):
        FixedArena([(0, 32)]).check_complete()
