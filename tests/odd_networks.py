"""Small networks that differ from the zoo in one way each: the plugin for tests of such kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import psvit_core
from tests.own_models import CLASSES as CLASSES
from tests.own_models import SHAPE as SHAPE
from tests.own_models import warmed

T = 4
Net = TypeVar("Net", bound=nn.Module)


class Block(nn.Sequential):
    """A convolution with BatchNorm and neuron."""

    def __init__(self, conv: nn.Conv2d, width: int) -> None:
        super().__init__()
        self.conv, self.norm = conv, layer.BatchNorm2d(width)
        self.fire: nn.Module = neuron.LIFNode()


class Chain(nn.Module):
    """Stem, a middle convolution and a tail; ``step`` takes what the step mode says."""

    def __init__(self, middle: nn.Conv2d, n_in: int = 6, n_out: int = 6, channels: int = 1) -> None:
        super().__init__()
        self.stem = Block(layer.Conv2d(channels, n_in, 3, padding=1, bias=False), n_in)
        self.middle = Block(middle, n_out)
        self.tail = Block(layer.Conv2d(n_out, 6, 3, padding=1, stride=2, bias=False), 6)
        self.head = layer.Linear(6, CLASSES)

    def step(self, x: Tensor) -> Tensor:
        x = self.tail(self.middle(self.stem(x)))
        out: Tensor = self.head(x.mean((-2, -1)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def conv(n_in: int = 6, n_out: int = 6, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    made: nn.Conv2d = layer.Conv2d(n_in, n_out, 3, padding=1, groups=groups, bias=bias)
    return made


def ready(net: Net, mode: str = "m", channels: int = 1) -> Net:
    """Return a network with seeded weights whose neurons fire, in one of the step modes."""
    functional.set_step_mode(net, mode)
    shape = (channels, *SHAPE[1:])
    takes_sequences = mode == "m" or isinstance(net, SequenceLoop)
    warmed(net, shape, T if takes_sequences else None)
    return net


# ---- grouped convolutions --------------------------------------------------------------------


class Bottleneck(nn.Module):
    """ResNeXt's block: a grouped convolution between two pointwise ones, and a shortcut."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.reduce = Block(layer.Conv2d(width, inner, 1, bias=False), inner)
        self.grouped = Block(conv(inner, inner, groups), inner)
        self.expand = layer.Conv2d(inner, width, 1, bias=False)
        self.norm, self.fire = layer.BatchNorm2d(width), neuron.LIFNode()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.expand(self.grouped(self.reduce(x))))
        out: Tensor = self.fire(y) + x
        return out


class ResNeXt(nn.Module):
    """Two bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(conv(1, 6), 6)
        self.blocks = nn.Sequential(Bottleneck(6, 8, 2), Bottleneck(6, 8, 4))
        self.head = layer.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((-2, -1)))
        return out


class Separable(Chain):
    """A depthwise convolution, with its number of groups as written in many networks."""

    def __init__(self, multiplier: int = 1) -> None:
        super().__init__(conv(6 * multiplier, 6), 6, 6)
        wide = 6 * multiplier
        self.deep = Block(conv(6, wide, groups=6), wide)

    def step(self, x: Tensor) -> Tensor:
        x = self.tail(self.middle(self.deep(self.stem(x))))
        out: Tensor = self.head(x.mean((-2, -1)))
        return out


# ---- shared parameters -----------------------------------------------------------------------


def tied() -> Twins:
    """Return a network whose second and third convolution share their weight."""
    net = ready(Twins())
    net.second.conv.weight = net.first.conv.weight
    return net


class Twins(Chain):
    """Two equal convolutions between stem and tail; the stem and the tail can be pruned."""

    def __init__(self) -> None:
        super().__init__(conv(4, 6), 4, 6)
        self.before = Block(conv(4, 6), 6)
        self.first, self.second = Block(conv(6, 6), 6), Block(conv(6, 6), 6)
        self.middle = Block(conv(6, 6), 6)

    def step(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.before(self.stem(x))))
        out: Tensor = self.head(self.tail(self.middle(x)).mean((-2, -1)))
        return out


def same_memory() -> nn.Module:
    """Return a network of two parameters that are one memory."""
    net = ready(Twins())
    net.second.conv.weight.data = net.first.conv.weight.data
    return net


def overlapping() -> nn.Module:
    """Return a network in which a parameter is a part of another."""
    net = ready(Twins())
    whole = net.middle.conv.weight.data
    net.before.conv.weight = nn.Parameter(whole[:, :4])
    return net


class TwoNames(Chain):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__(conv())
        self.alias = self.tail


# ---- loops over time -------------------------------------------------------------------------


class Loop(Chain):
    """Runs its time steps itself, each in single-step mode."""

    T = 3

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(x) for _ in range(Loop.T)]).mean(0)


class SequenceLoop(Chain):
    """Takes a sequence and runs one step after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(frame) for frame in x])


class LoopedSeparable(SequenceLoop, Separable):
    """The depthwise convolution in a loop over time."""


# ---- buffers, types, attributes --------------------------------------------------------------


class Window(Chain):
    """Multiplies its input with a buffer that is not saved."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__(conv())
        self.register_buffer("window", torch.linspace(0.5, 1.5, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x * self.window)


class CastsImages(Chain):
    """Casts its images to single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x.to(torch.float32))


class Keeps(Chain):
    """Keeps activations, as for a visualization."""

    def __init__(self) -> None:
        super().__init__(conv())
        self.kept: dict[str, list[Tensor]] = {"stem": []}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["stem"] = [self.stem(x)]
        return self.step(x)


