"""Registered models that subjects come from, pruned files included; imports no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from psvit_core.errors import CheckpointError
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.header import read_origin


def source_card(model: str) -> ModelCard | None:
    """Return the card of a registered model, or of the model that a pruned file was made from.

    Returns:
        None for a file that names no origin (the worker that opens it reports why) and for models
        that are registered elsewhere.
    """
    name = model
    if model not in list_models():
        try:
            name = _origin(model, Path(model).stat().st_mtime_ns)
        except (OSError, ValueError):  # the file is gone, or this is no path
            return None
    return model_card(name) if name in list_models() else None


def is_pruned(model: str) -> bool:
    """Return whether a file was written by this program."""
    try:
        return bool(_origin(model, Path(model).stat().st_mtime_ns))
    except (OSError, ValueError):
        return False


@functools.lru_cache(maxsize=64)
def _origin(path: str, modified: int) -> str:
    """Return the origin of a pruned file; empty if it names none."""
    try:
        return read_origin(Path(path))
    except CheckpointError:
        return ""
