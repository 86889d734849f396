"""Live ranges of a forward pass's values, and the memory that they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psvit_core.incremental.graph import BatchLinear, Graph
from psvit_core.incremental.propagation import Network, Propagation

#: Bytes that torch needs beyond a node's inputs and outputs, relative to these: convolutions copy
#: both into another layout (measured: benchmarks/sweep.py).
WORKSPACE = 2.0


@dataclass(frozen=True)
class MemoryPlan:
    """Live ranges of the values that are recomputed for a group.

    Attributes:
        count_nodes: For the nodes that only count spikes.
        nodes: For all others.
    """

    count_nodes: LiveRanges
    nodes: LiveRanges

    @classmethod
    def for_group(cls, network: Network, found: Propagation) -> MemoryPlan:
        """Plan the memory of a group's cells."""
        return cls(LiveRanges(network, found.count_nodes), LiveRanges(network, found.nodes))

    def peak(self, sizes: Sequence[int]) -> int:
        """Return the peak memory per image of either part, given each value's bytes per image."""
        return max(self.count_nodes.peak(sizes), self.nodes.peak(sizes))


class LiveRanges:
    """Live ranges of the values that some nodes read or compute.

    Args:
        network: The network.
        positions: Positions of the nodes, in order.

    Attributes:
        loaded: Position -> values of the full model that are first read there.
        released: Position -> values that no later node reads.
        peak_bytes: Peak memory per image while the nodes run.
    """

    def __init__(self, network: Network, positions: Sequence[int]) -> None:
        nodes = network.graph.nodes
        first_read: dict[int, int] = {}
        last_use: dict[int, int] = {}
        constants = constant_values(network.graph)
        computed = {i for p in positions for i in nodes[p].outputs()}
        for position in positions:
            for i in nodes[position].outputs():
                last_use[i] = position
            for i in nodes[position].inputs():
                last_use[i] = position
                if i not in computed:
                    first_read.setdefault(i, position)
        self.loaded = _by_position(first_read, constants)
        self.released = _by_position(last_use, constants | network.results)
        self._network, self._positions = network, positions
        self.peak_bytes = self.peak(sizes_per_image(network.graph))

    def peak(self, sizes: Sequence[int]) -> int:
        """Return the peak memory per image while the nodes run, given each value's bytes."""
        current = peak = 0
        live: dict[int, int] = {}
        for position in self._positions:
            node = self._network.graph.nodes[position]
            for i in (*self.loaded.get(position, ()), *node.outputs()):
                live[i] = sizes[i]
                current += sizes[i]
            touched = sum(sizes[i] for i in {*node.inputs(), *node.outputs()})
            peak = max(peak, current + int(touched * WORKSPACE))
            for i in self.released.get(position, ()):
                current -= live.pop(i, 0)
        return peak


def _by_position(positions: Mapping[int, int], excluded: set[int]) -> dict[int, list[int]]:
    """Group values by their position."""
    grouped: dict[int, list[int]] = {}
    for i, position in positions.items():
        if i not in excluded:
            grouped.setdefault(position, []).append(i)
    return grouped


@dataclass(frozen=True)
class Schedule:
    """The order in which the full model's nodes and the cells of groups run.

    Attributes:
        positions: Nodes that must run, in order; position -1 is before the first node.
        groups: Position -> groups whose cells can run after it.
        last_use: Value -> position after which nothing reads it.
    """

    positions: list[int]
    groups: dict[int, list[str]]
    last_use: dict[int, int]

    @classmethod
    def for_groups(cls, network: Network, propagations: Iterable[Propagation]) -> Schedule:
        """Schedule the cells of these groups as early as their start values allow."""
        graph = network.graph
        constants = constant_values(graph)
        computed_at = positions_of_values(graph)
        groups: dict[int, list[str]] = {}
        last_use: dict[int, int] = {}
        for found in propagations:
            starts = found.start_values - constants
            position = max((computed_at.get(i, -1) for i in starts), default=-1)
            groups.setdefault(position, []).append(found.group.group_id)
            for i in starts:
                last_use[i] = max(last_use.get(i, -1), position)
        needed = ancestors(graph, set(last_use)) - constant_nodes(graph)
        for position in needed:
            for i in graph.nodes[position].inputs():
                last_use[i] = max(last_use.get(i, -1), position)
        return cls([-1, *sorted(needed)], groups, last_use)


