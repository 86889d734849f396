"""Pruned models as files: one ``.safetensors`` that contains its own architecture; no pickle.

Tensors have the official key names with the pruned shapes; ``psvit_core.zoo.header`` describes the
metadata. ``load_model`` reads such a file by its path.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from psvit_core.errors import CheckpointError, PsvitError, PsvitWarning, UnknownNameError
from psvit_core.files import check_model_file, write_atomic
from psvit_core.quantize import fault_of_packed, unpacked
from psvit_core.records import Measurement
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.file_cards import card_for
from psvit_core.zoo.fitting import build_empty, load_tensors
from psvit_core.zoo.header import (
    METADATA_KEY,
    PRUNED_FORMAT,
    QUANTIZED_FORMAT,
    fault_of_arguments,
    read_header,
    write_header,
)
from psvit_core.zoo.quantized import FLOAT32, layer_weights, stored_state, weights_kind
from psvit_core.zoo.tensors import read_tensors


def save_pruned(model: SpikingModel, path: str | Path) -> Path:
    """Write a pruned model to a file, atomically.

    Args:
        model: A model that ``apply_plan`` returned. If ``quantize_weights`` followed, the weights
            are stored as it made them.
        path: Name of the file; ends in ``.safetensors``.

    Raises:
        CheckpointError: If ``model`` was not pruned, so that it has no provenance, or has an
            argument or a value that loading refuses.
        OutputError: If ``path`` does not end in ``.safetensors`` or cannot be written.
    """
    path = check_model_file(path)
    if not model.provenance:
        raise CheckpointError(
            f"{model.name} was not pruned; apply a plan first (an empty one removes nothing)."
        )
    kind = weights_kind(model)
    header = {
        "format": PRUNED_FORMAT if kind == FLOAT32 else QUANTIZED_FORMAT,
        "family": model.family,
        "arguments": model.arguments,
        "widths": model.widths,
        "provenance": model.provenance,
        "versions": {"torch": version("torch"), "spikingjelly": version("spikingjelly")},
        "licence": licence_of(model),
        "measurements": [],  # ``zoo.recorded`` adds them
        **({} if kind == FLOAT32 else {"weights": kind}),
    }
    metadata = {METADATA_KEY: write_header(header, model.name), "format": "pt"}
    check_values(model)
    tensors = stored_state(model)
    return write_atomic(path, lambda part: save_file(tensors, part, metadata=metadata))


def licence_of(model: SpikingModel) -> str:
    """Return the licence of the weights that a pruned model was made from, if it is known."""
    origin = str(model.provenance["origin"])
    return card_for(origin, model.family, model.arguments).licence


def check_arguments(model: SpikingModel) -> None:
    """Raise ``CheckpointError`` if a file with this model's arguments would not open again.

    For tasks that take long before they write the file.
    """
    if fault := fault_of_arguments(model.arguments):
        raise CheckpointError(
            f"{model.name} cannot be written to a file that opens again: {fault}."
        )


def check_values(model: SpikingModel) -> None:
    """Raise ``CheckpointError`` for values that loading refuses."""
    fault = model.fault_of_values()
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            fault = f"{name} has no values."
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            fault = f"{name} contains NaN or infinite values."
    if fault:
        raise CheckpointError(f"{model.name} cannot be written to a file that opens again: {fault}")


def load_pruned(path: Path) -> SpikingModel:
    """Load a pruned model, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: If the file is damaged, was not written by ``save_pruned``, or contradicts
            itself.
    """
    header = read_header(path)
    try:
        model = build_empty(header["family"], header["arguments"], header["widths"])
    except UnknownNameError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except PsvitError as error:
        raise CheckpointError(f"No model fits the metadata of {path}: {error}") from error
    tensors = read_tensors(path).tensors
    kind = header["weights"] if header["format"] == QUANTIZED_FORMAT else FLOAT32
    if kind != FLOAT32:
        if fault := fault_of_packed(tensors, layer_weights(model), kind):
            raise CheckpointError(f"{path} is damaged: {fault} Quantize the network again.")
        tensors = unpacked(tensors)
    if all(t.dtype == torch.float64 for t in tensors.values() if t.is_floating_point()):
        model = model.double()  # at another precision the weights hash would differ
    changed = model.changed_since(tensors)
    try:
        load_tensors(model, model.without_second_names(tensors), path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {changed}" if changed else str(error)) from error
    if changed:
        model.notes = (f"{path}: {changed}",)
        warnings.warn(model.notes[0], PsvitWarning, stacklevel=3)
    model.name = str(path)
    model.provenance = header["provenance"]
    model.stored_weights = kind
    model.recorded = tuple(Measurement.from_dict(m) for m in header.get("measurements", ()))
    return model
