"""Native loops of training (``csrc/training.h``): LIF neurons and BatchNorms with gradients.

All take tensors of float32, float64 or bfloat16 in flat layouts; ``kernels.lif`` and
``kernels.norm`` bring tensors there. Arithmetic of bfloat16 is that of float32.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from psvit_core.kernels import native

_TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
_CHUNK = 512  # PSVIT_CHUNK
_WIDE = 64  # values of a row that keep the loops over rows busy
_MIN_ROWS_BYTES = 1 << 18  # of a thread

_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ARGUMENTS = {
    "psvit_lif": (_POINTER,) * 2 + (_COUNT,) * 4 + (_REAL,),
    "psvit_lif_grad": (_POINTER,) * 3 + (_COUNT,) * 5 + (_REAL,) * 2 + (_COUNT, _POINTER),
    "psvit_row_sums": (_POINTER,) * 2 + (_COUNT,) * 2 + (_POINTER,) * 4,
    "psvit_row_scale": (_POINTER,) * 2 + (_COUNT,) * 2 + (_POINTER,) * 3,
    "psvit_row_grad": (_POINTER,) * 3 + (_COUNT,) * 2 + (_POINTER,) * 4,
    "psvit_norm_begin": (_POINTER,)
    + (_COUNT,) * 4
    + (_POINTER,) * 3
    + (_REAL,)
    + (_POINTER,) * 4
    + (_REAL,),
    "psvit_norm_end": (_POINTER,) + (_COUNT,) * 4 + (_POINTER,) * 5,
}


def available(x: Tensor) -> bool:
    """Return whether the loops can run on a tensor of this device and type."""
    return x.device.type == "cpu" and x.dtype in _TYPES and native.library() is not None


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the type of the arithmetic for values of a type: float32 for bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def lif(x: Tensor, v_threshold: float) -> Tensor:
    """Return the spikes of LIF neurons that start from zero state.

    Args:
        x: (T, n) input current; each time step is contiguous, all may be the same memory.
        v_threshold: Firing threshold, above 0.

    Returns:
        (T, n) of 0.0 and 1.0, contiguous.
    """
    steps, n = x.shape
    spikes = torch.empty(x.shape, dtype=x.dtype)
    run, size = _function("psvit_lif", x.dtype), x.element_size()
    source, target = x.data_ptr(), spikes.data_ptr()

    def part(low: int, high: int) -> None:
        at = low * size
        run(source + at, target + at, steps, high - low, x.stride(0), n, v_threshold)

    native.run_in_threads(part, n)
    return spikes


def lif_grad(x: Tensor, grad: Tensor, v_threshold: float, slope: float, *, atan: bool) -> Tensor:
    """Return the gradient of the input of LIF neurons, with the reset detached.

    Args:
        x: (T, n), as for ``lif``.
        grad: (T, n) gradient of the spikes; each time step is contiguous.
        v_threshold: Firing threshold.
        slope: Slope of the surrogate.
        atan: Use the arctangent surrogate; otherwise the sigmoid.

    Returns:
        (T, n), contiguous.
    """
    steps, n = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    run, size = _function("psvit_lif_grad", x.dtype), x.element_size()
    source, given, target = x.data_ptr(), grad.data_ptr(), out.data_ptr()

    def part(low: int, high: int) -> None:
        scratch = torch.empty(steps * _CHUNK, dtype=arithmetic(x.dtype))
        at, sizes = low * size, (steps, high - low, x.stride(0), grad.stride(0), n)
        where = (source + at, given + at, target + at)
        run(*where, *sizes, v_threshold, slope, int(atan), scratch.data_ptr())

    native.run_in_threads(part, n)
    return out


@dataclass(frozen=True)
class Norm:
    """What the gradient of a BatchNorm needs.

    Attributes:
        statistics: (3, channels) float64: mean, variance, 1 / sqrt(variance + eps).
        scaling: (k, n) parameters of each value of a row; the first are the means.
    """

    statistics: Tensor
    scaling: Tensor


class Rows:
    """Values (rows, channels) that a BatchNorm normalises per channel.

    Several short rows are treated as one, so that the loops over a row are long.

    Args:
        x: (rows, channels), contiguous.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.count, self.channels = x.shape
        repeat = 1
        while self.channels * repeat < _WIDE and self.count % (2 * repeat) == 0:
            repeat *= 2
        self.rows, self.n = self.count // repeat, self.channels * repeat
        self.per_thread = max(1, _MIN_ROWS_BYTES // (self.n * x.element_size()))

    def normalised(
        self,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
    ) -> tuple[Tensor, Norm]:
        """Return the output, contiguous, and what its gradient needs.

        Args:
            weight: (channels,), of the type of the arithmetic like all parameters.
            bias: (channels,).
            eps: Added to the variances.
            running: Running mean and variance, which are updated; None: there are none.
            momentum: Their step.
        """
        kind = arithmetic(self.x.dtype)
        scaling = torch.empty(3, self.n, dtype=kind)
        near = self.x.view(-1)[: self.n] if self.channels == self.n else self._first()
        scaling[0] = near  # sums of differences from the first row are exact enough
        totals = self._sums(None, scaling)
        statistics = torch.empty(3, self.channels, dtype=torch.float64)
        means = (running[0].data_ptr(), running[1].data_ptr()) if running else (None, None)
        _function("psvit_norm_begin", self.x.dtype)(
            *self._sizes(totals),
            self.x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            eps,
            statistics.data_ptr(),
            scaling.data_ptr(),
            *means,
            momentum,
        )
        out = torch.empty_like(self.x)
        self._run("psvit_row_scale", (self.x, out), scaling)
        return out, Norm(statistics, scaling)

    def gradients(self, grad: Tensor, weight: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, contiguous, of the weight and of the bias.

        Args:
            grad: Gradient of the output, as ``x``.
            weight: (channels,).
            norm: From ``normalised``.
        """
        kind = arithmetic(self.x.dtype)
        totals = self._sums(grad, norm.scaling)
        scaling = torch.empty(4, self.n, dtype=kind)
        parameters = torch.empty(2, self.channels, dtype=kind)
        _function("psvit_norm_end", self.x.dtype)(
            *self._sizes(totals),
            weight.data_ptr(),
            norm.statistics.data_ptr(),
            scaling.data_ptr(),
            parameters[0].data_ptr(),
            parameters[1].data_ptr(),
        )
        out = torch.empty_like(self.x)
        self._run("psvit_row_grad", (self.x, grad, out), scaling)
        return out, parameters[0], parameters[1]

    def _first(self) -> Tensor:
        return self.x[0].expand(self.n // self.channels, -1).reshape(-1)

    def _sizes(self, totals: Tensor) -> tuple[int, ...]:
        return totals.data_ptr(), len(totals), self.n, self.channels, self.count

    def _sums(self, grad: Tensor | None, scaling: Tensor) -> Tensor:
        """Return the sums of ``psvit_row_sums`` of each thread, (threads, 2, n) float64."""
        run, step = _function("psvit_row_sums", self.x.dtype), self.n * self.x.element_size()
        source, given = self.x.data_ptr(), 0 if grad is None else grad.data_ptr()

        def part(low: int, high: int) -> Tensor:
            total = torch.zeros(1, 2, self.n, dtype=torch.float64)
            scratch = torch.empty(2 * self.n, dtype=scaling.dtype)
            at, second = low * step, given + low * step if given else None
            sums, products = total.data_ptr(), total.data_ptr() + self.n * total.element_size()
            memory = (scaling.data_ptr(), sums, products, scratch.data_ptr())
            run(source + at, second, high - low, self.n, *memory)
            return total

        totals = native.run_in_threads(part, self.rows, self.per_thread)
        return totals[0] if len(totals) == 1 else torch.cat(totals)

    def _run(self, name: str, values: tuple[Tensor, ...], scaling: Tensor) -> None:
        """Run a loop over rows of ``values`` with the rows of ``scaling`` as parameters."""
        run, step = _function(name, self.x.dtype), self.n * self.x.element_size()
        first, line = scaling.data_ptr(), self.n * scaling.element_size()
        parameters = tuple(first + i * line for i in range(len(scaling)))
        memory = tuple(v.data_ptr() for v in values)

        def part(low: int, high: int) -> None:
            run(*(at + low * step for at in memory), high - low, self.n, *parameters)

        native.run_in_threads(part, self.rows, self.per_thread)


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    library = native.library()
    assert library is not None
    function = getattr(library, f"{name}_{_TYPES[dtype]}")
    function.argtypes, function.restype = _ARGUMENTS[name], None
    return cast("Callable[..., None]", function)
