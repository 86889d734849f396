"""The cells of a group as one batch, for accelerators.

One cell at a time leaves an accelerator idle: most cells have few images, and every step of each is
a launch. Here a row of the batch is one image of one cell. It starts from the full model's values
with zeros in the channels that the cell removes, and whatever a layer of the group computes for
these channels becomes zero again. This is what ``surgery.silenced`` does, so that all rows share
the full weights. Rows of any cells run together, as many as memory allows; fewer after the device
ran out of it.

The layers that a recovery refitted have other weights in each cell. They alone run once for every
cell, on its rows.

Removed channels are computed, too. A cell that fills a batch on its own therefore runs alone, on
narrower tensors, where that spares much of its work (``StackedCells.helps``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.incremental.cells import (
    CellOutput,
    Task,
    as_array,
    select_along,
    select_images,
)
from psvit_core.incremental.fusion import convolve
from psvit_core.incremental.graph import BatchLinear, Node, run_node
from psvit_core.incremental.liveness import LiveRanges, MemoryPlan
from psvit_core.incremental.ops import CONVOLUTIONS, LINEAR, NORMS
from psvit_core.incremental.propagation import Network, Propagation
from psvit_core.records import ChannelGroup
from psvit_core.runtime import Portions
from psvit_core.storage.predictions import Array

_MAX_SPARED = 1 / 3  # share of a cell's work that narrower tensors may spare

WeightsOf = Callable[[Mapping[str, Tensor]], Mapping[Any, Any]]
Todo = Sequence[tuple[Task, Array]]  # cells with the positions of their images in the batch


@dataclass(frozen=True)
class ChannelMask:
    """The channels of a value that belong to a group.

    Attributes:
        axis: The value's axis of channels.
        units: The unit at each position of the axis; ``n_units`` where no unit of the group is.
    """

    axis: int
    units: Tensor


@dataclass(frozen=True)
class _Rows:
    """Rows of a batch: images of cells.

    Attributes:
        alive: Which units each row keeps, (n_rows, n_units + 1); the last column is 1.
        images: Position of each row's image, int64.
        cells: Which cell has which rows: (cell, first row, end), in the order of rows.
    """

    alive: Tensor
    images: Tensor
    cells: Sequence[tuple[int, int, int]]

    def zero_removed(self, value: Tensor, batch_axis: tuple[int, int], mask: ChannelMask) -> None:
        """Set the removed channels of a value of these rows to zero, in place."""
        images_axis, repeats = batch_axis  # an axis of steps x rows has the steps first
        kept = self.alive[:, mask.units].repeat(repeats, 1)
        shape = [1] * value.dim()
        shape[images_axis], shape[mask.axis] = value.shape[images_axis], value.shape[mask.axis]
        value.mul_((kept if images_axis < mask.axis else kept.T).reshape(shape))


@dataclass(frozen=True)
class _Masks:
    """Where the cells of a group lose channels: in start values, and in outputs by position."""

    inputs: Mapping[int, ChannelMask]
    outputs: Mapping[int, ChannelMask]


class StackedCells:
    """Runs cells of a group as one batch.

    Args:
        network: The model's recorded forward pass.
        found: Propagations of all groups.
        tensors: The model's tensors by name.

    Attributes:
        portions: Rows at a time; the caller sets them to what memory allows.
    """

    def __init__(
        self, network: Network, found: Iterable[Propagation], tensors: Mapping[str, Tensor]
    ) -> None:
        self.portions = Portions(1)
        self._network = network
        self._masks: dict[str, _Masks] = {}
        self._work: dict[str, list[tuple[float, int]]] = {}
        device = next(iter(tensors.values())).device
        for propagation in found:
            masks = _masks_of(network, propagation, device)
            if masks is not None:
                name = propagation.group.group_id
                self._masks[name] = masks
                self._work[name] = list(_work_of(network, propagation, tensors))

    def supports(self, group: str) -> bool:
        """Return whether zeros in removed channels stand for narrower tensors in this group."""
        return group in self._masks

    def helps(self, group: ChannelGroup, task: Task, n_images: int, batch: int) -> bool:
        """Return whether a cell should run with others.

        Args:
            group: Its group.
            task: The cell.
            n_images: Its images.
            batch: Images of a full batch.
        """
        if not self.supports(group.group_id):
            return False
        kept = len(task.kept) / group.n_units
        work = self._work[group.group_id]
        spared = sum(amount * (1 - kept**n_axes) for amount, n_axes in work)
        return n_images < batch or spared <= _MAX_SPARED * sum(amount for amount, _ in work)

    def run(
        self,
        found: Propagation,
        plan: MemoryPlan,
        todo: Todo,
        values: Mapping[int, Tensor],
        weights_of: WeightsOf,
        batch: int,
        tick: Tick,
    ) -> None:
        """Run cells; each one's output is given to its ``on_done`` as soon as it is complete.

        Args:
            found: Propagation of their group, which ``supports``.
            plan: Live ranges of the group's values.
            todo: The cells, and the images that may differ from the full model.
            values: Values of the full model, at least the group's start values.
            weights_of: Returns the full model's weights with some edits, by name.
            batch: Images of the full model's values.
            tick: Called before each portion; may raise to stop.
        """
        for part in self._together(todo):
            masks, edits = self._masks[found.group.group_id], [task.edits for task, _ in part]
            own = _OwnWeights.of(self._network, found.nodes, edits, weights_of)
            start = _Start(self._network, masks, values, weights_of({}), batch, own)
            counted = self._results(
                start, found, (found.count_nodes, plan.count_nodes), part, tick, requested=True
            )
            computed = self._results(start, found, (found.nodes, plan.nodes), part, tick)
            for (task, images), counts, results in zip(part, counted, computed, strict=True):
                logits = results.pop("", np.empty((0, 0)))
                task.on_done(CellOutput(images, logits, results, task.images, counts))

    def _together(self, todo: Todo) -> Iterable[Todo]:
        """Divide cells into parts that fill a portion; a large cell may take several."""
        part: list[tuple[Task, Array]] = []
        n_rows = 0
        for task, images in todo:
            if part and n_rows + len(images) > self.portions.size:
                yield part
                part, n_rows = [], 0
            part.append((task, images))
            n_rows += len(images)
        if part:
            yield part

    def _results(
        self,
        start: _Start,
        found: Propagation,
        steps: tuple[Sequence[int], LiveRanges],
        part: Todo,
        tick: Tick,
        requested: bool = False,
    ) -> list[dict[str, Array]]:
        """Return logits (named "") and spike counts of each cell, for its images.

        Args:
            start: What the steps start from.
            found: Propagation of the cells' group.
            steps: Positions of the nodes, and their live ranges.
            part: The cells.
            tick: Called before each portion.
            requested: Run all requested images instead of those that may differ.
        """
        images_of = [task.images if requested else images for task, images in part]
        lengths = [len(images) for images in images_of]
        if not steps[0] or not sum(lengths):
            return [{} for _ in part]
        device = next(iter(start.values.values())).device
        alive = _alive(found.group, [task for task, _ in part], device, start.dtype)
        cell_of = np.repeat(np.arange(len(part)), lengths)
        cells = torch.from_numpy(cell_of).to(device)
        images = torch.from_numpy(np.concatenate(images_of)).to(device)

        def portion(low: int, high: int) -> dict[str, Array]:
            tick()
            runs = _runs_of(cell_of[low:high])
            rows = _Rows(alive[cells[low:high]], images[low:high], runs)
            return start.run(*steps, rows)

        parts = list(self.portions.over(len(images), portion))
        ends = np.cumsum(lengths)[:-1]
        by_name = {k: np.split(np.concatenate([p[k] for p in parts]), ends) for k in parts[0]}
        return [
            {name: split[number] for name, split in by_name.items()} if length else {}
            for number, length in enumerate(lengths)
        ]


def _runs_of(cell_of: Array) -> list[tuple[int, int, int]]:
    """Return (cell, first row, end) of each cell, given the cell of every row in order."""
    starts = np.flatnonzero(np.diff(cell_of, prepend=-1))
    ends = [*starts[1:].tolist(), len(cell_of)]
    return [(int(cell_of[low]), int(low), end) for low, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class _OwnWeights:
    """The steps whose weights differ between cells, and the weights of each cell."""

    positions: frozenset[int]
    of_cell: Sequence[Mapping[Any, Any]]

    @classmethod
    def of(
        cls,
        network: Network,
        positions: Sequence[int],
        edits: Sequence[Mapping[str, Tensor]],
        weights_of: WeightsOf,
    ) -> _OwnWeights:
        """Find the steps among nodes that read a tensor which some cell edits."""
        names = {name for of_cell in edits for name in of_cell}
        nodes = network.graph.nodes
        found = frozenset(p for p in positions if names.intersection(nodes[p].weights()))
        return cls(found, [weights_of(of_cell) for of_cell in edits] if found else [])

    def run(self, network: Network, node: Node, values: dict[int, Tensor], rows: _Rows) -> None:
        """Run a node cell by cell, each on its rows, and add the joined output to ``values``."""
        graph, n_rows, device = network.graph, len(rows.images), rows.images.device
        parts = []
        for cell, low, high in rows.cells:
            of_cell: dict[int, Tensor] = {}
            for i in node.inputs():
                batch_axis, value = graph.batch_axis(i), values[i]
                if batch_axis is not None:
                    chosen = torch.arange(low, high, device=device)
                    value = select_images(value, *batch_axis, chosen, n_rows)
                of_cell[i] = value
            run_node(node, of_cell, self.of_cell[cell], high - low, device)
            parts.append(of_cell[node.out])
        batch_axis = graph.batch_axis(node.out)
        assert batch_axis is not None
        axis, steps = batch_axis
        joined = torch.cat(parts, axis)
        if steps > 1 and len(parts) > 1:  # one cell after another -> one step after another
            order = [
                torch.arange(
                    steps * low + step * (high - low), steps * low + (step + 1) * (high - low)
                )
                for step in range(steps)
                for _, low, high in rows.cells
            ]
            joined = select_along(joined, axis, torch.cat(order).to(device))
        values[node.out] = joined


@dataclass(frozen=True)
class _Start:
    """What the steps of a group's cells start from: the full model's values, and its weights."""

    network: Network
    masks: _Masks
    values: Mapping[int, Tensor]
    weights: Mapping[Any, Any]
    batch: int
    own: _OwnWeights

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's values."""
        return next(t.dtype for t in self.values.values() if t.is_floating_point())

    def run(self, positions: Sequence[int], ranges: LiveRanges, rows: _Rows) -> dict[str, Array]:
        """Run nodes on some rows; return their logits, named "", and spike counts."""
        graph, n_rows = self.network.graph, len(rows.images)
        constant = (i for i in self.values if graph.batch_axis(i) is None)
        values = {i: self.values[i] for i in constant}
        for position in positions:
            for i in ranges.loaded.get(position, ()):
                values[i] = self._loaded(i, rows)
            node = graph.nodes[position]
            if position in self.own.positions:
                self.own.run(self.network, node, values, rows)
            else:
                run_node(node, values, self.weights, n_rows, rows.images.device)
            if position in self.masks.outputs:
                batch_axis = graph.batch_axis(node.out)
                assert batch_axis is not None
                rows.zero_removed(values[node.out], batch_axis, self.masks.outputs[position])
            for i in ranges.released.get(position, ()):
                del values[i]
        named = {"": self.network.logits, **self.network.readers}
        return {name: as_array(values[i]) for name, i in named.items() if i in values}

    def _loaded(self, i: int, rows: _Rows) -> Tensor:
        """Return a start value for some rows, with zeros in removed channels."""
        batch_axis = self.network.graph.batch_axis(i)
        if batch_axis is None:
            return self.values[i]
        value = select_images(self.values[i], *batch_axis, rows.images, self.batch)
        if i in self.masks.inputs:
            rows.zero_removed(value, batch_axis, self.masks.inputs[i])
        return value


