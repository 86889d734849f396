"""Edits of ONNX graphs: neurons written out, outputs left out, spikes given from outside."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from psvit_core.export.traced import SYMBOL, SYMBOL_DOMAIN

IMAGES, LOGITS, BATCH = "images", "logits", "batch"
_GIVEN = "given_"


def neuron_outputs(n_calls: int) -> list[str]:
    """Return the names of a traced ``WithSpikes``' outputs for this many calls of neurons."""
    pairs = [(current_of(i), spikes_of(i)) for i in range(n_calls)]
    return [LOGITS, *(name for pair in pairs for name in pair)]


def current_of(call: int) -> str:
    """Return the name of what goes into a neuron layer."""
    return f"current_{call}"


def spikes_of(call: int) -> str:
    """Return the name of what comes out of a neuron layer."""
    return f"spikes_{call}"


# ---- neurons -------------------------------------------------------------------------------------


def write_out_neurons(proto: ModelProto) -> None:
    """Replace each symbol of a LIF neuron by its recurrence over all time steps, in place.

    The operations are those of ``torch_neurons.LIF`` in the same order, so that they round alike.
    """
    nodes: list[NodeProto] = []
    constants: dict[str, TensorProto] = {}
    kind = proto.graph.input[0].type.tensor_type.elem_type
    for node in proto.graph.node:
        if (node.domain, node.op_type) == (SYMBOL_DOMAIN, SYMBOL):
            nodes += _recurrence(node, kind, constants)
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(constants.values())
    kept = [opset for opset in proto.opset_import if opset.domain != SYMBOL_DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _recurrence(
    symbol: NodeProto, kind: int, constants: dict[str, TensorProto]
) -> Iterator[NodeProto]:
    given = {a.name: helper.get_attribute_value(a) for a in symbol.attribute}
    steps, [x], [spikes] = int(given["steps"]), symbol.input, symbol.output

    def constant(value: float) -> str:
        name = f"lif.{value!r}"
        constants.setdefault(name, helper.make_tensor(name, kind, (), [value]))
        return name

    def node(operation: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(operation, inputs, [output], name=output, **attributes)

    half, zero = constant(0.5), constant(0.0)
    threshold = constant(given["v_threshold"])
    currents = [f"{spikes}.x{t}" for t in range(steps)]
    yield helper.make_node("Split", [x], currents, name=f"{spikes}.x", axis=0, num_outputs=steps)
    v = ""
    for t, current in enumerate(currents):
        h, fired, reset = (f"{spikes}.{part}{t}" for part in ("h", "fired", "v"))
        if v:  # h = v + (x - v) / 2
            yield node("Sub", [current, v], f"{h}.distance")
            yield node("Mul", [f"{h}.distance", half], f"{h}.half")
            yield node("Add", [v, f"{h}.half"], h)
        else:  # from zero state
            yield node("Mul", [current, half], h)
        yield node("GreaterOrEqual", [h, threshold], fired)
        yield node("Cast", [fired], f"{spikes}.s{t}", to=kind)
        if t < steps - 1:
            yield node("Where", [fired, zero, h], reset)
        v = reset
    yield node("Concat", [f"{spikes}.s{t}" for t in range(steps)], spikes, axis=0)


# ---- outputs and inputs --------------------------------------------------------------------------


def without_outputs(proto: ModelProto, keep: Collection[str]) -> None:
    """Remove all other outputs, and what only they need, in place."""
    graph = proto.graph
    outputs = [value for value in graph.output if value.name in keep]
    del graph.output[:]
    graph.output.extend(outputs)
    needed, nodes = set(keep), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    values = needed | {name for node in nodes for name in node.output}
    _keep_only(graph.initializer, lambda tensor: tensor.name in needed)
    _keep_only(graph.value_info, lambda value: value.name in values)


def _keep_only(items: Any, wanted: Callable[..., bool]) -> None:
    for position in reversed(range(len(items))):
        if not wanted(items[position]):
            del items[position]


def with_given_spikes(proto: ModelProto) -> dict[str, str]:
    """Let every reader of a neuron layer's spikes read an input instead, in place.

    Each layer then computes from inputs that the caller chooses, so that what one layer rounds
    differently does not reach the next.

    Returns:
        Input -> the spikes that it replaces.
    """
    graph = proto.graph
    origin = _identities(graph.node)
    types = {value.name: value for value in graph.output}
    replaced: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for name, value in types.items():
        base = origin.get(name, name)
        if name.startswith("spikes_") and base not in replaced:
            given = f"{_GIVEN}{name}"
            replaced[base], inputs[given] = given, name
            graph.input.append(_renamed(value, given))
    for node in graph.node:
        if node.op_type == "Identity" and set(node.output) & set(types):
            continue  # an output under another name
        for position, name in enumerate(node.input):
            if (base := origin.get(name, name)) in replaced:
                node.input[position] = replaced[base]
    return inputs


def read_directly(proto: ModelProto) -> set[str]:
    """Return the outputs that are the output of a neuron under another name."""
    origin = _identities(proto.graph.node)
    names = [value.name for value in proto.graph.output]
    spikes = {origin.get(name, name) for name in names if name.startswith("spikes_")}
    return {n for n in names if not n.startswith("spikes_") and origin.get(n, n) in spikes}


def _identities(nodes: Collection[NodeProto]) -> dict[str, str]:
    """Return the value that each output of an Identity node equals."""
    origin: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "Identity":
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
    return origin


def _renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
    copied = ValueInfoProto()
    copied.CopyFrom(value)
    copied.name = name
    return copied


# ---- text ----------------------------------------------------------------------------------------


def name_batch(proto: ModelProto) -> None:
    """Call the number of images by its name in all shapes, in place; tracers number it."""
    graph = proto.graph
    number = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    word = re.compile(rf"\b{re.escape(number)}\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = word.sub(BATCH, dim.dim_param)


def describe(proto: ModelProto, text: str, facts: Mapping[str, str]) -> None:
    """Replace what tracers wrote about their machine by a description and facts, in place."""
    graph = proto.graph
    del proto.metadata_props[:]
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    graph.name = "network"
    proto.doc_string = text
    helper.set_model_props(proto, dict(facts))
