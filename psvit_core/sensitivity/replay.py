"""Running the cells of a sweep on one batch of images: the full model once, then only what changes.

The full model runs once, step by step. As soon as the values that a group's cells start from are
there, all cells of that group run (``spread``), each only for the images in which a removed unit
was active at all, on tensors that lack the removed channels; then values that nothing reads any
more are freed. So nothing is kept beyond its use and no model is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from psvit_core.metrics.spikes import count_spikes
from psvit_core.outcomes import Array
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.sensitivity.spread import Network, Spread
from psvit_core.surgery import Silenced, silencing_edits
from psvit_core.tape import Made, Sized, Tape, run_step
from psvit_core.zoo.base import SpikingModel

#: Bytes that torch needs beside a step's inputs and output, relative to these: convolutions copy
#: both into another layout (measured, benchmarks/sweep.py).
WORKSPACE = 2.0


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


class Cells(Protocol):
    """What runs the cells of a model on a batch."""

    def whole(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Logits of the full model, and the spikes that reach each reader, (batch,) each."""

    def run(self, x: Tensor, tasks: Mapping[str, Sequence[Task]], tick: Callable[[], None]) -> None:
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

    def run(self, x: Tensor, tasks: Mapping[str, Sequence[Task]], tick: Callable[[], None]) -> None:
        """Run every cell in full."""
        for group, wanted in tasks.items():
            for task in wanted:
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
        self._constant = _constant_steps(tape)
        self._constants: dict[int, Tensor] = {}
        for position in sorted(self._constant):
            run_step(tape.steps[position], self._constants, self._weights, 1, self._device)
        self._made_at = {i: p for p, step in enumerate(tape.steps) for i in step.outs()}
        self._plans = {g: _Plans.of(self.network, s) for g, s in self.spreads.items()}

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

    def run(self, x: Tensor, tasks: Mapping[str, Sequence[Task]], tick: Callable[[], None]) -> None:
        """Run cells on a batch.

        Args:
            x: Images.
            tasks: By group; several of a group share the prefix.
            tick: Called before each cell; may raise to stop.
        """
        tape = self.network.tape
        ready: dict[int, list[str]] = {}
        last: dict[int, int] = {}
        for group, wanted in tasks.items():
            if not wanted:
                continue
            needs = self.spreads[group].needs - self._constants.keys()
            at = max((self._made_at.get(i, -1) for i in needs), default=-1)
            ready.setdefault(at, []).append(group)
            for i in needs:
                last[i] = max(last.get(i, -1), at)
        needed = _steps_towards(tape, set(last)) - self._constant
        for position in needed:
            for i in tape.steps[position].inputs():
                last[i] = max(last.get(i, -1), position)
        values = {0: x, **self._constants}
        for position in [-1, *sorted(needed)]:
            if position >= 0:
                step = tape.steps[position]
                run_step(step, values, self._weights, len(x), self._device)
            for group in ready.get(position, ()):
                self._run_group(group, tasks[group], values, len(x), tick)
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
        active = self._active(found, values, batch) if self.finish_early else None
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
        local: dict[int, Tensor] = dict(self._constants)

        def run(steps: Sequence[int], plan: _LocalPlan, wanted: Array) -> None:
            chosen = None if len(wanted) == batch else torch.from_numpy(wanted).to(self._device)
            for position in steps:
                for i in plan.enters.get(position, ()):
                    local[i] = self._start(found, i, values, units, chosen, batch)
                step = self.network.tape.steps[position]
                run_step(step, local, weights, len(wanted), self._device)
                for i in plan.leaves.get(position, ()):
                    del local[i]

        plans = self._plans[found.group.group_id]
        run(found.counts, plans.counts, task.images)
        recounted = self._readers_in(local)
        logits, reached = np.empty((0, 0)), {}
        if len(images):
            run(found.steps, plans.steps, images)
            logits = local[self.network.logits].cpu().numpy()
            reached = {n: t for n, t in self._readers_in(local).items() if n not in recounted}
        return Answer(images, logits, reached, task.images, recounted)

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

    def _start(
        self,
        found: Spread,
        i: int,
        values: Mapping[int, Tensor],
        units: Tensor,
        chosen: Tensor | None,
        batch: int,
    ) -> Tensor:
        """A value of the full model for the chosen images, without the removed channels."""
        value = values[i]
        if chosen is not None and (at := self.network.tape.batch_axis(i)) is not None:
            value = _rows_of(value, *at, chosen, batch)
        if i in found.sliced:
            value = _select(value, found.sliced[i], units)
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
        size = [_bytes_per_image(shape) for shape in tape.shapes]
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


@dataclass(frozen=True)
class _Plans:
    counts: _LocalPlan
    steps: _LocalPlan

    @classmethod
    def of(cls, network: Network, found: Spread) -> _Plans:
        return cls(_LocalPlan(network, found.counts), _LocalPlan(network, found.steps))

    def peak(self, size: Sequence[int]) -> int:
        return max(self.counts.peak(size), self.steps.peak(size))


class _LocalPlan:
    """When the values of some steps come and go."""

    def __init__(self, network: Network, positions: Sequence[int]) -> None:
        steps = network.tape.steps
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        keep = {network.logits, *network.readers.values()}
        constants = {i for p in _constant_steps(network.tape) for i in steps[p].outs()}
        made = {i for p in positions for i in steps[p].outs()}
        for position in positions:
            for i in steps[position].outs():
                last[i] = position
            for i in steps[position].inputs():
                last[i] = position
                if i not in made:
                    first.setdefault(i, position)
        self.enters: dict[int, list[int]] = {}
        self.leaves: dict[int, list[int]] = {}
        for i, position in first.items():
            if i not in constants:
                self.enters.setdefault(position, []).append(i)
        for i, position in last.items():
            if i not in keep and i not in constants:
                self.leaves.setdefault(position, []).append(i)
        self._network, self._positions = network, positions

    def peak(self, size: Sequence[int]) -> int:
        """Largest memory per image while the steps run."""
        held = most = 0
        views: dict[int, int] = {}
        for position in self._positions:
            step = self._network.tape.steps[position]
            for i in (*self.enters.get(position, ()), *step.outs()):
                views[i] = size[i]
                held += size[i]
            touched = sum(size[i] for i in {*step.inputs(), *step.outs()})
            most = max(most, held + int(touched * WORKSPACE))
            for i in self.leaves.get(position, ()):
                held -= views.pop(i, 0)
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


def _constant_steps(tape: Tape) -> set[int]:
    """Steps that give the same for any images: they are run once."""
    varying = {0}
    constant = set()
    for position, step in enumerate(tape.steps):
        if any(i in varying for i in step.inputs()) or tape.batch_axis(step.out) is not None:
            varying.update(step.outs())
        else:
            constant.add(position)
    return constant


def _steps_towards(tape: Tape, wanted: set[int]) -> set[int]:
    """Positions of the steps that lead to these values."""
    wanted = set(wanted)
    needed = set()
    for position in reversed(range(len(tape.steps))):
        step = tape.steps[position]
        if any(i in wanted for i in step.outs()):
            needed.add(position)
            wanted.update(step.inputs())
    return needed


def _bytes_per_image(shape: Sequence[int | Sized]) -> int:
    grows = any(isinstance(n, Sized) for n in shape)
    numbers = 1
    for n in shape:
        numbers *= n.slope if isinstance(n, Sized) else n
    return 4 * numbers if grows else 0
