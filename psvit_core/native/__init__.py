"""The loops of ``loops.c`` and ``program.c``, compiled by the machine's compiler when needed.

Without a compiler everything works as before, only slower. The library lies in a folder that only
the user can write to, under a name that follows from the source and the machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("loops.c", "program.c")]
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_PIECE = 1 << 16  # elements that are worth a thread of their own
_VECTOR_BYTES = 64  # of loops.c
_BLOCK = 8  # likewise
_TYPES = {torch.float32: "float", torch.float64: "double"}


def available(x: Tensor) -> bool:
    """Whether there are native loops for a tensor."""
    return x.device.type == "cpu" and x.dtype in _TYPES and _library() is not None


def lif(x: Tensor, v_threshold: float) -> Tensor:
    """Spikes of a LIF layer from zero state.

    Args:
        x: (T, n), each step contiguous; all steps may be the same memory.
        v_threshold: Firing threshold, above 0.

    Returns:
        (T, n) of 0.0 and 1.0, contiguous.
    """
    spikes = torch.empty(x.shape, dtype=x.dtype)
    run, size = _function("lif", x.dtype), x.element_size()
    steps, n = x.shape

    def part(low: int, high: int) -> None:
        run(
            x.data_ptr() + low * size, spikes.data_ptr() + low * size, steps, high - low,
            x.stride()[0], n, float(v_threshold),
        )  # fmt: skip

    _in_threads(part, n)
    return spikes


def integer_lif(x: Tensor, levels: int, norm: int) -> Tensor:
    """``round(clamp(x, 0, levels)) / norm`` of a dense tensor, in its order of memory."""
    y = torch.empty_like(x)  # keeps the order of memory of a dense tensor
    run, size = _function("integer_lif", x.dtype), x.element_size()

    def part(low: int, high: int) -> None:
        run(
            x.data_ptr() + low * size, y.data_ptr() + low * size, high - low,
            float(levels), float(norm),
        )  # fmt: skip

    _in_threads(part, x.numel())
    return y


@dataclass(frozen=True)
class Packed:
    """A convolution's weights in the order in which ``spike_conv`` reads them."""

    weight: Tensor
    bias: Tensor  # (c_out padded to whole vectors,)
    shape: torch.Size  # (c_out, c_in, kh, kw)


