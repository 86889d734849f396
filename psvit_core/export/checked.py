"""What exports of a traced graph have in common: their path, their facts and their check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psvit_core.errors import OutputError
from psvit_core.export.agreement import Agreement, LayerAgreement, check_logits, compare
from psvit_core.export.origin import facts, one_line
from psvit_core.export.traced import untraceable
from psvit_core.files import check_writable, expand, is_file
from psvit_core.metrics.profile import latencies_in_turns
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import card_of

#: In the metadata of exported files.
EXPORT_MARK = "psvit_export"
NIR_SUFFIX = ".nir"
_EXPORT_FORMAT = "1"
#: Random images that an export is checked on without data.
RANDOM_IMAGES = 8
_ODD_BATCH = 3  # images; tracers see another number
_TAIL = 4_000_000  # bytes at a file's end that contain its metadata


@dataclass(frozen=True, kw_only=True)
class TracedExport:
    """An exported graph, and how it compares with the network in torch."""

    path: Path
    bytes: int
    needs: tuple[str, ...]  # packages that run it
    agreement: Agreement
    #: Median latency of one image, or of ``batch``, on one thread, as this program runs the
    #: network; None: not timed.
    torch_ms: float | None = None
    export_ms: float | None = None  # that of the file, by turns with it
    batch: int | None = None  # the only number of images of a call; None: any
    weights: str = "float32"  # in the file; another kind of those that are not float32
    n_stored: int = 0  # number of weights of that other kind


def check_traced_path(path: str | Path, suffix: str, source: str | Path = "") -> Path:
    """Check that a graph can be written to ``path``.

    Args:
        path: The file.
        suffix: That it must have.
        source: The model's name, or the file that it is in, which stays as it is.

    Returns:
        The path.

    Raises:
        OutputError: If the suffix is another, it cannot be written, or it is a file that no export
            wrote.
    """
    path = expand(path)
    if path.suffix != suffix:
        raise OutputError(
            f"This format is written with the suffix {suffix}; got {str(path)!r:.80}. Use for "
            f"example {path.stem or 'network'}{suffix}."
        )
    check_writable(path)
    if not path.exists():
        return path
    if (is_file(source) and path.samefile(source)) or not _is_marked(path):
        raise OutputError(f"{path} was written by no export. It stays: choose another name.")
    return path


def _is_marked(path: Path) -> bool:
    n_bytes = path.stat().st_size
    tail = n_bytes if path.suffix == NIR_SUFFIX else _TAIL  # HDF5 has its metadata anywhere
    with path.open("rb") as file:
        file.seek(max(0, n_bytes - tail))
        return EXPORT_MARK.encode() in file.read()


def metadata_of(model: SpikingModel) -> dict[str, str]:
    """Return what an exported file says of its network: origin, plans, licence, input."""
    found: dict[str, list[str]] = {}
    for label, text in facts(model):
        if label != "Code":  # a graph contains none
            found.setdefault(label.lower().replace(" ", "_").replace("-", "_"), []).append(text)
    data = {
        "arguments": model.arguments,
        "widths": model.widths,
        "input_shape": model.input_shape,
        "time_steps": model.T,
        "preprocessing": dataclasses.asdict(card_of(model).at(model.input_shape[1]).transform),
        "plans": model.provenance.get("plans", []),
    }
    return {
        EXPORT_MARK: _EXPORT_FORMAT,
        **{label: "\n".join(map(one_line, texts)) for label, texts in found.items()},
        **{name: json.dumps(value) for name, value in data.items()},
    }


def checked(
    model: SpikingModel,
    export: nn.Module,
    network: nn.Module,
    images: Tensor,
    *,
    what: str,
    allowed: float,
    layers: LayerAgreement | None = None,
    batch: int | None = None,
) -> Agreement:
    """Compare an export with its model.

    Args:
        model: The model.
        export: What was written, as a module.
        network: The model in plain torch operations.
        images: To run both on.
        what: What the images are.
        allowed: Difference of the median image's logits that needs no explanation, relative to the
            largest of them.
        layers: The comparison layer by layer.
        batch: The only number of images that the export takes; None if it takes any.

    Raises:
        ExportError: If the export computes something else.
        ModelError: If it does not run on batches of every size.
    """
    if batch is None:
        _check_batches(model, export, images)
    agreement = compare(model, export, images, what, batch=batch)
    check_logits(model, export, network, images, allowed=allowed, batch=batch)
    return dataclasses.replace(agreement, layers=layers)


def timed(
    model: SpikingModel, export: nn.Module, images: Tensor, *, wanted: bool
) -> tuple[float | None, float | None]:
    """Return the median latency of a model and of its export in milliseconds.

    Of the images as one batch, on one thread. None and None if it is not wanted.
    """
    if not wanted:
        return None, None
    with _one_thread():
        torch_ms, export_ms = latencies_in_turns([model, export], images.contiguous())
    return torch_ms, export_ms


def _check_batches(model: SpikingModel, export: nn.Module, images: Tensor) -> None:
    """Raise ``ModelError`` unless an export runs on batches of one and of several images."""
    for n_images in (1, _ODD_BATCH):
        x = images[:1].repeat(n_images, *[1] * (images.dim() - 1))
        try:
            with torch.no_grad():
                n_rows = len(export(x))
        except Exception as error:  # runtimes have no common one
            raise untraceable(model, one_line(error)) from error
        if n_rows != n_images:
            raise untraceable(model, f"it returns {n_rows} rows of logits for {n_images} images.")


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_result(done: TracedExport) -> dict[str, Any]:
    """Return an export as JSON data."""
    return {
        "out": str(done.path),
        "bytes": done.bytes,
        "needs": list(done.needs),
        "weights": done.weights,
        "n_stored": done.n_stored,
        "batch": done.batch,
        "agreement": dataclasses.asdict(done.agreement),
        "latency_ms": {
            "torch": done.torch_ms,
            "export": done.export_ms,
            "batch": done.batch or 1,
            "threads": 1,
        },
    }


def as_text(done: TracedExport, runtime: str) -> str:
    """Return an export as lines of text.

    Args:
        done: The export.
        runtime: What ran the file.
    """
    file = f"{done.path}: {done.bytes:,} bytes, needs {', '.join(done.needs)}"
    if done.batch is not None:
        file += f"; takes {done.batch} images at a time, no other number"
    if done.n_stored:
        file += f"; {done.n_stored} weights in {done.weights}"
    return f"{file}\n{report_text(done, runtime)}"


def report_text(done: TracedExport, runtime: str) -> str:
    """Return how an export compares with torch, as lines of text."""
    a = done.agreement
    lines = []
    lines.append(
        f"checked with {runtime} on {a.n_images} images ({a.images}): {a.n_other_predictions} "
        f"predictions differ; the logits of {a.n_equal_logits} are equal but for the last digits, "
        f"the largest difference is {a.max_logit_difference:.3g} (largest logit "
        f"{a.largest_logit:.3g})"
    )
    if a.layers is not None and a.layers.n_layers:
        s = a.layers
        lines.append(
            f"layer by layer on {s.n_images} images, each on torch's spikes: {s.n_flips:,} of "
            f"{s.n_outputs:,} outputs of neurons differ (spikes {s.spikes_torch:,.0f} in torch, "
            f"{s.spikes_export:,.0f} in the file), currents by {s.max_current_difference:.2g} of "
            "their largest at most"
        )
    if done.torch_ms is not None and done.export_ms is not None:
        n_images = "one image" if (done.batch or 1) == 1 else f"{done.batch} images"
        lines.append(
            f"{n_images}, one thread: {done.torch_ms:.1f} ms in torch, {done.export_ms:.1f} ms in "
            "the file"
        )
    return "\n".join(lines)
