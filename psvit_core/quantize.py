"""Weights in fewer bits: int8 with a scale per output channel, float16, bfloat16.

Tensors only; ``zoo.quantized`` knows which tensors of a model are weights. An int8 weight is stored
as whole numbers from -127 to 127 and, under its name with ``.scale``, one float32 per output
channel: weight = number x scale. There is no zero point. The scale is the channel's largest
magnitude / 127, rounded up to 17 significant bits, so that the product of a 7-bit number and a
scale has at most 24 bits and is exact in float32. Every program that multiplies in float32 or
float64 therefore gets the same weights, and quantizing these again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from psvit_core.errors import ModelError
from psvit_core.records import STORED_WEIGHTS

SCALE = ".scale"  # after a weight's name
_LARGEST = 127
_SCALE_BITS = 17
#: Weights below half of it become 0; smaller scales would leave the range of normal float32.
_SMALLEST_SCALE = 2.0**-120
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def int8_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight symmetrically, with a scale per output channel.

    Args:
        weight: (out, ...), float32.

    Returns:
        (whole numbers as int8 of the same shape, scales (out,) in float32). The channel's largest
        magnitude becomes 127, except in a channel of (nearly) zeros.
    """
    flat = weight.detach().flatten(1).double()
    mantissa, exponent = torch.frexp(flat.abs().amax(dim=1) / _LARGEST)
    scale = torch.ldexp(torch.ceil(torch.ldexp(mantissa, _bits(exponent))), exponent - _SCALE_BITS)
    scale = scale.clamp(min=_SMALLEST_SCALE)
    numbers = torch.round(flat / scale[:, None]).to(torch.int8)
    return numbers.view(weight.shape), scale.float()


def _bits(like: Tensor) -> Tensor:
    return torch.full_like(like, _SCALE_BITS)


def packed(tensors: Mapping[str, Tensor], names: Iterable[str], kind: str) -> dict[str, Tensor]:
    """Return a state dict with some tensors in fewer bits, as files store it.

    Args:
        tensors: The state dict, in float32.
        names: The tensors to quantize.
        kind: One of ``STORED_WEIGHTS``.

    Raises:
        ModelError: If a tensor is not float32, or has a value beyond the range of float16.
    """
    stored = dict(tensors)
    for name in names:
        weight = tensors[name].detach()
        if weight.dtype != torch.float32:
            raise ModelError(
                f"Only float32 weights are quantized; {name} is {_named(weight.dtype)}. Convert "
                "the network with model.float()."
            )
        if kind == "int8":
            stored[name], stored[name + SCALE] = int8_of(weight)
        else:
            stored[name] = weight.to(_HALVES[kind])
            _check_range(name, weight, stored[name], kind)
    return stored


def _check_range(name: str, weight: Tensor, half: Tensor, kind: str) -> None:
    """Raise ``ModelError`` if a weight became infinite."""
    if bool(torch.isfinite(weight).all()) and not bool(torch.isfinite(half).all()):
        raise ModelError(
            f"{name} has a weight of magnitude {float(weight.abs().max()):.4g}; {kind} ends at "
            f"{torch.finfo(half.dtype).max:.4g}. Use int8 or bfloat16."
        )


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a stored state dict with all weights in float32; other tensors stay as they are."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".scale") and name.removesuffix(".scale") in tensors:
            continue
        if tensor.dtype == torch.int8:
            scale = tensors[f"{name}.scale"]  # one per output channel
            plain[name] = tensor.float() * scale.view(-1, *[1] * (tensor.dim() - 1))
        elif tensor.dtype in (torch.float16, torch.bfloat16):
            plain[name] = tensor.float()
        else:
            plain[name] = tensor
    return plain


def fault_of_packed(tensors: Mapping[str, Tensor], names: Iterable[str], kind: str) -> str:
    """Return why stored tensors are not what ``packed`` writes, as a sentence; empty if they are.

    Args:
        tensors: From a file.
        names: The model's weights.
        kind: One of ``STORED_WEIGHTS``, as the file's header says.
    """
    wanted = torch.int8 if kind == "int8" else _HALVES[kind]
    expected = set(names)
    for name, tensor in tensors.items():
        if name in expected and tensor.dtype != wanted:
            return f"{name} is {_named(tensor.dtype)}, and the header says {kind}."
        if name not in expected and tensor.dtype in (torch.int8, *_HALVES.values()):
            return f"{name} is {_named(tensor.dtype)}, but it is no weight of a layer."
        if name in expected and kind == "int8":
            scale = tensors.get(name + SCALE)
            if scale is None:
                return f"{name} has no scales."
            if scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
                return f"{name + SCALE} is not one float32 per output channel."
            if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
                return f"{name + SCALE} has a value that is not positive and finite."
    return ""


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["SCALE", "STORED_WEIGHTS", "fault_of_packed", "int8_of", "packed", "unpacked"]
