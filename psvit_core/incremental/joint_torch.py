"""A whole plan in torch, without building its network: on accelerators, and in half precision.

The nodes of the recorded forward pass run one after the other with the weights that the plan
leaves. Building a network takes longer than a few batches do on an accelerator, and a plan differs
from the unpruned model in nothing but these weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.data.ahead import batches_of, placed
from psvit_core.incremental.cells import as_array
from psvit_core.incremental.graph import run_node
from psvit_core.incremental.propagation import Network, with_wide_sums
from psvit_core.incremental.recorded import JointOutput, NewWeights, RecordedModel
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.runtime import Portions, Run, out_of_memory_explained
from psvit_core.storage.predictions import Array
from psvit_core.zoo.base import SpikingModel


class TorchRunner(RecordedModel):
    """Runs any plan of a model in torch, a batch at a time.

    Args:
        model: The model, placed; its weights must not change.
        network: Its recorded forward pass, through which every group was propagated.
        run: Device and precision.
    """

    def __init__(self, model: SpikingModel, network: Network, run: Run) -> None:
        super().__init__(model, with_wide_sums(network) if run.is_reduced else network)
        self._coupled = model.batch_coupled
        self._fired: set[int] = set().union(*self.neurons.values())

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
        """Run a plan's network on all images, in fewer at a time where memory is short."""
        weights = self.weights_of(groups, plan, new)
        portions = Portions(run.batch, least=run.batch if self._coupled else 1)
        parts: list[JointOutput] = []
        with torch.no_grad(), out_of_memory_explained(run):
            for x in batches_of(data, run):
                tick()
                found = list(portions.over(len(x), partial(self._run, weights, x, run)))
                seen(np.concatenate([part.logits for part in found]))
                parts += found
        return parts

    def _run(
        self, weights: Mapping[Any, Any], x: Tensor, run: Run, low: int, high: int
    ) -> JointOutput:
        images = placed(x[low:high], run)
        n_images, network = len(images), self.network
        lengths: dict[int, int] = {}
        with run.autocast:
            values = {0: images, **self.constants(weights, images.device)}
            for position in self.positions:
                node = network.graph.nodes[position]
                run_node(node, values, weights, n_images, images.device)
                for i in self._fired & set(node.outputs()):
                    lengths[i] = values[i].numel() // n_images
                for i in self.ranges.released.get(position, ()):
                    values.pop(i, None)
            counts = {name: as_array(values[i]) for name, i in network.readers.items()}
            logits = as_array(values[network.logits].to(run.dtype))
        return self.output(logits, {n: c.astype(np.float64) for n, c in counts.items()}, lengths)
