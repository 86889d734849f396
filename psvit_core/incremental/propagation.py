"""Propagation of a pruned group through a forward pass: which nodes must run again.

Removing units of one group has one of three effects on a value of the graph (``graph``):

- The value stays the same.
- It loses the group's channels and is otherwise unchanged. The nodes between the group's writers
  and its readers treat every channel alone: BatchNorm, neuron, pooling, depthwise convolution.
- It must be recomputed.

A cell runs only the nodes that recompute values. They start from the full model's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from psvit_core.incremental.fusion import convolve, fold
from psvit_core.incremental.graph import (
    Graph,
    GraphError,
    Node,
    Weight,
    WeightLength,
    record_fixed_batch,
    record_graph,
)
from psvit_core.incremental.ops import (
    CHANNELWISE,
    CONVOLUTIONS,
    LINEAR,
    MEMORY_SHARING,
    NEURONS,
    NORMS,
)
from psvit_core.metrics.spikes import count_spikes
from psvit_core.records import ChannelGroup
from psvit_core.zoo.base import SpikingModel

NEURON = "neuron:"  # before the name of a neuron layer among the readers
_GROUPS = 6  # position of a convolution's number of groups in its arguments


@dataclass(frozen=True)
class Network:
    """A model's recorded forward pass.

    Attributes:
        graph: Its ``result`` is (logits, {reader: spike counts at its input}).
        prunable_axes: For every value, the axes that shrink when all groups are pruned.
        width_bound: Positions of the nodes with an argument that is a group's width.
    """

    graph: Graph
    prunable_axes: tuple[frozenset[int], ...]
    width_bound: frozenset[int]

    @property
    def logits(self) -> int:
        """Index of the logits."""
        return int(self.graph.result[0].index)

    @property
    def readers(self) -> dict[str, int]:
        """Index of every reader's spike counts."""
        return {name: value.index for name, value in self.graph.result[1].items()}

    @property
    def results(self) -> set[int]:
        """Indices of the logits and of all spike counts."""
        return {self.logits, *self.readers.values()}

    def is_view(self, node: Node) -> bool:
        """Return whether a node's output shares the memory of its input."""
        return node.name in MEMORY_SHARING


def record_network(
    model: SpikingModel, image_shape: tuple[int, ...], *, neurons: bool = False
) -> Network:
    """Record a model's forward pass with its spike counts.

    The pass is recorded at full width and with every group at half width; the differences show
    which axes and arguments depend on group widths.

    Args:
        model: The model, in evaluation mode.
        image_shape: Shape of one image or of its frames.
        neurons: Also count the spikes that each neuron layer fires, as a reader whose name begins
            with ``NEURON``.

    Raises:
        GraphError: If the pass cannot be recorded.
    """
    dtype = next(model.parameters()).dtype
    groups = model.channel_groups()
    full_widths = {g.group_id: g.n_units for g in groups}
    half_widths = {**model.widths, **{g.group_id: _half_width(g) for g in groups}}
    forward, tensors = _forward_at(model, full_widths, neurons)
    full = _with_depthwise_groups(record_graph(forward, tensors, image_shape, dtype), tensors)
    half, batch = record_fixed_batch(*_forward_at(model, half_widths, neurons), image_shape, dtype)
    full_at_batch = full.for_batch(batch)
    width_bound = _width_bound_nodes(full_at_batch, half)
    prunable_axes = tuple(
        frozenset(axis for axis, (x, y) in enumerate(zip(s, h, strict=True)) if x != y)
        for s, h in zip(full_at_batch.shapes, half.shapes, strict=True)
    )
    graph, moved = fold(full, width_bound)
    return Network(graph, prunable_axes, moved)


def with_wide_sums(network: Network) -> Network:
    """Return a network whose sums of half precision are computed in float32.

    Counts of spikes are whole numbers, and bfloat16 rounds those above 256.
    """
    graph = network.graph
    nodes = [dataclasses.replace(n, call=_sum) if n.name == "sum" else n for n in graph.nodes]
    return dataclasses.replace(network, graph=dataclasses.replace(graph, nodes=tuple(nodes)))


