"""Spiking neurons of the model zoo, without visible state.

``LIF`` is SpikingJelly's ``LIFNode`` with the same parameters, surrogate and numerics. Its forward
starts from zero state, leaves none and runs on ``psvit_core.kernels.lif``. ``IntegerLIF`` is the
integer-valued neuron of E-SpikeFormer and has no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from psvit_core.kernels import lif


@contextmanager
def eager_neurons() -> Iterator[None]:
    """Run SpikingJelly's multi-step forward inside the block, the reference for our kernels."""
    before, LIF.eager = LIF.eager, True
    try:
        yield
    finally:
        LIF.eager = before


class LIF(neuron.LIFNode):  # type: ignore[misc]
    """Leaky integrate-and-fire neuron of all families but E-SpikeFormer.

    ``forward`` takes and returns (T, ...), time first; each call starts from zero state.

    Args:
        v_threshold: Firing threshold; 0.5 after most attention products, 1.0 elsewhere.
        atan: Train with the arctangent surrogate, as SpikingResformer; otherwise with the sigmoid.
    """

    eager: ClassVar[bool] = False  # set by ``eager_neurons``

    def __init__(self, v_threshold: float = 1.0, *, atan: bool = False) -> None:
        super().__init__(
            tau=2.0,
            v_threshold=v_threshold,
            v_reset=0.0,
            decay_input=True,
            detach_reset=True,
            surrogate_function=surrogate.ATan(alpha=lif.ATAN_ALPHA)
            if atan
            else surrogate.Sigmoid(alpha=lif.SURROGATE_ALPHA),
            step_mode="m",
        )
        self.atan = atan

    def forward(self, x_seq: Tensor) -> Tensor:
        """Return spikes of 0.0 and 1.0 for the input current ``x_seq``, both (T, ...)."""
        if not self.eager:
            if self.atan:
                return lif.lif(x_seq, self.v_threshold, atan=True)
            return lif.lif(x_seq, self.v_threshold)
        functional.reset_net(self)
        spikes = super().forward(x_seq)
        functional.reset_net(self)
        return spikes


class _RoundClamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, half_up: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.levels, ctx.half_up = levels, half_up
        return lif.integer_lif(x, levels, 1, half_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.half_up:  # as published with it: the limits themselves pass no gradient
            return grad * ((x > 0) & (x < ctx.levels)), None, None
        return grad * ((x >= 0) & (x <= ctx.levels)), None, None


class IntegerLIF(nn.Module):
    """Integer-valued neuron: ``round(clamp(x, 0, 4)) / norm``, straight-through gradient.

    An output of ``k / norm`` represents ``k`` spikes in ``levels`` sub-steps at deployment.

    Args:
        norm: Divisor of the output; 1 before the head, 4 elsewhere.
        levels: Largest integer level.
        half_up: Round halves up, as in the large models; otherwise to the nearest even number.

    Source:
        Yao et al. 2025, Scaling Spike-driven Transformer, TPAMI.
    """

    def __init__(self, norm: int = 4, levels: int = 4, half_up: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.levels = levels
        self.half_up = half_up

    def forward(self, x: Tensor) -> Tensor:
        """Return levels divided by ``norm``, with the shape of ``x``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _RoundClamped.apply(x, self.levels, self.half_up) / self.norm
        return lif.integer_lif(x, self.levels, self.norm, self.half_up)


#: All neuron classes of the zoo, whose firing is measured.
NEURONS = (LIF, IntegerLIF)


def spikes_per_unit(module: nn.Module) -> int:
    """Return the number of spikes that an output of 1.0 represents: 1 for LIF, else ``norm``."""
    return module.norm if isinstance(module, IntegerLIF) else 1


def stays_silent(neuron: nn.Module) -> bool:
    """Return True if a SpikingJelly neuron never fires without input.

    Only then does removing a unit equal silencing it.
    """
    v_reset, v_threshold = getattr(neuron, "v_reset", 0), getattr(neuron, "v_threshold", 1.0)
    return v_reset in (0, None) and float(v_threshold) > 0
