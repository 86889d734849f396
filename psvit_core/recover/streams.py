"""What becomes of the outputs of layers: their BatchNorms, and additions to residual streams.

A branch ends in a layer and a BatchNorm, whose output is added to the stream (a membrane shortcut).
A recovery that knows the stream's error before the addition can correct it there. Networks that add
spikes have no such places: a neuron follows their BatchNorms.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from psvit_core.groups import COMPUTE_LAYERS
from psvit_core.incremental.graph import Graph, GraphError, Value, record_fixed_batch
from psvit_core.incremental.ops import ARITHMETIC, LOWERED_RESHAPES, MEMORY_SHARING
from psvit_core.zoo.base import SpikingModel

_VIEWS = MEMORY_SHARING | LOWERED_RESHAPES


@dataclass(frozen=True)
class Addition:
    """The addition of a branch to a stream.

    Attributes:
        layer: The last layer of the branch.
        norm: The BatchNorm behind it.
        before: A module that reads the stream as it is before the addition.
    """

    layer: str
    norm: str
    before: str


@dataclass(frozen=True)
class Outputs:
    """What becomes of the outputs of layers.

    Attributes:
        norms: By layer, the BatchNorm that alone reads its output.
        additions: By layer, the addition of its branch to a stream.
    """

    norms: Mapping[str, str]
    additions: Mapping[str, Addition]


def trace_outputs(model: SpikingModel, image_shape: tuple[int, ...]) -> Outputs:
    """Find the BatchNorms behind layers, and the additions of branches to streams.

    Args:
        model: The model.
        image_shape: Shape of one image or of its frames.

    Returns:
        Nothing for a model whose forward pass cannot be recorded.
    """
    dtype = next(model.parameters()).dtype
    empty = model.resized(model.widths).to(dtype).eval().to("meta")
    tensors = {**dict(empty.named_parameters()), **dict(empty.named_buffers())}
    met: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(x: Tensor) -> Any:
        met.clear()
        with ExitStack() as hooks:
            for name in _steps(empty):
                handle = empty.get_submodule(name).register_forward_hook(_noting(name, met))
                hooks.callback(handle.remove)
            empty(x)
        return {name: (inputs, output) for name, (inputs, output) in met.items()}

    try:
        graph, _ = record_fixed_batch(forward, tensors, image_shape, dtype)
    except GraphError:
        return Outputs({}, {})
    traced = _Traced(graph, empty)
    return Outputs(traced.norms(), traced.additions())


def _steps(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of leaves, and of modules without parameters, such as neurons."""
    for name, child in module.named_children():
        has_parameters = next(child.parameters(), None) is not None
        if has_parameters and any(True for _ in child.children()):
            yield from _steps(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _noting(name: str, met: dict[str, tuple[Tensor, Tensor]]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            met.setdefault(name, (inputs[0], output))

    return hook


class _Traced:
    """Outputs of layers in a recorded forward pass, whose result is {module: (input, output)}."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.model = model
        self.inputs = {name: v[0].index for name, v in graph.result.items() if _is_value(v[0])}
        self.outputs = {name: v[1].index for name, v in graph.result.items() if _is_value(v[1])}
        self.origin: dict[int, int] = {}  # view -> the value that it shows
        self.views: defaultdict[int, list[int]] = defaultdict(list)
        self.added: defaultdict[int, list[int]] = defaultdict(list)  # summand -> other summands
        self.n_readers: Counter[int] = Counter()  # of a value and its views
        for node in graph.nodes:
            inputs = node.inputs()
            if not (node.name in _VIEWS and len(inputs) == 1):
                self.n_readers.update({self._source(i) for i in inputs})
            if node.name in _VIEWS and len(inputs) == 1:
                self.origin[node.out] = self._source(inputs[0])
            elif ARITHMETIC.get(node.name) == "add" and len(inputs) == 2:
                first, second = map(self._source, inputs)
                self.added[first].append(second)
                self.added[second].append(first)
        self.layers = {
            self._source(value): name
            for name, value in self.outputs.items()
            if isinstance(model.get_submodule(name), COMPUTE_LAYERS)
        }

    def _source(self, value: int) -> int:
        return self.origin.get(value, value)

    def norms(self) -> dict[str, str]:
        """Return the BatchNorm behind each layer that nothing else reads."""
        return {
            layer: norm
            for norm, layer in self._layer_before().items()
            if self.n_readers[self._source(self.outputs[layer])] == 1
        }

    def _layer_before(self) -> dict[str, str]:
        """Return the layer before each BatchNorm."""
        found = {}
        for norm in self.outputs:
            if isinstance(self.model.get_submodule(norm), nn.modules.batchnorm._BatchNorm):
                layer = self.layers.get(self._source(self.inputs[norm]))
                if layer is not None:
                    found[norm] = layer
        return found

    def additions(self) -> dict[str, Addition]:
        """Return the additions by layer."""
        readers = {self._source(v): name for name, v in reversed(self.inputs.items())}
        found = {}
        for norm, layer in self._layer_before().items():
            others: Iterable[int] = self.added.get(self._source(self.outputs[norm]), ())
            before = next((readers[other] for other in others if other in readers), None)
            if before is not None and before != norm:
                found[layer] = Addition(layer, norm, before)
        return found


def _is_value(found: Any) -> bool:
    return isinstance(found, Value)
