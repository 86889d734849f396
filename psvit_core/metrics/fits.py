"""Whether a model fits a device by its bytes: weights, activations and neurons' state.

A fit by bytes says nothing about operations: a device may have no way to run attention, and
neuromorphic chips constrain neurons, weights and connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from psvit_core.groups import shape_table
from psvit_core.kernels import lif
from psvit_core.metrics.devices import DEVICES, find_devices, fit
from psvit_core.metrics.profile import LiveBytes, state_bytes
from psvit_core.neurons import IntegerLIF
from psvit_core.plan.size import bytes_by_layer
from psvit_core.records import (
    FitReport,
    PositionBytes,
    Schedule,
    SpikeExpansion,
    TargetDevice,
)
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash
from psvit_core.zoo.registry import FAMILIES

ALL_STEPS, ONE_STEP = "all steps", "one step"


def check_fit(
    model: SpikingModel,
    devices: Sequence[str | TargetDevice] = (),
    *,
    weights: str = "float32",
) -> FitReport:
    """Compare the bytes that a model needs for one image with the memories of devices.

    The model runs once or twice on an image of zeros, on the processor's plain kernels; the result
    does not depend on values or on the machine.

    Args:
        model: Model on the CPU, pruned or not.
        devices: Names of known devices, or devices; empty: all known ones.
        weights: ``float32``, ``float16`` or ``int8``. Other than float32, the size is arithmetic:
            nothing is quantized.

    Raises:
        UnknownNameError: If a device or the precision is unknown.
    """
    targets = [d if isinstance(d, TargetDevice) else find_devices((d,))[0] for d in devices]
    layers = bytes_by_layer(shape_table(model), {}, weights)
    schedules = find_schedules(model)
    chosen = min(schedules, key=lambda schedule: schedule.bytes)
    total = sum(layers.values())
    return FitReport(
        model=model.name,
        weights_hash=weights_hash(model),
        weights=weights,
        arithmetic=weights != "float32",
        weight_bytes=total,
        layers=layers,
        schedules=schedules,
        schedule=chosen.name,
        expansion=spike_expansion(model),
        fits=tuple(fit(device, total, chosen.bytes) for device in targets or DEVICES.values()),
    )


# ---- activations and state -------------------------------------------------------------------


def find_schedules(model: SpikingModel) -> tuple[Schedule, ...]:
    """Return the ways in which the model's time steps can run, with the bytes of each.

    Every model runs all steps of a layer at once. One step at a time is given for the families
    whose steps interact through membrane potentials only, which are then kept between steps.
    """
    schedules = [_schedule(model, ALL_STEPS, model.T, 0)]
    if model.T > 1 and runs_step_by_step(model):
        steps = model.T
        state = state_bytes(model, next(model.parameters()).dtype)
        model.set_time_steps(1)
        try:
            schedules.append(_schedule(model, ONE_STEP, 1, state))
        finally:
            model.set_time_steps(steps)
    return tuple(schedules)


def runs_step_by_step(model: SpikingModel) -> bool:
    """Return True if the network may run one time step after the other.

    False where attention spans time steps (STAtten), where the rows of a batch, which are images
    and time steps, influence each other (QKFormer as published), and for networks of a user's own,
    in which the state of other neurons is not known.
    """
    ours = FAMILIES.get(model.family) is type(model)
    spans = "chunk_size" in model.arguments or model.batch_coupled
    return ours and "T" in model.arguments and not spans


def _schedule(model: SpikingModel, name: str, steps: int, state: int) -> Schedule:
    dtype = next(model.parameters()).dtype
    positions = peaks_by_position(model, torch.zeros(1, *model.input_shape, dtype=dtype))
    return Schedule(
        name=name,
        steps=steps,
        state_bytes=state,
        peak_activation_bytes=max(positions.values()),
        positions=tuple(PositionBytes(position=p, bytes=n) for p, n in positions.items()),
    )


def peaks_by_position(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the most bytes that tensors occupy while each module runs, without the weights.

    Bytes are counted as by ``peak_activation_bytes``, whose result is the largest of these. They
    belong to the innermost module that runs; what runs between modules belongs to the module
    around it, and to the empty name at the top. Modules appear in the order in which they run.

    Args:
        model: Model on the CPU. It runs in evaluation mode, without gradients.
        x: Input with a storage of its own.
    """
    was_training = model.training
    tracker = _LiveByPosition([*model.parameters(), *model.buffers()], x)
    try:
        with torch.no_grad(), lif.plain_kernels(), tracker.following(model.eval()), tracker:
            model(x)
    finally:
        model.train(was_training)
    return tracker.peaks


class _LiveByPosition(LiveBytes):
    """Counts live bytes and remembers the largest number of every module."""

    def __init__(self, ignored: Sequence[Tensor], x: Tensor) -> None:
        self.peaks: dict[str, int] = {}
        self._running = [""]
        super().__init__(ignored, x)

    def _count(self, tensor: Tensor) -> None:
        super()._count(tensor)
        self._note()

    def _note(self) -> None:
        position = self._running[-1]
        self.peaks[position] = max(self.peaks.get(position, 0), self.live)

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know which module of ``model`` runs, during the block."""
        handles = []
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._entering(name)))
                handles.append(module.register_forward_hook(self._leaving))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._running.append(name)
            self._note()

        return hook

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()


# ---- integer neurons -------------------------------------------------------------------------


def spike_expansion(model: SpikingModel) -> SpikeExpansion | None:
    """Return what a model's integers become as binary spikes; None without integer neurons.

    An integer of level k is k spikes in D sub-steps. Uses one forward without data.
    """
    empty = model.resized(model.widths)
    values: dict[str, int] = {}
    levels: dict[str, int] = {}

    def counting(name: str) -> Callable[..., None]:
        def hook(module: IntegerLIF, inputs: Any, output: Tensor) -> None:
            values[name] = values.get(name, 0) + output.numel()
            levels[name] = module.levels

        return hook

    for name, module in empty.named_modules():
        if isinstance(module, IntegerLIF):
            module.register_forward_hook(counting(name))
    with torch.no_grad():
        dtype = next(empty.parameters()).dtype
        empty(torch.empty(1, *model.input_shape, dtype=dtype, device="meta"))
    if not values:
        return None
    most = max(levels.values())
    return SpikeExpansion(
        T=model.T,
        levels=most,
        steps=model.T * most,
        values=values,
        level_bits=sum(n * levels[name].bit_length() for name, n in values.items()),
        spike_bits=sum(n * levels[name] for name, n in values.items()),
    )
