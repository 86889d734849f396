"""Registered models that subjects come from, pruned files included; imports no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from psvit_core.errors import CheckpointError
from psvit_core.records import Measurement
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.header import read_origin, read_stored

_FLOAT32 = "float32"


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


def stored_weights(model: str) -> str:
    """Return the form in which a pruned file stores its weights: float32 unless it says so."""
    return _stored(model)[0]


def recorded(model: str) -> tuple[Measurement, ...]:
    """Return the measurements that a pruned file carries, as its header says."""
    return _stored(model)[1]


def _stored(model: str) -> tuple[str, tuple[Measurement, ...]]:
    if model in list_models():
        return _FLOAT32, ()
    try:
        return _header(model, Path(model).stat().st_mtime_ns)
    except (OSError, ValueError):  # the file is gone, or this is no path
        return _FLOAT32, ()


@functools.lru_cache(maxsize=64)
def _header(path: str, modified: int) -> tuple[str, tuple[Measurement, ...]]:
    try:
        return read_stored(Path(path))
    except CheckpointError:  # no pruned file; the worker that opens it reports what is wrong
        return _FLOAT32, ()


@functools.lru_cache(maxsize=64)
def _origin(path: str, modified: int) -> str:
    """Return the origin of a pruned file; empty if it names none."""
    try:
        return read_origin(Path(path))
    except CheckpointError:
        return ""
