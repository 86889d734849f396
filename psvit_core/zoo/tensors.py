"""Reads tensors from files safely: no code is executed, and damaged files are rejected.

A file is recognised by its content. ``read_tensors`` returns its state dict under the published
names, with notes on everything that was changed on the way.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from psvit_core.errors import CheckpointError
from psvit_core.records import FileEntry
from psvit_core.zoo.cleaning import clean_tensors
from psvit_core.zoo.entries import choice_note, choose_entry
from psvit_core.zoo.file_kind import SAFETENSORS, check_declared, checkpoint_kind
from psvit_core.zoo.header import METADATA_KEY, unreadable

_NAMED = 4  # names that a message lists
#: Parts of torch's messages about content that a safe load refuses, as opposed to damage.
_REFUSED = re.compile(
    r"(?i)\bglobal\b|can only (create|build)|call reduce|allowlist|must be imported"
)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
#: Torch's message about the first opcode of pickles from protocol 4 on.
_NEW_PROTOCOL = f"Unsupported operand {pickle.FRAME[0]}"
#: Torch's advice to load unsafely, which no user should read here.
_UNSAFE_ADVICE = re.compile(r"(?i)weights_only|safe_globals|torch\.(jit\.)?load")


@dataclass(frozen=True)
class ReadTensors:
    """A state dict from a file.

    Args:
        tensors: Tensors by their published names.
        metadata: Text stored next to them in a ``.safetensors`` file.
        notes: What was chosen, renamed, dropped, added or converted, for the user.
        entries: All state dicts of the file, if it has several.
        entry: Name of the one that was read.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()
    entries: tuple[FileEntry, ...] = ()
    entry: str = ""

    @property
    def is_pruned(self) -> bool:
        """Return True for a file that ``save_pruned`` wrote."""
        return METADATA_KEY in self.metadata


def read_tensors(
    path: Path,
    *,
    ema: bool = False,
    entry: str | None = None,
    expected: Collection[str] | None = None,
) -> ReadTensors:
    """Read the state dict and metadata of a checkpoint file, whatever its suffix.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote.
        ema: Read the exponential moving average that some trainers save next to the weights.
        entry: Name of the entry to read, if the file contains several state dicts.
        expected: The tensors' names in a user's own network, which are not changed.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind, contains more than plain
            tensors, or several state dicts of which none is chosen.
    """
    if ema and entry is not None:
        raise CheckpointError(f"--ema and --entry {entry} both choose the weights. Omit one.")
    content: Any
    if checkpoint_kind(path) == SAFETENSORS:
        content, metadata = _read_safetensors(path)
        if METADATA_KEY in metadata:  # written by this program, under names that are right
            return ReadTensors(content, metadata)
    else:
        content, metadata = _read_pickled(path), {}
        declared = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(content))
        check_declared(path, declared, "its tensors")
    chosen, found = choose_entry(content, path, ema=ema, entry=entry, expected=expected or ())
    tensors, notes = clean_tensors(chosen.tensors, expected)
    if chosen.ignored:
        names = ", ".join(chosen.ignored[:_NAMED])
        more = ", ..." if len(chosen.ignored) > _NAMED else ""
        notes.append(f"ignored values that are not tensors: {names}{more}")
    return ReadTensors(
        tensors,
        metadata,
        notes=tuple(filter(None, (choice_note(chosen, found, entry), *notes))),
        entries=tuple(e.record for e in found) if len(found) > 1 else (),
        entry=chosen.name,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError, RuntimeError, KeyError, AttributeError) as error:
        raise unreadable(path, ".safetensors file", error) from error


def _read_pickled(path: Path) -> Any:
    try:
        # The official trainers also pickle their command line, a harmless argparse.Namespace.
        # An open file, because torch chooses the format of a path by its suffix.
        safe = torch.serialization.safe_globals([argparse.Namespace])
        with path.open("rb") as file, safe, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about formats; the errors below say more
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _NEW_PROTOCOL in str(error):
            raise CheckpointError(
                f"{path} was written with a pickle protocol above 2, which the safe reader does "
                "not support. Save its state dict again with torch.save and its default protocol, "
                "or as .safetensors, on a machine where you trust the file."
            ) from error
        if not _REFUSED.search(_first_cause(error)):
            damage = ValueError("its pickle is damaged")
            raise unreadable(path, "PyTorch checkpoint", damage) from error
        raise CheckpointError(
            f"Cannot load {path}: it contains more than tensors{_unsafe_names(path, error)} and "
            "would run code when opened. On a machine where you trust the file, save its state "
            "dict alone, or as .safetensors."
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        shown = ValueError("PyTorch refuses it") if _UNSAFE_ADVICE.search(str(error)) else error
        raise unreadable(path, "PyTorch checkpoint", shown) from error


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """Yield every tensor in the content of a pickle that has values, each object once.

    A view may repeat a few stored values any number of times, and fills the memory when it is
    copied.
    """
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_meta:
                yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, argparse.Namespace):
            waiting += vars(value).values()


def _first_cause(error: Exception) -> str:
    """Return the reason in torch's message, without the advice around it."""
    return str(error).partition("WeightsUnpickler error:")[2] or str(error)


def _unsafe_names(path: Path, error: Exception) -> str:
    """List the names in a file that would run code, if they can be found."""
    try:
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # only zip files list all names; others stop at the first one
        names = _GLOBAL.findall(str(error))[:1]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" ({', '.join(sorted(names)[:_NAMED])}{more})" if names else ""
