"""The precision of training on this processor."""

from __future__ import annotations

import dataclasses

import torch

from psvit_core.errors import DataError
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run

AUTOCASTS = ("auto", "bfloat16", "off")


def resolved(settings: FinetuneSettings, run: Run) -> FinetuneSettings:
    """Return the settings with ``autocast`` chosen, as the training's report states it.

    ``auto`` is bfloat16 on the CPU where the processor multiplies such numbers natively and the run
    is of float32, or where the run is of bfloat16.

    Raises:
        DataError: If bfloat16 is asked for on another device or in another precision.
    """
    known = run.precision in ("float32", "bfloat16")
    possible = torch.device(run.device).type == "cpu" and known
    if settings.autocast == "bfloat16" and not possible:
        raise DataError(
            "Training with autocast bfloat16 needs the CPU and float32 or bfloat16; got "
            f"{run.device} and {run.precision}. Use autocast off."
        )
    if settings.autocast != "auto":
        return settings
    fast = possible and (run.precision == "bfloat16" or has_bfloat16())
    return dataclasses.replace(settings, autocast="bfloat16" if fast else "off")


def has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 numbers natively (AMX or AVX-512 BF16)."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
