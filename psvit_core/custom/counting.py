"""Finds how a user's module calls its layers, so that the engine's hooks see rows.

The module runs on torch's meta device at two batch sizes: the axis that grows holds the images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from psvit_core.custom.layers import CountedLayer, make_counted_, meta_copy
from psvit_core.custom.network import unsupported_neurons
from psvit_core.errors import ModelError
from psvit_core.groups import COMPUTE_LAYERS

if TYPE_CHECKING:
    from psvit_core.custom.model import CustomModel

Calls = dict[str, list[torch.Size]]  # layer -> shape of its input, call by call


def count_layers_(model: CustomModel, net: nn.Module) -> None:
    """Make every layer pass rows to the engine's hooks, in place, according to how it is called.

    Args:
        model: The model, whose layers are not counted yet.
        net: Its user's module.
    """
    calls_of_two, calls_of_three = (_layer_inputs(model, batch) for batch in (2, 3))
    for name, layer in net.named_modules():
        if not isinstance(layer, COMPUTE_LAYERS) or isinstance(layer, CountedLayer):
            continue
        two, three = calls_of_two.get(name, []), calls_of_three.get(name, [])
        if not two:
            continue  # never called
        n_leading, n_calls = _count_leading_axes(two, three), _calls_per_step(two, model.T)
        if isinstance(layer, nn.Linear):  # its inputs may have to be folded as well
            make_counted_(layer, n_leading, n_calls)
            continue
        n_axes = n_leading + 1 + len(layer.kernel_size)  # (..., C, H, W)
        if (n_leading, n_axes, n_calls) != (1, len(two[0]), len(two)):
            make_counted_(layer, n_leading if n_axes == len(two[0]) else 0, n_calls)


def _calls_per_step(shapes: list[torch.Size], T: int) -> int:
    """Return a layer's calls per time step from its input shapes at a batch of 2."""
    looped = T > 1 and len(shapes) % T == 0 and all(s[0] == 2 for s in shapes)
    return len(shapes) // T if looped else len(shapes)


def _layer_inputs(model: CustomModel, batch: int) -> Calls:
    """Return the input shapes of every call of every convolution and linear layer."""
    calls: Calls = {}
    empty = meta_copy(model)
    for name, layer in empty.net.named_modules():
        if isinstance(layer, COMPUTE_LAYERS):
            layer.register_forward_pre_hook(
                lambda _m, inputs, name=name: calls.setdefault(name, []).append(inputs[0].shape)
            )
    x = torch.empty(batch, *model.input_shape, dtype=model.dtype, device="meta")
    try:
        with torch.no_grad():
            empty.eval()(x)
    except ModelError as error:
        if kinds := unsupported_neurons(model.net):
            raise ModelError(f"{error}. Its neurons {kinds} are not supported.") from error
        raise
    return calls


def _count_leading_axes(two: list[torch.Size], three: list[torch.Size]) -> int:
    """Return the number of axes up to the batch axis, or 0 if it cannot be determined.

    Args:
        two: A layer's input shapes, call by call, at a batch of 2.
        three: The same at a batch of 3.
    """
    counts = set()
    for a, b in zip(two, three, strict=False):
        axes = [i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m != n]
        is_batch = len(axes) == 1 and len(a) == len(b) and 3 * a[axes[0]] == 2 * b[axes[0]]
        counts.add(axes[0] + 1 if is_batch else 0)
    return counts.pop() if len(two) == len(three) and len(counts) == 1 else 0
