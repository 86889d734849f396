"""A whole plan as a native program: the pruned network without building it.

The forward pass of the unpruned model is recorded once. A plan only changes its weights, which lose
the removed units, so that every plan of a model runs the same nodes (``program``).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.incremental.builder import ProgramBuilder, ProgramInput
from psvit_core.incremental.executor import Weights, native_images
from psvit_core.incremental.graph import Graph, GraphError, run_node
from psvit_core.incremental.liveness import LiveRanges, constant_nodes, positions_of_values
from psvit_core.incremental.lowering import first_unsupported
from psvit_core.incremental.ops import NEURONS
from psvit_core.incremental.program import ProgramRunner, matches_torch
from psvit_core.incremental.propagation import NEURON, Network, propagate, record_network
from psvit_core.kernels import lif, native
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.metrics.spikes import fan_outs
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.runtime import channels_last
from psvit_core.selection import Selection
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import CUSTOM_FAMILY

log = logging.getLogger(__name__)

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


class JointRunner:
    """Runs any plan of a model.

    Attributes:
        network: The recorded forward pass.
        ranges: Live ranges of its values.
        neurons: By count of fired spikes, the neurons' outputs that it is computed from.

    Args:
        model: The model, placed; its weights must not change.
        image_shape: Shape of one image or of its frames.
        recorded: Its forward pass if it was recorded before, with the spikes of neuron layers or
            without, and every group was propagated through it.

    Raises:
        GraphError: If the forward pass cannot be recorded, or depends on a group's width.
        UnsupportedError: If it does not run natively here.
    """

    def __init__(
        self, model: SpikingModel, image_shape: tuple[int, ...], recorded: Network | None = None
    ) -> None:
        weight = next(model.parameters())
        if model.batch_coupled or model.family == CUSTOM_FAMILY:
            raise UnsupportedError("model whose images may influence each other")
        if not lif.runs_natively(weight):
            raise UnsupportedError("neuron for this device and precision")
        network = recorded or _recorded(model, image_shape)
        graph = network.graph
        constant = constant_nodes(graph)
        self._constant = sorted(constant)
        self._positions = [p for p in range(len(graph.nodes)) if p not in constant]
        if call := first_unsupported(graph.nodes[p] for p in self._positions):
            raise UnsupportedError(call)
        if not matches_torch(weight.dtype):
            raise UnsupportedError("program with the bits of torch")
        self._weights = Weights(graph, _tensors(model))
        self._size = _size(model)
        self.network: Network = network
        self.neurons = {
            name: _fired_by(graph, i)
            for name, i in network.readers.items()
            if name.startswith(NEURON)
        }
        self.ranges = LiveRanges(network, self._positions)
        self._programs = ProgramRunner(graph, network.results, weight.dtype)

    def start(
        self,
        groups: Sequence[ChannelGroup],
        plan: PrunePlan,
        new: NewWeights = None,
    ) -> JointRun:
        """Return a run of a plan.

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
            return JointRun(self, Weights(self.network.graph, _tensors(new)).full)
        pruned = [g for g in groups if g.group_id in plan.kept]
        weights = self._weights.without(
            [Selection(g, torch.tensor(plan.kept[g.group_id])) for g in pruned], new
        )
        return JointRun(self, weights)

    def run_plan(
        self,
        groups: Sequence[ChannelGroup],
        plan: PrunePlan,
        batches: Iterable[Tensor],
        tick: Tick,
        seen: Callable[[Array], None],
        new: NewWeights = None,
    ) -> list[JointOutput]:
        """Run a plan's network on batches of images; return the results of each.

        Args:
            groups: The model's groups.
            plan: The plan, checked.
            batches: Images, (B, ...) each.
            tick: Called before each batch; may raise to stop.
            seen: Called after each batch with its logits, (B, num_classes).
            new: Other weights, see ``start``.

        Raises:
            UnsupportedError: If a node has no native operation at this plan's widths, or see
                ``start``.
        """
        parts, joint = [], self.start(groups, plan, new)
        with torch.no_grad():
            for x in batches:
                tick()
                parts.append(joint.run(x))
                seen(parts[-1].logits)
        return parts

    def write(self, weights: Mapping[Any, Any], x: Tensor, per_run: int) -> ProgramBuilder:
        """Write the program of some weights on a batch; it reads ``x`` whenever it runs."""
        constants: dict[int, Tensor] = {}
        for position in self._constant:
            node = self.network.graph.nodes[position]
            run_node(node, constants, weights, 1, x.device)
        inputs = {i: ProgramInput(value, None, len(x), None) for i, value in constants.items()}
        inputs[0] = ProgramInput(x, 0, len(x), None)
        leaves = self.ranges.released
        return self._programs.build(self._positions, inputs, leaves, weights, len(x), per_run)


