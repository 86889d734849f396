"""Run settings: device, batch size, precision."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import psutil
import torch

from psvit_core.errors import DataError, DeviceError, UnknownNameError

# A sweep runs thousands of layer shapes in turn, but oneDNN caches only 1,024 compiled convolutions
# by default. The variable is read when the first convolution runs.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

Result = TypeVar("Result")
log = logging.getLogger(__name__)

DEFAULT_BATCH = 125
#: Precisions in which torch chooses bfloat16 or float16 for some operators.
REDUCED_PRECISIONS = ("bfloat16", "autocast")
#: Precision -> type of weights and images, which reduced precisions leave in float32.
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.float32,
    "autocast": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Device, batch size and precision of a measurement; results state them.

    Raises:
        DeviceError: If the device is not available or does not support the precision.
        DataError: If ``batch`` is below 1 or ``workers`` below 0.
        UnknownNameError: If the precision is unknown.
    """

    device: str = "cpu"
    batch: int = DEFAULT_BATCH
    precision: str = "float32"
    workers: int = 0  # processes that decode images; no effect on results

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"The batch size must be at least 1; got {self.batch}.")
        if self.workers < 0:
            raise DataError(
                f"The number of decoding processes must be at least 0; got {self.workers}."
            )
        if self.precision not in DTYPES:
            raise UnknownNameError("precision", self.precision, DTYPES)
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise DeviceError(f"Unknown device {self.device!r}. Use cpu or cuda.") from error
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise DeviceError(
                f"PyTorch cannot use device {self.device!r} on this machine. Use --device cpu."
            )
        if self.precision == "autocast" and kind != "cuda":
            raise DeviceError(
                f"Autocast needs a CUDA device, not {self.device!r}. Use --precision float32, or "
                "bfloat16, which the processor has, too."
            )
        if self.precision == "bfloat16" and kind == "cuda" and not torch.cuda.is_bf16_supported():
            raise DeviceError(
                f"Device {self.device!r} does not compute in bfloat16. Use --precision float32."
            )

    @property
    def dtype(self) -> torch.dtype:
        """Torch type of ``precision``."""
        return DTYPES[self.precision]

    @property
    def is_accelerated(self) -> bool:
        """Whether the device computes while the processor does something else."""
        return device_of(self.device).type != "cpu"

    @property
    def is_reduced(self) -> bool:
        """Whether some operators run in half precision."""
        return self.precision in REDUCED_PRECISIONS

    @property
    def exact(self) -> Run:
        """This run, in float32 if it is reduced: for fits and rankings, whose sums are long."""
        return replace(self, precision="float32") if self.is_reduced else self

    @property
    def autocast(self) -> AbstractContextManager[None]:
        """Context for a forward pass; autocasts if ``precision`` says so, else not at all."""
        half = torch.float16 if self.precision == "autocast" else torch.bfloat16
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=half, enabled=self.is_reduced)


def use_default_threads() -> None:
    """Leave one CPU core to other processes.

    With all cores in use, torch's threads stall each other as soon as anything else runs. Next to
    one busy process on 2 cores this was 10 times slower.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) in channels-last memory format; other tensors are returned unchanged.

    On the CPU, convolutions with few channels are several times faster in this format.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def device_of(name: str) -> torch.device:
    """Return the device that tensors have after a move to ``name``; ``cuda`` is the current one."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def release_memory() -> None:
    """Give back what a failed operation held on a device."""
    gc.collect()  # the error's traceback refers to tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Portions:
    """Runs items in portions of a size that halves when the device is out of memory.

    Attributes:
        size: Items at a time.
        least: Size that is not halved: the error of running out of memory is passed on.
    """

    size: int
    least: int = 1

    def over(self, n_items: int, run: Callable[[int, int], Result]) -> Iterator[Result]:
        """Yield the result of ``run`` for each portion, given its first and its end, in order.

        Raises:
            torch.OutOfMemoryError: If the device has not enough memory for the least portion.
        """
        low = 0
        while low < n_items:
            high = min(low + self.size, n_items)
            try:
                done = run(low, high)
            except torch.OutOfMemoryError:
                if high - low <= self.least:
                    raise
                self.size = max((high - low + 1) // 2, self.least)
            else:
                yield done
                low = high
                continue
            log.warning("out of memory with %d at once; going on with %d", high - low, self.size)
            _release_memory()  # here nothing refers to the error, and through it to tensors


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def out_of_memory_explained(run: Run, batch: int | None = None) -> Iterator[None]:
    """Raise ``DeviceError`` if the device runs out of memory in the block.

    Args:
        run: Device and batch.
        batch: Batch size, if it is not that of the run.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"Device {run.device!r} has not enough memory for this model in batches of "
            f"{batch or run.batch}. Use a smaller --batch, fewer time steps, or --device cpu."
        ) from error


def free_memory(device: str) -> int:
    """Return the number of free bytes on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
