"""BatchNorm re-estimation: running statistics of the pruned network, from calibration images.

Pruning shifts the inputs of the BatchNorms, while their running statistics are still those of the
unpruned network. Each layer's statistics are set to the exact mean and variance of its input over
all images. Layers are updated in network order, so each sees inputs made with the new statistics
of the layers before it. The result is consistent in evaluation mode, does not depend on the batch
size, and takes one forward. The usual method (training mode, cumulative averages) only estimates
it, because it normalizes by batch statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from torch import Tensor, nn

from psvit_core.callbacks import Tick
from psvit_core.data import EvalSet
from psvit_core.recover.lockstep import Halt, lockstep, run_once
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import BNAndPad


def reestimate_norms(
    model: SpikingModel, data: EvalSet, run: Run, *, memory: int, tick: Tick
) -> int:
    """Set the running statistics of ``model``'s BatchNorms in place.

    Layers that run more than once per forward keep their statistics.

    Args:
        model: The pruned model, placed, in evaluation mode.
        data: Calibration images.
        run: Device, batch, precision.
        memory: Memory limit of halted batches, in bytes.
        tick: Called before each step of a batch; may raise to stop.

    Returns:
        Estimated peak memory of the halted batches, in bytes.
    """
    held = 0
    names = run_once(model, find_norms(model), data, run)
    steps = lockstep((model,), names, data, run, memory=memory, tick=tick)
    with closing(steps):
        for met in steps:
            halts = [halt for (halt,) in met]
            held = max(held, sum(halt.held_bytes for halt in halts))
            set_statistics(halts)
    return held


def find_norms(model: SpikingModel) -> list[str]:
    """Return the modules that apply a BatchNorm with running statistics."""
    padded = {f"{name}.bn" for name, m in model.named_modules() if isinstance(m, BNAndPad)}
    return [
        name
        for name, layer in model.named_modules()
        if name not in padded and _norm(layer) is not None
    ]


def set_statistics(halts: Sequence[Halt], *, variance: bool = True) -> None:
    """Set a BatchNorm's statistics to those of its input in all halted batches, in place.

    Args:
        halts: All halted batches.
        variance: Also set the variance, not only the mean.
    """
    layer = _norm(halts[0].layer)
    assert layer is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    channels = [_by_channel(halt) for halt in halts]
    n = sum(x.shape[1] for x in channels)
    mean = _total(x.sum(1).double() for x in channels) / n
    near = mean.to(channels[0])[:, None]  # rounded; the next lines correct it
    rests = [x - near for x in channels]
    off = _total(rest.sum(1).double() for rest in rests) / n
    layer.running_mean.copy_(near[:, 0].double() + off)
    if variance:
        squares = _total(rest.square_().sum(1).double() for rest in rests) - n * off.square()
        layer.running_var.copy_(squares / max(n - 1, 1))
    for halt in halts:
        halt.recompute = True


def _norm(layer: nn.Module) -> nn.modules.batchnorm._BatchNorm | None:
    """Return the layer's BatchNorm if it has running statistics: itself, or its ``bn``."""
    if isinstance(layer, BNAndPad):
        return layer.bn
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
        return layer
    return None


def _by_channel(halt: Halt) -> Tensor:
    """Return the layer's input as (C, all other axes)."""
    axis = 2 if getattr(halt.layer, "step_mode", "s") == "m" else 1  # (T, B, C, ...)
    return halt.input.transpose(0, axis).flatten(1)


def _total(parts: object) -> Tensor:
    total: Tensor = sum(parts)  # type: ignore[call-overload]
    return total
