"""The cells of a group as one batch: equal to cells one by one and to silenced models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core.callbacks import keep_going
from psvit_core.data import EvalSet
from psvit_core.errors import DeviceError
from psvit_core.incremental import executor as executor_module
from psvit_core.incremental import stacked
from psvit_core.incremental.cells import CellOutput, Task
from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.incremental.graph import Node, run_node
from psvit_core.kernels import lif
from psvit_core.recover.cells import CellRefits
from psvit_core.runtime import Run
from psvit_core.sensitivity import prepare
from psvit_core.sensitivity.spec import Cell, SweepSpec
from psvit_core.sensitivity.sweep import make_spec, sweep
from psvit_core.surgery import silenced
from psvit_core.zoo.base import SpikingModel
from tests.tiny import NAMES, tiny_data, tiny_model

RATIOS = (0.25, 0.75)
#: Always tested; the other vectors are slow.
QUICK = ("sdt_v1", "spikformer_cifar", "qkformer_cifar", "statten_cifar", "spikingresformer_cifar")
RUN = Run(batch=5, precision="float64")
#: Images that influence each other are never stacked.
COUPLED = {name for name in NAMES if tiny_model(name).batch_coupled}


def executor_of(
    model: SpikingModel, data: EvalSet, monkeypatch: pytest.MonkeyPatch, devices: Sequence[str]
) -> tuple[SweepSpec, IncrementalExecutor]:
    monkeypatch.setattr(prepare, "_STACKED_DEVICES", tuple(devices))
    spec = make_spec(model, data, ratios=RATIOS, run=RUN)
    with lif.plain_kernels():
        executor, _ = prepare.prepare(spec, model, data, RUN)
    assert isinstance(executor, IncrementalExecutor)
    return spec, executor


def outputs(
    executor: IncrementalExecutor,
    cells: Sequence[Cell],
    x: torch.Tensor,
    edits: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> dict[str, CellOutput]:
    """Return the outputs of cells by key; ``edits``: new weights of recovered cells, by key."""
    found: dict[str, CellOutput] = {}
    tasks: dict[str, list[Task]] = {}
    for cell in cells:
        kept = cell.plan.kept.get(cell.group.group_id)
        if kept is not None:
            on_done = partial(found.__setitem__, cell.key)
            task = Task(kept, np.arange(len(x)), on_done, (edits or {}).get(cell.key, {}))
            tasks.setdefault(cell.group.group_id, []).append(task)
    with torch.no_grad():
        executor.run_cells(x, {g: partial(list, t) for g, t in tasks.items()}, keep_going)
    return found


def assert_equal(a: CellOutput, b: CellOutput, exactly: bool = False) -> None:
    close = (
        np.testing.assert_array_equal
        if exactly
        else partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    )
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.requested, b.requested)
    close(a.logits, b.logits)
    assert a.reached.keys() == b.reached.keys()
    assert a.recounted.keys() == b.recounted.keys()
    for name in a.reached:
        close(a.reached[name], b.reached[name])
    for name in a.recounted:
        close(a.recounted[name], b.recounted[name])


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_equal_to_cells_one_by_one_and_to_silenced_models(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_model(name, torch.float64), tiny_data(name, 5)
    spec, one_by_one = executor_of(model, data, monkeypatch, ())
    _, together = executor_of(model, data, monkeypatch, ("cpu",))
    assert one_by_one.stacked is None
    assert (together.stacked is None) == (name in COUPLED)
    if together.stacked is None:
        return
    supported = [g for g in together.propagations if together.stacked.supports(g)]
    assert len(supported) == len(together.propagations)
    together.stacked.portions.size = 7  # parts of cells, and several cells, in a portion
    monkeypatch.setattr(stacked, "_MAX_SPARED", 1.0)  # every cell that can
    (x,) = data.batches(5, torch.float64)
    cells = list(spec.cells())
    alone, stack = outputs(one_by_one, cells, x), outputs(together, cells, x)
    assert alone.keys() == stack.keys()
    for key in alone:
        assert_equal(alone[key], stack[key])
    with torch.no_grad():
        base = model(x).numpy()
        for cell in cells[:: max(1, len(cells) // 12)]:
            if cell.key in stack:
                logits = base.copy()
                logits[stack[cell.key].images] = stack[cell.key].logits
                wanted = silenced(model, cell.plan)(x).numpy()
                np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["sdt_v1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sdt_v3", *QUICK[1:]))],
)
def test_recovered_cells_run_together_as_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in COUPLED:
        return
    model, data = tiny_model(name, torch.float64), tiny_data(name, 5)
    spec, one_by_one = executor_of(model, data, monkeypatch, ())
    _, together = executor_of(model, data, monkeypatch, ("cpu",))
    assert together.stacked is not None
    calib = replace(tiny_data(name, 6, seed=5), split="calib")
    refits = CellRefits(model, spec.summary.groups, calib, RUN)
    cells = [cell for cell in spec.cells() if cell.plan.kept]
    layers = refits.of({cell.key: cell.plan.kept for cell in cells})
    edits = {key: refits.tensors(found) for key, found in layers.items()}
    assert sum(map(bool, edits.values())) > len(cells) / 2
    (x,) = data.batches(5, torch.float64)
    alone = outputs(one_by_one, cells, x, edits)
    monkeypatch.setattr(stacked, "_MAX_SPARED", 1.0)  # every cell that can
    monkeypatch.setattr(one_by_one, "_run_cell", None)  # not used from here on
    monkeypatch.setattr(together, "_run_cell", None)
    for rows in (100, 7):  # all cells of a group in a portion; parts of cells, and several cells
        together.stacked.portions.size = rows
        stack = outputs(together, cells, x, edits)
        assert alone.keys() == stack.keys()
        for key in alone:
            assert_equal(alone[key], stack[key])
    plain = outputs(together, cells, x)
    n_changed = sum(
        len(plain[key].images) < len(alone[key].images)
        or abs(plain[key].logits - alone[key].logits).max() > 1e-6
        for key in alone
        if edits[key]
    )
    assert n_changed > len(cells) / 2


def test_out_of_memory_means_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 5)
    spec, executor = executor_of(model, data, monkeypatch, ("cpu",))
    assert executor.stacked is not None
    (x,) = data.batches(5, torch.float64)
    cells = list(spec.cells())
    wanted = outputs(executor, cells, x)
    rows: list[int] = []
    monkeypatch.setattr(stacked, "run_node", failing_above(4, rows))
    found = outputs(executor, cells, x)
    assert executor.stacked.portions.size <= 4
    assert max(rows) > 4  # it did fail
    for key in wanted:
        assert_equal(found[key], wanted[key])


def failing_above(most: int, rows: list[int]) -> Any:
    """Return ``run_node`` that is out of memory with more than so many images."""

    def run(
        node: Node, values: dict[int, torch.Tensor], weights: Any, batch: int, device: torch.device
    ) -> None:
        rows.append(batch)
        if batch > most:
            raise torch.OutOfMemoryError("injected")
        run_node(node, values, weights, batch, device)

    return run


@pytest.mark.parametrize("name", ["sdt_v1", "sdt_v3"])
def test_a_sweep_that_runs_out_of_memory_has_the_same_table(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_model(name, torch.float64), tiny_data(name, 6)
    run = Run(batch=6, precision="float64")
    with lif.plain_kernels():
        wanted = sweep(model, data, ratios=(0.5,), run=run)
        monkeypatch.setattr(prepare, "_STACKED_DEVICES", ("cpu",))
        rows: list[int] = []
        monkeypatch.setattr(executor_module, "run_node", failing_above(2, rows))
        monkeypatch.setattr(stacked, "run_node", failing_above(2, rows))
        found = sweep(model, data, ratios=(0.5,), run=run)
        assert max(rows) == 6
    for a, b in zip(found.rows, wanted.rows, strict=True):
        assert replace(a, kl=0.0) == replace(b, kl=0.0)
        assert a.kl == pytest.approx(b.kl, abs=1e-12)


def test_a_sweep_without_memory_for_one_image_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = tiny_model("sdt_v1"), tiny_data("sdt_v1", 3)
    monkeypatch.setattr(executor_module, "run_node", failing_above(0, []))
    with pytest.raises(DeviceError, match=r"batches of 3\. Use a smaller --batch"):
        sweep(model, data, ratios=(0.5,), run=Run(batch=3))


def test_few_images_run_together_and_large_cells_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("sdt_v1", torch.float64), tiny_data("sdt_v1", 5)
    spec, executor = executor_of(model, data, monkeypatch, ("cpu",))
    assert executor.stacked is not None
    helps = {
        (cell.group.group_id, cell.prune_ratio, n): executor.stacked.helps(
            cell.group, Task(cell.plan.kept[cell.group.group_id], np.arange(n), print), n, 5
        )
        for cell in spec.cells()
        for n in (4, 5)
        if cell.plan.kept
    }
    assert all(helps[key] for key in helps if key[2] == 4)
    assert not helps["stream", 0.75, 5]  # most of its work is on fewer channels
    assert any(helps[key] for key in helps if key[2] == 5)
