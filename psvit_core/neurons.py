"""The spiking neurons of the zoo, stateless from the outside.

``LIF`` is SpikingJelly's ``LIFNode`` (its parameters, surrogate and numerics) whose forward starts
from zero state, leaves none behind and runs on the kernels of ``fused``. ``IntegerLIF`` is the
integer-valued neuron of E-SpikeFormer, which has no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from psvit_core import fused

_eager = False


@contextmanager
def eager_neurons() -> Iterator[None]:
    """Run SpikingJelly's own multi-step forward inside the block: the reference for ``fused``."""
    global _eager
    before, _eager = _eager, True
    try:
        yield
    finally:
        _eager = before


class LIF(neuron.LIFNode):  # type: ignore[misc]
    """Leaky integrate-and-fire neuron of Spikformer, SDT v1, SDT v2 and QKFormer.

    ``forward`` takes and returns (T, ...), time first; each call starts from zero state.

    Args:
        v_threshold: 1.0 everywhere but after an attention product, where it is 0.5.
    """

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__(
            tau=2.0,
            v_threshold=v_threshold,
            v_reset=0.0,
            decay_input=True,
            detach_reset=True,
            surrogate_function=surrogate.Sigmoid(alpha=fused.SURROGATE_ALPHA),
            step_mode="m",
        )

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes (T, ...) of 0.0 and 1.0 for the input current ``x_seq`` (T, ...)."""
        if not _eager:
            return fused.lif(x_seq, self.v_threshold)
        functional.reset_net(self)
        spikes = super().forward(x_seq)
        functional.reset_net(self)
        return spikes


class _RoundClamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, levels: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.levels = levels
        return x.clamp(0, levels).round()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ((x >= 0) & (x <= ctx.levels)), None


class IntegerLIF(nn.Module):
    """Integer-valued neuron: ``round(clamp(x, 0, 4)) / norm``, straight-through gradient.

    One output of ``k / norm`` stands for ``k`` spikes in ``levels`` sub-steps at deployment.

    Args:
        norm: Divisor of the output; 4 everywhere but before the head, where it is 1.
        levels: Largest integer level.

    Source:
        Yao et al. 2025, Scaling Spike-driven Transformer, TPAMI.
    """

    def __init__(self, norm: int = 4, levels: int = 4) -> None:
        super().__init__()
        self.norm = norm
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Levels over ``norm``, shaped like ``x``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _RoundClamped.apply(x, self.levels) / self.norm
        return fused.integer_lif(x, self.levels, self.norm)


#: Every neuron class of the zoo: the layers whose firing is measured.
NEURONS = (LIF, IntegerLIF)


def spikes_per_unit(module: nn.Module) -> int:
    """How many spikes an output of 1.0 of this neuron stands for (1 for LIF, norm for integers)."""
    return module.norm if isinstance(module, IntegerLIF) else 1