class JointRun:
    """The run of one plan, batch by batch.

    Args:
        runner: Runs the model's plans.
        weights: The weights that the plan leaves.
    """

    def __init__(self, runner: JointRunner, weights: Mapping[Any, Any]) -> None:
        self._runner, self._weights = runner, weights
        self._x = torch.empty(0)  # the program's input
        self._builder: ProgramBuilder | None = None
        self._program: native.Program | None = None

    def run(self, x: Tensor) -> JointOutput:
        """Run the pruned network on a batch.

        Raises:
            UnsupportedError: If a node has no native operation at this plan's widths.
        """
        runner, per_run = self._runner, native_images(self._runner.ranges, len(x))
        if (self._x.shape, self._x.stride()) == (x.shape, x.stride()):
            self._x.copy_(x)
        else:
            self._x = x.clone()
            self._builder = runner.write(self._weights, self._x, per_run)
            self._program = self._builder.program()
        assert self._builder is not None
        assert self._program is not None
        native.run_program(self._program, torch.arange(len(x)), per_run)
        results, lengths = self._builder.results, self._builder.lengths
        readers, neurons = runner.network.readers, runner.neurons
        counts = {name: results[i].numpy().astype(np.float64) for name, i in readers.items()}
        return JointOutput(
            logits=results[runner.network.logits].numpy().copy(),
            reached={name: count for name, count in counts.items() if name not in neurons},
            fired={name.removeprefix(NEURON): counts[name] for name in neurons},
            neurons={
                name.removeprefix(NEURON): sum(lengths[i] for i in values)
                for name, values in neurons.items()
            },
        )


def _recorded(model: SpikingModel, image_shape: tuple[int, ...]) -> Network:
    """Record a model with the spikes of its neuron layers, and check every group in it."""
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


_Key = tuple[str, int, torch.dtype, tuple[int, ...]]


@dataclass
class _Known:
    """What is known of a model with some weights, time steps, precision and image shape."""

    key: _Key
    runners: dict[bool, JointRunner | None] = field(default_factory=dict)  # by: counts firing
    of_cells: Network | None = None  # recorded for the cells of a sweep


_known: weakref.WeakKeyDictionary[SpikingModel, _Known] = weakref.WeakKeyDictionary()


def _known_of(model: SpikingModel, image_shape: tuple[int, ...], weights_hash: str) -> _Known:
    key = (weights_hash, model.T, next(model.parameters()).dtype, image_shape)
    found = _known.get(model)
    if found is None or found.key != key:
        found = _known[model] = _Known(key)
    return found


def share_recording(
    model: SpikingModel, image_shape: tuple[int, ...], weights_hash: str, network: Network
) -> None:
    """Let plans whose firing rates are not asked for run on a sweep's recording of the model.

    Args:
        model: The model, placed.
        image_shape: Shape of one image or of its frames.
        weights_hash: Hash of the model's weights.
        network: The recording; every group was propagated through it.
    """
    _known_of(model, image_shape, weights_hash).of_cells = network


def joint_runner(
    model: SpikingModel,
    image_shape: tuple[int, ...],
    weights_hash: str,
    *,
    firing: bool = True,
) -> JointRunner | None:
    """Return the runner of a model, recorded once; None if its plans run in torch.

    Args:
        model: The model, placed.
        image_shape: Shape of one image or of its frames.
        weights_hash: Hash of the model's weights, which must not change while the runner is used.
        firing: Whether the spikes of neuron layers are wanted. Without them, a recording that
            ``share_recording`` was given is used.
    """
    known = _known_of(model, image_shape, weights_hash)
    recorded = None if firing or True in known.runners else known.of_cells
    counts_firing = recorded is None
    if counts_firing not in known.runners:
        try:
            known.runners[counts_firing] = JointRunner(model, image_shape, recorded)
        except (GraphError, UnsupportedError) as reason:
            log.info("plans of %s run in torch: there is no native %s", model.name, reason)
            known.runners[counts_firing] = None
    return known.runners[counts_firing]
