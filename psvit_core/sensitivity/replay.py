"""Running the cells of a sweep on one batch of images: the full model once, then only what changes.

The full model runs once, step by step. As soon as the values that a group's cells start from are
there, all cells of that group run (``spread``), each only for the images in which a removed unit
was active at all, on tensors that lack the removed channels; then values that nothing reads any
more are freed. So nothing is kept beyond its use and no model is copied.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from psvit_core import fused
from psvit_core.metrics.spikes import count_spikes
from psvit_core.outcomes import Array
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.sensitivity.lifetimes import (
    WORKSPACE,
    LocalPlan,
    Plans,
    bytes_per_image_of,
    constant_steps,
    steps_towards,
)
from psvit_core.sensitivity.program import Programs, agrees, unsupported
from psvit_core.sensitivity.spread import Network, Spread
from psvit_core.sensitivity.writer import Entry, UnsupportedError
from psvit_core.surgery import Silenced, silencing_edits
from psvit_core.tape import Made, run_step
from psvit_core.zoo.base import SpikingModel

_CACHE = 1 << 19  # bytes of values that stay near the processor
_MOST_PER_RUN = 16  # images
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What one cell gave for some images of a batch.

    Attributes:
        images: Positions in the batch where something may have changed.
        logits: Of those images, (len(images), num_classes).
        reached: Spike counts of readers behind the change, of those images, (len(images),) each.
        counted: Positions in the batch that were asked for.
        recounted: Spike counts of readers that only lose channels, (len(counted),) each.
    """

    images: Array
    logits: Array
    reached: Mapping[str, Array]
    counted: Array
    recounted: Mapping[str, Array]


@dataclass(frozen=True)
class Task:
    """One cell to be run on a batch.

    Attributes:
        kept: Units that stay, sorted.
        images: Positions in the batch that are asked for.
        done: Is given the answer.
    """

    kept: tuple[int, ...]
    images: Array
    done: Callable[[Answer], None]


Claim = Callable[[], Sequence[Task]]  # gives the cells of a group that are to be run now


