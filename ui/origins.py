"""Which registered model a subject comes from, pruned files included; no torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from psvit_core.zoo.cards import ModelCard, list_models, model_card

_METADATA = "psvit"  # as ``zoo.checkpoint.METADATA_KEY``, which cannot be imported without torch


def source_card(model: str) -> ModelCard | None:
    """The card of a registered model, or of the one that a pruned file came from.

    None for a file that does not tell (whoever opens it is told by the worker why) and for models
    that are registered elsewhere.
    """
    name = model
    if model not in list_models():
        try:
            name = _origin(model, Path(model).stat().st_mtime_ns)
        except (OSError, ValueError):  # a file that is gone, or no path at all
            return None
    return model_card(name) if name in list_models() else None


@functools.lru_cache(maxsize=64)
def _origin(path: str, changed: int) -> str:
    """The origin in a pruned file's metadata; empty where it has none."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        return str(json.loads(metadata[_METADATA])["provenance"]["origin"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return ""