def constant_nodes(graph: Graph) -> set[int]:
    """Return the positions of nodes whose outputs are the same for any images."""
    varying = {0}
    constant = set()
    for position, node in enumerate(graph.nodes):
        if any(i in varying for i in node.inputs()) or graph.batch_axis(node.out) is not None:
            varying.update(node.outputs())
        else:
            constant.add(position)
    return constant


def constant_values(graph: Graph) -> set[int]:
    """Return the values that are the same for any images."""
    return {i for position in constant_nodes(graph) for i in graph.nodes[position].outputs()}


def positions_of_values(graph: Graph) -> dict[int, int]:
    """Return the position of the node that computes each value."""
    return {i: position for position, node in enumerate(graph.nodes) for i in node.outputs()}


def ancestors(graph: Graph, values: set[int]) -> set[int]:
    """Return the positions of all nodes that these values depend on."""
    wanted = set(values)
    needed = set()
    for position in reversed(range(len(graph.nodes))):
        node = graph.nodes[position]
        if any(i in wanted for i in node.outputs()):
            needed.add(position)
            wanted.update(node.inputs())
    return needed


def sizes_per_image(graph: Graph) -> list[int]:
    """Return the bytes per image of every value in float32; 0 for values without a batch axis."""
    return [_bytes_per_image(shape) for shape in graph.shapes]


def _bytes_per_image(shape: Sequence[int | BatchLinear]) -> int:
    grows = any(isinstance(n, BatchLinear) for n in shape)
    n_elements = 1
    for n in shape:
        n_elements *= n.slope if isinstance(n, BatchLinear) else n
    return 4 * n_elements if grows else 0


def peak_bytes_per_image(
    network: Network, propagations: Iterable[Propagation], plans: Mapping[str, MemoryPlan]
) -> int:
    """Return the peak memory per image of a batch while the full model and its cells run.

    Args:
        network: The network.
        propagations: Of the groups whose cells run; their start values stay alive until then.
        plans: Memory of a group's cells; of groups without a plan it is not counted.
    """
    graph = network.graph
    roots, sizes = _without_views(network)
    constants = constant_values(graph)
    computed_at = positions_of_values(graph)
    last_use: dict[int, int] = {}
    cell_bytes: dict[int, int] = {}
    for found in propagations:
        starts = found.start_values - constants
        position = max((computed_at.get(i, -1) for i in starts), default=-1)
        for i in found.start_values:
            last_use[roots[i]] = max(last_use.get(roots[i], -1), position)
        if plan := plans.get(found.group.group_id):
            cell_bytes[position] = max(cell_bytes.get(position, 0), plan.peak(sizes))
    for position, node in enumerate(graph.nodes):
        for i in node.inputs():
            last_use[roots[i]] = max(last_use.get(roots[i], -1), position)
    live, current, peak = {0: sizes[0]}, sizes[0], 0
    for position, node in enumerate(graph.nodes):
        touched = sum(sizes[i] for i in {*node.inputs(), *node.outputs()})
        for i in node.outputs():
            live[i] = sizes[i]
            current += sizes[i]
        peak = max(peak, current + int(touched * WORKSPACE) + cell_bytes.get(position, 0))
        for i in [i for i in live if last_use.get(i, position) <= position]:
            current -= live.pop(i)
    return peak


def _without_views(network: Network) -> tuple[list[int], list[int]]:
    """Return the value that owns each value's memory, and each value's size; views have none."""
    graph = network.graph
    roots, sizes = list(range(graph.n_values)), sizes_per_image(graph)
    for node in graph.nodes:
        if network.is_view(node) and node.inputs():
            roots[node.out], sizes[node.out] = roots[node.inputs()[0]], 0
    return roots, sizes
