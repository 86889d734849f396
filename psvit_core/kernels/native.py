"""Compiled neurons, convolutions and programs (``csrc``).

``available`` says whether they can run; without a C compiler torch runs everything, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from psvit_core.errors import PsvitError
from psvit_core.kernels import ops, structs
from psvit_core.kernels.build import compiled_library
from psvit_core.kernels.packing import PackedFilters
from psvit_core.kernels.structs import Function, Operation, Status

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_MIN_PER_THREAD = 1 << 16  # values that are worth a thread of their own
_TYPES = {torch.float32: "float", torch.float64: "double"}
_REASONS = {
    Status.UNKNOWN_OPERATION: "an instruction has an unknown kind of operation",
    Status.UNKNOWN_FUNCTION: "a map has an unknown function",
    Status.INVALID_BLOCK: "a convolution has a block of an impossible width",
}


class KernelError(PsvitError):
    """A program that the compiled kernels reject."""

    exit_code = 1


class InterfaceError(Exception):
    """A library whose structs differ from those of this version of psvit_core."""


@dataclass(frozen=True)
class Program:
    """Operations to run in order, and the memory that they need for the images of one run.

    Attributes:
        operations: The structs; the caller keeps the memory alive that they point to.
        dtype: Type of all values, float32 or float64.
        arena: Values in the arena.
        scratch: Bytes that a single operation needs in addition.
    """

    operations: list[Operation]
    dtype: torch.dtype
    arena: int = 0
    scratch: int = 0

    @functools.cached_property
    def instructions(self) -> ctypes.Array[structs.Instruction]:
        """The operations as the library reads them: kind and address."""
        entries = [(operation.kind, ctypes.addressof(operation)) for operation in self.operations]
        return (structs.Instruction * len(entries))(*entries)  # type: ignore[misc]  # from tuples

    def replace(self, first: int, operations: Sequence[Operation]) -> None:
        """Put other operations of the same kinds in place of those from position ``first`` on."""
        self.operations[first : first + len(operations)] = operations
        for i, operation in enumerate(operations, first):
            self.instructions[i].operation = ctypes.addressof(operation)


def available(x: Tensor) -> bool:
    """Return whether compiled kernels can run on a tensor of this device and type."""
    return x.device.type == "cpu" and x.dtype in _TYPES and library() is not None


def lif(x: Tensor, v_threshold: float) -> Tensor:
    """Return the spikes of a LIF layer that starts from zero state.

    Args:
        x: (T, n) input current; each time step is contiguous, all may be the same memory.
        v_threshold: Firing threshold, above 0.

    Returns:
        (T, n) of 0.0 and 1.0, contiguous.
    """
    spikes = torch.empty(x.shape, dtype=x.dtype)

    def part(low: int, high: int) -> None:
        operation = ops.lif(spikes, x, float(v_threshold))
        operation.n = high - low
        operation.source.offset = operation.target.offset = low
        _run_operation(operation, x.dtype)

    run_in_threads(part, x.shape[1])
    return spikes


def integer_lif(x: Tensor, levels: int, norm: int, half_up: bool) -> Tensor:
    """Return ``round(clamp(x, 0, levels)) / norm`` of a dense tensor, in its memory order."""
    y = torch.empty_like(x)  # has the memory order of a dense tensor

    def part(low: int, high: int) -> None:
        strides = ops.padded((1,))
        source = (x.data_ptr(), low, *strides)
        operation = structs.Map.build(
            function=Function.INTEGER_LIF,
            n_axes=1,
            sizes=ops.padded((high - low,)),
            levels=levels,
            norm=norm,
            half_up=int(half_up),
            target=(y.data_ptr(), low, *strides),
            a=source,
            b=source,
            c=source,
        )
        _run_operation(operation, x.dtype)

    run_in_threads(part, x.numel())
    return y


def spike_conv(
    x: Tensor, filters: PackedFilters, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolve, visiting only inputs that are not zero.

    Args:
        x: (rows, c_in, H, W), any strides.
        filters: Weight and bias.
        stride: Along H and W.
        padding: Along H and W.

    Returns:
        (rows, c_out, H', W'), channels last in memory.
    """
    rows, c_in, *size = x.shape
    c_out, _, *kernel = filters.shape
    height, width = map(ops.output_size, size, kernel, stride, padding)
    y = torch.empty((rows, height, width, c_out), dtype=x.dtype).permute(0, 3, 1, 2)

    def part(low: int, high: int) -> None:
        operation = ops.conv(y[low:high], x[low:high], filters, stride, padding)
        scratch = torch.empty(
            ops.conv_scratch_bytes(operation, x.element_size()), dtype=torch.uint8
        )
        _run_operation(operation, x.dtype, scratch)

    per_row = max(c_in * size[0] * size[1], 1)
    run_in_threads(part, rows, min_per_thread=max(1, _MIN_PER_THREAD // per_row))
    return y


def run_program(
    program: Program, images: Tensor, per_run: int, seconds: Tensor | None = None
) -> None:
    """Run a program on some images of a batch.

    Args:
        program: The operations.
        images: Positions of the images in the batch, int64.
        per_run: Number of images that run at a time.
        seconds: Float64, indexed by the kind of an operation; the time that operations took is
            added.

    Raises:
        KernelError: If the library rejects an operation.
    """

    def part(low: int, high: int) -> None:
        arena = torch.empty(program.arena, dtype=program.dtype)
        scratch = torch.empty(program.scratch, dtype=torch.uint8)
        run = structs.Run(
            instructions=program.instructions,
            n_instructions=len(program.operations),
            arena=arena.data_ptr(),
            scratch=scratch.data_ptr(),
            images=images.data_ptr(),
            first=low,
            end=high,
            per_run=per_run,
            seconds=None if seconds is None else seconds.data_ptr(),
        )
        _run(run, program.dtype)

    run_in_threads(part, len(images), min_per_thread=per_run)


def _run_operation(operation: Operation, dtype: torch.dtype, scratch: Tensor | None = None) -> None:
    """Run one operation whose operands all have memory of their own."""
    instruction = structs.Instruction(operation.kind, ctypes.addressof(operation))
    run = structs.Run(instructions=ctypes.pointer(instruction), n_instructions=1, end=1, per_run=1)
    if scratch is not None:
        run.scratch = scratch.data_ptr()
    _run(run, dtype)


def _run(run: structs.Run, dtype: torch.dtype) -> None:
    status = _function(dtype)(run)
    if status != Status.OK:
        raise KernelError(
            f"The compiled kernels reject a program: {_REASONS[Status(status)]}. Report this as a "
            "bug. CC=false in the environment turns the compiled kernels off."
        )


def run_in_threads(
    part: Callable[[int, int], Result], n: int, min_per_thread: int = _MIN_PER_THREAD
) -> list[Result]:
    """Run ``part(low, high)`` over n elements on as many threads as torch uses.

    Returns:
        The results of the parts, in ascending order.
    """
    threads = min(torch.get_num_threads(), max(n // min_per_thread, 1))
    if threads == 1:
        return [part(0, n)]
    bounds = [n * i // threads for i in range(threads + 1)]
    return list(_pool(threads).map(part, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@functools.cache
def _function(dtype: torch.dtype) -> Callable[..., int]:
    found = library()
    assert found is not None
    function = getattr(found, f"psvit_run_{_TYPES[dtype]}")
    function.argtypes, function.restype = [ctypes.POINTER(structs.Run)], ctypes.c_int32
    return cast("Callable[..., int]", function)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library; None, with the reason in the log, if it cannot be built or loaded."""
    try:
        path = compiled_library()
        found = ctypes.CDLL(str(path))
        _check_interface(found, str(path))
    except (OSError, subprocess.SubprocessError, InterfaceError) as error:
        log.warning("using torch instead of compiled kernels, which is slower: %s", error)
        return None
    return found


def _check_interface(found: ctypes.CDLL, path: str) -> None:
    """Compare the interface version and the size of every struct with those of ``structs``."""
    try:
        version, size = found.psvit_interface_version, found.psvit_struct_size
    except AttributeError as error:
        raise InterfaceError(f"{path} is not the library of psvit_core; delete it") from error
    size.restype = ctypes.c_int64
    if version() != structs.INTERFACE_VERSION:
        raise InterfaceError(
            f"{path} has interface version {version()}, not {structs.INTERFACE_VERSION}; delete it"
        )
    for number, struct in structs.BY_NUMBER.items():
        if size(number) != ctypes.sizeof(struct):
            raise InterfaceError(
                f"{path} has {size(number)} bytes in struct {struct.__name__}, "
                f"not {ctypes.sizeof(struct)}; delete it"
            )
