"""Convolutions fused with the BatchNorm that follows them.

In evaluation mode a BatchNorm scales and shifts each channel, so it can be folded into the weight
and bias of the convolution before it. This saves a pass over memory. Like any other order of
summation, it changes the last bits of the input current: predictions are compared with those of
separate layers in ``tests/incremental/test_fusion.py`` and ``benchmarks/sweep.py``.
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

from psvit_core.incremental.graph import DerivedWeight, Graph, Node, Value, Weight
from psvit_core.incremental.ops import BATCH_NORM, CONVOLUTIONS, FOLDABLE_RESHAPES
from psvit_core.kernels import native
from psvit_core.kernels.packing import PackedFilters, pack

_BATCH_NORM_SIGNATURE = inspect.signature(BATCH_NORM)

# The spike-driven convolution is faster below this share of nonzero inputs, estimated from every
# 16th row (image and time step), if both sides have at least 32 channels (measured:
# benchmarks/sweep.py).
_MAX_NONZERO_SHARE = 0.35
_SAMPLED_ROW = 16
_MIN_CHANNELS = 32


@dataclass(frozen=True)
class Folded(DerivedWeight):
    """Weight and bias of a convolution, with the BatchNorm that follows it folded in, if any."""

    weight: str
    bias: str | None
    norm: tuple[str, str, str, str] | None  # running mean, running variance, gamma, beta
    eps: float
    groups: int = 1  # of the convolution; the same at every width

    def names(self) -> list[str]:
        """Return the names of the tensors that it is computed from."""
        return [n for n in (self.weight, self.bias, *(self.norm or ())) if n is not None]

    def compute(self, weights: Mapping[object, Tensor]) -> Filters:
        """Compute the filters from these weights."""
        weight = weights[self.weight]
        bias = weights[self.bias] if self.bias is not None else None
        if self.norm is not None:
            mean, var, gamma, beta = (weights[name] for name in self.norm)
            scale = gamma / torch.sqrt(var + self.eps)
            shift = -mean if bias is None else bias - mean
            bias = torch.addcmul(beta, shift, scale)
            weight = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
        if weight.dim() == 3:  # a convolution along one axis is one over maps of height 1
            weight = weight.unsqueeze(2)
        return Filters(weight, bias, self.groups)


@dataclass(frozen=True)
class Filters:
    """Weight (c_out, c_in / groups, kh, kw) and bias of a convolution."""

    weight: Tensor
    bias: Tensor | None
    groups: int = 1

    @cached_property
    def packed(self) -> tuple[PackedFilters, ...]:
        """The filters of each group in the memory order of the spike-driven loop."""
        weights = self.weight.chunk(self.groups)
        biases = [None] * self.groups if self.bias is None else self.bias.chunk(self.groups)
        return tuple(pack(weight, bias) for weight, bias in zip(weights, biases, strict=True))


def convolve(
    x: Tensor, filters: Filters, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Convolve maps (rows, C, H, W) or sequences (rows, C, N), spike-driven if that is faster."""
    if x.dim() == 3:
        return convolve(x.unsqueeze(2), filters, (1, *stride), (0, *padding)).squeeze(2)
    c_out, c_in = filters.weight.shape[:2]
    reduced = torch.is_autocast_enabled(x.device.type)  # then torch's, in half precision
    wide = filters.groups == 1 and min(c_out, c_in) >= _MIN_CHANNELS
    if wide and not reduced and native.available(x):
        sample = x[::_SAMPLED_ROW]
        if float((sample != 0).sum()) < _MAX_NONZERO_SHARE * sample.numel():
            return native.spike_conv(x, filters.packed[0], _pair(stride), _pair(padding))
    weight, bias, groups = filters.weight, filters.bias, filters.groups
    return F.conv2d(x, weight, bias, list(stride), list(padding), groups=groups)


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers
    return first, second


def fold(graph: Graph, marked: frozenset[int]) -> tuple[Graph, frozenset[int]]:
    """Fold every BatchNorm of a graph into the convolution before it.

    Args:
        graph: A forward pass.
        marked: Positions of some of its nodes.

    Returns:
        The new graph and the new positions of the marked nodes. Values keep their indices.
    """
    readers: dict[int, list[int]] = {}
    for position, node in enumerate(graph.nodes):
        for i in node.inputs():
            readers.setdefault(i, []).append(position)
    nodes = dict(enumerate(graph.nodes))
    for position, node in enumerate(graph.nodes):
        if not _is_foldable(node):
            continue
        merged, norm = _following_norm(graph, readers, node)
        folded = _folded(node, norm)
        for p in merged:
            del nodes[p]
        nodes[position] = dataclasses.replace(folded, out=norm.out) if norm else folded
    order = list(nodes)
    moved = frozenset(order.index(p) for p in marked if p in nodes)
    return dataclasses.replace(graph, nodes=tuple(nodes.values())), moved


def _is_foldable(node: Node) -> bool:
    """Return whether a node is an undilated convolution with plain weights, but not depthwise.

    The number of groups of a depthwise convolution depends on its width.
    """
    if node.call not in CONVOLUTIONS or len(node.args) != 7 or node.kwargs:
        return False
    _, weight, bias, _, padding, dilation, groups = node.args
    return (
        isinstance(weight, Weight)
        and (bias is None or isinstance(bias, Weight))
        and isinstance(padding, tuple)
        and set(dilation) == {1}
        and isinstance(groups, int)
    )


def _following_norm(
    graph: Graph, readers: Mapping[int, list[int]], conv: Node
) -> tuple[list[int], Node | None]:
    """Return the BatchNorm that is a convolution's only reader, and the positions up to it."""
    value, passed = conv.out, []
    while len(readers.get(value, ())) == 1:
        (position,) = readers[value]
        following = graph.nodes[position]
        passed.append(position)
        if following.call is BATCH_NORM:
            same_shape = graph.shapes[following.out] == graph.shapes[conv.out]
            foldable = same_shape and _is_affine_in_evaluation(following)
            return (passed, following) if foldable else ([], None)
        if following.name not in FOLDABLE_RESHAPES:
            break
        value = following.out
    return [], None


def _is_affine_in_evaluation(norm: Node) -> bool:
    """Return whether a BatchNorm runs in evaluation mode, with scale and shift."""
    *tensors, training, _, _ = _norm_arguments(norm)
    return all(isinstance(t, Weight) for t in tensors) and training is False


def _norm_arguments(norm: Node) -> list[Any]:
    """Return running mean, running variance, gamma, beta, training, momentum and eps."""
    return list(_BATCH_NORM_SIGNATURE.bind(*norm.args, **norm.kwargs).arguments.values())[1:]


def _folded(conv: Node, norm: Node | None) -> Node:
    x, weight, bias, stride, padding, _, groups = conv.args
    names, eps = None, 0.0
    if norm:
        mean, var, gamma, beta, _, _, eps = _norm_arguments(norm)
        names = (mean.name, var.name, gamma.name, beta.name)
    folded = Folded(weight.name, bias.name if bias else None, names, float(eps), groups)
    assert isinstance(x, Value)
    return Node(convolve, (x, folded, stride, padding), {}, conv.out)
