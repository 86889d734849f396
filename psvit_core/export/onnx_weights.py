"""Stores the weights of an ONNX graph in fewer bits, with nodes that make them float32 again.

int8 weights get a DequantizeLinear with a scale per output channel, halves a Cast. Exporters fold
BatchNorms into weights: then each output channel is the network's own weight times a factor. The
factor goes into the channel's scale, or into a Mul after the Cast; the stored numbers stay those of
the network's file. onnxruntime computes a Cast once, when it loads the file, and DequantizeLinear
at every run: the weights stay int8 in memory, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from psvit_core.quantize import SCALE, packed
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.quantized import FLOAT32, layer_weights, weights_kind

Array = npt.NDArray[np.float64]
_HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
#: Of a channel's largest weight: folded factors were multiplied in float32.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class _Found:
    """A weight of the network in a graph."""

    name: str  # in the network
    factors: Array  # (out,)
    transposed: bool


def store_weights(proto: ModelProto, model: SpikingModel) -> int:
    """Store a graph's weights as those of its model are stored, in place.

    Weights that the exporter changed in another way than by a factor per output channel stay
    float32.

    Args:
        proto: A graph of the model, in float32.
        model: The model.

    Returns:
        Number of weights that are stored in fewer bits; 0 for a model in float32.
    """
    kind = weights_kind(model)
    if kind == FLOAT32:
        return 0
    names = layer_weights(model)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    weights = {name: state[name] for name in names}
    stored = packed(weights, names, kind)
    nodes: list[NodeProto] = []
    kept: list[TensorProto] = []
    n_stored = 0
    for tensor in proto.graph.initializer:
        found = _find(tensor, weights)
        parts = [tensor] if found is None else _parts(tensor.name, stored, found, kind)
        for part in parts:
            (nodes if isinstance(part, NodeProto) else kept).append(part)
        n_stored += found is not None
    later = list(proto.graph.node)
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend([*nodes, *later])
    proto.graph.initializer.extend(kept)
    return n_stored


def _find(tensor: TensorProto, weights: Mapping[str, Tensor]) -> _Found | None:
    """Return the weight that an initializer is, or is after folding; None if there is none."""
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
        return None
    value = numpy_helper.to_array(tensor).astype(np.float64)
    by_name = [name for name in weights if tensor.name == name or tensor.name.endswith(f".{name}")]
    for name in [*sorted(by_name, key=len, reverse=True), *weights]:
        weight = weights[name].double().numpy()
        for transposed in (False, True) if weight.ndim == 2 else (False,):
            rows = value.T if transposed else value
            if rows.shape == weight.shape:
                factors = _factors(rows, weight)
                if factors is not None:
                    return _Found(name, factors, transposed)
    return None


def _factors(rows: Array, weight: Array) -> Array | None:
    """Return the factor of each output channel between two weights; None if there is none."""
    rows, weight = rows.reshape(len(rows), -1), weight.reshape(len(weight), -1)
    place = np.abs(weight).argmax(axis=1)[:, None]
    largest = np.take_along_axis(weight, place, axis=1)[:, 0]
    given = np.take_along_axis(rows, place, axis=1)[:, 0]
    factors = np.divide(given, largest, out=np.ones_like(given), where=largest != 0)
    factors = factors.astype(np.float32).astype(np.float64)
    apart = np.abs(rows - weight * factors[:, None]).max(axis=1)
    return factors if bool((apart <= _ROUNDING * np.abs(rows).max(axis=1)).all()) else None


def _parts(
    name: str, stored: Mapping[str, Tensor], found: _Found, kind: str
) -> Iterator[NodeProto | TensorProto]:
    """Yield the initializers and nodes that take the place of a float32 initializer."""
    # onnxruntime multiplies by int8 activations where a DequantizeLinear is read by a MatMul. The
    # Transpose between them keeps it in float32.
    output = f"{name}.rows" if found.transposed else name
    yield from (_int8 if kind == "int8" else _half)(name, stored, found, output, kind)
    if found.transposed:
        yield helper.make_node("Transpose", [output], [name], name=name, perm=[1, 0])


def _int8(
    name: str, stored: Mapping[str, Tensor], found: _Found, output: str, kind: str
) -> Iterator[NodeProto | TensorProto]:
    """Yield what makes ``output`` from whole numbers; scales stay positive, as runtimes expect."""
    numbers, scales = stored[found.name].numpy(), stored[found.name + SCALE].double().numpy()
    sign = np.where(found.factors < 0, -1, 1).astype(np.int8)
    numbers = numbers * sign.reshape(-1, *[1] * (numbers.ndim - 1))
    scales = np.maximum(scales * np.abs(found.factors), np.finfo(np.float32).tiny)
    yield numpy_helper.from_array(numbers, f"{name}.{kind}")
    yield numpy_helper.from_array(scales.astype(np.float32), name + SCALE)
    yield helper.make_node(
        "DequantizeLinear", [f"{name}.{kind}", name + SCALE], [output], name=output, axis=0
    )


def _half(
    name: str, stored: Mapping[str, Tensor], found: _Found, output: str, kind: str
) -> Iterator[NodeProto | TensorProto]:
    """Yield what makes ``output`` from halves."""
    half = stored[found.name].contiguous()
    raw = half.view(torch.int16).numpy().tobytes()
    folded = bool((found.factors != 1).any())
    plain = f"{name}.float32" if folded else output
    yield helper.make_tensor(f"{name}.{kind}", _HALVES[kind], half.shape, raw, raw=True)
    yield helper.make_node("Cast", [f"{name}.{kind}"], [plain], name=plain, to=TensorProto.FLOAT)
    if folded:
        factors = found.factors.astype(np.float32).reshape(-1, *[1] * (half.dim() - 1))
        yield numpy_helper.from_array(factors, f"{name}.factor")
        yield helper.make_node("Mul", [plain, f"{name}.factor"], [output], name=output)
