"""The LIF neuron of exported networks that use SpikingJelly; it knows no integer neuron."""

from __future__ import annotations

from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor


class LIF(neuron.LIFNode):  # type: ignore[misc]
    """SpikingJelly's leaky integrate-and-fire neuron; each call starts from zero state.

    Args:
        v_threshold: Firing threshold.
        atan: Train with the arctangent surrogate; otherwise with the sigmoid.
    """

    def __init__(self, v_threshold: float = 1.0, *, atan: bool = False) -> None:
        super().__init__(
            tau=2.0,
            v_threshold=v_threshold,
            v_reset=0.0,
            decay_input=True,
            detach_reset=True,
            surrogate_function=surrogate.ATan(alpha=2.0) if atan else surrogate.Sigmoid(alpha=4.0),
            step_mode="m",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes of 0.0 and 1.0 for input currents ``x``, both (T, ...)."""
        functional.reset_net(self)
        spikes = super().forward(x)
        functional.reset_net(self)
        return spikes
