"""Translation of graph nodes into operations of a native program.

Each kind of node has a function that appends operations to a ``ProgramBuilder`` and defines the
node's value. ``lower`` finds it by the torch call, or by the call's name, because torch has several
functions for one operation.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.incremental.builder import ProgramBuilder
from psvit_core.incremental.fusion import convolve
from psvit_core.incremental.graph import Graph, Node, WeightLength
from psvit_core.incremental.ops import ARITHMETIC, LOWERED_RESHAPES
from psvit_core.kernels import lif, ops
from psvit_core.kernels.ops import MAPS_LAST, UnsupportedError, memory_order, output_size
from psvit_core.kernels.packing import PackedFilters
from psvit_core.kernels.structs import Conv, Function
from psvit_core.zoo.layers import bn_and_pad, scale_channels
from psvit_core.zoo.products import first_parts, last_parts, patch_scores, patch_values

_Lowering = Callable[[ProgramBuilder, Node], None]

_FUNCTIONS = {call: Function[name.upper()] for call, name in ARITHMETIC.items()}
_BATCH_NORM_ARGUMENTS = tuple(inspect.signature(F.batch_norm).parameters)
_STATISTICS = ("running_mean", "running_var", "weight", "bias")
_POOL_ARGUMENTS = (
    "input",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "ceil_mode",
    "return_indices",
)


def lower(builder: ProgramBuilder, node: Node) -> None:
    """Append the operations of one node.

    Raises:
        UnsupportedError: If native programs have no operation for it.
    """
    function = _lowering_of(node.call)
    if function is None:
        raise UnsupportedError(_name(node))
    builder.load_inputs(node)
    function(builder, node)
    builder.end_node()


def first_unsupported(nodes: Iterable[Node]) -> str | None:
    """Return the name of the first call that has no native operation; None if all have one."""
    for node in nodes:
        if node.tuple_length is not None or _lowering_of(node.call) is None:
            return _name(node)
        is_depthwise = any(isinstance(argument, WeightLength) for argument in node.args)
        if _lowering_of(node.call) is _lower_depthwise and not is_depthwise:
            return f"{_name(node)} with these groups, padding or dilation"
    return None


def fusible_convolutions(graph: Graph) -> dict[int, int]:
    """Find the neurons that can be fused into the convolution before them.

    Returns:
        For the input of each such neuron, the output of the convolution that it is a view of.
    """
    n_readers: dict[int, int] = {}
    computed_by: dict[int, Node] = {}
    for node in graph.nodes:
        computed_by[node.out] = node
        for index in node.inputs():
            n_readers[index] = n_readers.get(index, 0) + 1
    fusible = {}
    for node in graph.nodes:
        if node.call not in (lif.lif, lif.integer_lif):
            continue
        (neuron_input,) = node.inputs()
        index = neuron_input
        while n_readers[index] == 1 and index in computed_by:
            before = computed_by[index]
            if before.call is convolve:
                fusible[neuron_input] = index
                break
            if _name(before) not in LOWERED_RESHAPES:
                break
            (index,) = before.inputs()
    return fusible


def _name(node: Node) -> str:
    return getattr(node.call, "__name__", str(node.call))


def _named(names: Sequence[str], node: Node) -> dict[str, Any]:
    """Return the arguments of a node by name, without the defaults."""
    if len(node.args) > len(names) or not node.kwargs.keys() <= set(names):
        raise UnsupportedError(f"{_name(node)} with these arguments")
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


@functools.cache
def _lowering_of(call: Callable[..., Any]) -> _Lowering | None:
    return _BY_CALL.get(call) or _BY_NAME.get(getattr(call, "__name__", ""))


# ---- views and elementwise operations --------------------------------------------------------


def _lower_view(builder: ProgramBuilder, node: Node) -> None:
    (index,) = node.inputs()
    source = builder.values[index]
    layout = builder.layouts.view(node, source, builder.weights, builder.per_run)
    if layout is not None:
        builder.define_view(node.out, _strided(source, *layout), index)
        return
    copied = builder.allocate(source.shape, range(source.dim()))
    builder.emit(ops.elementwise(Function.COPY, copied, source))
    layout = builder.layouts.view(node, copied, builder.weights, builder.per_run)
    assert layout is not None  # every view of a contiguous tensor is one of its memory
    builder.define(node.out, _strided(copied, *layout), memory=copied)


def _strided(base: Tensor, shape: Sequence[int], strides: Sequence[int], offset: int) -> Tensor:
    return base.as_strided(shape, strides, base.storage_offset() + offset)


def _lower_double(builder: ProgramBuilder, node: Node) -> None:
    """Keep spike counts as they are: whole numbers that float32 represents too."""
    (index,) = node.inputs()
    builder.define_view(node.out, builder.values[index], index)


def _lower_elementwise(builder: ProgramBuilder, node: Node, function: Function) -> None:
    if node.kwargs or len(node.args) != 2:
        raise UnsupportedError(_name(node))
    left, right = map(builder.operand, node.args)
    builder.define(node.out, _emit_elementwise(builder, function, left, right))


def _emit_elementwise(builder: ProgramBuilder, function: Function, *operands: Tensor) -> Tensor:
    shape = operands[0].shape
    if any(x.shape != shape for x in operands[1:]):
        shape = torch.Size(np.broadcast_shapes(*(x.shape for x in operands)))
        operands = tuple(x if x.shape == shape else x.expand(shape) for x in operands)
    # The result has the memory order of an operand that is not broadcast.
    like = next((x for x in operands if 0 not in x.stride()), operands[0])
    target = builder.allocate(shape, memory_order(like.stride()))
    builder.emit(ops.elementwise(function, target, *operands))
    return target


# ---- neurons ---------------------------------------------------------------------------------


def _lower_lif(builder: ProgramBuilder, node: Node) -> None:
    (index,) = node.inputs()
    threshold = float(node.args[1])
    x = builder.values[index]
    conv = builder.conv_before(index)
    if conv is not None and x.stride(0) * x.shape[0] == x.numel():
        conv.lif_steps, conv.lif_threshold = x.shape[0], threshold
        builder.define_view(node.out, x, index)
        return
    order = [0, *(axis for axis in memory_order(x.stride()) if axis != 0)]
    if not _is_dense(x[0], [axis - 1 for axis in order[1:]]):
        copied = builder.allocate_temporary(x.shape, order)
        builder.emit(ops.elementwise(Function.COPY, copied, x))
        x = copied
    target = builder.allocate(x.shape, order)
    builder.emit(ops.lif(target, x, threshold))
    builder.define(node.out, target)


def _lower_integer_lif(builder: ProgramBuilder, node: Node) -> None:
    (index,) = node.inputs()
    levels, norm, half_up = (int(a) for a in (*node.args[1:], *node.kwargs.values()))
    x = builder.values[index]
    conv = builder.conv_before(index)
    if conv is not None:
        conv.integer_levels, conv.integer_norm = levels, norm
        conv.integer_half_up = half_up
        builder.define_view(node.out, x, index)
        return
    target = builder.allocate(x.shape, memory_order(x.stride()))
    builder.emit(
        ops.elementwise(
            Function.INTEGER_LIF, target, x, levels=levels, norm=norm, half_up=bool(half_up)
        )
    )
    builder.define(node.out, target)


def _is_dense(x: Tensor, order: Sequence[int]) -> bool:
    """Return whether ``x`` fills its memory without gaps, with its axes in this order."""
    n = 1
    for axis in reversed(order):
        if x.shape[axis] != 1 and x.stride(axis) != n:
            return False
        n *= x.shape[axis]
    return True


# ---- convolutions, pooling and products ------------------------------------------------------


def _lower_convolution(builder: ProgramBuilder, node: Node) -> None:
    x, derived, stride, padding = node.args
    source, filters = builder.values[x.index], builder.weights[derived]
    sequence = source.dim() == 3  # (rows, channels, n): a map of height 1
    if sequence:
        source, stride, padding = source.unsqueeze(2), (1, *stride), (0, *padding)
    c_out, _, *kernel = filters.weight.shape
    size = tuple(map(output_size, source.shape[2:], kernel, stride, padding))
    target = builder.allocate((len(source), c_out, *size), MAPS_LAST)
    result = target.squeeze(2) if sequence else target
    if filters.groups == 1:
        operation = _emit_conv(builder, target, source, filters.packed[0], (stride, padding))
        builder.define_conv(node.out, result, operation)
        return
    # Each group is a convolution of its own, whose output is copied to its channels.
    part = builder.allocate_temporary((len(source), c_out // filters.groups, *size), MAPS_LAST)
    inputs, outputs = (x.chunk(filters.groups, dim=1) for x in (source, target))
    for given, wanted, packed in zip(inputs, outputs, filters.packed, strict=True):
        _emit_conv(builder, part, given, packed, (stride, padding))
        builder.emit(ops.elementwise(Function.COPY, wanted, part))
    builder.define(node.out, result, memory=target)


def _emit_conv(
    builder: ProgramBuilder,
    target: Tensor,
    source: Tensor,
    packed: PackedFilters,
    stride_and_padding: tuple[tuple[int, int], tuple[int, int]],
) -> Conv:
    builder.keep(packed.weight)
    builder.keep(packed.bias)
    operation = ops.conv(target, source, packed, *stride_and_padding)
    builder.emit(operation, ops.conv_scratch_bytes(operation, target.element_size()))
    return operation


def _lower_depthwise(builder: ProgramBuilder, node: Node) -> None:
    x, weight, bias, stride, padding, dilation, _ = node.args
    filters = builder.operand(weight)
    source = _channels_last(builder, builder.values[x.index])
    rows, channels, *size = source.shape
    plain = isinstance(padding, tuple) and set(dilation) == {1}
    if filters.shape[:2] != (channels, 1) or not plain:
        raise UnsupportedError("a convolution that is not depthwise")
    size = list(map(output_size, size, filters.shape[2:], stride, padding))
    target = builder.allocate((rows, channels, *size), MAPS_LAST)
    reordered = builder.keep(filters.squeeze(1).permute(1, 2, 0).contiguous())
    shift = builder.operand(bias) if bias is not None else None
    builder.emit(ops.depthwise(target, source, reordered, shift, stride, padding))
    builder.define(node.out, target)


def _channels_last(builder: ProgramBuilder, x: Tensor) -> Tensor:
    """Return channels-last maps: the given ones, or a copy for the current node."""
    if x.stride(1) == 1:
        return x
    copied = builder.allocate_temporary(x.shape, MAPS_LAST)
    builder.emit(ops.elementwise(Function.COPY, copied, x))
    return copied


def _lower_max_pool(builder: ProgramBuilder, node: Node) -> None:
    given = _named(_POOL_ARGUMENTS, node)
    kernel, padding = given["kernel_size"], given.get("padding", 0)
    stride = kernel if given.get("stride") is None else given["stride"]
    plain = given.get("dilation", 1) == 1 and not (
        given.get("ceil_mode", False) or given.get("return_indices", False)
    )
    if not plain or not all(isinstance(n, int) for n in (kernel, stride, padding)):
        raise UnsupportedError("a pooling of this kind")
    source = _channels_last(builder, builder.values[given["input"].index])
    rows, channels, *size = source.shape
    size = [output_size(n, kernel, stride, padding) for n in size]
    target = builder.allocate((rows, channels, *size), MAPS_LAST)
    builder.emit(ops.max_pool(target, source, kernel, stride, padding))
    builder.define(node.out, target)


def _lower_matmul(builder: ProgramBuilder, node: Node) -> None:
    left, right = map(builder.operand, node.args)
    builder.define(node.out, _emit_matmul(builder, left, right))


def _lower_linear(builder: ProgramBuilder, node: Node) -> None:
    given = _named(("input", "weight", "bias"), node)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    product = _emit_matmul(builder, builder.values[x.index], builder.operand(weight).T)
    if bias is None:
        builder.define(node.out, product)
        return
    builder.release_after_node(product)
    shifted = _emit_elementwise(builder, Function.ADD, product, builder.operand(bias))
    builder.define(node.out, shifted)


def _emit_matmul(builder: ProgramBuilder, left: Tensor, right: Tensor) -> Tensor:
    if not 2 <= right.dim() <= left.dim() <= 5:
        raise UnsupportedError("a product of these shapes")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left = left.expand(*batch, *left.shape[-2:])
    right = right.expand(*batch, *right.shape[-2:])
    shape = (*batch, left.shape[-2], right.shape[-1])
    columns = len(shape) - 1
    # The memory order of the right operand: in attention, heads are parts of a token's channels.
    order = [*(axis for axis in memory_order(right.stride()) if axis != columns), columns]
    target = builder.allocate(shape, order)
    operation = ops.matmul(target, left, right)
    builder.emit(operation, ops.matmul_scratch_bytes(operation, target.element_size()))
    return target


def _lower_patch_scores(builder: ProgramBuilder, node: Node) -> None:
    *operands, heads = node.args
    y, s, factor = map(builder.operand, operands)
    spikes = s.unflatten(1, (heads, -1))
    y1 = first_parts(y, heads, spikes.shape[2])
    # Spikes on the left: the product skips the zeros of its left operand.
    product = _emit_matmul(builder, spikes.transpose(2, 3), y1)
    builder.release_after_node(product)
    scores = _emit_elementwise(builder, Function.MUL, product.transpose(2, 3), factor)
    builder.define(node.out, scores)


def _lower_patch_values(builder: ProgramBuilder, node: Node) -> None:
    *operands, heads = node.args
    y, s, a, factor = map(builder.operand, operands)
    y2 = last_parts(y, heads, s.shape[1] // heads)
    product = _emit_matmul(builder, a.transpose(2, 3), y2.transpose(2, 3))
    builder.release_after_node(product)
    rows, _, n_positions, width = product.shape
    target = builder.allocate((rows, heads * width, n_positions), (0, 2, 1))
    by_head = target.unflatten(1, (heads, width))
    factors = factor.expand(by_head.shape)
    scaled = ops.elementwise(Function.MUL, by_head, product.transpose(2, 3), factors)
    builder.emit(scaled)
    builder.define(node.out, target)


# ---- sums and normalization ------------------------------------------------------------------


def _lower_sum(builder: ProgramBuilder, node: Node, *, mean: bool = False) -> None:
    given = _named(("input", "dim", "keepdim"), node)
    axes, keepdim = given.get("dim"), given.get("keepdim", False)
    source = builder.values[given["input"].index]
    if axes is None:
        axes = range(source.dim())
    reduced = sorted(a % source.dim() for a in ((axes,) if isinstance(axes, int) else axes))
    kept = [axis for axis in range(source.dim()) if axis not in reduced]
    order = [kept.index(axis) for axis in memory_order(source.stride()) if axis in kept]
    target = builder.allocate([source.shape[axis] for axis in kept], order)
    divisor = math.prod(source.shape[axis] for axis in reduced) if mean else 1
    builder.emit(ops.reduce_sum(target, source, reduced, divisor))
    for axis in reduced if keepdim else ():
        target = target.unsqueeze(axis)
    builder.define(node.out, target)


def _lower_batch_norm(builder: ProgramBuilder, node: Node) -> None:
    given = _named(_BATCH_NORM_ARGUMENTS, node)
    statistics = [given.get(name) for name in _STATISTICS]
    if given.get("training", False) or None in statistics:
        raise UnsupportedError("a BatchNorm in training or without scale and shift")
    x = builder.values[given["input"].index]
    scale, shift = _scale_and_shift(builder, statistics, given.get("eps", 1e-5), x.dim())
    builder.define(node.out, _emit_elementwise(builder, Function.SCALE_SHIFT, x, scale, shift))


def _lower_bn_and_pad(builder: ProgramBuilder, node: Node) -> None:
    x, *statistics, eps = node.args
    source = builder.values[x.index]
    rows, channels, height, width = source.shape
    scale, shift = _scale_and_shift(builder, statistics, eps, source.dim())
    target = builder.allocate((rows, channels, height + 2, width + 2), MAPS_LAST)
    builder.emit(ops.elementwise(Function.COPY, target, shift.expand(target.shape)))
    inside = target[:, :, 1:-1, 1:-1]
    operands = (operand.expand(source.shape) for operand in (source, scale, shift))
    builder.emit(ops.elementwise(Function.SCALE_SHIFT, inside, *operands))
    builder.define(node.out, target)


def _lower_scale_channels(builder: ProgramBuilder, node: Node) -> None:
    x, scale = (builder.operand(argument) for argument in node.args)
    factors = builder.keep(scale.view(1, -1, *[1] * (x.dim() - 2)))
    builder.define(node.out, _emit_elementwise(builder, Function.MUL, x, factors))


def _scale_and_shift(
    builder: ProgramBuilder, statistics: Sequence[Any], eps: float, n_axes: int
) -> tuple[Tensor, Tensor]:
    """Return a BatchNorm's factor and summand, (1, C, 1, ...).

    Args:
        builder: The program.
        statistics: Arguments for the running mean and variance, gamma and beta.
        eps: Added to the variance.
        n_axes: Number of axes of the result.
    """
    mean, var, gamma, beta = map(builder.operand, statistics)
    scale = gamma / torch.sqrt(var + eps)
    shape = (1, -1, *[1] * (n_axes - 2))
    return builder.keep(scale.view(shape)), builder.keep((beta - mean * scale).view(shape))


_BY_CALL: dict[Any, _Lowering] = {
    convolve: _lower_convolution,
    lif.lif: _lower_lif,
    lif.integer_lif: _lower_integer_lif,
    patch_scores: _lower_patch_scores,
    patch_values: _lower_patch_values,
    bn_and_pad: _lower_bn_and_pad,
    scale_channels: _lower_scale_channels,
    torch.conv2d: _lower_depthwise,
    F.conv2d: _lower_depthwise,
    F.linear: _lower_linear,
    torch._C._nn.linear: _lower_linear,
}
_BY_NAME: dict[str, _Lowering] = {
    **dict.fromkeys(LOWERED_RESHAPES, _lower_view),
    **{name: functools.partial(_lower_elementwise, function=f) for name, f in _FUNCTIONS.items()},
    "double": _lower_double,
    "sum": _lower_sum,
    "mean": functools.partial(_lower_sum, mean=True),
    "matmul": _lower_matmul,
    "__matmul__": _lower_matmul,
    "batch_norm": _lower_batch_norm,
    "max_pool2d": _lower_max_pool,
    "boolean_dispatch": _lower_max_pool,
}
