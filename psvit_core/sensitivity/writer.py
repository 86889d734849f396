"""Steps of a tape, written as operations of a native program."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core import fused
from psvit_core.native import ops
from psvit_core.native.ops import slowest_first
from psvit_core.sensitivity.arena import Room
from psvit_core.sensitivity.fold import convolve
from psvit_core.tape import Step, Value, Weight
from psvit_core.zoo.layers import bn_and_pad

if TYPE_CHECKING:
    from psvit_core.sensitivity.program import Programs

META = torch.device("meta")
_MAPS_LAST = (0, 2, 3, 1)  # rows, height, width, channels
VIEWS = {"flatten", "unflatten", "view", "reshape", "expand", "unsqueeze", "squeeze", "transpose",
          "permute", "movedim", "contiguous", "__getitem__"}  # fmt: skip
CALLS = {"add": "add", "__add__": "add", "__radd__": "add", "sub": "sub", "__sub__": "sub",
          "mul": "mul", "__mul__": "mul", "__rmul__": "mul", "div": "div", "truediv": "div",
          "__truediv__": "div"}  # fmt: skip
CONVOLUTIONS = {torch.conv2d, F.conv2d}
LINEAR = {F.linear, torch._C._nn.linear}
_BATCH_NORM = inspect.signature(F.batch_norm)
_POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode",
                   "return_indices")  # fmt: skip


class UnsupportedError(Exception):
    """A step that has no native operation; the message names it."""


@dataclass(frozen=True)
class Entry:
    """A value of the full model that the steps start from.

    Attributes:
        value: For the whole batch.
        images: Axis that holds rows x batch; None where the value is the same for all images.
        batch: Images in ``value``.
        channels: Axis and the units that are taken of it, int64; all when None.
    """

    value: Tensor
    images: int | None
    batch: int
    channels: tuple[int, Tensor] | None


class Writer:
    """Writes steps as operations; tensors on the meta device stand for places in the arena."""

    def __init__(
        self,
        programs: Programs,
        entries: Mapping[int, Entry],
        weights: Mapping[Any, Any],
        n_images: int,
        per_run: int,
    ) -> None:
        self._programs, self._entries, self._weights = programs, entries, weights
        self._n_images, self._per_run, self._dtype = n_images, per_run, programs.dtype
        self.rows: list[ops.Row] = []
        self.results: dict[int, Tensor] = {}
        self.room = Room()
        self.scratch = 64
        # As large as any arena gets; nothing is allocated on this device.
        self._arena = torch.empty(1 << 40, dtype=self._dtype, device=META)
        self._values: dict[int, Tensor] = {}
        self._places: dict[int, int] = {}  # value -> where its memory begins
        self._users: dict[int, int] = {}  # place -> values that lie there
        self._passing: list[int] = []  # places that only the step being written needs
        self._convs: dict[int, ops.Row] = {}  # value -> the convolution that gives it
        self._kept: list[Tensor] = []  # memory that operations point at

    # ---- values ------------------------------------------------------------------------------

    def add(self, step: Step) -> None:
        """Write one step."""
        for i in step.inputs():
            if i not in self._values:
                self._enter(i)
        name = getattr(step.call, "__name__", "")
        if name in VIEWS:
            self._view(step)
        elif name == "double":  # of counts: whole numbers that any type here holds
            self._alias(step.out, step.inputs()[0])
        elif step.call is fused.lif:
            self._lif(step)
        elif step.call is fused.integer_lif:
            self._integer_lif(step)
        else:
            self._values[step.out], self._places[step.out] = self._made(step, name)
        for place in self._passing:
            self._release(place)
        self._passing.clear()
        if step.out in self._programs.wanted:
            self._store(step.out)

    def _made(self, step: Step, name: str) -> tuple[Tensor, int]:
        """The value of an operation, and its place."""
        if step.call is convolve:
            return self._convolve(step)
        if step.call is bn_and_pad:
            return self._bn_and_pad(*step.args)
        if step.call in CONVOLUTIONS:
            return self._depthwise(*step.args)
        if step.call in LINEAR:
            return self._linear(*step.args, **step.kwargs)
        if name in CALLS and not step.kwargs and len(step.args) == 2:
            return self._elementwise(CALLS[name], *map(self._operand, step.args))
        if name in ("sum", "mean"):
            return self._sum(*step.args, mean=name == "mean", **step.kwargs)
        if name in ("matmul", "__matmul__"):
            left, right = map(self._operand, step.args)
            return self._matmul(left, right)
        if name == "batch_norm":
            bound = _BATCH_NORM.bind(*step.args, **step.kwargs)
            bound.apply_defaults()
            return self._batch_norm(**bound.arguments)
        if name in ("max_pool2d", "boolean_dispatch"):
            named = dict(zip(_POOL_ARGUMENTS, step.args, strict=False))
            return self._max_pool(**{**named, **step.kwargs})
        raise UnsupportedError(name)

    def forget(self, i: int) -> None:
        """Nothing reads this value any more."""
        self._values.pop(i, None)
        self._convs.pop(i, None)
        place = self._places.pop(i, None)
        if place is not None:
            self._release(place)

    def _release(self, place: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.room.give_back(place)

    def _new(self, shape: Sequence[int], order: Sequence[int]) -> tuple[Tensor, int]:
        """A place for a value whose axes lie in memory in this order, the slowest first."""
        strides, n = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis] = n
            n *= shape[axis]
        place = self.room.take(n)
        self._users[place] = 1
        return self._arena.as_strided(tuple(shape), strides, place), place

    def _alias(self, i: int, of: int) -> None:
        self._values[i] = self._values[of]
        self._share(i, of)

    def _share(self, i: int, of: int) -> None:
        if of in self._places:
            self._places[i] = self._places[of]
            self._users[self._places[i]] += 1

    def _enter(self, i: int) -> None:
        entry = self._entries[i]
        if entry.images is None:
            self._values[i] = self._keep(entry.value)
            return
        shape = list(entry.value.shape)
        shape[entry.images] = shape[entry.images] // entry.batch * self._per_run
        if entry.channels is not None:
            shape[entry.channels[0]] = len(entry.channels[1])
            self._kept.append(entry.channels[1])
        value, place = self._new(shape, slowest_first(entry.value))
        images = (entry.images, entry.batch)
        self._write(ops.load(value, self._keep(entry.value), images, entry.channels))
        self._values[i], self._places[i] = value, place

    def _store(self, i: int) -> None:
        value = self._values[i]
        if value.dim() not in (1, 2) or value.shape[0] != self._per_run:
            raise UnsupportedError("a result that is not (images,) or (images, n)")
        whole = torch.empty((self._n_images, *value.shape[1:]), dtype=self._dtype)
        self._write(ops.store(value.unsqueeze(1) if value.dim() == 1 else value, whole))
        self.results[i] = whole

    def _write(self, row: ops.Row) -> None:
        self.rows.append(row)

    def _keep(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != self._dtype:
            raise UnsupportedError(f"a tensor of {tensor.dtype}")
        self._kept.append(tensor)
        return tensor

    def _operand(self, argument: Any) -> Tensor:
        if type(argument) is Value:
            return self._values[argument.index]
        if type(argument) is Weight:
            return self._keep(self._weights[argument.name])
        if isinstance(argument, (int, float)):
            return self._programs.number(float(argument))
        raise UnsupportedError(f"an argument {argument!r}")

    def _channels_last(self, x: Tensor) -> Tensor:
        """Maps whose channels lie behind each other: these, or a copy for the next operation."""
        if x.stride(1) == 1:
            return x
        copied, place = self._new(x.shape, _MAPS_LAST)
        self._write(ops.elementwise("copy", copied, x))
        self._passing.append(place)
        return copied

    def _view(self, step: Step) -> None:
        (source,) = step.inputs()
        given = self._values[source]
        found = self._programs.view(step, given, self._weights, self._per_run)
        if found is None:  # a copy: the numbers in the order of the axes
            copied, self._places[step.out] = self._new(given.shape, range(given.dim()))
            self._write(ops.elementwise("copy", copied, given))
            found = self._programs.view(step, copied, self._weights, self._per_run)
            assert found is not None
            given = copied
        else:
            self._share(step.out, source)
        shape, strides, offset = found
        self._values[step.out] = given.as_strided(shape, strides, given.storage_offset() + offset)

    # ---- neurons -----------------------------------------------------------------------------

    def _conv_behind(self, i: int) -> ops.Row | None:
        """The convolution of which a neuron's input is the whole output, read by nobody else."""
        row = self._convs.get(self._programs.currents.get(i, -1))
        if row is None or self._values[i].numel() != ops.conv_size(row):
            return None
        return row

    def _lif(self, step: Step) -> None:
        (i,) = step.inputs()
        threshold = float(step.args[1])
        x = self._values[i]
        row = self._conv_behind(i)
        if row is not None and x.stride(0) * x.shape[0] == x.numel():
            ops.let_fire(row, x.shape[0], threshold)
            self._alias(step.out, i)
            return
        order = [0, *(a for a in slowest_first(x) if a != 0)]
        if not _is_dense(x[0], [a - 1 for a in order[1:]]):
            copied, place = self._new(x.shape, order)
            self._write(ops.elementwise("copy", copied, x))
            self._passing.append(place)
            x = copied
        self._values[step.out], self._places[step.out] = target, _ = self._new(x.shape, order)
        self._write(ops.lif(target, x, threshold))

    def _integer_lif(self, step: Step) -> None:
        (i,) = step.inputs()
        x = self._values[i]
        levels, norm = (int(a) for a in (*step.args[1:], *step.kwargs.values()))
        row = self._conv_behind(i)
        if row is not None:
            ops.let_fire_integers(row, levels, norm)
            self._alias(step.out, i)
            return
        self._values[step.out], self._places[step.out] = target, _ = self._new(
            x.shape, slowest_first(x)
        )
        self._write(ops.elementwise("integer", target, x, levels=levels, norm=norm))

    # ---- operations: each gives a value and its place ----------------------------------------

    def _convolve(self, step: Step) -> tuple[Tensor, int]:
        x, made, stride, padding = step.args
        source, filters = self._values[x.index], self._weights[made]
        flat = source.dim() == 3  # along one axis: a map of height 1
        if flat:
            source, stride, padding = source.unsqueeze(2), (1, *stride), (0, *padding)
        c_out, _, kh, kw = filters.weight.shape
        rows, _, h, w = source.shape
        oh = (h + 2 * padding[0] - kh) // stride[0] + 1
        ow = (w + 2 * padding[1] - kw) // stride[1] + 1
        target, place = self._new((rows, c_out, oh, ow), _MAPS_LAST)
        packed = filters.packed
        self._kept += [packed.weight, packed.bias]
        row = ops.conv(target, source, packed.weight, packed.bias, (kh, kw), stride, padding)
        self.scratch = max(self.scratch, ops.conv_scratch(row, target.element_size()))
        self._write(row)
        self._convs[step.out] = row
        return (target.squeeze(2) if flat else target), place

    def _depthwise(
        self, x: Value, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, _: Any
    ) -> tuple[Tensor, int]:
        filters = self._operand(weight)
        source = self._channels_last(self._values[x.index])
        rows, c, h, w = source.shape
        plain = isinstance(padding, tuple) and set(dilation) == {1}
        if filters.shape[:2] != (c, 1) or not plain:
            raise UnsupportedError("a convolution that is not depthwise")
        kh, kw = filters.shape[2:]
        oh = (h + 2 * padding[0] - kh) // stride[0] + 1
        ow = (w + 2 * padding[1] - kw) // stride[1] + 1
        target, place = self._new((rows, c, oh, ow), _MAPS_LAST)
        by_place = self._keep(filters.squeeze(1).permute(1, 2, 0).contiguous())
        shift = self._operand(bias) if bias is not None else None
        self._write(ops.depthwise(target, source, by_place, shift, stride, padding))
        return target, place

    def _elementwise(self, call: str, *operands: Tensor) -> tuple[Tensor, int]:
        shape = operands[0].shape
        if any(x.shape != shape for x in operands[1:]):
            shape = torch.Size(np.broadcast_shapes(*(x.shape for x in operands)))
            operands = tuple(x if x.shape == shape else x.expand(shape) for x in operands)
        # As an operand lies that is no number or vector spread over the others.
        like = next((x for x in operands if 0 not in x.stride()), operands[0])
        target, place = self._new(shape, slowest_first(like))
        self._write(ops.elementwise(call, target, *operands))
        return target, place

    def _sum(
        self, x: Value, dim: Any = None, keepdim: bool = False, *, mean: bool = False
    ) -> tuple[Tensor, int]:
        source = self._values[x.index]
        dims = range(source.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
        gone = sorted(d % source.dim() for d in dims)
        stay = [a for a in range(source.dim()) if a not in gone]
        order = [stay.index(a) for a in slowest_first(source) if a in stay]
        target, place = self._new([source.shape[a] for a in stay], order)
        divisor = 1
        for a in gone:
            divisor *= source.shape[a] if mean else 1
        self._write(ops.total(target, source, gone, divisor))
        for a in gone if keepdim else ():
            target = target.unsqueeze(a)
        return target, place

    def _matmul(self, left: Tensor, right: Tensor) -> tuple[Tensor, int]:
        if not 2 <= right.dim() <= left.dim() <= 5:
            raise UnsupportedError("a product of these shapes")
        before = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left = left.expand(*before, *left.shape[-2:])
        right = right.expand(*before, *right.shape[-2:])
        shape = (*before, left.shape[-2], right.shape[-1])
        columns = len(shape) - 1
        # Heads lie beside each other in a token's channels, as they do on the right.
        order = [*(a for a in slowest_first(right) if a != columns), columns]
        target, place = self._new(shape, order)
        row = ops.matmul(target, left, right)
        self.scratch = max(self.scratch, ops.matmul_scratch(row, target.element_size()))
        self._write(row)
        return target, place

    def _linear(self, x: Value, weight: Any, bias: Any = None) -> tuple[Tensor, int]:
        product, place = self._matmul(self._values[x.index], self._operand(weight).T)
        if bias is None:
            return product, place
        self._passing.append(place)
        return self._elementwise("add", product, self._operand(bias))

    def _scale_and_shift(
        self, mean: Any, var: Any, weight: Any, bias: Any, eps: float, dims: int
    ) -> tuple[Tensor, Tensor]:
        """What a BatchNorm multiplies by and adds, (1, C, 1, ...)."""
        mean, var, weight, bias = map(self._operand, (mean, var, weight, bias))
        scale = weight / torch.sqrt(var + eps)
        shape = (1, -1, *[1] * (dims - 2))
        return self._keep(scale.view(shape)), self._keep((bias - mean * scale).view(shape))

    def _batch_norm(
        self, input: Value, running_mean: Any, running_var: Any, weight: Any, bias: Any,
        training: bool, momentum: float, eps: float,
    ) -> tuple[Tensor, int]:  # fmt: skip
        del momentum
        if training or None in (running_mean, weight):
            raise UnsupportedError("a BatchNorm in training or without scale and shift")
        x = self._values[input.index]
        scale, shift = self._scale_and_shift(running_mean, running_var, weight, bias, eps, x.dim())
        return self._elementwise("scale_shift", x, scale, shift)

    def _bn_and_pad(
        self, x: Value, mean: Any, var: Any, weight: Any, bias: Any, eps: float
    ) -> tuple[Tensor, int]:
        source = self._values[x.index]
        rows, c, h, w = source.shape
        scale, shift = self._scale_and_shift(mean, var, weight, bias, eps, 4)
        target, place = self._new((rows, c, h + 2, w + 2), _MAPS_LAST)
        self._write(ops.elementwise("copy", target, shift.expand(target.shape)))
        inside = target[:, :, 1:-1, 1:-1]
        parts = (part.expand(source.shape) for part in (source, scale, shift))
        self._write(ops.elementwise("scale_shift", inside, *parts))
        return target, place

    def _max_pool(
        self, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
    ) -> tuple[Tensor, int]:  # fmt: skip
        stride = kernel_size if stride is None else stride
        plain = dilation == 1 and not ceil_mode and not return_indices
        if not plain or not all(isinstance(n, int) for n in (kernel_size, stride, padding)):
            raise UnsupportedError("a pooling of this kind")
        source = self._channels_last(self._values[input.index])
        rows, c, h, w = source.shape
        oh, ow = ((n + 2 * padding - kernel_size) // stride + 1 for n in (h, w))
        target, place = self._new((rows, c, oh, ow), _MAPS_LAST)
        self._write(ops.max_pool(target, source, kernel_size, stride, padding))
        return target, place


def _is_dense(x: Tensor, order: Sequence[int]) -> bool:
    """Whether ``x`` fills its memory without gaps, its axes in this order."""
    n = 1
    for axis in reversed(order):
        if x.shape[axis] != 1 and x.stride(axis) != n:
            return False
        n *= x.shape[axis]
    return True
