"""Steps of a tape as one native program: a few images at a time, in memory that stays in the cache.

torch walks a whole batch step by step, so every value goes through main memory, and a small step
costs more in the calling than in the doing. Here the steps become operations of
``native/program.c``, which runs all of them on a few images before it takes the next ones; a
neuron behind a convolution works on its output at once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core import fused, native
from psvit_core.native import ops
from psvit_core.sensitivity.fold import convolve, fold
from psvit_core.sensitivity.writer import (
    CALLS,
    CONVOLUTIONS,
    LINEAR,
    META,
    VIEWS,
    Entry,
    Writer,
)
from psvit_core.tape import Step, Tape, record, run_step
from psvit_core.zoo.layers import bn_and_pad

log = logging.getLogger(__name__)

_BY_NAME = {"double", "sum", "mean", "matmul", "__matmul__", "batch_norm", "max_pool2d",
            "boolean_dispatch", *VIEWS, *CALLS}  # fmt: skip
_BY_CALL = {convolve, fused.lif, fused.integer_lif, bn_and_pad, *CONVOLUTIONS, *LINEAR}


def unsupported(steps: Iterable[Step]) -> str | None:
    """The first call that has no native operation."""
    for step in steps:
        name: str = getattr(step.call, "__name__", str(step.call))
        if step.several is not None or (step.call not in _BY_CALL and name not in _BY_NAME):
            return name
    return None


@functools.cache
def agrees(dtype: torch.dtype) -> bool:
    """Once a process: compare a program with torch, bit for bit.

    A convolution with the neuron behind it, counted; with whole numbers as weights no order of
    summation rounds.
    """
    x = (torch.arange(5 * 80 * 6) % 3 == 0).to(dtype).view(5, 80, 2, 3)
    weights: dict[Any, Any] = {"w": (torch.arange(24 * 20) % 7 - 3).to(dtype).view(24, 20, 1, 1)}
    empty = weights["w"].to(META)
    tape = record(lambda images: _spikes_of(images, empty), {"w": empty}, x.shape[1:], dtype)
    tape, _ = fold(tape, frozenset())
    weights |= {made: made.of(weights) for step in tape.steps for made in step.made()}
    last = tape.result.index
    programs = Programs(tape, {last}, dtype)
    entries = {0: Entry(x, 0, len(x), None)}
    found = programs.run(range(len(tape.steps)), entries, {}, weights, torch.arange(len(x)), 2)
    if torch.equal(found[last], _spikes_of(x, weights["w"])):
        return True
    log.warning("native programs are off: their bits differ from those of torch")
    return False


def _spikes_of(images: Tensor, weight: Tensor) -> Tensor:
    """Spikes by image and channel of a layer on 4 time steps that lie behind each other."""
    steps = images.unflatten(1, (4, -1)).transpose(0, 1)
    current = F.conv2d(steps.flatten(0, 1), weight, None, (1, 1), (0, 0), (1, 1), 1)
    return fused.lif(current.unflatten(0, steps.shape[:2]), 1.0).sum((0, 3, 4))


_Layout = tuple[torch.Size, tuple[int, ...], int]  # shape, strides, distance of the first number


class Programs:
    """Runs steps of a tape as native programs.

    Args:
        tape: The forward pass.
        wanted: Values that are asked for where steps make them.
        dtype: Of all values.
    """

    def __init__(self, tape: Tape, wanted: set[int], dtype: torch.dtype) -> None:
        self.tape, self.wanted, self.dtype = tape, wanted, dtype
        self.currents = _currents_of_neurons(tape)
        self._views: dict[tuple[Any, ...], _Layout | None] = {}
        self._numbers: dict[float, Tensor] = {}

    def number(self, value: float) -> Tensor:
        """A number as an operand."""
        if value not in self._numbers:
            self._numbers[value] = torch.tensor(value, dtype=self.dtype)
        return self._numbers[value]

    def view(
        self, step: Step, given: Tensor, weights: Mapping[Any, Any], per_run: int
    ) -> _Layout | None:
        """How a view of a tensor lies in its memory; None where torch would copy it."""
        key = (step.out, per_run, given.shape, given.stride())
        if key not in self._views:
            x = torch.empty_strided(given.shape, given.stride(), dtype=self.dtype, device=META)
            values = {step.inputs()[0]: x}
            run_step(step, values, weights, per_run, META)
            made = values[step.out]
            same = made.untyped_storage()._cdata == x.untyped_storage()._cdata
            layout = (made.shape, made.stride(), int(made.storage_offset()))
            self._views[key] = layout if same else None
        return self._views[key]

    def run(
        self,
        positions: Sequence[int],
        entries: Mapping[int, Entry],
        leaves: Mapping[int, Sequence[int]],
        weights: Mapping[Any, Any],
        images: Tensor,
        per_run: int,
    ) -> dict[int, Tensor]:
        """What some steps make of some images.

        Args:
            positions: Steps to run, in order.
            entries: By index, every value that they read and do not make.
            leaves: By position, values that no later step reads.
            weights: Parameters and buffers by name, and what is ``Made`` of them.
            images: Positions of the images in the batch, int64.
            per_run: Images that run at a time.

        Returns:
            The wanted values that the steps make, (len(images),) or (len(images), n).

        Raises:
            UnsupportedError: If a step has no native operation.
        """
        writer = Writer(self, entries, weights, len(images), per_run)
        for position in positions:
            writer.add(self.tape.steps[position])
            for i in leaves.get(position, ()):
                writer.forget(i)
        table = ops.as_table(writer.rows)
        native.run_program(table, writer.room.size, writer.scratch, images, per_run, self.dtype)
        return writer.results


def _currents_of_neurons(tape: Tape) -> dict[int, int]:
    """Input of a neuron -> the convolution's output that it is, where nobody else reads that."""
    readers: dict[int, int] = {}
    made_by: dict[int, Step] = {}
    for step in tape.steps:
        made_by[step.out] = step
        for i in step.inputs():
            readers[i] = readers.get(i, 0) + 1
    found = {}
    for step in tape.steps:
        if step.call in (fused.lif, fused.integer_lif):
            (read,) = step.inputs()
            i = read
            while readers[i] == 1 and i in made_by:
                if made_by[i].call is convolve:
                    found[read] = i
                    break
                if getattr(made_by[i].call, "__name__", "") not in VIEWS:
                    break
                (i,) = made_by[i].inputs()
    return found
