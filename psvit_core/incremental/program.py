"""Execution of graph nodes as one native program, a few images at a time.

torch runs a whole batch node by node, so every value passes through main memory, and for small
nodes the call costs more than the computation. Here the nodes become operations of
``kernels/csrc``, which run on a few images at a time, in memory that stays in the cache. A neuron
after a convolution is computed together with it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.incremental.builder import META, GraphLayouts, ProgramBuilder, ProgramInput
from psvit_core.incremental.fusion import fold
from psvit_core.incremental.graph import Graph, Node, record_graph
from psvit_core.incremental.lowering import fusible_convolutions, lower
from psvit_core.kernels import lif, native

log = logging.getLogger(__name__)


class ProgramRunner:
    """Runs nodes of a graph as native programs.

    Args:
        graph: The forward pass.
        wanted: Values to return where nodes compute them.
        dtype: Type of all values.
    """

    def __init__(self, graph: Graph, wanted: set[int], dtype: torch.dtype) -> None:
        self.graph, self._wanted = graph, wanted
        self._weight_keys: dict[int, tuple[Any, ...]] = {}  # by output of the node
        self._layouts = GraphLayouts(dtype, fusible_convolutions(graph))

    def run(
        self,
        positions: Sequence[int],
        inputs: Mapping[int, ProgramInput],
        leaves: Mapping[int, Sequence[int]],
        weights: Mapping[Any, Any],
        images: Tensor,
        per_run: int,
    ) -> dict[int, Tensor]:
        """Run some nodes on some images; arguments as for ``build``.

        Args:
            positions: Positions of the nodes.
            inputs: Values that they read.
            leaves: Values that are not read again.
            weights: Parameters and buffers.
            images: Positions of the images in the batch, int64.
            per_run: Number of images that run at a time.

        Returns:
            The wanted values that the nodes compute, (len(images),) or (len(images), n).

        Raises:
            UnsupportedError: If a node has no native operation.
        """
        builder = self.build(positions, inputs, leaves, weights, len(images), per_run)
        native.run_program(builder.program(), images, per_run)
        return builder.results

    def build(
        self,
        positions: Sequence[int],
        inputs: Mapping[int, ProgramInput],
        leaves: Mapping[int, Sequence[int]],
        weights: Mapping[Any, Any],
        n_images: int,
        per_run: int,
        written: Callable[[ProgramBuilder, Node], None] | None = None,
    ) -> ProgramBuilder:
        """Write some nodes as a native program.

        Args:
            positions: Positions of the nodes in the graph, ascending.
            inputs: By index, every value that the nodes read and do not compute.
            leaves: By position, the values that no later node reads.
            weights: Parameters and buffers by name, and every ``DerivedWeight``.
            n_images: Number of images that a run takes.
            per_run: Number of images that run at a time.
            written: Called after each node.

        Returns:
            The program with room for the wanted values (``results``).

        Raises:
            UnsupportedError: If a node has no native operation.
        """
        builder = ProgramBuilder(self._layouts, inputs, weights, n_images, per_run)
        for position in positions:
            node = self.graph.nodes[position]
            self.write(builder, node)
            for i in node.outputs():
                if i in builder.values:
                    builder.lengths[i] = builder.values[i].numel() // per_run
            if written is not None:
                written(builder, node)
            for index in leaves.get(position, ()):
                builder.discard(index)
        return builder

    def write(self, builder: ProgramBuilder, node: Node) -> None:
        """Write one node, and the copy of its value to the results if it is wanted."""
        lower(builder, node)
        if node.out in self._wanted:
            builder.store(node.out)

    def weights_of(self, node: Node) -> tuple[Any, ...]:
        """Return the keys of the weights that a node reads."""
        if node.out not in self._weight_keys:
            self._weight_keys[node.out] = (*node.weights(), *node.derived_weights())
        return self._weight_keys[node.out]


@functools.cache
def matches_torch(dtype: torch.dtype) -> bool:
    """Return whether a program gives the bits of torch; checked once per process.

    The check counts the spikes of a neuron after a convolution. Integer weights make the sums exact
    in any order.
    """
    x = (torch.arange(5 * 80 * 6) % 3 == 0).to(dtype).view(5, 80, 2, 3)
    weights: dict[Any, Any] = {"w": (torch.arange(24 * 20) % 7 - 3).to(dtype).view(24, 20, 1, 1)}
    empty = weights["w"].to(META)
    graph = record_graph(
        lambda images: _spike_counts(images, empty), {"w": empty}, x.shape[1:], dtype
    )
    graph, _ = fold(graph, frozenset())
    weights |= {
        derived: derived.compute(weights)
        for node in graph.nodes
        for derived in node.derived_weights()
    }
    last = graph.result.index
    runner = ProgramRunner(graph, {last}, dtype)
    inputs = {0: ProgramInput(x, 0, len(x), None)}
    found = runner.run(range(len(graph.nodes)), inputs, {}, weights, torch.arange(len(x)), 2)
    if torch.equal(found[last], _spike_counts(x, weights["w"])):
        return True
    log.warning("native programs are off: their bits differ from those of torch")
    return False


def _spike_counts(images: Tensor, weight: Tensor) -> Tensor:
    """Return the spikes of a layer by image and channel; the channels contain 4 time steps."""
    steps = images.unflatten(1, (4, -1)).transpose(0, 1)
    current = F.conv2d(steps.flatten(0, 1), weight, None, (1, 1), (0, 0), (1, 1), 1)
    return lif.lif(current.unflatten(0, steps.shape[:2]), 1.0).sum((0, 3, 4))
