"""How a run is done: device, batch size, precision."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from psvit_core.errors import DataError, DeviceError, UnknownNameError

DEFAULT_BATCH = 125
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Device, batch and precision of a measurement; results name them.

    Raises:
        DeviceError: If this machine has no such device.
        DataError: If the batch is empty.
    """

    device: str = "cpu"
    batch: int = DEFAULT_BATCH
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"A batch holds at least one image; got {self.batch}.")
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

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of ``precision``."""
        return DTYPES[self.precision]


def use_default_threads() -> None:
    """Leave one core to the rest of the machine.

    On all cores, torch's threads stall each other as soon as anything else runs (measured: 10 x
    slower on 2 cores beside one busy process).
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
