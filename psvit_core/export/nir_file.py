"""Writes a network of the user's own as a NIR file, and checks it by running what was written.

NIR's neurons are differential equations; SpikingJelly's take one step per time step. Forward Euler
with the step ``DT`` gives SpikingJelly's neurons if tau = tau_SpikingJelly x DT. The step has no
other meaning. NIR's neurons fire above their threshold, SpikingJelly's also at it: the threshold in
the file is the next smaller float32.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from psvit_core.custom.model import CustomModel
from psvit_core.custom.users_code import one_line
from psvit_core.errors import ExportError, MissingPackageError, ModelError
from psvit_core.export.agreement import Layers, compare_layers
from psvit_core.export.checked import (
    NIR_SUFFIX,
    RANDOM_IMAGES,
    TracedExport,
    check_traced_path,
    checked,
    metadata_of,
)
from psvit_core.export.nir_run import NirNetwork, spikes_by_layer
from psvit_core.export.nir_trace import INPUT, Step, StepGraph, refuse_family, trace_steps
from psvit_core.export.traced import WithSpikes, plain_network, random_images
from psvit_core.files import write_atomic
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.pruned import check_values

if TYPE_CHECKING:
    import nir

NIR_PACKAGES = ("nir",)
DT = 1e-4  # seconds; as SpikingJelly and others assume
OUTPUT = "output"
_ALLOWED = 0.5  # of the largest logit: the layers are compared one by one


def check_expressible(model: SpikingModel) -> None:
    """Check that NIR has nodes for all that a network does, before other work begins.

    Args:
        model: The network, in float32.

    Raises:
        PsvitError: As ``nir_graph``.
    """
    nir_graph(model, random_images(model, 1))


def export_nir(
    model: SpikingModel,
    path: str | Path,
    images: Tensor | None = None,
    *,
    what: str = "images of the caller",
) -> TracedExport:
    """Write a network of your own as a NIR graph, and check it.

    The graph is one time step of the network: convolutions, linear layers, LIF and IF neurons,
    average pooling, flattening; sums are several edges into a node. BatchNorms are folded into the
    layers before them. Who runs it repeats the image and averages the outputs over time.

    Args:
        model: A registered network or a pruned file of one, in float32.
        path: The file; ends in ``.nir``. It appears only if the check succeeds.
        images: Network inputs (n, C, H, W), or frames (n, T, C, H, W), to compare torch and the
            file on; None for seeded random ones.
        what: What these images are, for the report.

    Raises:
        MissingPackageError: If nir is not installed.
        ModelError: If the network has nodes that NIR lacks, as all families have: it names them.
        CheckpointError: If the model has no usable weights.
        ExportError: If the file computes something else than the model.
        OutputError: If the file cannot be written, or would replace one that no export wrote.
    """
    path = check_traced_path(path, NIR_SUFFIX, model.name)
    if images is None:
        images, what = random_images(model, RANDOM_IMAGES), "random, seeded"
    graph, neurons = nir_graph(model, images)
    network = plain_network(model)
    found: list[TracedExport] = []

    def write(part: Path) -> None:
        import nir

        nir.write(part, graph)
        export = NirNetwork(part)
        layers = compare_layers(WithSpikes(network), _layers_of(export, neurons), images)
        agreement = checked(
            model, export, network, images, what=what, allowed=_ALLOWED, layers=layers
        )
        found.append(
            TracedExport(
                path=path, bytes=part.stat().st_size, needs=NIR_PACKAGES, agreement=agreement
            )
        )

    write_atomic(path, write)
    return found[0]


def nir_graph(model: SpikingModel, images: Tensor) -> tuple[nir.NIRGraph, list[str]]:
    """Return a network as a NIR graph, and the names of its neurons in the order of their calls.

    Args:
        model: As for ``export_nir``.
        images: Some of its inputs, whose shapes are traced.

    Raises:
        MissingPackageError: If nir is not installed.
        ModelError: If the network has nodes that NIR lacks; they are named.
        CheckpointError: If it has no usable weights.
        ExportError: If the nir library refuses the graph.
    """
    if not isinstance(model, CustomModel):
        refuse_family(model)
    check_nir_packages()
    check_values(model)
    _check_float32(model)
    steps = trace_steps(model, images)
    names = _node_names(steps)
    return _graph_of(steps, names, model), [names[name] for name in steps.neurons]


def _layers_of(export: NirNetwork, neurons: Sequence[str]) -> Layers:
    return lambda image, spikes: spikes_by_layer(export, image, spikes, neurons)


def check_nir_packages() -> None:
    """Raise ``MissingPackageError`` unless NIR's own package is installed."""
    missing = [name for name in NIR_PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"NIR files need {', '.join(missing)}, which is not installed. Install it with: "
            f"pip install {' '.join(NIR_PACKAGES)}"
        )


