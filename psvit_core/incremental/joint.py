"""A whole plan as a native program: the pruned network without building it.

The forward pass of the unpruned model is recorded once. A plan only changes its weights, which lose
the removed units, so that every plan of a model runs the same nodes (``program``).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.incremental.builder import ProgramBuilder, ProgramInput
from psvit_core.incremental.executor import native_images
from psvit_core.incremental.graph import GraphError
from psvit_core.incremental.joint_torch import TorchRunner
from psvit_core.incremental.lowering import first_unsupported
from psvit_core.incremental.program import ProgramRunner, matches_torch
from psvit_core.incremental.propagation import Network
from psvit_core.incremental.recorded import (
    JointOutput,
    NewWeights,
    RecordedModel,
    recorded_network,
)
from psvit_core.kernels import lif, native
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.runtime import Run, channels_last
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import CUSTOM_FAMILY

log = logging.getLogger(__name__)


class JointRunner(RecordedModel):
    """Runs any plan of a model natively.

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
        if model.batch_coupled:
            raise UnsupportedError("model whose images influence each other")
        if not lif.runs_natively(weight):
            raise UnsupportedError("neuron for this device and precision")
        super().__init__(model, recorded or recorded_network(model, image_shape))
        graph = self.network.graph
        if call := first_unsupported(graph.nodes[p] for p in self.positions):
            raise UnsupportedError(call)
        if not matches_torch(weight.dtype):
            raise UnsupportedError("program with the bits of torch")
        self._programs = ProgramRunner(graph, self.network.results, weight.dtype)

    def start(
        self,
        groups: Sequence[ChannelGroup],
        plan: PrunePlan,
        new: NewWeights = None,
    ) -> JointRun:
        """Return a run of a plan; arguments and errors as for ``weights_of``."""
        return JointRun(self, self.weights_of(groups, plan, new))

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
        """Run a plan's network on all images, natively; return the results of each batch."""
        parts, joint = [], self.start(groups, plan, new)
        with torch.no_grad(), run.autocast:  # off, also inside one that is on
            for x in data.batches(run.batch, run.dtype, run.workers):
                tick()
                parts.append(joint.run(channels_last(x)))
                seen(parts[-1].logits)
        return parts

    def write(self, weights: Mapping[Any, Any], x: Tensor, per_run: int) -> ProgramBuilder:
        """Write the program of some weights on a batch; it reads ``x`` whenever it runs."""
        constants = self.constants(weights, x.device)
        inputs = {i: ProgramInput(value, None, len(x), None) for i, value in constants.items()}
        inputs[0] = ProgramInput(x, 0, len(x), None)
        leaves = self.ranges.released
        return self._programs.build(self.positions, inputs, leaves, weights, len(x), per_run)


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
        results, readers = self._builder.results, runner.network.readers
        counts = {name: results[i].numpy().astype(np.float64) for name, i in readers.items()}
        logits = results[runner.network.logits].numpy().copy()
        return runner.output(logits, counts, self._builder.lengths)


_Key = tuple[str, int, torch.dtype, tuple[int, ...]]


@dataclass
class _Known:
    """What is known of a model with some weights, time steps, precision and image shape."""

    key: _Key
    #: By: counts firing, and the precision if it runs in torch.
    runners: dict[tuple[bool, str], RecordedModel | None] = field(default_factory=dict)
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
    run: Run,
    *,
    firing: bool = True,
) -> RecordedModel | None:
    """Return the runner of a model, recorded once; None if its plans need a network that is built.

    Args:
        model: The model, placed.
        image_shape: Shape of one image or of its frames.
        weights_hash: Hash of the model's weights, which must not change while the runner is used.
        run: Device and precision: natively on the processor, else in torch.
        firing: Whether the spikes of neuron layers are wanted. Without them, a recording that
            ``share_recording`` was given is used.
    """
    if model.family == CUSTOM_FAMILY:  # its images may influence each other
        return None
    known = _known_of(model, image_shape, weights_hash)
    how = run.precision if run.is_accelerated or run.is_reduced else ""
    recorded = None if firing or (True, how) in known.runners else known.of_cells
    key = (recorded is None, how)
    if key not in known.runners:
        try:
            if how:
                network = recorded or recorded_network(model, image_shape)
                known.runners[key] = TorchRunner(model, network, run)
            else:
                known.runners[key] = JointRunner(model, image_shape, recorded)
        except (GraphError, UnsupportedError) as reason:
            log.info("plans of %s are built: there is no %s", model.name, reason)
            known.runners[key] = None
    return known.runners[key]
