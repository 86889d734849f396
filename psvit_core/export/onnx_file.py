"""Writes a network as an ONNX file; onnxruntime checks it before it gets its name.

The neurons' recurrences are written out over all time steps. The number of images is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from psvit_core.errors import ExportError, MissingPackageError, ModelError
from psvit_core.export.agreement import compare_layers
from psvit_core.export.checked import (
    RANDOM_IMAGES,
    TracedExport,
    check_traced_path,
    checked,
    metadata_of,
    timed,
)
from psvit_core.export.origin import one_line
from psvit_core.export.traced import (
    WithSpikes,
    plain_network,
    random_images,
    symbols,
    traced_program,
    tracing,
    untraceable,
)
from psvit_core.files import write_atomic
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.quantized import FLOAT32, weights_kind

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
ONNX_SUFFIX = ".onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2_000_000_000  # bytes of one protobuf message
_ALLOWED = 0.5  # of the largest logit: the layers are compared one by one
_DESCRIPTION = (
    "A spiking network: all time steps of all neurons, from zero state. Input: normalised images "
    "(batch, channels, height, width); `preprocessing` in the metadata says how. Output: logits "
    "(batch, classes)."
)


def export_onnx(
    model: SpikingModel,
    path: str | Path,
    images: Tensor | None = None,
    *,
    what: str = "images of the caller",
    timing: bool = True,
) -> TracedExport:
    """Write a network as an ONNX file that onnxruntime and others run, and check it.

    Args:
        model: A pruned model, or any other with weights, in float32.
        path: The file; ends in ``.onnx``. It appears only if the check succeeds.
        images: Network inputs (n, C, H, W), or frames (n, T, C, H, W), to compare torch and
            onnxruntime on; None for seeded random ones.
        what: What these images are, for the report.
        timing: Measure the latency of both, too, which takes seconds.

    Raises:
        MissingPackageError: If onnx, onnxscript or onnxruntime is not installed.
        ModelError: If the images of a batch are coupled, it cannot be traced or is not float32.
        CheckpointError: If the model has no usable weights.
        ExportError: If the file computes something else than the model.
        OutputError: If the file cannot be written, or would replace one that no export wrote.
    """
    path = check_traced_path(path, ONNX_SUFFIX, model.name)
    check_onnx_packages()
    network = plain_network(model)
    _check_weights(model)
    if images is None:
        images, what = random_images(model, RANDOM_IMAGES), "random, seeded"
    proto = traced_proto(model, network, images)
    n_stored = store_weights(proto, model)
    layers = compare_layers(WithSpikes(network), layers_of(proto), images)
    finish(proto, model)
    found: list[TracedExport] = []

    def write(part: Path) -> None:
        file = _written(proto, part)
        agreement = checked(
            model, file, network, images, what=what, allowed=_ALLOWED, layers=layers
        )
        torch_ms, export_ms = timed(model, file, images[:1], wanted=timing)
        found.append(
            TracedExport(
                path=path,
                bytes=part.stat().st_size,
                needs=("onnxruntime",),
                agreement=agreement,
                torch_ms=torch_ms,
                export_ms=export_ms,
                weights=weights_kind(model) if n_stored else FLOAT32,
                n_stored=n_stored,
            )
        )

    write_atomic(path, write)
    return found[0]


def _written(proto: ModelProto, part: Path) -> OnnxNetwork:
    """Write a graph to a file that onnx accepts, and open it."""
    import onnx

    part.write_bytes(proto.SerializeToString())
    with _onnx_accepts():
        onnx.checker.check_model(part, full_check=True)
    return OnnxNetwork(str(part))


def check_onnx_packages() -> None:
    """Raise ``MissingPackageError`` unless everything that ONNX files need is installed."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"ONNX files need {', '.join(ONNX_PACKAGES)}; not installed: {', '.join(missing)}. "
            f"Install them with: pip install {' '.join(ONNX_PACKAGES)}"
        )


