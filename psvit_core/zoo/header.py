"""Header of a pruned file: where it is stored, how it is read and checked. Imports no torch.

A pruned file is a ``.safetensors`` file whose metadata entry ``psvit`` is JSON with the fields
``format``, ``family``, ``arguments`` (original constructor arguments), ``widths`` (present widths),
``provenance`` (origin, its weights hash and size, kept indices of the origin's units, all plans,
recoveries and fine-tuning runs) and ``versions``. Since format 2 also ``licence`` (of the first
ancestor's weights) and ``measurements`` (of the network in the file). Format 3, which only files
with quantized weights have, adds ``weights``, one of ``STORED_WEIGHTS``. It is untrusted input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from psvit_core.errors import CheckpointError, RecordError
from psvit_core.records import (
    STORED_WEIGHTS,
    FinetuneReport,
    Measurement,
    PrunePlan,
    RecoveryReport,
)
from psvit_core.zoo.cards import CUSTOM_FAMILY, list_models, model_card
from psvit_core.zoo.file_kind import SAFETENSORS, checkpoint_kind

METADATA_KEY = "psvit"
PRUNED_FORMAT = 2  # that is written with float weights
QUANTIZED_FORMAT = 3  # that is written with others
READABLE_FORMATS = (1, 2, 3)

# Limits on arguments, because time and memory grow with them before any tensor is read.
_MAX_ARGUMENT = 100_000  # larger than any width
_MAX_DEPTH, _MAX_SIDE = 1_000, 2_048
_MAX_ENTRIES, _MAX_NESTING = 64, 2  # of lists
_LIMITS = {
    "depths": _MAX_DEPTH,
    "T": _MAX_DEPTH,
    "in_channels": _MAX_DEPTH,
    "img_size_h": _MAX_SIDE,
    "img_size_w": _MAX_SIDE,
    "img_size": _MAX_SIDE,
}
_POSITIVE_INTEGERS = ("T", "in_channels", "num_classes", "img_size_h", "img_size_w", "img_size")
#: What checks raise for a header whose parts are missing or of other types.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, RecordError)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a checkpoint file; only a ``.safetensors`` file has some.

    Raises:
        CheckpointError: If the file is missing, incomplete, or no checkpoint.
    """
    if checkpoint_kind(path) != SAFETENSORS:
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise unreadable(path, ".safetensors file", error) from error


def is_pruned_file(path: Path) -> bool:
    """Return True if a file has the header of a pruned file, valid or not.

    Raises:
        CheckpointError: If the file is missing, incomplete, or no checkpoint.
    """
    return METADATA_KEY in read_metadata(path)


def read_header(path: Path) -> dict[str, Any]:
    """Read and check the header of a pruned file.

    Raises:
        CheckpointError: If the file is unreadable, was not written by ``save_pruned``, has an
            invalid header, or was pruned from a custom model that is not registered.
    """
    header = _parse_header(path)
    try:
        newer = type(header["format"]) is int and header["format"] > QUANTIZED_FORMAT
        fault = fault_of_header(header)
    except _MALFORMED as error:
        raise _invalid(path, error) from error
    if newer:
        raise CheckpointError(
            f"{path} has format {header['format']!r:.40}; this version reads formats up to "
            f"{QUANTIZED_FORMAT}. Update psvit-explorer."
        )
    if fault:
        formats = ", ".join(str(number) for number in READABLE_FORMATS)
        raise CheckpointError(
            f"The metadata of {path} is inconsistent or not of the formats {formats}: {fault}. "
            "Prune the model again."
        )
    name = header["arguments"].get("name")
    if header["family"] == CUSTOM_FAMILY and (
        name not in list_models() or not model_card(name).builder
    ):
        raise CheckpointError(
            f"{path} was pruned from the custom model {name!r}, which is not registered. Pass the "
            "file or module that registers it with --plugin."
        )
    return header


def write_header(header: Mapping[str, Any], name: str) -> str:
    """Return a header as text, or refuse it if ``read_header`` would.

    Args:
        header: The header of a pruned model.
        name: The model's name, for messages.

    Raises:
        CheckpointError: If the header could not be read back.
    """
    try:
        text = json.dumps(header)
        fault = fault_of_header(json.loads(text))
    except _MALFORMED as error:
        fault = f"its header is not valid ({error})"
    if fault:
        raise CheckpointError(f"{name} cannot be written to a file that opens again: {fault}.")
    return text


def read_origin(path: Path) -> str:
    """Read only the name of the model that a pruned file was made from; the rest is not checked.

    Raises:
        CheckpointError: If the file is unreadable or names no origin.
    """
    header = _parse_header(path)
    try:
        return str(header["provenance"]["origin"])
    except (KeyError, TypeError) as error:
        raise _invalid(path, error) from error


