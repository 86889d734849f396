"""The structs of ``csrc/psvit.h`` for ctypes, field by field; the header documents every field."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterator
from ctypes import c_double, c_int64, c_void_p
from enum import IntEnum
from typing import Any, ClassVar, Self

INTERFACE_VERSION = 3
MAX_AXES = 6
BATCH_AXES = 3
LIST_MARGIN = 32


class Kind(IntEnum):
    """Operations of a program."""

    LOAD = 1
    STORE = 2
    MAP = 3
    LIF = 4
    CONV = 5
    DEPTHWISE = 6
    SUM = 7
    POOL = 8
    MATMUL = 9


class Function(IntEnum):
    """Functions of ``Map``."""

    COPY = 0
    ADD = 1
    SUB = 2
    MUL = 3
    DIV = 4
    SCALE_SHIFT = 5
    INTEGER_LIF = 6


class Status(IntEnum):
    """Results of running a program."""

    OK = 0
    UNKNOWN_OPERATION = 1
    UNKNOWN_FUNCTION = 2
    INVALID_BLOCK = 3


def _fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    """Return several fields of one type."""
    return tuple((name, kind) for name in names)


_Axes = c_int64 * MAX_AXES
_Pair = c_int64 * 2
_Triple = c_int64 * 3


class Place(ctypes.Structure):
    """Position of a value's first number, in memory or in the arena."""

    _fields_ = (("memory", c_void_p), ("offset", c_int64))


class Operand(ctypes.Structure):
    """A strided array."""

    _fields_ = (("memory", c_void_p), ("offset", c_int64), ("strides", _Axes))


_CHANNELWISE_MAPS = (
    *_fields(c_int64, "rows", "channels", "height", "width"),
    ("source_strides", _Triple),
    *_fields(c_int64, "out_height", "out_width"),
)


class Operation(ctypes.Structure):
    """Base of all operations."""

    kind: ClassVar[Kind]

    @classmethod
    def build(cls, **fields: float | tuple[int, ...]) -> Self:
        """Return an operation with these fields: numbers, and tuples for arrays and structs.

        The constructor of ctypes does the same, but creates several objects for each tuple; this
        takes a third of the time. A cell of a sweep builds hundreds of operations.

        Raises:
            KeyError: If a field is missing.
            TypeError: If there are other fields.
            struct.error: If a tuple has the wrong length.
        """
        packer, names = _packers()[cls]
        if len(fields) != len(names):
            raise TypeError(f"fields of {cls.__name__}: {', '.join(names)}; not {list(fields)}")
        values: list[float] = []
        for name in names:
            value = fields[name]
            if isinstance(value, tuple):
                values += value
            else:
                values.append(value)
        return cls.from_buffer_copy(packer.pack(*values))


class Load(Operation):
    """Copy of some images and channels of a value into the arena."""

    kind = Kind.LOAD
    _fields_ = (
        ("n_axes", c_int64),
        ("sizes", _Axes),
        *_fields(c_int64, "image_axis", "batch", "channel_axis"),
        ("channels", c_void_p),
        *_fields(Operand, "source", "target"),
    )


class Store(Operation):
    """Copy of a result to its rows of the result of the whole batch."""

    kind = Kind.STORE
    _fields_ = (
        *_fields(c_int64, "n", "image_stride", "value_stride"),
        *_fields(Place, "source", "target"),
    )


class Map(Operation):
    """A function of each element."""

    kind = Kind.MAP
    _fields_ = (
        *_fields(c_int64, "function", "n_axes"),
        ("sizes", _Axes),
        *_fields(c_double, "levels", "norm"),
        ("half_up", c_int64),
        *_fields(Operand, "target", "a", "b", "c"),
    )


class Lif(Operation):
    """A LIF layer."""

    kind = Kind.LIF
    _fields_ = (
        *_fields(c_int64, "time_steps", "n", "source_step", "target_step"),
        ("threshold", c_double),
        *_fields(Place, "source", "target"),
    )


