"""The pruned checkpoint: one ``.safetensors`` that carries its own architecture; no pickle.

Tensors have the official key names with the pruned shapes. The metadata entry ``psvit`` is JSON:
family, original constructor arguments, present widths, and provenance (origin and its weights hash,
kept indices composed to the first ancestor, every plan applied). ``load_model(path)`` reads it.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file

from psvit_core.errors import CheckpointError
from psvit_core.files import check_model_file, write_whole
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import METADATA_KEY, PRUNED_FORMAT


def save_pruned(model: SpikingModel, path: str | Path) -> Path:
    """Write a model that ``apply_plan`` made, whole or not at all.

    Raises:
        CheckpointError: If ``model`` was not pruned, so that it has no provenance.
        OutputError: If ``path`` does not end in ``.safetensors`` or cannot be written to.
    """
    path = check_model_file(path)
    if not model.provenance:
        raise CheckpointError(
            f"{model.name} was not pruned; apply a plan first (an empty one keeps everything)."
        )
    header = {
        "format": PRUNED_FORMAT,
        "family": model.family,
        "arguments": model.arguments,
        "widths": model.widths,
        "provenance": model.provenance,
        "versions": {"torch": version("torch"), "spikingjelly": version("spikingjelly")},
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps(header), "format": "pt"}
    return write_whole(path, lambda part: save_file(tensors, part, metadata=metadata))
