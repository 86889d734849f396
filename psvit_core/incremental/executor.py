"""Execution of a sweep's cells on a batch: the full model once, then only what each cell changes.

The full model runs once, node by node. As soon as the values that a group's cells start from are
computed, all cells of that group run (``propagation``): on tensors without the removed channels,
and only for images in which a removed unit was active. Values are freed after their last use, and
no model is copied.
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

from psvit_core.callbacks import Tick
from psvit_core.incremental.builder import ProgramInput
from psvit_core.incremental.cells import (
    CellOutput,
    Task,
    TaskSource,
    as_array,
    select_along,
    select_images,
)
from psvit_core.incremental.graph import DerivedWeight, Graph, run_node
from psvit_core.incremental.liveness import (
    LiveRanges,
    MemoryPlan,
    Schedule,
    constant_nodes,
    peak_bytes_per_image,
    sizes_per_image,
)
from psvit_core.incremental.lowering import first_unsupported
from psvit_core.incremental.program import ProgramRunner, matches_torch
from psvit_core.incremental.propagation import Network, Propagation
from psvit_core.incremental.series import ProgramSeries
from psvit_core.incremental.stacked import StackedCells
from psvit_core.kernels import lif
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.metrics.spikes import count_spikes
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.selection import Selection, select, selections_by_tensor
from psvit_core.storage.predictions import Array
from psvit_core.surgery import Silenced, silencing_edits
from psvit_core.zoo.base import SpikingModel

_CACHE_BYTES = 1 << 19  # values of this size stay in the processor's cache
_MOST_PER_RUN = 16  # images that a native program takes at a time
log = logging.getLogger(__name__)


class CellExecutor(Protocol):
    """Runs a full model and its cells on a batch."""

    def run_full_model(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Return the full model's logits, and the spike count of each reader, (batch,) each."""

    def run_cells(self, x: Tensor, groups: Mapping[str, TaskSource], tick: Tick) -> None:
        """Run cells by group; ``tick`` is called before each cell and may raise to stop."""

    def cost(self, group: str, prune_ratio: float) -> float:
        """Return the relative cost of a cell."""


