"""A model's recorded forward pass, which plans run with other weights; how their results look.

A plan only changes weights: it removes units, or is given those of a recovered or trained network.
``joint`` runs such weights as native programs, ``joint_torch`` in torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.incremental.executor import Weights
from psvit_core.incremental.graph import Graph, run_node
from psvit_core.incremental.liveness import LiveRanges, constant_nodes, positions_of_values
from psvit_core.incremental.ops import NEURONS
from psvit_core.incremental.propagation import NEURON, Network, propagate, record_network
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.metrics.spikes import fan_outs
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.runtime import Run, channels_last
from psvit_core.selection import Selection
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel

NewWeights = SpikingModel | Mapping[str, Tensor] | None


@dataclass(frozen=True)
class JointOutput:
    """Results of a pruned network for some images.

    Attributes:
        logits: (n_images, num_classes).
        reached: Spike counts by reader, (n_images,) each.
        fired: Spikes by neuron layer, (n_images,) each.
        neurons: Neurons times time steps by neuron layer.
    """

    logits: Array
    reached: dict[str, Array]
    fired: dict[str, Array]
    neurons: dict[str, int]


class RecordedModel(ABC):
    """A model whose plans run without building a network.

    Attributes:
        network: The recorded forward pass.
        positions: Of the nodes that depend on the images.
        ranges: Live ranges of their values.
        neurons: By count of fired spikes, the neurons' outputs that it is computed from.

    Args:
        model: The model, placed; its weights must not change.
        network: Its recorded forward pass, through which every group was propagated.
    """

    def __init__(self, model: SpikingModel, network: Network) -> None:
        graph = network.graph
        constant = constant_nodes(graph)
        self.network = network
        self.positions = [p for p in range(len(graph.nodes)) if p not in constant]
        self.ranges = LiveRanges(network, self.positions)
        self.neurons = {
            name: _fired_by(graph, i)
            for name, i in network.readers.items()
            if name.startswith(NEURON)
        }
        self._constant = sorted(constant)
        self._weights = Weights(graph, _tensors(model))
        self._size = _size(model)

    def weights_of(
        self, groups: Sequence[ChannelGroup], plan: PrunePlan, new: NewWeights = None
    ) -> Mapping[Any, Any]:
        """Return the weights of a plan's network, by name and derived weight.

        Args:
            groups: The model's groups.
            plan: The plan, checked.
            new: Other weights: the plan's pruned model, recovered or trained, placed; or tensors of
                the unpruned model that replace its own.

        Raises:
            UnsupportedError: If ``new`` is a model, and not the pruned network of this one.
        """
        if isinstance(new, SpikingModel):
            if _size(new) != self._size:
                raise UnsupportedError("model of other arguments than the one that was recorded")
            return Weights(self.network.graph, _tensors(new)).full
        pruned = [g for g in groups if g.group_id in plan.kept]
        return self._weights.without(
            [Selection(g, torch.tensor(plan.kept[g.group_id])) for g in pruned], new
        )

    def constants(self, weights: Mapping[Any, Any], device: torch.device) -> dict[int, Tensor]:
        """Return the values that are the same for any images."""
        found: dict[int, Tensor] = {}
        for position in self._constant:
            run_node(self.network.graph.nodes[position], found, weights, 1, device)
        return found

    @abstractmethod
    def run_plan(
        self,
        groups: Sequence[ChannelGroup],
        plan: PrunePlan,
        data: EvalSet,
        run: Run,
        tick: Tick,
        seen: Callable[[Array], None],
        new: NewWeights = None,
    ) -> list[JointOutput]:
        """Run a plan's network on all images; return the results of their parts, in order.

        Args:
            groups: The model's groups.
            plan: The plan, checked.
            data: Images.
            run: Device, batch, precision.
            tick: Called before each batch; may raise to stop.
            seen: Called after each batch with its logits, (B, num_classes).
            new: Other weights, see ``weights_of``.

        Raises:
            UnsupportedError: If a node cannot run at this plan's widths, or see ``weights_of``.
        """

    def output(
        self, logits: Array, counts: dict[str, Array], lengths: Mapping[int, int]
    ) -> JointOutput:
        """Return the results of some images.

        Args:
            logits: (n_images, num_classes).
            counts: Spike counts of every reader, (n_images,) float64 each.
            lengths: Entries per image of every neuron's output.
        """
        return JointOutput(
            logits=logits,
            reached={name: count for name, count in counts.items() if name not in self.neurons},
            fired={name.removeprefix(NEURON): counts[name] for name in self.neurons},
            neurons={
                name.removeprefix(NEURON): sum(lengths[i] for i in values)
                for name, values in self.neurons.items()
            },
        )


def recorded_network(model: SpikingModel, image_shape: tuple[int, ...]) -> Network:
    """Record a model with the spikes of its neuron layers, and check every group in it.

    Raises:
        GraphError: If the forward pass cannot be recorded, or depends on a group's width.
    """
    network = record_network(model, image_shape, neurons=True)
    for group in model.channel_groups():
        propagate(network, group)  # raises if a node takes a width as an argument
    return network


def _tensors(model: SpikingModel) -> dict[str, Tensor]:
    """Return a model's tensors by name, in the memory format of the native operations."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: channels_last(tensor.detach()) for name, tensor in tensors.items()}


def _size(model: SpikingModel) -> tuple[object, ...]:
    """Return what a recorded forward pass depends on, apart from widths and weights."""
    weight = next(model.parameters())
    names = sorted(name for name, _ in (*model.named_parameters(), *model.named_buffers()))
    return type(model), dict(model.arguments), model.T, weight.dtype, weight.device, names


def _fired_by(graph: Graph, index: int) -> set[int]:
    """Return the outputs of neurons that a count of their spikes is computed from."""
    positions = positions_of_values(graph)
    found: set[int] = set()
    open_values = {index}
    while open_values:
        i = open_values.pop()
        node = graph.nodes[positions[i]]
        if node.call in NEURONS:
            found.add(i)
        else:
            open_values.update(node.inputs())
    return found


def sops_of(parts: Sequence[JointOutput], model: SpikingModel, plan: PrunePlan) -> Array:
    """Return the synaptic operations of each image, (n_images,) float64.

    Args:
        parts: Results of all batches.
        model: The model.
        plan: The plan that was run.
    """
    widths = {**model.widths, **{group: len(units) for group, units in plan.kept.items()}}
    fan_out = fan_outs(model)
    sops = np.zeros(sum(len(part.logits) for part in parts))
    for name in parts[0].reached:
        sops += fan_out(name).at(widths) * np.concatenate([p.reached[name] for p in parts])
    return sops


def firing_rates(parts: Sequence[JointOutput]) -> dict[str, float]:
    """Return the mean spike value per neuron and time step over all batches, by neuron layer."""
    n_images = sum(len(part.logits) for part in parts)
    return {
        name: sum(float(part.fired[name].sum()) for part in parts) / (n_neurons * n_images)
        for name, n_neurons in parts[0].neurons.items()
    }
