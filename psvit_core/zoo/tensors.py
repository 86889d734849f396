"""Reading tensors from files safely: nothing executed, all or nothing."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from psvit_core.errors import CheckpointError

#: Entries that hold the weights in files of the official trainers.
WRAPPERS = ("state_dict", "model")
#: Entries that hold an exponential moving average of them.
EMA_WRAPPERS = ("state_dict_ema", "model_ema")


def read_tensors(path: Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file.

    Args:
        path: ``.safetensors``, or anything that ``torch.save`` wrote.
        ema: Read the moving average that some trainers save beside the weights.

    Raises:
        CheckpointError: If the file is missing, damaged, or more than plain tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}.")
    if path.suffix != ".safetensors":
        return _read_pickled(path, ema), {}
    if ema:
        raise CheckpointError(f"{path} is a .safetensors file and holds no moving average.")
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise damaged(path, ".safetensors file", error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Only the metadata of a ``.safetensors`` file; ``CheckpointError`` if it is no such file."""
    if not path.is_file():
        raise CheckpointError(f"There is no model or file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise damaged(path, ".safetensors file", error) from error


def damaged(path: Path, what: str, error: Exception) -> CheckpointError:
    """The error for a file that is cut, overwritten or something else."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(f"{path} is not a whole {what} ({text}). Copy or download it again.")


def _read_pickled(path: Path, ema: bool) -> dict[str, Tensor]:
    try:
        # The official trainers also pickle their command line, an argparse.Namespace: harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors{_foreign(path)} and would run code when opened; "
            "refused. Save its state dict alone, or as .safetensors, on a machine where you trust "
            "it."
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise damaged(path, "PyTorch checkpoint", error) from error
    content = _unwrapped(content, path, ema)
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(f"{path} holds no state dict of named tensors.")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _foreign(path: Path) -> str:
    """The names in a file that would run code, where they can be listed."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # files of before torch 1.6 and damaged ones cannot be listed, only refused
        return ""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f" ({', '.join(sorted(names)[:4])}{more})" if names else ""


def _unwrapped(content: Any, path: Path, ema: bool) -> Any:
    """The state dict inside a trainer's file."""
    there = [
        key
        for key in (*WRAPPERS, *EMA_WRAPPERS)
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
    ]
    averages = [key for key in there if key in EMA_WRAPPERS]
    plain = [key for key in there if key in WRAPPERS]
    if ema and not averages:
        raise CheckpointError(
            f"{path} holds no moving average ({' or '.join(EMA_WRAPPERS)}). Leave --ema away."
        )
    if averages and not plain and not ema:
        raise CheckpointError(
            f"{path} holds only a moving average ({averages[0]}). Choose it with --ema."
        )
    for key in averages if ema else plain:
        return content[key]
    return content
