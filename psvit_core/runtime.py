"""How a run is done: device, batch size, precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import psutil
import torch

from psvit_core.errors import DataError, DeviceError, UnknownNameError

# A sweep runs thousands of layer shapes in turn; torch's convolutions forget theirs after 1,024 and
# compile them again. Read when the first convolution runs.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

DEFAULT_BATCH = 125
#: Precision -> type of weights and images; autocast lets CUDA choose half precision by operator.
DTYPES = {"float32": torch.float32, "float64": torch.float64, "autocast": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Device, batch and precision of a measurement; results name them.

    Raises:
        DeviceError: If this machine has no such device.
        DataError: If the batch is empty or there are less than no workers.
    """

    device: str = "cpu"
    batch: int = DEFAULT_BATCH
    precision: str = "float32"
    workers: int = 0  # processes that decode images; results do not depend on it

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"A batch holds at least one image; got {self.batch}.")
        if self.workers < 0:
            raise DataError(f"Decoding takes 0 or more worker processes; got {self.workers}.")
        if self.precision not in DTYPES:
            raise UnknownNameError("precision", self.precision, DTYPES)
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise DeviceError(f"There is no device {self.device!r}; use cpu or cuda.") from error
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise DeviceError(
                f"PyTorch can use no device {self.device!r} on this machine. Use --device cpu."
            )
        if self.precision == "autocast" and kind != "cuda":
            raise DeviceError(
                f"Autocast is for CUDA devices, not {self.device!r}. Use --precision float32."
            )

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of ``precision``."""
        return DTYPES[self.precision]

    @property
    def autocast(self) -> AbstractContextManager[None]:
        """Context of a forward pass: half precision where CUDA's autocast deems it safe."""
        return torch.autocast("cuda", enabled=self.precision == "autocast")


def use_default_threads() -> None:
    """Leave one core to the rest of the machine.

    On all cores, torch's threads stall each other as soon as anything else runs (measured: 10 x
    slower on 2 cores beside one busy process).
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Images, maps or filters (N, C, H, W) with their channels together in memory; others as is.

    Convolutions of few channels on the CPU are several times faster this way.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def free_memory(device: str) -> int:
    """Bytes that are free on a device now."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