class Cells(Protocol):
    """What runs the cells of a model on a batch."""

    def whole(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Logits of the full model, and the spikes that reach each reader, (batch,) each."""

    def run(self, x: Tensor, groups: Mapping[str, Claim], tick: Callable[[], None]) -> None:
        """Run cells, by group; ``tick`` is called before each and may raise to stop."""

    def cost(self, group: str, prune_ratio: float) -> float:
        """What a cell costs, in a unit of its own."""


@dataclass(frozen=True)
class Silencing:
    """Cells as the silenced full model: for models whose forward pass cannot be written down."""

    model: SpikingModel
    plan_of: Callable[[str, tuple[int, ...]], PrunePlan]

    def whole(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Logits and spike counts of the full model for a batch."""
        return self._run(self.model, x)

    def run(self, x: Tensor, groups: Mapping[str, Claim], tick: Callable[[], None]) -> None:
        """Run every cell in full."""
        for group, claim in groups.items():
            for task in claim():
                tick()
                edits = silencing_edits(self.model, self.plan_of(group, task.kept))
                logits, reached = self._run(Silenced(self.model, edits).eval(), x)
                rows = {name: count[task.images] for name, count in reached.items()}
                task.done(Answer(task.images, logits[task.images], rows, task.images, {}))

    def cost(self, group: str, prune_ratio: float) -> float:
        """All cells cost the same."""
        return 1.0

    def _run(self, subject: torch.nn.Module, x: Tensor) -> tuple[Array, dict[str, Array]]:
        with count_spikes(self.model, neurons=False) as count:
            logits = subject(x)
        reached = {name: parts[0].cpu().numpy() for name, parts in count.reached.items()}
        return logits.cpu().numpy(), reached


@dataclass(frozen=True)
class _Cell:
    """What the steps of a cell start from."""

    found: Spread
    units: Tensor  # that stay, int64
    weights: Mapping[Any, Any]
    values: Mapping[int, Tensor]  # of the full model, for the batch
    batch: int


@dataclass
class Replay:
    """The cells of a model, each from where it differs from the full model.

    Args:
        network: The model's forward pass.
        spreads: By group.
        weights: The model's parameters and buffers, on the device, in the run's precision.
        finish_early: Whether images are independent, so that those in which no removed unit was
            active need no run.
    """

    network: Network
    spreads: Mapping[str, Spread]
    weights: Mapping[str, Tensor]
    finish_early: bool
    is_native: bool = field(init=False)  # whether steps of cells run as programs (``program``)
    seconds: list[float] = field(init=False)  # of every step of the full model, last whole run

    def __post_init__(self) -> None:
        tape = self.network.tape
        self._device = next(iter(self.weights.values())).device
        self._made = {made for step in tape.steps for made in step.made()}
        self._made_of: dict[str, list[Made]] = {}
        for made in self._made:
            for name in made.names():
                self._made_of.setdefault(name, []).append(made)
        self._weights: dict[Any, Any] = {
            **self.weights,
            **{made: made.of(self.weights) for made in self._made},
        }
        self.seconds = [0.0] * len(tape.steps)
        self._constant = constant_steps(tape)
        self._constants: dict[int, Tensor] = {}
        for position in sorted(self._constant):
            run_step(tape.steps[position], self._constants, self._weights, 1, self._device)
        self._made_at = {i: p for p, step in enumerate(tape.steps) for i in step.outs()}
        self._plans = {g: Plans.of(self.network, s) for g, s in self.spreads.items()}
        weight = next(iter(self.weights.values()))
        wanted = {self.network.logits, *self.network.readers.values()}
        self._programs = Programs(tape, wanted, weight.dtype)
        size = [bytes_per_image_of(shape) for shape in tape.shapes]
        self._peaks = {
            id(part): part.peak(size) for p in self._plans.values() for part in (p.counts, p.steps)
        }
        varying = (step for p, step in enumerate(tape.steps) if p not in self._constant)
        self.is_native = self.finish_early and fused.runs_natively(weight)
        if self.is_native and (call := unsupported(varying)):
            log.info("torch runs the steps of cells: there is no native %s", call)
            self.is_native = False
        self.is_native = self.is_native and agrees(weight.dtype)

    def whole(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Logits and spike counts of the full model for a batch."""
        tape = self.network.tape
        values = {0: x, **self._constants}
        last = {i: p for p, step in enumerate(tape.steps) for i in step.inputs()}
        keep = {self.network.logits, *self.network.readers.values()}
        for position, step in enumerate(tape.steps):
            if position not in self._constant:
                begin = time.perf_counter()
                run_step(step, values, self._weights, len(x), self._device)
                self.seconds[position] = time.perf_counter() - begin
                for i in {*step.inputs(), *step.outs()} - keep:
                    if last.get(i, position) == position:
                        values.pop(i, None)
        reached = {name: values[i].cpu().numpy() for name, i in self.network.readers.items()}
        return values[self.network.logits].cpu().numpy(), reached

    def run(self, x: Tensor, groups: Mapping[str, Claim], tick: Callable[[], None]) -> None:
        """Run cells on a batch.

        Args:
            x: Images.
            groups: Each is asked for its cells when the values that they start from are there.
            tick: Called before each cell; may raise to stop.
        """
        tape = self.network.tape
        ready: dict[int, list[str]] = {}
        last: dict[int, int] = {}
        for group in groups:
            needs = self.spreads[group].needs - self._constants.keys()
            at = max((self._made_at.get(i, -1) for i in needs), default=-1)
            ready.setdefault(at, []).append(group)
            for i in needs:
                last[i] = max(last.get(i, -1), at)
        needed = steps_towards(tape, set(last)) - self._constant
        for position in needed:
            for i in tape.steps[position].inputs():
                last[i] = max(last.get(i, -1), position)
        values = {0: x, **self._constants}
        for position in [-1, *sorted(needed)]:
            if position >= 0:
                step = tape.steps[position]
                run_step(step, values, self._weights, len(x), self._device)
            for group in ready.get(position, ()):
                self._run_group(group, groups[group](), values, len(x), tick)
            for i in [
                i for i in values if last.get(i, -2) <= position and i not in self._constants
            ]:
                del values[i]

    def _run_group(
        self,
        group: str,
        tasks: Sequence[Task],
        values: Mapping[int, Tensor],
        batch: int,
        tick: Callable[[], None],
    ) -> None:
        found = self.spreads[group]
        active = self._active(found, values, batch) if self.finish_early and tasks else None
        for task in tasks:
            tick()
            images = task.images
            if active is not None:
                removed = np.setdiff1d(np.arange(found.group.n_units), task.kept)
                images = images[active[images][:, removed].any(axis=1)]
            task.done(self._run_cell(found, task, images, values, batch))

    def _active(self, found: Spread, values: Mapping[int, Tensor], batch: int) -> Array:
        """Whether each unit was active in each image, (batch, n_units)."""
        total = torch.zeros(batch, found.group.n_units, device=self._device)
        for i, axis in found.starts(self.network).items():
            value = values[i].abs()
            at, rows = self._images_at(i)
            others = [a for a in range(value.dim()) if a not in (at, axis)]
            per_row = value.sum(dim=others) if others else value
            if at > axis:
                per_row = per_row.T
            total += per_row.view(rows, batch, -1).sum(0)
        return (total > 0).cpu().numpy()

    def _images_at(self, value: int) -> tuple[int, int]:
        found = self.network.tape.batch_axis(value)
        assert found is not None
        return found

    def _run_cell(
        self,
        found: Spread,
        task: Task,
        images: Array,
        values: Mapping[int, Tensor],
        batch: int,
    ) -> Answer:
        units = torch.tensor(task.kept, device=self._device)
        weights = self._sliced_weights(found.group, units)
        cell = _Cell(found, units, weights, values, batch)
        plans = self._plans[found.group.group_id]
        recounted = self._readers_in(self._run_part(cell, found.counts, plans.counts, task.images))
        logits, reached = np.empty((0, 0)), {}
        if len(images):
            local = self._run_part(cell, found.steps, plans.steps, images)
            logits = local[self.network.logits].cpu().numpy()
            reached = self._readers_in(local)
        return Answer(images, logits, reached, task.images, recounted)

    def _run_part(
        self, cell: _Cell, steps: Sequence[int], plan: LocalPlan, images: Array
    ) -> dict[int, Tensor]:
        """Some steps of a cell; logits and spike counts are among what it returns."""
        if self.is_native:
            try:
                return self._run_natively(cell, steps, plan, images)
            except UnsupportedError as reason:
                log.info("torch runs the steps of cells: there is no native %s", reason)
                self.is_native = False
        return self._run_steps(cell, steps, plan, images)

    def _run_natively(
        self, cell: _Cell, steps: Sequence[int], plan: LocalPlan, images: Array
    ) -> dict[int, Tensor]:
        entries = {}
        for i in {i for position in steps for i in self.network.tape.steps[position].inputs()}:
            if i in cell.values:
                at = self.network.tape.batch_axis(i)
                axis = cell.found.sliced.get(i)
                channels = (axis, cell.units) if axis is not None else None
                entries[i] = Entry(cell.values[i], at[0] if at else None, cell.batch, channels)
        per_run = min(_MOST_PER_RUN, _CACHE // max(self._peaks[id(plan)], 1), len(images))
        return self._programs.run(
            steps, entries, plan.leaves, cell.weights, torch.from_numpy(images), max(per_run, 1)
        )

    def _run_steps(
        self, cell: _Cell, steps: Sequence[int], plan: LocalPlan, images: Array
    ) -> dict[int, Tensor]:
        local: dict[int, Tensor] = dict(self._constants)
        chosen = None if len(images) == cell.batch else torch.from_numpy(images).to(self._device)
        for position in steps:
            for i in plan.enters.get(position, ()):
                local[i] = self._start(cell, i, chosen)
            step = self.network.tape.steps[position]
            run_step(step, local, cell.weights, len(images), self._device)
            for i in plan.leaves.get(position, ()):
                del local[i]
        return local

    def _sliced_weights(self, group: ChannelGroup, units: Tensor) -> dict[Any, Any]:
        """All weights, the group's with only these units."""
        sliced: dict[str, Tensor] = {}
        for name, axis in (*group.writers, *group.readers):
            if name in self.weights:
                tensor = sliced.get(name, self.weights[name])
                sliced[name] = tensor.index_select(axis, units)
        weights = {**self._weights, **sliced}
        for made in {made for name in sliced for made in self._made_of.get(name, ())}:
            weights[made] = made.of(weights)
        return weights

    def _start(self, cell: _Cell, i: int, chosen: Tensor | None) -> Tensor:
        """A value of the full model for the chosen images, without the removed channels."""
        value = cell.values[i]
        if chosen is not None and (at := self.network.tape.batch_axis(i)) is not None:
            value = _rows_of(value, *at, chosen, cell.batch)
        if i in cell.found.sliced:
            value = _select(value, cell.found.sliced[i], cell.units)
        return value

    def _readers_in(self, local: Mapping[int, Tensor]) -> dict[str, Array]:
        readers = self.network.readers.items()
        return {name: local[i].cpu().numpy() for name, i in readers if i in local}

    # ---- what it costs -----------------------------------------------------------------------

    def cost(self, group: str, prune_ratio: float) -> float:
        """Seconds that a cell takes for the batch of the last ``whole``: an estimate.

        Each step takes as long as in the full model, less what its lost channels take.
        """
        stays = 1 - prune_ratio
        found = self.spreads[group]
        return sum(
            self.seconds[position] * stays ** max(axes, int(loses))
            for position, (axes, loses) in found.shares.items()
        )

    def bytes_per_image(self) -> int:
        """Largest memory of values that are alive at one time, per image of a batch."""
        tape = self.network.tape
        size = [bytes_per_image_of(shape) for shape in tape.shapes]
        root = list(range(tape.n_values))
        for step in tape.steps:
            if self.network.is_view(step) and step.inputs():
                root[step.out], size[step.out] = root[step.inputs()[0]], 0
        last: dict[int, int] = {}
        local: dict[int, int] = {}
        for group, found in self.spreads.items():
            at = max(
                (self._made_at.get(i, -1) for i in found.needs - self._constants.keys()), default=-1
            )
            for i in found.needs:
                last[root[i]] = max(last.get(root[i], -1), at)
            if not self.is_native:  # which runs a few images at a time
                local[at] = max(local.get(at, 0), self._plans[group].peak(size))
        for position, step in enumerate(tape.steps):
            for i in step.inputs():
                last[root[i]] = max(last.get(root[i], -1), position)
        alive, most, held = {0: size[0]}, 0, size[0]
        for position, step in enumerate(tape.steps):
            touched = sum(size[i] for i in {*step.inputs(), *step.outs()})
            for i in step.outs():
                alive[i] = size[i]
                held += size[i]
            most = max(most, held + int(touched * WORKSPACE) + local.get(position, 0))
            for i in [i for i in alive if last.get(i, position) <= position]:
                held -= alive.pop(i)
        return most


def _rows_of(value: Tensor, axis: int, rows: int, chosen: Tensor, batch: int) -> Tensor:
    """The chosen images of a value; where an axis holds steps x images, time comes first."""
    if rows > 1:
        steps = torch.arange(rows, device=chosen.device) * batch
        chosen = (steps[:, None] + chosen[None]).flatten()
    return _select(value, axis, chosen)


def _select(value: Tensor, axis: int, index: Tensor) -> Tensor:
    """``index_select`` that keeps the order of memory (channels-last stays channels-last)."""
    order = sorted(range(value.dim()), key=lambda a: -value.stride()[a])
    dense = value.permute(order).index_select(order.index(axis), index)
    return dense.permute([order.index(a) for a in range(len(order))])
