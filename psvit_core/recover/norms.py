"""BatchNorm re-estimation: running statistics of the pruned network, from calibration images.

Pruning shifts what the BatchNorms see, while their running statistics are still those of the
unpruned network. Each layer's statistics are set to the exact mean and variance of its input over
all images, in the order of the network, behind layers that already use their new statistics. So the
result is consistent in evaluation mode, does not depend on the batch size, and needs one forward;
the usual way (training mode, cumulative averages) normalises by batch statistics meanwhile and
gives only an estimate of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from psvit_core.data import EvalSet
from psvit_core.recover.lockstep import Halt, lockstep, run_once
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.layers import BNAndPad


def reestimate_norms(
    model: SpikingModel, data: EvalSet, run: Run, *, memory: int, tick: Callable[[], None]
) -> int:
    """Set the running statistics of ``model``'s BatchNorms in place.

    Layers that a forward runs more than once keep theirs.

    Args:
        model: The pruned model, placed, in evaluation mode.
        data: Calibration images.
        run: Device, batch, precision.
        memory: Bytes that halted batches may hold.
        tick: Called before each step of a batch; may raise to stop.

    Returns:
        The most bytes that halted batches held, by the rough count of ``lockstep``.
    """
    padded = {f"{name}.bn" for name, m in model.named_modules() if isinstance(m, BNAndPad)}
    norms = [
        name
        for name, layer in model.named_modules()
        if name not in padded and _norm(layer) is not None
    ]
    held = 0
    names = run_once(model, norms, data, run)
    steps = lockstep((model,), names, data, run, memory=memory, tick=tick)
    with closing(steps):
        for met in steps:
            halts = [halt for (halt,) in met]
            held = max(held, sum(halt.held_bytes for halt in halts))
            _set_statistics(halts)
    return held


def _set_statistics(halts: Sequence[Halt]) -> None:
    layer = _norm(halts[0].layer)
    assert layer is not None
    assert layer.running_mean is not None
    assert layer.running_var is not None
    channels = [_by_channel(halt) for halt in halts]
    n = sum(x.shape[1] for x in channels)
    mean = _total(x.sum(1, dtype=torch.float64) for x in channels) / n
    spread = _total((x.double() - mean[:, None]).square().sum(1) for x in channels)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(spread / max(n - 1, 1))
    for halt in halts:
        halt.again = True


def _norm(layer: nn.Module) -> nn.modules.batchnorm._BatchNorm | None:
    """The BatchNorm with running statistics that a layer is, or has and applies itself."""
    if isinstance(layer, BNAndPad):
        return layer.bn
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
        return layer
    return None


def _by_channel(halt: Halt) -> Tensor:
    """The layer's input as (C, everything else)."""
    axis = 2 if getattr(halt.layer, "step_mode", "s") == "m" else 1  # (T, B, C, ...)
    return halt.input.transpose(0, axis).flatten(1)


def _total(parts: object) -> Tensor:
    total: Tensor = sum(parts)  # type: ignore[call-overload]
    return total