def keeps_activations() -> nn.Module:
    net = ready(Keeps())
    net(torch.randn(T, 2, *SHAPE))
    functional.reset_net(net)
    return net


class Locked(Chain):
    """Has an attribute that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(conv())
        vars(self.tail)["guard"] = threading.Lock()


def masked(leaf: str) -> nn.Module:
    net = ready(Chain(conv(bias=True)))
    prune.random_unstructured(net.middle.conv, leaf, 0.3)
    return net


class Timed(Loop):
    """Has an attribute ``T`` that is no number."""

    def __init__(self, steps: Any) -> None:
        super().__init__(conv())
        self.T = steps


class Fails(Chain):
    """Raises in one of its methods."""

    def __init__(self, where: str, error: BaseException | None = None) -> None:
        super().__init__(conv())
        self.where, self.error = where, error or ValueError("the\nuser's error")

    def forward(self, x: Tensor) -> Tensor:
        alone = self.where == "alone" and x.shape[1] == 1
        if alone or self.where == "forward":
            raise self.error
        return self.step(x)

    def extra_repr(self) -> str:
        if self.where == "repr":
            raise self.error
        return ""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if self.where == "state":
            raise self.error
        return super().state_dict(*args, **kwargs)


class FailingState(base.MemoryModule):  # type: ignore[misc]  # SpikingJelly has no types
    """Raises when its state is reset."""

    def reset(self) -> None:
        raise ValueError("the user's error")


def fails_on_reset() -> nn.Module:
    net = ready(Chain(conv()))
    net.state = FailingState()
    return net


def exits() -> nn.Module:
    raise SystemExit(0)


# ---- weights ---------------------------------------------------------------------------------


class NormalizedLogits(Chain):
    """Normalizes its logits."""

    def __init__(self) -> None:
        super().__init__(conv())
        self.norm = layer.BatchNorm1d(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.step(x))
        return out


def with_value(name: str, value: float, net: nn.Module | None = None) -> nn.Module:
    """Return a network with one value of a tensor replaced."""
    net = ready(net or Chain(conv(bias=True)))
    net.state_dict()[name].view(-1)[-1] = value
    return net


def computed(how: str) -> nn.Module:
    """Return a network with a weight that is computed from others."""
    net = ready(Chain(conv()))
    rules: dict[str, Callable[[nn.Module], Any]] = {
        "parametrization": parametrizations.weight_norm,
        "spectral": parametrizations.spectral_norm,
        "hook": nn.utils.weight_norm,
    }
    rules[how](net.middle.conv)
    return net.eval()


# ---- neurons ---------------------------------------------------------------------------------


class OwnNeuron(base.MemoryModule):  # type: ignore[misc]  # SpikingJelly has no types
    """A neuron of the user's own, without SpikingJelly's base class of neurons."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0.5).to(x.dtype) + 0 * x


def fires_with(fire: Callable[[], nn.Module], everywhere: bool = True) -> nn.Module:
    """Return a network with another neuron, in every place or only in the middle."""
    net = Chain(conv())
    net.middle.fire = fire()
    if everywhere:
        net.stem.fire, net.tail.fire = fire(), fire()
    return ready(net)


#: Name -> (build, T). Registered for images of ``SHAPE``.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "odd_grouped": (lambda: ready(Chain(conv(6, 9, 3), 6, 9)), T),
    "odd_half_grouped": (lambda: ready(Chain(conv(6, 6, 2))), T),
    "odd_resnext": (lambda: ready(ResNeXt()), T),
    "odd_depthwise": (lambda: ready(Separable()), T),
    "odd_looped_depthwise": (lambda: ready(LoopedSeparable(), "s"), T),
    "odd_looped_multiplier": (lambda: ready(LoopedSeparable(2), "s"), T),
    "odd_multiplier": (lambda: ready(Separable(2)), T),
    "odd_tied": (tied, T),
    "odd_same_memory": (same_memory, T),
    "odd_overlapping": (overlapping, T),
    "odd_two_names": (lambda: ready(TwoNames()), T),
    "odd_loop": (lambda: ready(Loop(conv()), "s"), None),
    "odd_sequence_loop": (lambda: ready(SequenceLoop(conv()), "s"), T),
    "odd_window": (lambda: ready(Window()), T),
    "odd_casts": (lambda: ready(CastsImages(conv())), T),
    "odd_casts_bias": (lambda: ready(CastsImages(conv(bias=True))).double(), T),
    "odd_keeps": (keeps_activations, T),
    "odd_locked": (lambda: ready(Locked()), T),
    "odd_masked": (lambda: masked("weight"), T),
    "odd_masked_bias": (lambda: masked("bias"), T),
    "odd_no_steps": (lambda: ready(Timed(None), "s"), None),
    "odd_word_steps": (lambda: ready(Timed("four"), "s"), None),
    "odd_half_step": (lambda: ready(Timed(2.5), "s"), None),
    "odd_repr": (lambda: ready(Fails("repr")), T),
    "odd_state": (lambda: ready(Fails("state")), T),
    "odd_alone": (lambda: ready(Fails("alone")), T),
    "odd_exits": (exits, T),
    "odd_reset": (fails_on_reset, T),
    "odd_psn": (lambda: fires_with(lambda: neuron.PSN(T=T)), T),
    "odd_other_steps": (lambda: fires_with(lambda: neuron.PSN(T=T)), T + 2),
    "odd_double": (lambda: ready(Chain(conv(bias=True))).double(), T),
}


def register() -> None:
    """Register all networks, as a plugin does."""
    for name, (build, steps) in NETWORKS.items():
        psvit_core.register_model(
            name, build, input_shape=SHAPE, num_classes=CLASSES, T=steps, data="digits"
        )