class Conv(Operation):
    """A convolution that visits only inputs that are not zero."""

    kind = Kind.CONV
    _fields_ = (
        *_fields(c_int64, "rows", "c_in", "height", "width"),
        ("source_strides", c_int64 * 4),
        *_fields(c_int64, "c_out", "out_height", "out_width"),
        *_fields(_Pair, "kernel", "stride", "padding"),
        *_fields(c_void_p, "weight", "bias"),
        ("lif_steps", c_int64),
        ("lif_threshold", c_double),
        *_fields(c_int64, "integer_levels", "integer_norm", "integer_half_up"),
        *_fields(Place, "source", "target"),
    )


#: Fields of a convolution that describe the neuron after it.
FUSED_NEURON = (
    "lif_steps",
    "lif_threshold",
    "integer_levels",
    "integer_norm",
    "integer_half_up",
)


class Depthwise(Operation):
    """A depthwise convolution."""

    kind = Kind.DEPTHWISE
    _fields_ = (
        *_CHANNELWISE_MAPS,
        *_fields(_Pair, "kernel", "stride", "padding"),
        *_fields(c_void_p, "weight", "bias"),
        *_fields(Place, "source", "target"),
    )


class Sum(Operation):
    """Sums over some axes, divided by a number."""

    kind = Kind.SUM
    _fields_ = (
        *_fields(c_int64, "n_kept", "n_reduced"),
        *_fields(_Axes, "kept_sizes", "reduced_sizes"),
        ("divisor", c_int64),
        *_fields(Operand, "target", "source"),
        ("reduced_strides", _Axes),
    )


class Pool(Operation):
    """Maximum pooling."""

    kind = Kind.POOL
    _fields_ = (
        *_CHANNELWISE_MAPS,
        *_fields(c_int64, "kernel", "stride", "padding"),
        *_fields(Place, "source", "target"),
    )


class Matmul(Operation):
    """Matrix products."""

    kind = Kind.MATMUL
    _fields_ = (
        *_fields(c_int64, "m", "k", "n"),
        ("batch_sizes", c_int64 * BATCH_AXES),
        *_fields(Operand, "target", "left", "right"),
    )


class Instruction(ctypes.Structure):
    """The kind of an operation, and where its struct is."""

    _fields_ = (("kind", c_int64), ("operation", c_void_p))


class Run(ctypes.Structure):
    """A program and the images to run it on."""

    _fields_ = (
        ("instructions", ctypes.POINTER(Instruction)),
        ("n_instructions", c_int64),
        *_fields(c_void_p, "arena", "scratch", "images"),
        *_fields(c_int64, "first", "end", "per_run"),
        ("seconds", c_void_p),
    )


OPERATIONS: tuple[type[Operation], ...] = (
    Load,
    Store,
    Map,
    Lif,
    Conv,
    Depthwise,
    Sum,
    Pool,
    Matmul,
)
#: Every struct by its number in ``psvit_struct_size``.
BY_NUMBER: dict[int, type[ctypes.Structure]] = {
    **{int(operation.kind): operation for operation in OPERATIONS},
    100: Place,
    101: Operand,
    102: Instruction,
    103: Run,
}


def layout() -> dict[str, Any]:
    """Return the interface version and the size in bytes of every struct, by number."""
    sizes = {str(number): ctypes.sizeof(kind) for number, kind in BY_NUMBER.items()}
    return {"version": INTERFACE_VERSION, **sizes}


@functools.cache
def _packers() -> dict[type[Operation], tuple[struct.Struct, tuple[str, ...]]]:
    """Return the packer and the ordered field names of every operation."""
    packers = {}
    for operation in OPERATIONS:
        packer = struct.Struct("".join(_format(operation)))
        assert packer.size == ctypes.sizeof(operation)
        packers[operation] = (packer, tuple(field[0] for field in operation._fields_))
    return packers


def _format(kind: Any) -> Iterator[str]:
    """Yield the format characters of a ctypes type for the module ``struct``."""
    if issubclass(kind, ctypes.Structure):
        for _, field in kind._fields_:
            yield from _format(field)
    elif issubclass(kind, ctypes.Array):
        yield from kind._length_ * list(_format(kind._type_))
    else:
        yield kind._type_
