"""Writes a network as a graph of ``torch.export``, which torch runs without any definition."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from psvit_core.export.agreement import ROUNDING
from psvit_core.export.checked import (
    RANDOM_IMAGES,
    TracedExport,
    check_traced_path,
    checked,
    metadata_of,
    timed,
)
from psvit_core.export.traced import (
    plain_network,
    random_images,
    traced_program,
    tracing,
    whole_batches,
)
from psvit_core.files import write_atomic
from psvit_core.zoo.base import SpikingModel

PT2_SUFFIX = ".pt2"
#: Name of the metadata among the extra files of ``torch.export.load``.
METADATA_FILE = "psvit_export.json"


def export_pt2(
    model: SpikingModel,
    path: str | Path,
    images: Tensor | None = None,
    *,
    what: str = "images of the caller",
    batch: int | None = None,
    timing: bool = True,
) -> TracedExport:
    """Write a network as a ``.pt2`` file of ``torch.export``, and check it.

    Args:
        model: A pruned model, or any other with weights.
        path: The file; ends in ``.pt2``. It appears only if the check succeeds.
        images: Network inputs (n, C, H, W), or frames (n, T, C, H, W), to compare the model and the
            file on; None for seeded random ones.
        what: What these images are, for the report.
        batch: The only number of images that the file shall take, at least 1. None (default): any
            number, which some programs that read such files do not understand, and which is not
            possible where the images of a batch influence each other.
        timing: Measure the latency of both, too, which takes seconds.

    Raises:
        ModelError: If ``batch`` is None and the images of a batch influence each other, or the
            network cannot be traced.
        CheckpointError: If the model has no usable weights.
        ExportError: If the file computes something else than the model, or ``batch`` is too small.
        OutputError: If the file cannot be written, or would replace one that no export wrote.
    """
    path = check_traced_path(path, PT2_SUFFIX, model.name)
    network = plain_network(model, batch)
    if images is None:
        images, what = random_images(model, RANDOM_IMAGES), "random, seeded"
    images = whole_batches(images, batch)
    program = _traced(model, network, images, batch)
    extra = {METADATA_FILE: json.dumps(metadata_of(model))}
    found: list[TracedExport] = []

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.export.save(program, file, extra_files=extra)
        loaded = _loaded(model, part)
        agreement = checked(
            model, loaded, network, images, what=what, allowed=ROUNDING, batch=batch
        )
        torch_ms, export_ms = timed(model, loaded, images[: batch or 1], wanted=timing)
        found.append(
            TracedExport(
                path=path,
                bytes=part.stat().st_size,
                needs=("torch",),
                agreement=agreement,
                torch_ms=torch_ms,
                export_ms=export_ms,
                batch=batch,
            )
        )

    write_atomic(path, write)
    return found[0]


def _traced(
    model: SpikingModel, network: nn.Module, images: Tensor, batch: int | None
) -> torch.export.ExportedProgram:
    """Trace a network without the names of this machine's folders."""
    program = traced_program(model, network, images, batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _loaded(model: SpikingModel, path: Path) -> nn.Module:
    with path.open("rb") as file, tracing(model):
        loaded: nn.Module = torch.export.load(file).module()
    return loaded
