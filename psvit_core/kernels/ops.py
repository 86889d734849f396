"""Operations of a native program, built from the tensors that describe their operands.

A tensor on the meta device describes a place in the arena: its storage offset is the offset there.
Any other tensor describes its own memory, which the caller must keep alive. The structs are those
of ``csrc/psvit.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from psvit_core.kernels import structs
from psvit_core.kernels.packing import PackedFilters
from psvit_core.kernels.structs import Function

_PADDING = [(0,) * (structs.MAX_AXES - n) for n in range(structs.MAX_AXES + 1)]
MAPS_LAST = (0, 2, 3, 1)  # axes of a feature map in memory: rows, height, width, channels


class UnsupportedError(Exception):
    """An operation that native programs do not have; the message names it."""


def memory_order(strides: Sequence[int]) -> list[int]:
    """Return the axes from the largest stride to the smallest; ties keep their order."""
    return sorted(range(len(strides)), key=strides.__getitem__, reverse=True)


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return the output length of a convolution or pooling along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def load(
    target: Tensor, source: Tensor, images: tuple[int, int], channels: tuple[int, Tensor] | None
) -> structs.Load:
    """Copy a value of the whole batch for the images of one run.

    Args:
        target: The value for one run.
        source: The value for the whole batch.
        images: The axis that contains (time steps x images), and the number of images in
            ``source``.
        channels: An axis and the indices to take from it (int64); None takes all of them.
    """
    order = memory_order(target.stride())
    return structs.Load.build(
        n_axes=len(order),
        sizes=_permuted(target.shape, order),
        image_axis=order.index(images[0]),
        batch=images[1],
        channel_axis=order.index(channels[0]) if channels else -1,
        channels=channels[1].data_ptr() if channels else 0,
        source=_operand(source, order),
        target=_operand(target, order),
    )


def store(source: Tensor, target: Tensor) -> structs.Store:
    """Copy a result (images, n) of one run to its rows of the result of the whole batch."""
    image_stride, value_stride = source.stride()
    return structs.Store.build(
        n=source.shape[1],
        image_stride=image_stride,
        value_stride=value_stride,
        source=_place(source),
        target=_place(target),
    )


def elementwise(
    function: Function,
    target: Tensor,
    *sources: Tensor,
    levels: float = 0,
    norm: float = 1,
    half_up: bool = False,
) -> structs.Map:
    """Apply a function to each element.

    Args:
        function: One of ``Function``.
        target: The result.
        sources: One, two or three operands, expanded to the shape of ``target``.
        levels: Highest level, for ``INTEGER_LIF``.
        norm: Divisor, for ``INTEGER_LIF``.
        half_up: Rounds halves up instead of to even, for ``INTEGER_LIF``.
    """
    order = memory_order(target.stride())
    a, *others = [_operand(source, order) for source in sources]
    b, c = [*others, a, a][:2]
    return structs.Map.build(
        function=function,
        n_axes=len(order),
        sizes=_permuted(target.shape, order),
        levels=levels,
        norm=norm,
        half_up=int(half_up),
        target=_operand(target, order),
        a=a,
        b=b,
        c=c,
    )


def lif(target: Tensor, source: Tensor, threshold: float) -> structs.Lif:
    """Compute the spikes of a LIF layer.

    Args:
        target: Spikes, time first; each time step is dense.
        source: Currents; each time step is dense, in the memory order of ``target``.
        threshold: Firing threshold.
    """
    return structs.Lif.build(
        time_steps=source.shape[0],
        n=source[0].numel(),
        source_step=source.stride(0),
        target_step=target.stride(0),
        threshold=threshold,
        source=_place(source),
        target=_place(target),
    )


def conv(
    target: Tensor,
    source: Tensor,
    filters: PackedFilters,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> structs.Conv:
    """Convolve (rows, c_in, h, w) to (rows, c_out, h', w').

    Args:
        target: Contiguous, channels last.
        source: Any strides.
        filters: Weight and bias.
        stride: Along height and width.
        padding: Along height and width.
    """
    c_out, c_in, *kernel = filters.shape
    rows, _, height, width = source.shape
    return structs.Conv.build(
        rows=rows,
        c_in=c_in,
        height=height,
        width=width,
        source_strides=source.stride(),
        c_out=c_out,
        out_height=target.shape[2],
        out_width=target.shape[3],
        kernel=tuple(kernel),
        stride=stride,
        padding=padding,
        weight=filters.weight.data_ptr(),
        bias=filters.bias.data_ptr(),
        lif_steps=0,
        lif_threshold=0.0,
        integer_levels=0,
        integer_norm=0,
        integer_half_up=0,
        source=_place(source),
        target=_place(target),
    )


def keep_neuron(operation: structs.Conv, before: structs.Conv) -> None:
    """Give a convolution the neuron that was fused into the one that it replaces."""
    for name in structs.FUSED_NEURON:
        setattr(operation, name, getattr(before, name))


def conv_output_numel(operation: structs.Conv) -> int:
    """Return the number of values that a convolution writes."""
    return int(operation.rows * operation.c_out * operation.out_height * operation.out_width)


def conv_scratch_bytes(operation: structs.Conv, itemsize: int) -> int:
    """Return the scratch memory of a convolution in bytes; the header gives its parts."""
    positions = operation.height * operation.width
    entries = positions * (-(-operation.c_in // 4) * 4) + structs.LIST_MARGIN
    potentials = operation.out_height * operation.out_width * operation.c_out
    return int(itemsize * (potentials + entries) + 4 * (entries + positions))


def depthwise(
    target: Tensor,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> structs.Depthwise:
    """Convolve each channel of channels-last maps; ``weight`` is (kh, kw, c), contiguous."""
    return structs.Depthwise.build(
        **_channelwise_maps(target, source),
        kernel=tuple(weight.shape[:2]),
        stride=stride,
        padding=padding,
        weight=weight.data_ptr(),
        bias=bias.data_ptr() if bias is not None else 0,
    )


def reduce_sum(target: Tensor, source: Tensor, axes: Sequence[int], divisor: int) -> structs.Sum:
    """Sum over ``axes`` and divide; ``target`` has the other axes of ``source`` in order."""
    order = memory_order(target.stride())
    others = [axis for axis in range(source.dim()) if axis not in axes]
    kept = [others[i] for i in order]
    reduced = [axis for axis in memory_order(source.stride()) if axis in axes]
    return structs.Sum.build(
        n_kept=len(kept),
        n_reduced=len(reduced),
        kept_sizes=_permuted(source.shape, kept),
        reduced_sizes=_permuted(source.shape, reduced),
        divisor=divisor,
        target=_operand(target, order),
        source=_operand(source, kept),
        reduced_strides=_permuted(source.stride(), reduced),
    )


def max_pool(
    target: Tensor, source: Tensor, kernel: int, stride: int, padding: int
) -> structs.Pool:
    """Take the maximum of each window of channels-last maps."""
    return structs.Pool.build(
        **_channelwise_maps(target, source),
        kernel=kernel,
        stride=stride,
        padding=padding,
    )


def matmul(target: Tensor, left: Tensor, right: Tensor) -> structs.Matmul:
    """Multiply (..., m, k) @ (..., k, n), with up to three batch axes, expanded to the same."""
    m, k = left.shape[-2:]
    missing = structs.BATCH_AXES + 2 - target.dim()

    def operand(tensor: Tensor) -> tuple[int, ...]:
        return *_place(tensor), *padded([*[0] * missing, *tensor.stride()])

    return structs.Matmul.build(
        m=m,
        k=k,
        n=target.shape[-1],
        batch_sizes=(*[1] * missing, *target.shape[:-2]),
        target=operand(target),
        left=operand(left),
        right=operand(right),
    )


def matmul_scratch_bytes(operation: structs.Matmul, itemsize: int) -> int:
    """Return the scratch memory of matrix products in bytes."""
    return int(itemsize * (operation.k * operation.n + operation.n))


def padded(numbers: Sequence[int]) -> tuple[int, ...]:
    """Return sizes or strides of up to ``MAX_AXES`` axes, padded with zeros to ``MAX_AXES``."""
    n = len(numbers)
    if n > structs.MAX_AXES:
        raise UnsupportedError(f"an operand with {n} axes")
    return *numbers, *_PADDING[n]


def _channelwise_maps(target: Tensor, source: Tensor) -> dict[str, Any]:
    """Return the fields of an operation that works on each channel of channels-last maps."""
    rows, channels, height, width = source.shape
    row_stride, _, y_stride, x_stride = source.stride()
    return {
        "rows": rows,
        "channels": channels,
        "height": height,
        "width": width,
        "source_strides": (row_stride, y_stride, x_stride),
        "out_height": target.shape[2],
        "out_width": target.shape[3],
        "source": _place(source),
        "target": _place(target),
    }


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return the memory and the offset of a tensor's first value; memory 0 is the arena."""
    if tensor.is_meta:
        return 0, int(tensor.storage_offset())
    return tensor.data_ptr(), 0


def _operand(tensor: Tensor, order: Sequence[int]) -> tuple[int, ...]:
    return *_place(tensor), *_permuted(tensor.stride(), order)


def _permuted(numbers: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return padded([numbers[axis] for axis in order])
