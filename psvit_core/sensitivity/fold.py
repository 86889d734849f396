"""Fewer, faster steps with the same result: convolution and BatchNorm as one.

In evaluation mode a BatchNorm scales and shifts each channel, so it can go into the weights and the
bias of the convolution before it. That saves a pass over memory and changes the last bits of the
current, as another order of summation does: predictions are compared with those of the separate
layers (tests/test_fold.py, benchmarks/sweep.py).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core import native
from psvit_core.tape import Made, Step, Tape, Value, Weight

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, F.conv1d, F.conv2d}
_BATCH_NORM = inspect.signature(F.batch_norm)
_SPARSE = 0.35  # a spike-driven convolution is faster below this share of inputs that are not zero,
_SAMPLED_ROW = 16  # looked at in every 16th image and time step,
_WIDE = 32  # from this many channels on both sides (measured, benchmarks/sweep.py)


@dataclass(frozen=True)
class Folded(Made):
    """A convolution's weight and bias as an argument, with the BatchNorm behind it, if any."""

    weight: str
    bias: str | None
    norm: tuple[str, str, str, str] | None  # running mean, running variance, gamma, beta
    eps: float

    def names(self) -> list[str]:
        """The tensors that it is made of."""
        return [n for n in (self.weight, self.bias, *(self.norm or ())) if n is not None]

    def of(self, weights: Mapping[object, Tensor]) -> Filters:
        """The filters that these weights make."""
        weight = weights[self.weight]
        bias = weights[self.bias] if self.bias is not None else None
        if self.norm is not None:
            mean, var, gamma, beta = (weights[name] for name in self.norm)
            scale = gamma / torch.sqrt(var + self.eps)
            shift = -mean if bias is None else bias - mean
            bias = torch.addcmul(beta, shift, scale)
            weight = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
        if weight.dim() == 3:  # along one axis: a map of height 1
            weight = weight.unsqueeze(2)
        return Filters(weight, bias)


@dataclass(frozen=True)
class Filters:
    """Weight (c_out, c_in, kh, kw) and bias of a convolution."""

    weight: Tensor
    bias: Tensor | None

    @cached_property
    def packed(self) -> native.Packed:
        """In the order of the spike-driven loop."""
        return native.pack(self.weight, self.bias)


def convolve(
    x: Tensor, filters: Filters, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """A convolution of maps (rows, C, H, W) or sequences (rows, C, N), dense or spike-driven."""
    if x.dim() == 3:
        return convolve(x.unsqueeze(2), filters, (1, *stride), (0, *padding)).squeeze(2)
    c_out, c_in = filters.weight.shape[:2]
    if min(c_out, c_in) >= _WIDE and native.available(x):
        sample = x[::_SAMPLED_ROW]
        if float((sample != 0).sum()) < _SPARSE * sample.numel():
            return native.spike_conv(x, filters.packed, _pair(stride), _pair(padding))
    return F.conv2d(x, filters.weight, filters.bias, list(stride), list(padding))


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers
    return first, second


def fold(tape: Tape, fixed: frozenset[int]) -> tuple[Tape, frozenset[int]]:
    """A tape with BatchNorms in the convolutions before them.

    Args:
        tape: A forward pass.
        fixed: Positions of some of its steps.

    Returns:
        The new tape and the new positions of those steps; values keep their indices.
    """
    readers: dict[int, list[int]] = {}
    for position, step in enumerate(tape.steps):
        for i in step.inputs():
            readers.setdefault(i, []).append(position)
    new = dict(enumerate(tape.steps))
    for position, step in enumerate(tape.steps):
        if not _foldable(step):
            continue
        passed, norm = _norm_behind(tape, readers, step)
        folded = _folded(step, norm)
        for p in passed:
            del new[p]
        new[position] = dataclasses.replace(folded, out=norm.out) if norm else folded
    order = list(new)
    moved = frozenset(order.index(p) for p in fixed if p in new)
    return dataclasses.replace(tape, steps=tuple(new.values())), moved


def _foldable(step: Step) -> bool:
    if step.call not in _CONVOLUTIONS or len(step.args) != 7 or step.kwargs:
        return False
    _, weight, bias, _, padding, dilation, groups = step.args
    return (
        isinstance(weight, Weight)
        and (bias is None or isinstance(bias, Weight))
        and isinstance(padding, tuple)
        and set(dilation) == {1}
        and groups == 1
    )


def _norm_behind(
    tape: Tape, readers: Mapping[int, list[int]], step: Step
) -> tuple[list[int], Step | None]:
    """The BatchNorm that alone reads a convolution, and the positions up to it."""
    value, passed = step.out, []
    while len(readers.get(value, ())) == 1:
        (position,) = readers[value]
        following = tape.steps[position]
        passed.append(position)
        if following.call is F.batch_norm:
            same = tape.shapes[following.out] == tape.shapes[step.out]
            return (passed, following) if same and _is_plain(following) else ([], None)
        if getattr(following.call, "__name__", "") not in ("flatten", "unflatten"):
            break
        value = following.out
    return [], None


def _is_plain(norm: Step) -> bool:
    """Whether a BatchNorm is one of evaluation with scale and shift."""
    *tensors, training, _, _ = _norm_arguments(norm)
    return all(isinstance(t, Weight) for t in tensors) and training is False


def _norm_arguments(norm: Step) -> list[Any]:
    """Running mean and variance, gamma, beta, training, momentum, eps."""
    return list(_BATCH_NORM.bind(*norm.args, **norm.kwargs).arguments.values())[1:]


def _folded(step: Step, norm: Step | None) -> Step:
    x, weight, bias, stride, padding, _, _ = step.args
    names, eps = None, 0.0
    if norm:
        mean, var, gamma, beta, _, _, eps = _norm_arguments(norm)
        names = (mean.name, var.name, gamma.name, beta.name)
    folded = Folded(weight.name, bias.name if bias else None, names, float(eps))
    assert isinstance(x, Value)
    return Step(convolve, (x, folded, stride, padding), {}, step.out)
