"""Reading weights safely and without surprises: tensors only, nothing executed, all or nothing."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from psvit_core.errors import CheckpointError, PsvitError, UnknownNameError
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import ModelCard, build_model, list_models, model_card

PRUNED_FORMAT = 1
METADATA_KEY = "psvit"
_WRAPPERS = ("state_dict", "model")
_MAX_ARGUMENT = 100_000  # larger than any width or image side; keeps a hostile header harmless
_MAX_DEPTH = 1_000


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of all weights and buffers: sorted names, dtypes, shapes, bytes."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().cpu().contiguous()
        total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def load_model(model: str | Path, checkpoint: str | Path | None = None) -> SpikingModel:
    """A model with weights, in evaluation mode, on the CPU.

    Args:
        model: A registered name, or the path of a pruned ``.safetensors``.
        checkpoint: Weights for a registered name (``.safetensors``, ``.pth``, ``.pt``, ``.tar``);
            the shipped ones when None.

    Raises:
        UnknownNameError: If ``model`` is neither a registered name nor a file.
        CheckpointError: If the weights are damaged, foreign, or do not fit.
    """
    name = str(model)
    if name not in list_models() and (Path(name).suffix or Path(name).exists()):
        if checkpoint:
            raise CheckpointError(f"{name} is a file of its own; leave --checkpoint away.")
        return _load_pruned(Path(name))
    card = model_card(name)
    path = Path(checkpoint) if checkpoint else card.weights
    if path is None:
        raise CheckpointError(f"{name} ships without weights. Give its file with --checkpoint.")
    tensors, metadata = read_tensors(path)
    if METADATA_KEY in metadata:
        raise CheckpointError(
            f"{path} is a pruned checkpoint with an architecture of its own. "
            f"Use it in place of the model name {name!r}."
        )
    built = _build_empty(card.family, card.arguments, {})
    _assign(built, tensors, path)
    built.name = name
    return built


def find_card(model: str | Path) -> ModelCard:
    """The card of a registered model, or of the one that a pruned file came from."""
    if str(model) in list_models():
        return model_card(str(model))
    path = Path(model)
    if not path.suffix and not path.exists():
        return model_card(str(model))  # raises, with the nearest name
    return model_card(_read_header(path)["provenance"]["origin"])


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file.

    Raises:
        CheckpointError: If the file is missing, damaged, or more than plain tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                keys = list(file.keys())
                return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is not a whole .safetensors file ({error}). Copy or download it again."
            ) from error
    return _read_pickled(path), {}


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and would run code when opened; refused. Save its "
            "state dict alone, or as .safetensors, on a machine where you trust it."
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint ({error}). Copy or download it again."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(f"{path} holds no state dict of named tensors.")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _build_empty(
    family: str, arguments: Mapping[str, Any], widths: Mapping[str, int]
) -> SpikingModel:
    with torch.device("meta"):
        return build_model(family, widths, **arguments)


def _assign(model: SpikingModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give ``model`` these weights, strictly."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    unexpected = sorted(set(tensors) - set(wanted))
    shaped = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    if missing or unexpected or shaped:
        parts = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shaped))
        told = "; ".join(f"{len(x)} {what} ({', '.join(x[:3])}...)" for what, x in parts if x)
        raise CheckpointError(f"{path} does not fit {model.family} as configured: {told}.")
    for key, tensor in tensors.items():
        floating = wanted[key].is_floating_point()
        if floating != tensor.is_floating_point():
            raise CheckpointError(f"{path}: {key} has type {tensor.dtype}; expected a float.")
        if floating and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {key} holds NaN or infinite values.")
    cast = {k: v.to(wanted[k].dtype).clone() for k, v in tensors.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _read_header(path: Path) -> dict[str, Any]:
    """The architecture, plan and provenance in a pruned file's metadata, checked."""
    if not path.is_file():
        raise CheckpointError(f"There is no model or file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole .safetensors file ({error}). Copy or download it again."
        ) from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} carries no architecture, so it was not written by this tool. For an official "
            "checkpoint give the model's name and --checkpoint."
        )
    try:
        header: dict[str, Any] = json.loads(metadata[METADATA_KEY])
        sound = (
            header["format"] == PRUNED_FORMAT
            and isinstance(header["family"], str)
            and all(_small(v, k) for k, v in header["arguments"].items())
            and all(isinstance(v, int) for v in header["widths"].values())
            and isinstance(header["provenance"]["origin"], str)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error}).") from error
    if not sound:
        raise CheckpointError(f"{path}: its metadata is not of format {PRUNED_FORMAT}.")
    return header


def _small(value: object, name: str) -> bool:
    values = value if isinstance(value, list) else [value]
    limit = _MAX_DEPTH if name in ("depths", "T", "in_channels") else _MAX_ARGUMENT
    return len(values) <= 16 and all(
        isinstance(v, str) or (isinstance(v, int) and 0 <= v <= limit) for v in values
    )


def _load_pruned(path: Path) -> SpikingModel:
    header = _read_header(path)
    try:
        model = _build_empty(header["family"], header["arguments"], header["widths"])
    except UnknownNameError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except PsvitError as error:
        raise CheckpointError(f"{path}: its metadata fits no model: {error}") from error
    tensors, _ = read_tensors(path)
    _assign(model, tensors, path)
    model.name = str(path)
    model.provenance = header["provenance"]
    return model
