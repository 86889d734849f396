"""Exported graphs, and the images that they are compared on. Torch is imported inside functions."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.errors import DataError
from psvit_core.tasks.session import Session

if TYPE_CHECKING:
    from torch import Tensor

CHECK_IMAGES = 64
_FEW = 16  # for a job: large networks take a while


def images_to_check(session: Session, n_images: int = CHECK_IMAGES) -> tuple[Tensor, str]:
    """Return the images that a graph is checked on, (n, ...), and what they are.

    Args:
        session: The model and its images.
        n_images: Number of images, stratified; fewer if there are fewer.

    Raises:
        DataError: If there are no images.
    """
    import torch

    few = session.load_images(session.subject.split, min(n_images, len(session.data)))
    dtype = next(session.model.parameters()).dtype
    return torch.cat(list(few.batches(len(few), dtype))), f"{few.name}, {few.split}"


def write_graph(session: Session, source: str | Path, out: Path) -> str:
    """Write a pruned file's network as an ONNX file; return how it compares with torch, as text.

    They are compared on some of the session's images, or on random ones if it has none.

    Raises:
        PsvitError: As ``export_onnx`` and ``load_model``.
    """
    from psvit_core.export import export_onnx
    from psvit_core.export.checked import report_text
    from psvit_core.zoo.checkpoint import load_model

    images, what = None, ""
    with suppress(DataError):  # the text says on which images
        images, what = images_to_check(session, _FEW)
    done = export_onnx(load_model(source), out, images, what=what)
    return report_text(done, "onnxruntime")