def _sum(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if x.dtype in (torch.bfloat16, torch.float16):
        kwargs = {**kwargs, "dtype": torch.float32}
    return x.sum(*args, **kwargs)


_sum.__name__ = "sum"  # sets of operations (``ops``) have it by name


def _width_bound_nodes(full: Graph, half: Graph) -> frozenset[int]:
    """Return the positions of nodes whose arguments differ between the two widths."""
    if len(full.nodes) != len(half.nodes):
        raise GraphError("it runs other operations at other widths")
    found = set()
    for position, (a, b) in enumerate(zip(full.nodes, half.nodes, strict=True)):
        if (a.call, a.out) != (b.call, b.out):
            raise GraphError("it runs other operations at other widths")
        n_fixed = _GROUPS if _is_depthwise(a) else len(a.args)
        if a.args[:n_fixed] != b.args[:n_fixed] or dict(a.kwargs) != dict(b.kwargs):
            found.add(position)
    return frozenset(found)


def _with_depthwise_groups(graph: Graph, tensors: Mapping[str, Tensor]) -> Graph:
    """Replace the number of groups of depthwise convolutions by the length of their weight.

    Only a convolution with as many groups as input and output channels is depthwise. Others keep
    their number of groups at every width.
    """

    def replaced(node: Node) -> Node:
        if node.call not in CONVOLUTIONS or len(node.args) <= _GROUPS:
            return node
        weight, groups = node.args[1], node.args[_GROUPS]
        if groups == 1 or not isinstance(weight, Weight):
            return node
        if tensors[weight.name].shape[:2] != (groups, 1):  # (out, in / groups)
            return node
        args = (*node.args[:_GROUPS], WeightLength(weight.name))
        return dataclasses.replace(node, args=args)

    return dataclasses.replace(graph, nodes=tuple(map(replaced, graph.nodes)))


def _is_depthwise(node: Node) -> bool:
    return len(node.args) > _GROUPS and isinstance(node.args[_GROUPS], WeightLength)


def _half_width(group: ChannelGroup) -> int:
    multiple = group.heads or 1
    return max(multiple, group.n_units // 2 // multiple * multiple)


def _forward_at(
    model: SpikingModel, widths: Mapping[str, int], neurons: bool
) -> tuple[Callable[[Tensor], Any], dict[str, Tensor]]:
    """Return a model's forward pass with spike counts at these widths, and its tensors."""
    empty = model.resized(widths).to(next(model.parameters()).dtype).eval()
    empty = empty.to("meta")  # buffers that are not saved may have real values

    def forward(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with count_spikes(empty, neurons=neurons) as count:
            logits = empty(x)
        counts = {name: parts[0] for name, parts in count.reached.items()}
        return logits, counts | {NEURON + name: parts[0] for name, parts in count.fired.items()}

    return forward, {**dict(empty.named_parameters()), **dict(empty.named_buffers())}


@dataclass
class Propagation:
    """The effect of pruning one group.

    Attributes:
        group: The group.
        count_nodes: Positions, in order, of the nodes that count the spikes of values which only
            lose channels. They must run again for every image.
        nodes: Positions, in order, of all other nodes that must run again. They change nothing for
            an image in which none of the removed units was active.
        sliced: Value that only loses channels and is read by one of these nodes -> the axis of the
            group's channels.
        unchanged: Values that one of these nodes reads and that stay the same.
        shares: For each of ``nodes``: on how many axes its weights lose channels, and whether its
            output does.
    """

    group: ChannelGroup
    count_nodes: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    sliced: dict[int, int] = field(default_factory=dict)
    unchanged: set[int] = field(default_factory=set)
    shares: dict[int, tuple[int, bool]] = field(default_factory=dict)

    def sliced_inputs(self, network: Network) -> dict[int, int]:
        """Return the entries of ``sliced`` that ``nodes`` read."""
        read = {i for position in self.nodes for i in network.graph.nodes[position].inputs()}
        return {i: axis for i, axis in self.sliced.items() if i in read}

    @property
    def start_values(self) -> set[int]:
        """Values of the full model that the nodes start from."""
        return self.unchanged | set(self.sliced)


def propagate(network: Network, group: ChannelGroup) -> Propagation:
    """Propagate a group's pruning through the network.

    Raises:
        GraphError: If a node that must run again takes the group's width as an argument.
    """
    axes: dict[str, set[int]] = {}
    for name, axis in (*group.writers, *group.readers):
        axes.setdefault(name, set()).add(axis)
    found = Propagation(group)
    sliced: dict[int, int] = {}
    recomputed: set[int] = set()
    narrower: set[int] = set()  # recomputed values that lack the group's channels
    for position, node in enumerate(network.graph.nodes):
        inputs = node.inputs()
        touched = {name: axes[name] for name in node.weights() if name in axes}
        if not touched and not any(i in sliced or i in recomputed for i in inputs):
            continue
        if not any(i in recomputed for i in inputs):
            axis_lost = _sliced_axis(network, node, group, touched, sliced)
            if axis_lost is not None:
                sliced[node.out] = axis_lost
                continue
        found.nodes.append(position)
        recomputed.update(node.outputs())
        reads_narrower = any(i in narrower or i in sliced for i in inputs)
        if position in network.width_bound and reads_narrower:
            raise GraphError(f"{node.name} takes the width of a group as an argument")
        loses_channels = any(0 in a for a in touched.values()) or (not touched and reads_narrower)
        if loses_channels:
            narrower.update(node.outputs())
        found.shares[position] = (len(set().union(*touched.values())), loses_channels)
        for i in inputs:
            if i in sliced:
                found.sliced[i] = sliced[i]
            elif i not in recomputed:
                found.unchanged.add(i)
    _separate_counts(network, found)
    return found


def _separate_counts(network: Network, found: Propagation) -> None:
    """Move the nodes that only count, and read no recomputed value, to ``count_nodes``."""
    nodes = network.graph.nodes
    towards_logits: set[int] = {network.logits}
    main = set()
    for position in reversed(found.nodes):
        if any(i in towards_logits for i in nodes[position].outputs()):
            main.add(position)
            towards_logits.update(nodes[position].inputs())
    recomputed = {i for position in main for i in nodes[position].outputs()}
    counting = []
    for position in found.nodes:
        if position not in main:
            if any(i in recomputed for i in nodes[position].inputs()):
                recomputed.update(nodes[position].outputs())
            else:
                counting.append(position)
    found.count_nodes = counting
    found.nodes = [position for position in found.nodes if position not in set(counting)]


def _sliced_axis(
    network: Network,
    node: Node,
    group: ChannelGroup,
    touched: Mapping[str, set[int]],
    sliced: Mapping[int, int],
) -> int | None:
    """Return the axis of the group's channels if the node's output only loses them, else None.

    Args:
        network: The network.
        node: A node that reads no recomputed value.
        group: The group.
        touched: Weights of the group that it reads, with the axes that lose channels.
        sliced: Values that only lose channels, with the axis.
    """
    if touched:
        mapped = any(f"{name}:{axis}" in group.maps for name in touched for axis in touched[name])
        return None if mapped else _axis_of_writer(network, node, touched, sliced)
    if node.tuple_length is not None or not _is_channelwise(node):
        return None
    inputs = node.inputs()
    lengths = {network.graph.shapes[i][sliced[i]] for i in inputs if i in sliced}
    if any(i not in sliced and network.prunable_axes[i] for i in inputs):
        return None  # it also reads channels of another group
    prunable = network.prunable_axes[node.out]
    if len(lengths) != 1 or len(prunable) != 1:
        return None
    (axis,) = prunable
    return axis if network.graph.shapes[node.out][axis] == lengths.pop() else None


def _axis_of_writer(
    network: Network, node: Node, touched: Mapping[str, set[int]], sliced: Mapping[int, int]
) -> int | None:
    """Return ``_sliced_axis`` of a node that reads weights of the group."""
    if not all(axes == {0} for axes in touched.values()):
        return None  # a reader of the group
    reads_sliced = any(i in sliced for i in node.inputs()[:1])
    axis = 1
    if node.call is convolve:
        only_loses = not reads_sliced
    elif node.call in CONVOLUTIONS:
        only_loses = _is_depthwise(node) == reads_sliced
    elif node.call in LINEAR:
        only_loses = not reads_sliced
        axis = len(network.graph.shapes[node.out]) - 1
    else:
        only_loses = node.call in NORMS and reads_sliced
    return axis if only_loses else None


def _is_channelwise(node: Node) -> bool:
    return node.call in NEURONS or node.name in CHANNELWISE
