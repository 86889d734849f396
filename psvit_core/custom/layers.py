"""Adapts layers of a user's module so that the engine can count and prune them.

The layers keep their classes, parameters, names and exact results. Only their calls change: the
engine's hooks see rows, (rows, C, ...), whatever leading axes of time and batch the user's module
passes, and a combined q, k, v layer becomes its parts.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.zoo.base import BATCH_NORM


class CountedLayer:
    """Mixin for convolution and linear layers whose hooks see (rows, C, ...).

    Rows are time and batch, merged time-major; the tokens of a linear layer come last.
    """

    n_leading: int  # axes before the channels (and tokens) that merge to rows; 0: never counted
    calls_per_step: int  # calls of one forward that belong to one time step

    def __call__(self, x: Tensor) -> Tensor:
        """Run the layer on the user's axes."""
        if not self.n_leading:
            return self._run(x)
        rows = x.flatten(0, self.n_leading - 1)
        tokens = rows.shape[1:-1] if isinstance(self, nn.Linear) else ()
        if tokens:
            rows = rows.flatten(1, -2).transpose(1, 2)  # (rows, C, N)
        out: Tensor = super().__call__(rows)  # type: ignore[misc]
        if tokens:
            out = out.transpose(1, 2).unflatten(1, tokens)
        return out.unflatten(0, x.shape[: self.n_leading])

    def forward(self, rows: Tensor) -> Tensor:
        """Map (rows, C, ...) to (rows, C', ...)."""
        if isinstance(self, nn.Linear) and rows.dim() == 3:
            return self._run(rows.transpose(1, 2)).transpose(1, 2)
        return self._run(rows)

    def _run(self, x: Tensor) -> Tensor:
        if isinstance(self, nn.Linear) and self.weight.dim() == 3:  # (out, units, pixels)
            return F.linear(x, self.weight.flatten(1), self.bias)
        out: Tensor = super().forward(x)  # type: ignore[misc]
        return out


@functools.cache
def _counted_class(cls: type) -> type:
    return type(cls.__name__, (CountedLayer, cls), {"__module__": cls.__module__})


def make_counted_(layer: nn.Module, n_leading: int, calls_per_step: int) -> None:
    """Make ``layer`` pass rows to its hooks, in place.

    Args:
        layer: A convolution or linear layer.
        n_leading: Axes that merge to rows; 0 hides the layer from hooks.
        calls_per_step: Calls of one forward that belong to one time step.
    """
    if n_leading > 1 and isinstance(layer, base.StepModule):
        layer.step_mode = "s"  # the rows are merged here
    original: Any = type(layer)
    layer.__class__ = _counted_class(original)
    vars(layer).update(n_leading=n_leading, calls_per_step=calls_per_step)


class SplitLayer(nn.Module):
    """A layer split into equal parts, whose outputs are concatenated.

    Args:
        layer: A convolution, linear or BatchNorm layer.
        n_parts: Number of parts of equal width.
    """

    def __init__(self, layer: nn.Module, n_parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_part(layer, i, n_parts) for i in range(n_parts))
        if isinstance(layer, BATCH_NORM):
            self.axis = 2 if getattr(layer, "step_mode", "s") == "m" else 1
        else:  # of the output, from the end
            self.axis = -1 - len(getattr(layer, "kernel_size", ()))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of the original layer; parts may have become narrower."""
        widths = [getattr(part, "num_features", 0) for part in self.parts]
        pieces = x.split(widths, dim=self.axis) if all(widths) else [x] * len(widths)
        return torch.cat([part(p) for part, p in zip(self.parts, pieces, strict=True)], self.axis)


def _part(layer: nn.Module, index: int, n_parts: int) -> nn.Module:
    """Return one part of a layer, with copies of its tensors."""
    part = copy.deepcopy(layer)
    for name, tensor in (*part.named_parameters(), *part.named_buffers()):
        if tensor.dim():
            replace_tensor_(part, name, tensor.detach().chunk(n_parts)[index].clone())
    update_widths_(part)
    return part


def replace_tensor_(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the tensor ``name`` of ``layer``, in place, by one of any shape."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(layer, name, tensor)


def fold_inputs_(linear: nn.Linear, n_pixels: int) -> None:
    """Store the weight as (out, units, pixels), in place, so that a unit is one index."""
    replace_tensor_(linear, "weight", linear.weight.detach().unflatten(1, (-1, n_pixels)))


def update_widths_(layer: nn.Module) -> None:
    """Set the width attributes of ``layer``, in place, to the shapes of its tensors."""
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


def is_countable(layer: nn.Module) -> bool:
    """Return True if the engine can count this layer's spikes exactly.

    Other layers are treated as fed with real values.
    """
    if isinstance(layer, nn.Linear):
        return True
    assert isinstance(layer, nn.modules.conv._ConvNd)
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    grouped = layer.groups > 1 and not is_depthwise(layer)
    long = layer.weight.dim() != 4 and max(*layer.kernel_size, *layer.stride) > 1
    return plain and not grouped and not long and max(layer.dilation) == 1


def is_depthwise(layer: nn.Module) -> bool:
    """Return True if every channel of a convolution has its own filter."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return False
    return layer.groups > 1 and layer.groups == layer.out_channels == layer.in_channels


def shared_copy(module: nn.Module) -> Any:
    """Return a copy that shares all tensors with ``module``."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def meta_copy(module: nn.Module) -> Any:
    """Return a copy whose parameters and saved buffers are on the meta device."""
    saved = set(module.state_dict())
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        if name in saved:
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)
