"""Writes a network as a file that stands alone: its own definition in Python, and its weights.

The definition is cut from the source of the model's family (``bundle``) and has the pruned widths
as constants. It imports torch, safetensors and the standard library, and nothing of this package.

``export_onnx`` and ``export_pt2`` write a traced graph with its weights instead (``traced``), and
compare it with the network (``agreement``). ``export_nir`` writes a graph of layers and neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psvit_core.errors import ModelError, OutputError
from psvit_core.export.nir_file import export_nir
from psvit_core.export.onnx_file import export_onnx
from psvit_core.export.pt2_file import export_pt2
from psvit_core.export.text import torch_source
from psvit_core.files import (
    MODEL_SUFFIX,
    check_writable,
    expand,
    is_file,
    is_module,
    module_name,
    write_atomic,
    write_text,
)
from psvit_core.neurons import LIF
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import CUSTOM_FAMILY
from psvit_core.zoo.header import read_header, read_metadata
from psvit_core.zoo.pruned import check_values, load_pruned
from psvit_core.zoo.quantized import stored_state

__all__ = [
    "TorchExport",
    "check_export_path",
    "export_nir",
    "export_onnx",
    "export_pt2",
    "export_torch",
    "refuse_own_code",
    "write_definition",
]

_MARK = "psvit_export"  # in the metadata of exported weights
_EXPORT_FORMAT = "1"


@dataclass(frozen=True)
class TorchExport:
    """The two files of an export."""

    code: Path
    weights: Path


def export_torch(
    model: SpikingModel, path: str | Path, *, spikingjelly: bool = False
) -> TorchExport:
    """Write a network that runs without this package: ``NAME.py`` and ``NAME.safetensors``.

    The Python file defines the network at its present widths and says where it comes from. It needs
    torch and safetensors only; ``load()`` in it returns the network. Its logits equal the model's.
    Quantized weights are stored as they are in the model's file, and ``load()`` makes them float32.

    Args:
        model: A pruned model, or any model of a known family with weights.
        path: The Python file; its name can be imported and ends in ``.py``. Beside the pruned file
            that the model was loaded from, under the same name, it uses that file's weights.
        spikingjelly: Use SpikingJelly's LIF neuron, so that the file needs SpikingJelly too.

    Raises:
        ModelError: If the model is of your own code, or has no LIF neuron for SpikingJelly to run.
        CheckpointError: If the model has no usable weights.
        OutputError: If the files cannot be written, or other weights would be replaced.
    """
    code = check_export_path(path, model.name)
    weights = code.with_suffix(MODEL_SUFFIX)
    refuse_own_code(model)
    if spikingjelly and not any(isinstance(module, LIF) for module in model.modules()):
        raise ModelError(
            f"{model.name} has integer neurons, which SpikingJelly does not have. Omit "
            "--spikingjelly."
        )
    check_values(model)
    text = torch_source(model, code.stem, spikingjelly=spikingjelly)
    tensors = stored_state(model)
    if _is_same_file(weights, model.name):
        _check_equal(tensors, weights)
    else:
        metadata = {"format": "pt", _MARK: _EXPORT_FORMAT}
        write_atomic(weights, lambda part: save_file(tensors, part, metadata=metadata))
    write_text(code, text)
    return TorchExport(code, weights)


def refuse_own_code(model: SpikingModel) -> None:
    """Raise ``ModelError`` for a network of the user's own, which no Python file can define."""
    if model.family == CUSTOM_FAMILY:
        raise ModelError(
            f"{model.name} is defined by your own code, which exists only there: it cannot be "
            "exported as a file that stands alone. Copy the weights from the pruned file into your "
            "own class at the pruned widths."
        )


def write_definition(path: Path) -> Path | None:
    """Write the Python file that runs a pruned file without this package, beside it.

    Returns:
        The Python file; None for a network of the user's own, which is defined elsewhere.
    """
    if read_header(path)["family"] == CUSTOM_FAMILY:
        return None
    name = module_name(path.name)
    text = torch_source(load_pruned(path), name, weights=path.name)
    return write_text(path.with_name(f"{name}.py"), text)


def check_export_path(path: str | Path, source: str | Path = "") -> Path:
    """Check that an export can be written to ``path`` and imported from there.

    Args:
        path: The Python file.
        source: The model's name, or the file that it is in, which stays as it is.

    Returns:
        The path.

    Raises:
        OutputError: If its name cannot be imported, it cannot be written, or the weights beside it
            were not written by an export.
    """
    code = expand(path)
    name = code.stem
    if code.suffix != ".py" or not name.isidentifier() or not name.isascii():
        raise OutputError(
            "An export is a Python file whose name is made of letters, digits and underscores, "
            f"such as pruned.py; got {code.name!r:.80}."
        )
    if is_module(name):
        raise OutputError(f"{code.name} has the name of another module. Choose another name.")
    check_writable(code)
    weights = check_writable(code.with_suffix(MODEL_SUFFIX))
    if _is_same_file(weights, source):
        return code
    if weights.exists() and _MARK not in read_metadata(weights):
        raise OutputError(
            f"The weights would replace {weights}, which no export wrote. Choose another name for "
            f"{code.name}."
        )
    return code


def _is_same_file(weights: Path, source: str | Path) -> bool:
    return weights.exists() and is_file(source) and weights.samefile(source)


def _check_equal(tensors: Mapping[str, Tensor], weights: Path) -> None:
    """Raise ``OutputError`` unless a file contains exactly these tensors."""
    stored = load_file(weights)
    if stored.keys() == tensors.keys() and all(torch.equal(stored[k], tensors[k]) for k in stored):
        return
    raise OutputError(
        f"{weights} contains other weights or other names than the model that was read from it. "
        "Choose another name."
    )