def _check_float32(model: SpikingModel) -> None:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds - {torch.float32}:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ModelError(
            f"NIR files are written in float32; {model.name} is in {names}. Convert it with "
            "model.float()."
        )


def _node_names(graph: StepGraph) -> dict[str, str]:
    """Return a name of letters, digits and underscores for every step.

    Readers make attributes of them, and a slash would be a group in the file.
    """
    names, taken = {INPUT: INPUT}, {INPUT, OUTPUT}
    for step in graph.steps:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", step.name)
        while plain in taken:
            plain += "_"
        names[step.name] = plain
        taken.add(plain)
    return names


def _graph_of(graph: StepGraph, names: dict[str, str], model: CustomModel) -> nir.NIRGraph:
    """Return the NIR graph of a traced network.

    Raises:
        ExportError: If the nir library refuses it.
    """
    import nir

    shape = {"input": np.array(model.input_shape)}
    nodes: dict[str, Any] = {INPUT: nir.Input(input_type=shape)}
    edges: list[tuple[str, str]] = []
    for step in graph.steps:
        nodes[names[step.name]] = _node_of(step)
        edges += [(names[source], names[step.name]) for source in step.sources]
    nodes[OUTPUT] = nir.Output(output_type={"output": np.array([model.num_classes])})
    edges += [(names[source], OUTPUT) for source in graph.outputs]
    metadata = {
        **metadata_of(model),
        "dt": repr(DT),
        "time_steps": str(graph.time_steps),
        "readout": "mean of the output over all time steps",
        "states": "zero before the first time step",
    }
    try:
        return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata)
    except Exception as error:  # the library has no common one
        raise ExportError(
            f"The nir library refuses the graph of {model.name}: {one_line(error)} Nothing was "
            "written. --format onnx and pt2 do not need it."
        ) from error


def _node_of(step: Step) -> Any:
    """Return the NIR node of a step."""
    import nir

    module = step.module
    if isinstance(module, nn.Conv2d):
        weight, bias = _folded(module, step.norms)
        return nir.Conv2d(
            input_shape=(step.shape_in[1], step.shape_in[2]),
            weight=weight,
            stride=_pair(module.stride),
            padding=_pair(module.padding),
            dilation=_pair(module.dilation),
            groups=module.groups,
            bias=bias,
        )
    if isinstance(module, nn.Linear):
        weight, bias = _folded(module, step.norms)
        has_bias = module.bias is not None or bool(step.norms)
        return nir.Affine(weight=weight, bias=bias) if has_bias else nir.Linear(weight=weight)
    if isinstance(module, nn.Flatten):
        return nir.Flatten(input_type={"input": np.array(step.shape_in)}, start_dim=0, end_dim=-1)
    if isinstance(module, nn.AdaptiveAvgPool2d):  # to one pixel
        size = np.array(step.shape_in[1:])
        return nir.AvgPool2d(kernel_size=size, stride=size, padding=np.array((0, 0)))
    if isinstance(module, nn.AvgPool2d):
        kernel, stride, padding = (
            np.array(_pair(value)) for value in (module.kernel_size, module.stride, module.padding)
        )
        return nir.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding)
    return _neuron_of(module, step.shape_in)


def _neuron_of(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """Return the node of a layer of neurons, whose parameters NIR has one of per neuron."""
    import nir

    def all_of(value: float) -> Any:
        return np.full(shape, value)

    fires_at: Any = module.v_threshold
    threshold = np.nextafter(np.float32(float(fires_at)), np.float32(-np.inf))
    common = {"v_threshold": all_of(float(threshold)), "v_reset": all_of(0.0)}
    if isinstance(module, neuron.IFNode):
        return nir.IF(r=all_of(1 / DT), **common)
    if isinstance(module, neuron.ParametricLIFNode):
        tau = 1 / float(module.w.detach().sigmoid())
    else:
        assert isinstance(module, neuron.LIFNode)
        tau = float(module.tau)
    resistance = 1.0 if module.decay_input else tau
    return nir.LIF(tau=all_of(tau * DT), r=all_of(resistance), v_leak=all_of(0.0), **common)


def _folded(layer: nn.Conv2d | nn.Linear, norms: list[nn.Module]) -> tuple[Any, Any]:
    """Return weight and bias with the BatchNorms after the layer in them, computed in float64."""
    weight = layer.weight.detach().double()
    weight = weight.flatten(1) if isinstance(layer, nn.Linear) else weight  # (out, units, pixels)
    bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.detach().double()
    for norm in norms:
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight.detach().double()
        shift = 0.0 if norm.bias is None else norm.bias.detach().double()
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        bias = (bias - norm.running_mean.double()) * scale + shift
    return weight.float().numpy(), bias.float().numpy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
