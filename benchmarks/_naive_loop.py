"""The naive sensitivity loop that the sweep is compared with.

For each group and ratio: copy the model, prune it (real surgery), evaluate all images with
SpikingJelly's own neurons, under inference_mode, at its fastest batch size.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from psvit_core.data import EvalSet
from psvit_core.neurons import eager_neurons
from psvit_core.sensitivity.spec import Cell, SweepSpec
from psvit_core.storage.predictions import Array
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel

BATCHES = (32, 125, 250)


@contextmanager
def timed(
    seconds: dict[str, float], name: str, clock: Callable[[], float] = time.process_time
) -> Iterator[None]:
    """Add the duration of the block to ``seconds[name]``; CPU seconds by default."""
    begin = clock()
    yield
    seconds[name] = seconds.get(name, 0.0) + clock() - begin


def evaluate(model: nn.Module, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits of all images with SpikingJelly's neurons."""
    with torch.inference_mode(), eager_neurons():
        return torch.cat([model(x) for x in batches])


def naive_cell(model: SpikingModel, cell: Cell, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits of one cell: copy, prune, evaluate."""
    small = apply_plan(copy.deepcopy(model), cell.plan) if cell.plan.kept else model
    return evaluate(small, batches)


def naive_loop(
    model: SpikingModel, data: EvalSet, spec: SweepSpec
) -> tuple[float, dict[str, Array], int]:
    """Run all cells of a sweep.

    Returns:
        Seconds, predictions in the order of ``data`` by cell key, and the batch size.
    """
    size = _fastest_batch(model, data)
    batches = list(data.batches(size))
    seconds: dict[str, float] = {}
    predictions = {}
    with timed(seconds, "naive"):
        evaluate(model, batches)
        for cell in spec.cells():
            predictions[cell.key] = naive_cell(model, cell, batches).argmax(1).numpy()
    return seconds["naive"], predictions, size


def _fastest_batch(model: SpikingModel, data: EvalSet) -> int:
    seconds: dict[str, float] = {}
    for size in BATCHES:
        batches = list(data.batches(size))
        evaluate(model, batches[:1])
        for _ in range(2):
            with timed(seconds, str(size)):
                evaluate(model, batches)
    return min(BATCHES, key=lambda size: seconds[str(size)])
