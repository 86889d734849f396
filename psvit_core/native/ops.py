"""The operations of ``program.c`` as rows of numbers, from tensors that stand for their operands.

A tensor on the meta device is a place in the arena (its storage offset); any other is memory that
stays where it is, which the caller must keep alive. Every function returns one row.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from psvit_core.native import list_room

WIDTH = 48  # numbers in a row
_AXES = 6
KINDS = ("", "load", "store", "map", "lif", "conv", "depthwise", "sum", "pool", "matmul")
_LOAD, _STORE, _MAP, _LIF, _CONV, _DEPTHWISE, _SUM, _POOL, _MATMUL = range(1, len(KINDS))
_CALLS = {"copy": 0, "add": 1, "sub": 2, "mul": 3, "div": 4, "scale_shift": 5, "integer": 6}

Row = list[int]


def slowest_first(x: Tensor) -> list[int]:
    """Axes in the order of memory."""
    strides = x.stride()
    return sorted(range(len(strides)), key=strides.__getitem__, reverse=True)


def load(
    target: Tensor,
    source: Tensor,
    images: tuple[int, int],
    channels: tuple[int, Tensor] | None,
) -> Row:
    """Copy a value of a batch for the images of a run.

    Args:
        target: The place, shaped for one run.
        source: The value for the whole batch.
        images: Its axis of images, which holds rows x batch, and the batch.
        channels: An axis and which of its entries are taken (int64); all when None.
    """
    order = slowest_first(target)
    axis, table = (order.index(channels[0]), channels[1].data_ptr()) if channels else (-1, 0)
    return [
        _LOAD, len(order), *_padded([target.shape[a] for a in order]),
        *_operand(source, [source.stride(a) for a in order]),
        *_operand(target, [target.stride(a) for a in order]),
        order.index(images[0]), images[1], axis, table,
    ]  # fmt: skip


def store(source: Tensor, target: Tensor) -> Row:
    """Put a value (images, n) of a run into its rows of a whole one."""
    return [_STORE, source.shape[1], *_address(source), *source.stride(), target.data_ptr()]


def elementwise(
    call: str, target: Tensor, *sources: Tensor, levels: float = 0, norm: float = 1
) -> Row:
    """``call`` of sources that have been expanded to the target's shape.

    Args:
        call: copy, add, sub, mul, div, scale_shift (a * b + c) or integer (the integer LIF).
        target: The place.
        sources: One, two or three.
        levels: Of the integer LIF.
        norm: Likewise.
    """
    given = [*sources, *[sources[0]] * (3 - len(sources))]
    order = slowest_first(target)
    operands: Row = []
    for tensor in (target, *given):
        operands += _operand(tensor, [tensor.stride(a) for a in order])
    return [
        _MAP, _CALLS[call], _bits(levels), _bits(norm), len(order),
        *_padded([target.shape[a] for a in order]), *operands,
    ]  # fmt: skip


def lif(target: Tensor, source: Tensor, threshold: float) -> Row:
    """Spikes of a LIF layer; each time step of the source lies in the order of the target."""
    n = source.numel() // source.shape[0]
    return [
        _LIF, source.shape[0], n, source.stride(0), _bits(threshold), *_address(source),
        *_address(target),
    ]  # fmt: skip


def conv(
    target: Tensor,
    source: Tensor,
    weight: Tensor,
    bias: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Row:
    """A convolution (rows, c_in, h, w) to (rows, c_out, h', w'), channels last and dense.

    ``weight`` and ``bias`` are those of ``native.pack``.
    """
    rows, c_in, h, w = source.shape
    _, c_out, oh, ow = target.shape
    return [
        _CONV, rows, c_in, h, w, *source.stride(), weight.data_ptr(), bias.data_ptr(), c_out, oh,
        ow, *kernel, *stride, *padding, 0, 0, 0, 0, *_address(source), *_address(target),
    ]  # fmt: skip


def let_fire(row: Row, steps: int, threshold: float) -> None:
    """Let a convolution give spikes of the LIF layer behind it, in place of currents."""
    row[20], row[21] = steps, _bits(threshold)


def let_fire_integers(row: Row, levels: int, norm: int) -> None:
    """Let a convolution give spikes of the integer LIF layer behind it."""
    row[22], row[23] = levels, norm


def conv_size(row: Row) -> int:
    """Numbers that a convolution gives."""
    _, rows, *rest = row
    c_out, oh, ow = rest[9:12]
    return rows * c_out * oh * ow


def conv_scratch(row: Row, itemsize: int) -> int:
    """Bytes that a convolution needs beside its operands."""
    _, _, c_in, h, w, *rest = row
    c_out, oh, ow = rest[6:9]
    gathered = list_room(c_in, h * w)
    return itemsize * (oh * ow * c_out + gathered) + 4 * (gathered + h * w) + 64


def depthwise(
    target: Tensor,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Row:
    """A depthwise convolution of channels-last tensors; ``weight`` is (kh, kw, c), contiguous."""
    rows, c, h, w = source.shape
    row, _, y, x = source.stride()
    return [
        _DEPTHWISE, rows, c, h, w, row, y, x, weight.data_ptr(),
        bias.data_ptr() if bias is not None else 0, *target.shape[2:], *weight.shape[:2], *stride,
        *padding, *_address(source), *_address(target),
    ]  # fmt: skip


def total(target: Tensor, source: Tensor, axes: Sequence[int], divisor: int) -> Row:
    """Sums over ``axes`` by ``divisor``; ``target`` has the other axes of ``source`` in order."""
    stay = [a for a in range(source.dim()) if a not in axes]
    places = slowest_first(target)
    stay = [stay[i] for i in places]
    gone = [a for a in slowest_first(source) if a in axes]
    return [
        _SUM, len(stay), len(gone), divisor, *_padded([source.shape[a] for a in stay]),
        *_padded([source.shape[a] for a in gone]),
        *_operand(target, [target.stride(i) for i in places]),
        *_operand(source, [source.stride(a) for a in stay]),
        *_operand(source, [source.stride(a) for a in gone]),
    ]  # fmt: skip


def max_pool(target: Tensor, source: Tensor, kernel: int, stride: int, padding: int) -> Row:
    """The largest of each window of channels-last tensors."""
    rows, c, h, w = source.shape
    row, _, y, x = source.stride()
    return [
        _POOL, rows, c, h, w, row, y, x, *target.shape[2:], kernel, stride, padding,
        *_address(source), *_address(target),
    ]  # fmt: skip


def matmul(target: Tensor, left: Tensor, right: Tensor) -> Row:
    """Products (..., m, k) @ (..., k, n), at most three axes before, expanded to the same."""
    m, k = left.shape[-2:]
    before = 5 - target.dim()
    operands: Row = []
    for tensor in (target, left, right):
        operands += _operand(tensor, [*[0] * before, *tensor.stride()])
    return [
        _MATMUL, m, k, target.shape[-1], *[1] * before, *target.shape[:-2], *operands,
    ]  # fmt: skip


def matmul_scratch(row: Row, itemsize: int) -> int:
    """Bytes that products need beside their operands."""
    _, _, k, n, *_ = row
    return itemsize * (k * n + n) + 64


def _operand(tensor: Tensor, strides: Sequence[int]) -> Row:
    return [*_address(tensor), *_padded(strides)]


def _address(tensor: Tensor) -> Row:
    if tensor.device.type == "meta":
        return [0, int(tensor.storage_offset())]
    return [1, tensor.data_ptr()]


def _padded(numbers: Sequence[int]) -> Row:
    if len(numbers) > _AXES:
        raise ValueError(f"{len(numbers)} axes; at most {_AXES}")
    return [*numbers, *[0] * (_AXES - len(numbers))]


def _bits(number: float) -> int:
    return int(struct.unpack("q", struct.pack("d", number))[0])


def as_table(rows: Sequence[Row]) -> Tensor:
    """All rows as one table (n, WIDTH) for ``native.run_program``."""
    table = [[*row, *[0] * (WIDTH - len(row))] for row in rows]
    return torch.tensor(table, dtype=torch.int64).view(-1, WIDTH)
