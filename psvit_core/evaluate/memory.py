"""Count the memory accesses of a running network, as SpikingJelly's counters do."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.errors import InvalidEnergyError
from psvit_core.evaluate.inference import place, predict
from psvit_core.groups import COMPUTE_LAYERS, summarize
from psvit_core.neurons import LIF
from psvit_core.plan.size import real_macs
from psvit_core.records import MemoryAccess
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import FAMILIES

_WORD = 4  # bytes of a weight, a bias and a potential, fp32


def count_memory_access(
    model: SpikingModel, data: EvalSet, *, run: Run | None = None, tick: Tick = keep_going
) -> MemoryAccess:
    """Count the bytes that one image reads and writes, the mean over images.

    The rules are those of SpikingJelly's ``NeuromorphicMemoryAccessCounter``: a spike reads each
    weight that it meets, at borders exactly; a layer that reads real values reads a weight for each
    of its multiply-accumulates; an output value reads its bias; a neuron reads and writes its
    potential at each time step. Unlike there, an integer of level k reads as k spikes do.

    Args:
        model: The model to count, pruned or not.
        data: Images; the model runs on all of them.
        run: Device, batch, precision; the defaults when None.
        tick: Called before each batch; may raise to stop.

    Raises:
        DataError: If the data does not fit the model.
        InvalidEnergyError: If the model is a network of a user's own, in which the state of other
            neurons is not known.
    """
    if FAMILIES.get(model.family) is not type(model):
        raise InvalidEnergyError(
            f"Memory access is counted for the published families, and {model.name} is a network "
            "of your own, whose neurons' state is not known. Use a model without memory access, "
            "such as 45nm-fp32."
        )
    run = run or Run()
    found = predict(place(model, run), data, run, tick=tick).by_reader
    assert found is not None  # ``predict`` counts by reader
    weighted = {n for n, module in model.named_modules() if isinstance(module, COMPUTE_LAYERS)}
    by_spikes = sum(sops for name, sops in found.items() if name in weighted)
    summary = summarize(model, {})
    dense = {name: runs for name, runs in summary.real_fed.items() if name in weighted}
    by_macs = real_macs(dataclasses.replace(summary, real_fed=dense), None)
    biased, potentials = _outputs(model)
    return MemoryAccess(
        weight_bytes=_WORD * (by_spikes + by_macs),
        bias_bytes=_WORD * biased,
        state_read_bytes=_WORD * potentials,
        state_write_bytes=_WORD * potentials,
    )


def _outputs(model: SpikingModel) -> tuple[int, int]:
    """Return the values of one image that get a bias, and those that update a potential.

    Both over all time steps. Uses one forward without data.
    """
    empty = model.resized(model.widths)
    biased = potentials = 0

    def on_layer(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal biased
        biased += output.numel()

    def on_neuron(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal potentials
        potentials += output.numel()

    for module in empty.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(on_neuron)
        elif isinstance(module, COMPUTE_LAYERS) and module.bias is not None:
            module.register_forward_hook(on_layer)
    with torch.no_grad():
        dtype = next(empty.parameters()).dtype
        empty(torch.empty(1, *model.input_shape, dtype=dtype, device="meta"))
    return biased, potentials