def _alive(
    group: ChannelGroup, tasks: Sequence[Task], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return which units each cell keeps, (n_cells, n_units + 1); the last column is 1."""
    alive = torch.zeros(len(tasks), group.n_units + 1, dtype=dtype)
    alive[:, -1] = 1
    for row, task in zip(alive, tasks, strict=True):
        row[list(task.kept)] = 1
    return alive.to(device)


# ---- channels of a group ---------------------------------------------------------------------


def _masks_of(network: Network, found: Propagation, device: torch.device) -> _Masks | None:
    """Return where the cells of a group lose channels; None if zeros cannot stand for that."""
    group, graph = found.group, network.graph
    axes: dict[str, set[int]] = {}
    for name, axis in (*group.writers, *group.readers):
        axes.setdefault(name, set()).add(axis)
    own = torch.arange(group.n_units, device=device)
    inputs = {i: ChannelMask(axis, own) for i, axis in found.sliced.items()}
    outputs = {}
    for position in (*found.count_nodes, *found.nodes):
        node = graph.nodes[position]
        touched = {name: axes[name] for name in node.weights() if name in axes}
        if not touched:
            continue
        channels = _channel_axis(network, node)
        written = [name for name, of_name in touched.items() if 0 in of_name]
        if channels is None or any(a > 1 for of_name in touched.values() for a in of_name):
            return None
        if not written:
            continue
        length = graph.shapes[node.out][channels]
        positions = [_units_at(group, f"{name}:0", length) for name in written]
        first = positions[0]
        if first is None or any(p != first for p in positions):
            return None
        outputs[position] = ChannelMask(channels, torch.tensor(first, device=device))
    return _Masks(inputs, outputs)


def _channel_axis(network: Network, node: Node) -> int | None:
    """Return the axis of a layer's output that the first axis of its weights is; else None."""
    if node.tuple_length is not None or network.graph.batch_axis(node.out) is None:
        return None
    if node.call is convolve or node.call in CONVOLUTIONS | NORMS:
        return 1
    return len(network.graph.shapes[node.out]) - 1 if node.call in LINEAR else None


def _units_at(group: ChannelGroup, key: str, length: int | BatchLinear) -> list[int] | None:
    """Return the unit at each position of an axis, or None if they do not fit on it."""
    places = group.maps.get(key, tuple(range(group.n_units)))
    if isinstance(length, BatchLinear) or max(places) >= length:
        return None
    units = [group.n_units] * length
    for unit, place in enumerate(places):
        units[place] = unit
    return units


def _work_of(
    network: Network, found: Propagation, tensors: Mapping[str, Tensor]
) -> Iterable[tuple[float, int]]:
    """Yield the work of each node that a cell runs, and on how many axes narrowing spares some."""
    for position, (n_axes, loses_channels) in found.shares.items():
        node = network.graph.nodes[position]
        shape = network.graph.shapes[node.out]
        elements = np.prod([n.slope if isinstance(n, BatchLinear) else n for n in shape])
        layers = [tensors[name] for name in node.weights() if tensors[name].dim() > 1]
        per_element = max((t.numel() / t.shape[0] for t in layers), default=1.0)
        yield float(elements) * per_element, max(n_axes, int(loses_channels))