def pack(weight: Tensor, bias: Tensor | None) -> Packed:
    """Weights (c_out, c_in, kh, kw) and bias (c_out,) for ``spike_conv``."""
    lanes = _VECTOR_BYTES // weight.element_size()
    parts = []
    for part in weight.split(_BLOCK * lanes):
        block = weight.new_zeros(*weight.shape[2:], weight.shape[1], -(-len(part) // lanes) * lanes)
        block[..., : len(part)] = part.permute(2, 3, 1, 0)
        parts.append(block.flatten())
    padded = weight.new_zeros(-(-len(weight) // lanes) * lanes)
    if bias is not None:
        padded[: len(bias)] = bias
    return Packed(torch.cat(parts), padded, weight.shape)


def list_room(c_in: int, positions: int) -> int:
    """Entries for the lists of inputs that are not zero, of one row of ``spike_conv``."""
    return positions * (-(-c_in // 4) * 4) + 32


def spike_conv(x: Tensor, w: Packed, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """A convolution that only visits inputs that are not zero.

    Args:
        x: (rows, c_in, H, W), any strides.
        w: Of ``pack``.
        stride: Along H and W.
        padding: Along H and W.

    Returns:
        (rows, c_out, H', W'), channels last in memory.
    """
    rows, c_in, h, wd = x.shape
    c_out, _, kh, kw = w.shape
    oh = (h + 2 * padding[0] - kh) // stride[0] + 1
    ow = (wd + 2 * padding[1] - kw) // stride[1] + 1
    y = torch.empty((rows, oh, ow, c_out), dtype=x.dtype)
    run, size, strides = _function("spike_conv", x.dtype), x.element_size(), x.stride()

    def part(low: int, high: int) -> None:
        room = list_room(c_in, h * wd)
        numbers = torch.empty(room + h * wd, dtype=torch.int32)
        values = torch.empty(room, dtype=x.dtype)
        run(
            x.data_ptr() + low * strides[0] * size, *strides, w.weight.data_ptr(),
            w.bias.data_ptr(), y.data_ptr() + low * oh * ow * c_out * size, high - low, c_in, h,
            wd, c_out, oh, ow, kh, kw, *stride, *padding, numbers.data_ptr(), values.data_ptr(),
            numbers.data_ptr() + 4 * room,
        )  # fmt: skip

    _in_threads(part, rows, worth=max(1, _PIECE // max(h * wd * c_in, 1)))
    return y.permute(0, 3, 1, 2)


def run_program(
    rows: Tensor,
    arena: int,
    scratch: int,
    images: Tensor,
    per_run: int,
    dtype: torch.dtype,
    seconds: Tensor | None = None,
) -> None:
    """Run the operations of ``native.ops`` on some images of a batch.

    Args:
        rows: (n, WIDTH) of ``ops.as_table``.
        arena: Elements that the arena holds.
        scratch: Bytes that one operation needs beside it.
        images: Positions of the images in the batch, int64.
        per_run: Images that the arena has room for.
        dtype: Of all values.
        seconds: Float64, by the kind of an operation (the first number of its row): those that it
            took are added.
    """
    run = _function("run_program", dtype)
    clock = seconds.data_ptr() if seconds is not None else None

    def part(low: int, high: int) -> None:
        memory, beside = torch.empty(arena, dtype=dtype), torch.empty(scratch, dtype=torch.uint8)
        run(
            rows.data_ptr(), *rows.shape, memory.data_ptr(), beside.data_ptr(), images.data_ptr(),
            low, high, per_run, clock,
        )  # fmt: skip

    _in_threads(part, len(images), worth=per_run)


def _in_threads(part: Callable[[int, int], None], n: int, worth: int = _PIECE) -> None:
    """Run ``part(low, high)`` over n elements on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), max(n // worth, 1))
    if threads == 1:
        part(0, n)
        return
    bounds = [n * i // threads for i in range(threads + 1)]
    list(_pool(threads).map(part, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


_ARGUMENTS = {
    "lif": [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_long] * 4, ctypes.c_double],
    "spike_conv": [
        *[ctypes.c_void_p],
        *[ctypes.c_long] * 4,
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_long] * 13,
        *[ctypes.c_void_p] * 3,
    ],  # fmt: skip
    "run_program": [
        *[ctypes.c_void_p],
        *[ctypes.c_long] * 2,
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_long] * 3,
        *[ctypes.c_void_p],
    ],  # fmt: skip
    "integer_lif": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, *[ctypes.c_double] * 2],
}


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    library = _library()
    assert library is not None
    function: Callable[..., None] = getattr(library, f"{name}_{_TYPES[dtype]}")
    function.argtypes = _ARGUMENTS[name]  # type: ignore[attr-defined]
    function.restype = None  # type: ignore[attr-defined]
    return function


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled loops; None without a compiler, with one line in the log."""
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the plain neurons are used, which are slower: %s", error)
        return None


def _compiled() -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or ""
    if not compiler:
        raise FileNotFoundError("there is no C compiler (cc, gcc or $CC)")
    folder = _private_folder()
    machine = repr((compiler, _FLAGS, platform.machine(), _cpu()))
    made_of = [*(source.read_bytes() for source in _SOURCES), machine.encode()]
    name = hashlib.blake2b(b"".join(made_of), digest_size=12).hexdigest()
    library = folder / f"{name}.so"
    if not library.exists():
        part = folder / f"{name}.{os.getpid()}.part"
        command = [*compiler.split(), *_FLAGS, "-o", str(part), str(_SOURCES[0])]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        part.replace(library)
    return library


def _private_folder() -> Path:
    """``~/.cache/psvit``: what is loaded as code must be the user's own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "psvit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if sys.platform != "win32" and (
        found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise PermissionError(f"others may write to {folder}")
    return folder


def _cpu() -> str:
    """What -march=native looks at, so that a home shared by machines holds a library for each."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