def read_stored(path: Path) -> tuple[str, tuple[Measurement, ...]]:
    """Read how a pruned file stores its weights, and its measurements; the rest is not checked.

    Returns:
        (``float32`` or one of ``STORED_WEIGHTS``, the measurements that can be read).

    Raises:
        CheckpointError: If the file is unreadable, no pruned file, or these parts are invalid.
    """
    header = _parse_header(path)
    try:
        weights = header.get("weights", "float32")
        records = header.get("measurements", ())
        found = tuple(Measurement.from_dict(record) for record in records)
    except _MALFORMED as error:
        raise _invalid(path, error) from error
    if weights != "float32" and weights not in STORED_WEIGHTS:
        raise _invalid(path, ValueError(f"its weights are {weights!r:.40}"))
    return weights, found


def unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    """Return the error for a file that is truncated, damaged or of another kind."""
    reason = str(error).splitlines()[0].split(". ")[0].rstrip(".") if str(error) else ""
    reason = reason or type(error).__name__
    return CheckpointError(
        f"{path} is not a complete {kind} ({reason}). Copy or download it again."
    )


def _parse_header(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} contains no architecture, so it is not a pruned file. To load an official "
            "checkpoint, give the model's name and --checkpoint."
        )
    try:
        header: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise _invalid(path, error) from error
    return header


def _invalid(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"The metadata of {path} is damaged ({error}). Prune the model again.")


def fault_of_header(header: Mapping[str, Any]) -> str:
    """Return what is wrong with a header; empty if nothing is.

    Writing and reading use the same rule, so that no file is written that cannot be opened.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError, RecordError: If a part is
            missing or of another type.
    """
    if type(header["format"]) is not int or header["format"] not in READABLE_FORMATS:
        return f"its format is {header['format']!r:.40}"
    if not isinstance(header["family"], str):
        return f"its family is {header['family']!r:.40}"
    if fault := fault_of_arguments(header["arguments"]):
        return fault
    if not all(type(width) is int for width in header["widths"].values()):
        return "its widths are not whole numbers"
    if not _is_provenance(header["provenance"], header["widths"]):
        return "its provenance does not fit its widths"
    return "" if header["format"] == 1 else _fault_of_later(header)


def _fault_of_later(header: Mapping[str, Any]) -> str:
    """Return what is wrong with the fields that format 1 lacks; raise as ``fault_of_header``."""
    if not isinstance(header["licence"], str):
        return f"its licence is {header['licence']!r:.40}"
    for record in header["measurements"]:
        Measurement.from_dict(record)
    if header["format"] == QUANTIZED_FORMAT and header["weights"] not in STORED_WEIGHTS:
        return f"its weights are {header['weights']!r:.40}"
    return ""


def fault_of_arguments(arguments: Mapping[str, Any]) -> str:
    """Return what is wrong with constructor arguments of a file; empty if they can be read back."""
    for name, value in arguments.items():
        limit = _LIMITS.get(name, _MAX_ARGUMENT)
        if name in _POSITIVE_INTEGERS and not (type(value) is int and 1 <= value <= limit):
            return f"{name} must be a whole number from 1 to {limit:,}; got {value!r:.40}"
        if not _is_plausible(value, limit, depth=0):
            return f"{name} must be text, or numbers from 0 to {limit:,}; got {value!r:.40}"
    return ""


def _is_plausible(value: object, limit: int, depth: int) -> bool:
    """Return True if an argument has a plausible type and size; lists may be nested once."""
    if isinstance(value, list):
        return (
            depth < _MAX_NESTING
            and len(value) <= _MAX_ENTRIES
            and all(_is_plausible(v, limit, depth + 1) for v in value)
        )
    if isinstance(value, str):
        return True
    return isinstance(value, (int, float)) and 0 <= value <= limit  # false for NaN


def _is_provenance(provenance: Mapping[str, Any], widths: Mapping[str, int]) -> bool:
    """Return True if the provenance is one that ``apply_plan`` writes for these widths.

    Raises:
        RecordError, KeyError, TypeError, AttributeError: If a part is missing or of another type.
    """
    for kind, records in (
        (PrunePlan, provenance["plans"]),
        (RecoveryReport, provenance.get("recoveries", [])),
        (FinetuneReport, provenance.get("finetunes", [])),
    ):
        for record in records:
            kind.from_dict(record)
    return (
        isinstance(provenance["origin"], str)
        and isinstance(provenance["origin_weights_hash"], str)
        and type(provenance["origin_bytes"]) is int
        and provenance["origin_bytes"] >= 1
        and len(provenance["plans"]) >= 1
        and all(kind in STORED_WEIGHTS for kind in provenance.get("quantized", []))
        and all(
            all(type(unit) is int and unit >= 0 for unit in units)
            and units == sorted(set(units))
            and len(units) == widths[group]
            for group, units in provenance["kept"].items()
        )
    )