@dataclass(frozen=True)
class FullExecutor:
    """Runs each cell as the silenced full model, if the forward pass cannot be recorded.

    Args:
        model: The model, placed.
        plan_of: Makes the plan that leaves these units of a group.
    """

    model: SpikingModel
    plan_of: Callable[[str, tuple[int, ...]], PrunePlan]

    def run_full_model(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Return the full model's logits and spike counts for a batch."""
        return self._run(self.model, x)

    def run_cells(self, x: Tensor, groups: Mapping[str, TaskSource], tick: Tick) -> None:
        """Run every cell in full."""
        for group, tasks_of_group in groups.items():
            for task in tasks_of_group():
                tick()
                edits = silencing_edits(self.model, self.plan_of(group, task.kept))
                edits |= task.edits
                logits, reached = self._run(Silenced(self.model, edits).eval(), x)
                rows = {name: count[task.images] for name, count in reached.items()}
                task.on_done(CellOutput(task.images, logits[task.images], rows, task.images, {}))

    def cost(self, group: str, prune_ratio: float) -> float:
        """Return 1: all cells cost the same."""
        return 1.0

    def _run(self, subject: torch.nn.Module, x: Tensor) -> tuple[Array, dict[str, Array]]:
        with count_spikes(self.model, neurons=False) as count:
            logits = subject(x)
        reached = {name: as_array(parts[0]) for name, parts in count.reached.items()}
        return as_array(logits), reached


class Weights:
    """A model's tensors by name, and the derived weights of its graph."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        derived = {d for node in graph.nodes for d in node.derived_weights()}
        self._derived_from: dict[str, list[DerivedWeight]] = {}
        for d in derived:
            for name in d.names():
                self._derived_from.setdefault(name, []).append(d)
        self.full: dict[Any, Any] = {**tensors, **{d: d.compute(tensors) for d in derived}}

    def without(
        self, selections: Sequence[Selection], edits: Mapping[str, Tensor] | None = None
    ) -> dict[Any, Any]:
        """Return all weights that selections of units in any number of groups leave.

        Args:
            selections: The units that stay.
            edits: Tensors of the unpruned model that replace its own, before units are selected.
        """
        edits = edits or {}
        selected = {**edits, **self._selected(selections, edits)}
        weights = {**self.full, **selected}
        for derived in {d for name in selected for d in self._derived_from.get(name, ())}:
            weights[derived] = derived.compute(weights)
        return weights

    def edited(self, edits: Mapping[str, Tensor]) -> Mapping[Any, Any]:
        """Return all weights of the unpruned model after edits."""
        return self.without([], edits) if edits else self.full

    def _selected(
        self, selections: Sequence[Selection], edits: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {
            name: select(name, edits.get(name, self._tensors[name]), chosen)
            for name, chosen in selections_by_tensor(selections).items()
            if name in self._tensors
        }

    def sliced(
        self, group: ChannelGroup, units: Tensor, edits: Mapping[str, Tensor]
    ) -> dict[Any, Any]:
        """Return all weights after edits, those of the group with only these units."""
        return self.without([Selection(group, units)], edits)


#: Programs by whether their nodes only count spikes, and by the images that run at a time.
_Series = dict[tuple[bool, int], ProgramSeries]


@dataclass(frozen=True)
class _CellStart:
    """The state that a cell's nodes start from."""

    found: Propagation
    units: Tensor  # that stay, int64
    weights: Mapping[Any, Any]
    values: Mapping[int, Tensor]  # of the full model, for the batch
    batch: int
    series: _Series  # of the group's cells


@dataclass
class IncrementalExecutor:
    """Runs each cell of a model from where it first differs from the full model.

    Args:
        network: The model's recorded forward pass.
        propagations: By group.
        weights: The model's parameters and buffers, on the device, in the run's precision.
        independent_images: Whether the images of a batch do not influence each other. If so, cells
            skip the images in which none of the removed units was active.
        stacks: Whether cells run as one batch (``stacked``), for accelerators.
        may_be_native: Whether native programs may run, which compute in the weights' precision.
    """

    network: Network
    propagations: Mapping[str, Propagation]
    weights: Mapping[str, Tensor]
    independent_images: bool
    stacks: bool = False
    may_be_native: bool = True
    stacked: StackedCells | None = field(init=False)
    is_native: bool = field(init=False)  # whether cells run as native programs
    node_seconds: list[float] = field(init=False)  # of every node in the last full run

    def __post_init__(self) -> None:
        graph = self.network.graph
        weight = next(iter(self.weights.values()))
        self._device = weight.device
        self._weights = Weights(graph, self.weights)
        self.node_seconds = [0.0] * len(graph.nodes)
        self._constant_nodes = constant_nodes(graph)
        self._constants: dict[int, Tensor] = {}
        for position in sorted(self._constant_nodes):
            run_node(graph.nodes[position], self._constants, self._weights.full, 1, self._device)
        self._plans = {
            group: MemoryPlan.for_group(self.network, found)
            for group, found in self.propagations.items()
        }
        self._programs = ProgramRunner(graph, set(self.network.results), weight.dtype)
        stacks = self.stacks and self.independent_images
        found = self.propagations.values()
        self.stacked = StackedCells(self.network, found, self.weights) if stacks else None
        may_be_native = self.may_be_native and not self.stacks
        self.is_native = may_be_native and self._can_run_natively(weight)

    def _can_run_natively(self, weight: Tensor) -> bool:
        """Return whether every node has a native operation, and those have proved exact."""
        if not (self.independent_images and lif.runs_natively(weight)):
            return False
        nodes = self.network.graph.nodes
        varying = (node for p, node in enumerate(nodes) if p not in self._constant_nodes)
        if call := first_unsupported(varying):
            log.info("cells run in torch: there is no native %s", call)
            return False
        return matches_torch(weight.dtype)

    def run_full_model(self, x: Tensor) -> tuple[Array, dict[str, Array]]:
        """Return the full model's logits and spike counts for a batch."""
        graph = self.network.graph
        values = {0: x, **self._constants}
        last_read = {i: p for p, node in enumerate(graph.nodes) for i in node.inputs()}
        results = self.network.results
        for position, node in enumerate(graph.nodes):
            if position not in self._constant_nodes:
                begin = time.perf_counter()
                run_node(node, values, self._weights.full, len(x), self._device)
                self.node_seconds[position] = time.perf_counter() - begin
                for i in {*node.inputs(), *node.outputs()} - results:
                    if last_read.get(i, position) == position:
                        values.pop(i, None)
        return as_array(values[self.network.logits]), self._spike_counts(values)

    def run_cells(self, x: Tensor, groups: Mapping[str, TaskSource], tick: Tick) -> None:
        """Run cells on a batch.

        Args:
            x: Images.
            groups: Called for a group's cells once the values that they start from are computed.
            tick: Called before each cell; may raise to stop.
        """
        schedule = Schedule.for_groups(self.network, [self.propagations[g] for g in groups])
        values = {0: x, **self._constants}
        for position in schedule.positions:
            if position >= 0:
                node = self.network.graph.nodes[position]
                run_node(node, values, self._weights.full, len(x), self._device)
            for group in schedule.groups.get(position, ()):
                self._run_group(self.propagations[group], groups[group](), values, len(x), tick)
            for i in values.keys() - self._constants.keys():
                if schedule.last_use.get(i, -2) <= position:
                    del values[i]

    def _run_group(
        self,
        found: Propagation,
        tasks: Sequence[Task],
        values: Mapping[int, Tensor],
        batch: int,
        tick: Tick,
    ) -> None:
        active = self._active_units(found, values, batch) if tasks else None
        together: list[tuple[Task, Array]] = []
        series: _Series = {}
        # The widest cell first: the others' values fit where its values are.
        for task in sorted(tasks, key=lambda task: -len(task.kept)):
            images = task.images
            if active is not None and not task.edits:
                removed = np.setdiff1d(np.arange(found.group.n_units), task.kept)
                images = images[active[images][:, removed].any(axis=1)]
            if self.stacked and self.stacked.helps(found.group, task, len(images), batch):
                together.append((task, images))
                continue
            tick()
            task.on_done(self._run_cell(found, task, images, values, batch, series))
        if self.stacked and together:
            plan = self._plans[found.group.group_id]
            self.stacked.run(found, plan, together, values, self._weights.edited, batch, tick)

    def _active_units(
        self, found: Propagation, values: Mapping[int, Tensor], batch: int
    ) -> Array | None:
        """Return whether each unit was active in each image, (batch, n_units).

        Returns:
            None if every image must run: images influence each other, or no value shows which
            units were active.
        """
        inputs = found.sliced_inputs(self.network)
        if not (self.independent_images and inputs):
            return None
        total = torch.zeros(batch, found.group.n_units, device=self._device)
        for i, axis in inputs.items():
            batch_axis = self.network.graph.batch_axis(i)
            assert batch_axis is not None
            images_axis, rows = batch_axis
            value = values[i].abs()
            others = [a for a in range(value.dim()) if a not in (images_axis, axis)]
            per_row = value.sum(dim=others) if others else value
            if images_axis > axis:
                per_row = per_row.T
            total += per_row.view(rows, batch, -1).sum(0)
        return (total > 0).cpu().numpy()

    def _run_cell(
        self,
        found: Propagation,
        task: Task,
        images: Array,
        values: Mapping[int, Tensor],
        batch: int,
        series: _Series,
    ) -> CellOutput:
        units = torch.tensor(task.kept, device=self._device)
        weights = self._weights.sliced(found.group, units, task.edits)
        start = _CellStart(found, units, weights, values, batch, series)
        plan = self._plans[found.group.group_id]
        counted = self._run_part(start, found.count_nodes, plan.count_nodes, task.images)
        logits, reached = np.empty((0, 0)), {}
        if len(images):
            computed = self._run_part(start, found.nodes, plan.nodes, images)
            logits = as_array(computed[self.network.logits])
            reached = self._spike_counts(computed)
        return CellOutput(images, logits, reached, task.images, self._spike_counts(counted))

    def _run_part(
        self, start: _CellStart, positions: Sequence[int], ranges: LiveRanges, images: Array
    ) -> dict[int, Tensor]:
        """Run some nodes of a cell; the result contains their logits and spike counts."""
        if self.is_native:
            try:
                return self._run_natively(start, positions, ranges, images)
            except UnsupportedError as reason:
                log.info("cells run in torch: there is no native %s", reason)
                self.is_native = False
        return self._run_in_torch(start, positions, ranges, images)

    def _run_natively(
        self, start: _CellStart, positions: Sequence[int], ranges: LiveRanges, images: Array
    ) -> dict[int, Tensor]:
        graph = self.network.graph
        per_run = native_images(ranges, len(images))
        key = (positions is start.found.count_nodes, per_run)
        if key not in start.series:
            start.series[key] = ProgramSeries(
                self._programs, positions, ranges.released, per_run, start.batch
            )
        series, entries = start.series[key], {}
        for i in series.reads:
            if i in start.values:
                batch_axis = graph.batch_axis(i)
                axis = start.found.sliced.get(i)
                entries[i] = ProgramInput(
                    start.values[i],
                    batch_axis[0] if batch_axis else None,
                    start.batch,
                    (axis, start.units) if axis is not None else None,
                )
        return series.run(entries, start.weights, torch.from_numpy(images))

    def _run_in_torch(
        self, start: _CellStart, positions: Sequence[int], ranges: LiveRanges, images: Array
    ) -> dict[int, Tensor]:
        values: dict[int, Tensor] = dict(self._constants)
        chosen = None if len(images) == start.batch else torch.from_numpy(images).to(self._device)
        for position in positions:
            for i in ranges.loaded.get(position, ()):
                values[i] = self._start_value(start, i, chosen)
            node = self.network.graph.nodes[position]
            run_node(node, values, start.weights, len(images), self._device)
            for i in ranges.released.get(position, ()):
                del values[i]
        return values

    def _start_value(self, start: _CellStart, i: int, chosen: Tensor | None) -> Tensor:
        """Return a value of the full model for the chosen images, without the removed channels."""
        value = start.values[i]
        batch_axis = self.network.graph.batch_axis(i)
        if chosen is not None and batch_axis is not None:
            value = select_images(value, *batch_axis, chosen, start.batch)
        if i in start.found.sliced:
            value = select_along(value, start.found.sliced[i], start.units)
        return value

    def _spike_counts(self, values: Mapping[int, Tensor]) -> dict[str, Array]:
        readers = self.network.readers.items()
        return {name: as_array(values[i]) for name, i in readers if i in values}

    # ---- cost ---------------------------------------------------------------------------------

    def cost(self, group: str, prune_ratio: float) -> float:
        """Estimate the seconds of a cell for the batch of the last ``run_full_model``.

        Each node takes as long as in the full model, less the share of its lost channels.
        """
        kept_share = 1 - prune_ratio
        return sum(
            self.node_seconds[position] * kept_share ** max(n_axes, int(loses_channels))
            for position, (n_axes, loses_channels) in self.propagations[group].shares.items()
        )

    def bytes_per_image(self) -> int:
        """Return the peak memory of all live values, per image of a batch."""
        # Native programs take a few images at a time: their memory does not grow with the batch.
        plans = {} if self.is_native else self._plans
        return peak_bytes_per_image(self.network, self.propagations.values(), plans)

    def bytes_per_row(self) -> int:
        """Return the peak memory of a cell's values, per image of the cell."""
        sizes = sizes_per_image(self.network.graph)
        return max((plan.peak(sizes) for plan in self._plans.values()), default=0)


def native_images(ranges: LiveRanges, n_images: int) -> int:
    """Return how many of some images a native program takes at a time."""
    return max(min(_MOST_PER_RUN, _CACHE_BYTES // max(ranges.peak_bytes, 1), n_images), 1)
