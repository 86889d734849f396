"""Spiking neurons of exported networks, in torch alone.

An export contains the classes of this module, or those of ``spikingjelly_neurons``. Their spikes
have the bits of ``psvit_core.neurons``, and their gradients are those of its surrogates.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Spike(torch.autograd.Function):
    """Spikes of membrane potentials, with a surrogate gradient: sigmoid or arctangent."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, v_threshold: float, atan: bool) -> Tensor:
        """Return 1.0 where the potential ``h`` reaches the threshold, else 0.0."""
        ctx.save_for_backward(h - v_threshold)
        ctx.atan = atan
        return (h >= v_threshold).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the potential."""
        (distance,) = ctx.saved_tensors
        if ctx.atan:
            return grad / (1 + (math.pi * distance) ** 2), None, None
        gate = torch.sigmoid(4.0 * distance)
        return grad * (1.0 - gate) * gate * 4.0, None, None


class LIF(nn.Module):
    """Leaky integrate-and-fire neuron; each call starts from zero state and leaves none.

    Args:
        v_threshold: Firing threshold.
        atan: Train with the arctangent surrogate; otherwise with the sigmoid.
    """

    def __init__(self, v_threshold: float = 1.0, *, atan: bool = False) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.atan = atan

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of 0.0 and 1.0 for input currents ``x``, both (T, ...)."""
        trains = torch.is_grad_enabled() and x.requires_grad
        v = torch.zeros_like(x[0])
        spikes = []
        for current in x.unbind(0):
            h = v + (current - v) * 0.5
            fired = h >= self.v_threshold
            spikes.append(Spike.apply(h, self.v_threshold, self.atan) if trains else fired.to(h))
            v = torch.where(fired, 0.0, h)  # the reset passes no gradient
        return torch.stack(spikes)


class RoundClamped(torch.autograd.Function):
    """Levels 0 to ``levels``; the gradient passes straight through between the limits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, half_up: bool) -> Tensor:
        """Return the rounded levels."""
        ctx.save_for_backward(x)
        ctx.levels, ctx.half_up = levels, half_up
        return rounded_levels(x, levels, half_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the input."""
        (x,) = ctx.saved_tensors
        if ctx.half_up:
            return grad * ((x > 0) & (x < ctx.levels)), None, None
        return grad * ((x >= 0) & (x <= ctx.levels)), None, None


def rounded_levels(x: Tensor, levels: int, half_up: bool) -> Tensor:
    """Clamp to 0 ... ``levels`` and round, halves up or to the nearest even number."""
    clamped = x.clamp(0, levels)
    return (clamped + 0.5).floor() if half_up else clamped.round()


class IntegerLIF(nn.Module):
    """Integer-valued neuron: ``round(clamp(x, 0, levels)) / norm``.

    An output of ``k / norm`` represents ``k`` spikes in ``levels`` sub-steps at deployment.

    Args:
        norm: Divisor of the output.
        levels: Largest integer level.
        half_up: Round halves up; otherwise to the nearest even number.
    """

    def __init__(self, norm: int = 4, levels: int = 4, half_up: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.levels = levels
        self.half_up = half_up

    def forward(self, x: Tensor) -> Tensor:
        """Return levels divided by ``norm``, with the shape of ``x``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return RoundClamped.apply(x, self.levels, self.half_up) / self.norm
        return rounded_levels(x, self.levels, self.half_up) / self.norm
