"""Layers of a user's module in the form that the engine counts and cuts.

The user's layers keep their classes, parameters, names and bits. What changes is how they are
called: hooks of the engine see rows, (rows, C, ...), whatever leading axes of time and batch the
user's module passes, and a layer that holds q, k and v at once becomes its parts.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Counted:
    """Mixed into the class of a convolution or linear layer: hooks see (rows, C, ...).

    Rows are time and batch, merged time-major; the tokens of a linear layer come last.
    """

    leading: int  # axes before the channels (and tokens) that are merged to rows; 0: never counted
    hooked: int  # calls of one forward that make up one time step
    met: int  # calls of this forward so far, on the meta device

    def __call__(self, x: Tensor) -> Tensor:
        """The layer as the user's module calls it."""
        if not self.leading:
            return self._run(x)
        rows = x.flatten(0, self.leading - 1)
        tokens = rows.shape[1:-1] if isinstance(self, nn.Linear) else ()
        if tokens:
            rows = rows.flatten(1, -2).transpose(1, 2)  # (rows, C, N)
        self.met += rows.is_meta
        hidden = rows.is_meta and self.met > self.hooked
        out: Tensor = self.forward(rows) if hidden else super().__call__(rows)  # type: ignore[misc]
        if tokens:
            out = out.transpose(1, 2).unflatten(1, tokens)
        return out.unflatten(0, x.shape[: self.leading])

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, C, ...) to (rows, C, ...)."""
        if isinstance(self, nn.Linear) and rows.dim() == 3:
            return self._run(rows.transpose(1, 2)).transpose(1, 2)
        return self._run(rows)

    def _run(self, x: Tensor) -> Tensor:
        if isinstance(self, nn.Linear) and self.weight.dim() == 3:  # (out, units, places)
            return F.linear(x, self.weight.flatten(1), self.bias)
        out: Tensor = super().forward(x)  # type: ignore[misc]
        return out


@functools.cache
def _counted_class(cls: type) -> type:
    return type(cls.__name__, (Counted, cls), {"__module__": cls.__module__})


def count_(layer: nn.Module, leading: int, hooked: int) -> None:
    """Make ``layer`` show its calls to hooks as rows; ``leading`` 0 hides it from them."""
    if leading > 1 and isinstance(layer, base.StepModule):
        layer.step_mode = "s"  # the rows are merged here
    own: Any = type(layer)
    layer.__class__ = _counted_class(own)
    vars(layer).update(leading=leading, hooked=hooked, met=0)


class Parts(nn.Module):
    """A layer as the layers of its parts, whose outputs stand one after the other.

    Args:
        layer: A convolution, linear or BatchNorm layer.
        parts: How many parts of equal width.
    """

    def __init__(self, layer: nn.Module, parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_slice(layer, i, parts) for i in range(parts))
        if isinstance(layer, BATCH_NORM):
            self.axis = 2 if getattr(layer, "step_mode", "s") == "m" else 1
        else:  # of the convolution's or linear layer's output, from behind
            self.axis = -1 - len(getattr(layer, "kernel_size", ()))

    def forward(self, x: Tensor) -> Tensor:
        """As the layer; the parts may have become narrower."""
        widths = [getattr(part, "num_features", 0) for part in self.parts]
        pieces = x.split(widths, dim=self.axis) if all(widths) else [x] * len(widths)
        return torch.cat([part(p) for part, p in zip(self.parts, pieces, strict=True)], self.axis)


def _slice(layer: nn.Module, part: int, parts: int) -> nn.Module:
    """One part of a layer, with its own copy of its tensors."""
    own = copy.deepcopy(layer)
    for name, tensor in (*own.named_parameters(), *own.named_buffers()):
        if tensor.dim():
            replace_(own, name, tensor.detach().chunk(parts)[part].clone())
    refit_(own)
    return own


def replace_(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Give ``layer`` another tensor under ``name``, of any shape."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(layer, name, tensor)


def fold_(linear: nn.Linear, places: int) -> None:
    """Store the weight as (out, units, places), so that a unit is one index."""
    replace_(linear, "weight", linear.weight.detach().unflatten(1, (-1, places)))


def refit_(layer: nn.Module) -> None:
    """Make what a layer says of its widths agree with its tensors."""
    shape = [int(n) for n in getattr(getattr(layer, "weight", None), "shape", ())]
    if isinstance(layer, nn.modules.conv._ConvNd):
        if layer.groups > 1:  # depthwise
            layer.groups = shape[0]
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape[0], torch.Size(shape[1:]).numel()
    elif isinstance(layer, BATCH_NORM):
        layer.num_features = shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = shape[0]


def countable(layer: nn.Module) -> bool:
    """Whether the engine counts this layer's spikes exactly; if not, it counts as real-fed."""
    if isinstance(layer, nn.Linear):
        return True
    assert isinstance(layer, nn.modules.conv._ConvNd)
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    grouped = layer.groups > 1 and not is_depthwise(layer)
    long = layer.weight.dim() != 4 and max(*layer.kernel_size, *layer.stride) > 1
    return plain and not grouped and not long and max(layer.dilation) == 1


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every channel has a filter of its own."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return False
    return layer.groups > 1 and layer.groups == layer.out_channels == layer.in_channels


def sharing(module: nn.Module) -> Any:
    """A copy that shares all tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def emptied(module: nn.Module) -> Any:
    """A copy on the meta device: all that the state dict holds as shapes without numbers."""
    saved = set(module.state_dict())
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        if name in saved:
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)