def _check_weights(model: SpikingModel) -> None:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds - {torch.float32}:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ModelError(
            f"ONNX files are written in float32, because onnxruntime has no convolutions in "
            f"float64; {model.name} is in {names}. Convert it with model.float()."
        )
    n_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if n_bytes > _LARGEST:
        raise ModelError(
            f"{model.name} has {n_bytes:,} bytes of weights; an ONNX file has less than "
            f"{_LARGEST:,}. Prune it, or use --format pt2."
        )


def traced_proto(model: SpikingModel, network: nn.Module, images: Tensor) -> ModelProto:
    """Return the graph of a network, with currents and spikes of its neurons as further outputs.

    Args:
        model: The model.
        network: From ``plain_network``.
        images: Their shape is traced, except for their number.

    Raises:
        ModelError: If the network cannot be traced.
    """
    from psvit_core.export import onnx_graph

    recorded = WithSpikes(network).eval()
    with torch.no_grad():
        n_calls = len(recorded(images[:1])) // 2
    with symbols(network):
        program = traced_program(model, recorded, images)
    n_outputs = len(program.graph_signature.user_outputs)
    if n_outputs != 1 + 2 * n_calls:
        raise untraceable(model, "its neurons run another number of times for one image.")
    with tracing(model):
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[onnx_graph.IMAGES],
            output_names=onnx_graph.neuron_outputs(n_calls),
            verbose=False,
        )
        assert written is not None
        proto: ModelProto = written.model_proto
    onnx_graph.name_batch(proto)
    onnx_graph.write_out_neurons(proto)
    return proto


def store_weights(proto: ModelProto, model: SpikingModel) -> int:
    """Store a graph's weights as its model's file does (``onnx_weights``), in place.

    Returns:
        Number of weights that are in fewer bits.
    """
    from psvit_core.export import onnx_weights

    return onnx_weights.store_weights(proto, model)


def finish(proto: ModelProto, model: SpikingModel) -> None:
    """Leave only the logits in a graph, and say where the network comes from, in place."""
    from psvit_core.export import onnx_graph

    onnx_graph.without_outputs(proto, {onnx_graph.LOGITS})
    onnx_graph.describe(proto, _DESCRIPTION, metadata_of(model))


class OnnxNetwork(nn.Module):
    """An ONNX file or graph in onnxruntime, on the processor.

    Args:
        source: The file's path, or the serialized graph.
        threads: Threads of one operation.
    """

    def __init__(self, source: str | bytes, threads: int = 1) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors
        with _onnx_accepts():
            self.session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        [logits] = self.run({self.session.get_inputs()[0].name: x})
        return logits

    def run(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Return all outputs for inputs by name."""
        given = {name: np.ascontiguousarray(x.numpy()) for name, x in inputs.items()}
        with _onnx_accepts():
            outputs = self.session.run(None, given)
        return [torch.from_numpy(np.asarray(y)) for y in outputs]


@contextlib.contextmanager
def _onnx_accepts() -> Iterator[None]:
    """Raise ``ExportError`` if ONNX's own programs refuse what they get in the block."""
    try:
        yield
    except Exception as error:  # they have no common base
        raise ExportError(
            f"The graph was written, but ONNX refuses it: {one_line(error)} Nothing was kept. "
            "--format pt2 needs no ONNX."
        ) from error


def layers_of(proto: ModelProto) -> Callable[[Tensor, Sequence[Tensor]], list[Tensor | None]]:
    """Return a function that runs each layer of a graph on given spikes (``agreement.Layers``)."""
    from onnx import ModelProto

    from psvit_core.export import onnx_graph

    copied = ModelProto()
    copied.CopyFrom(proto)
    given = onnx_graph.with_given_spikes(copied)
    direct = onnx_graph.read_directly(copied)
    runner = OnnxNetwork(copied.SerializeToString())
    names: list[str] = [output.name for output in copied.graph.output]

    def run(image: Tensor, spikes: Sequence[Tensor]) -> list[Tensor | None]:
        by_name = {onnx_graph.spikes_of(call): x for call, x in enumerate(spikes)}
        inputs: dict[str, Any] = {name: by_name[of] for name, of in given.items()}
        outputs = runner.run({onnx_graph.IMAGES: image, **inputs})
        return [
            None if name in direct else output for name, output in zip(names, outputs, strict=True)
        ]

    return run
