"""A model's forward pass as a flat list of nodes, so that any part of it can run alone.

``record_graph`` runs the pass on tensors without data (torch's meta device) and records every torch
call. The graph is valid for any batch size: it is recorded at two, and arguments that differ
between them must be linear in the batch size. A sweep uses it to run only the nodes that a pruned
group affects (``propagation``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

_RECORDED_BATCHES = (2, 3)  # not 1: a size of 1 need not be the batch's
_CHECKED_BATCH = 7  # the merged graph must predict the recording at this size

_Resolver = Callable[[Mapping[int, Tensor], Mapping[Any, Any], int, torch.device], Any]


class GraphError(Exception):
    """A forward pass that cannot be recorded; the message gives the reason.

    Users never see it: such a model is run in full.
    """


@dataclass(frozen=True)
class Value:
    """An argument that is the output of an earlier node, or the input (index 0)."""

    index: int


@dataclass(frozen=True)
class Weight:
    """An argument that is a parameter or buffer."""

    name: str


@dataclass(frozen=True)
class BatchLinear:
    """An integer that is linear in the batch size: ``base + slope * batch``."""

    base: int
    slope: int

    def for_batch(self, batch: int) -> int:
        """Return the integer for this batch size."""
        return self.base + self.slope * batch


@dataclass(frozen=True)
class WeightLength:
    """An argument that is the length of a weight's first axis (depthwise convolution groups)."""

    name: str


class DerivedWeight(ABC):
    """An argument that is computed from weights before the graph runs; hashable."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the weights that it is computed from."""

    @abstractmethod
    def compute(self, weights: Mapping[Any, Any]) -> Any:
        """Compute the argument from these weights."""


@dataclass(frozen=True)
class Node:
    """One torch call.

    Attributes:
        call: The function.
        args, kwargs: Its arguments; tensors are ``Value``, ``Weight`` or ``DerivedWeight``.
        out: Index of its output; of the first one if the call returns a tuple.
        tuple_length: Number of outputs if the call returns a tuple, else None.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: int
    tuple_length: int | None = None

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.call, "__name__", str(self.call))

    @cached_property
    def dynamic_args(self) -> tuple[tuple[int, _Resolver], ...]:
        """Positions of the arguments that vary between runs, each with a function to resolve it."""
        found = ((place, _resolver(argument)) for place, argument in enumerate(self.args))
        return tuple((place, resolver) for place, resolver in found if resolver is not None)

    def inputs(self) -> list[int]:
        """Return the indices of the values that it reads."""
        return self._inputs

    @cached_property
    def _inputs(self) -> list[int]:
        return [a.index for a in self._leaves() if isinstance(a, Value)]

    def weights(self) -> list[str]:
        """Return the names of the parameters and buffers that it reads, directly or derived."""
        names: list[str] = []
        for argument in self._leaves():
            if isinstance(argument, Weight):
                names.append(argument.name)
            elif isinstance(argument, DerivedWeight):
                names += argument.names()
        return names

    def derived_weights(self) -> list[DerivedWeight]:
        """Return the derived weights that it reads."""
        return [a for a in self._leaves() if isinstance(a, DerivedWeight)]

    def outputs(self) -> range:
        """Return the indices of its outputs."""
        return range(self.out, self.out + (1 if self.tuple_length is None else self.tuple_length))

    def _leaves(self) -> list[Any]:
        return _leaves((self.args, dict(self.kwargs)))


@dataclass(frozen=True)
class Graph:
    """A forward pass for any batch size.

    Attributes:
        nodes: In execution order.
        result: What the pass returns, tensors as ``Value``.
        shapes: Shape of every value; sizes that grow with the batch are ``BatchLinear``.
    """

    nodes: tuple[Node, ...]
    result: Any
    shapes: tuple[tuple[int | BatchLinear, ...], ...]

    @property
    def n_values(self) -> int:
        """Number of values; index 0 is the input."""
        return len(self.shapes)

    def for_batch(self, batch: int) -> Graph:
        """Return the graph for one batch size, with integers in place of ``BatchLinear``."""

        def fix(leaf: Any) -> Any:
            return leaf.for_batch(batch) if isinstance(leaf, BatchLinear) else leaf

        nodes = []
        for node in self.nodes:
            args, kwargs = _map((node.args, dict(node.kwargs)), fix)
            nodes.append(Node(node.call, args, kwargs, node.out, node.tuple_length))
        return Graph(tuple(nodes), self.result, _map(self.shapes, fix))

    def batch_axis(self, value: int) -> tuple[int, int] | None:
        """Return (axis, rows per image) of the axis that holds the images, or None."""
        for axis, size in enumerate(self.shapes[value]):
            if isinstance(size, BatchLinear):
                return axis, size.slope
        return None


# ---- recording -------------------------------------------------------------------------------


def record_graph(
    function: Callable[[Tensor], Any],
    weights: Mapping[str, Tensor],
    image_shape: Sequence[int],
    dtype: torch.dtype,
) -> Graph:
    """Record what ``function`` does to a batch of images.

    Args:
        function: Runs the forward pass; its weights are on the meta device.
        weights: Every parameter and buffer that it reads, by name.
        image_shape: Shape of one image or of its frames.
        dtype: Type of the images.

    Raises:
        GraphError: If the pass writes in place, depends on values, or makes calls that torch does
            not report.
    """
    first, second = (
        _record(function, weights, (b, *image_shape), dtype) for b in _RECORDED_BATCHES
    )
    if len(first.nodes) != len(second.nodes):
        raise GraphError("it runs other operations at another batch size")
    nodes = []
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if (a.call, a.out, a.tuple_length) != (b.call, b.out, b.tuple_length):
            raise GraphError("it runs other operations at another batch size")
        args, kwargs = _merge((a.args, dict(a.kwargs)), (b.args, dict(b.kwargs)))
        nodes.append(Node(a.call, args, kwargs, a.out, a.tuple_length))
    shapes = tuple(_merge(a, b) for a, b in zip(first.shapes, second.shapes, strict=True))
    graph = Graph(tuple(nodes), first.result, shapes)
    checked = _record(function, weights, (_CHECKED_BATCH, *image_shape), dtype)
    if graph.for_batch(_CHECKED_BATCH) != checked:
        raise GraphError("its sizes are not linear in the batch size")
    return graph


def record_fixed_batch(
    function: Callable[[Tensor], Any],
    weights: Mapping[str, Tensor],
    image_shape: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Graph, int]:
    """Record a graph for one batch size only, in a third of the time of ``record_graph``.

    Returns:
        The graph and its batch size.
    """
    batch = _RECORDED_BATCHES[0]
    return _record(function, weights, (batch, *image_shape), dtype), batch


def _record(
    function: Callable[[Tensor], Any],
    weights: Mapping[str, Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Graph:
    x = torch.empty(tuple(shape), dtype=dtype, device="meta")
    recorder = _Recorder(x, weights)
    try:
        with torch.no_grad(), recorder:
            result = function(x)
    except GraphError:
        raise
    except Exception as error:  # a custom module may raise anything without real data
        raise GraphError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    outputs = _map(result, recorder.as_argument)
    return Graph(tuple(recorder.nodes), outputs, tuple(tuple(t.shape) for t in recorder.values))


class _Recorder(TorchFunctionMode):
    """Records every torch call while active."""

    def __init__(self, x: Tensor, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.values = [x]  # references keep the tensors alive, so that no id is reused
        self._arguments: dict[int, Value | Weight] = {id(t): Weight(n) for n, t in weights.items()}
        self._arguments[id(x)] = Value(0)
        self._recorded: dict[tuple[Any, ...], int] = {}  # call and arguments -> first output
        self._duplicates: list[Tensor] = []

    def as_argument(self, argument: Any) -> Any:
        """Return the argument in its recorded form."""
        if not isinstance(argument, Tensor):
            return argument
        if id(argument) not in self._arguments:
            raise GraphError("it uses a tensor that is neither a weight nor made by a torch call")
        return self._arguments[id(argument)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        _refuse_in_place(func, kwargs)
        if isinstance(result, Tensor):
            outputs: list[Tensor] = [result]
        elif isinstance(result, (tuple, list)) and any(isinstance(t, Tensor) for t in result):
            outputs = list(result)
        elif isinstance(result, _PLAIN_TYPES):
            return result  # a query of shapes or types
        else:
            raise GraphError(f"{resolve_name(func) or func} returns a {type(result).__name__}")
        if not all(id(t) in self._arguments for t in outputs):  # else its own input: contiguous()
            tuple_length = None if isinstance(result, Tensor) else len(outputs)
            known_args, known_kwargs = _map((tuple(args), dict(kwargs)), self.as_argument)
            self._add(Node(func, known_args, known_kwargs, len(self.values), tuple_length), outputs)
        return result

    def _add(self, node: Node, outputs: Sequence[Tensor]) -> None:
        """Add a node, or reuse the node of an earlier call with the same arguments."""
        try:
            key = (node.call, node.tuple_length, node.args, tuple(node.kwargs.items()))
            first = self._recorded.setdefault(key, node.out)
        except TypeError:  # an unhashable argument: never reused
            first = node.out
        if first != node.out:
            for offset, t in enumerate(outputs):
                self._arguments[id(t)] = Value(first + offset)
                self._duplicates.append(t)
            return
        self.nodes.append(node)
        for t in outputs:
            self._arguments[id(t)] = Value(len(self.values))
            self.values.append(t)


_PLAIN_TYPES = (
    int,
    float,
    bool,
    str,
    type(None),
    tuple,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}


def _refuse_in_place(func: Any, kwargs: Mapping[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    if (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE or "out" in kwargs:
        raise GraphError(f"it writes in place ({name})")


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to every leaf of nested tuples, lists and dicts."""
    if isinstance(tree, (tuple, list)):
        return tuple(_map(t, change) for t in tree)
    if isinstance(tree, dict):
        return {key: _map(t, change) for key, t in tree.items()}
    return change(tree)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    _map(tree, found.append)
    return found


def _merge(a: Any, b: Any) -> Any:
    """Merge an argument's recordings at the two batch sizes into one for any batch size."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        return tuple(_merge(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _merge(a[key], b[key]) for key in a}
    if a == b:
        return a
    if type(a) is int and type(b) is int:
        slope = (b - a) // (_RECORDED_BATCHES[1] - _RECORDED_BATCHES[0])
        return BatchLinear(a - slope * _RECORDED_BATCHES[0], slope)
    raise GraphError(f"an argument depends on the batch size: {a!r}, {b!r}")


# ---- running ---------------------------------------------------------------------------------


def run_node(
    node: Node,
    values: dict[int, Tensor],
    weights: Mapping[Any, Any],
    batch: int,
    device: torch.device,
) -> None:
    """Run one node and add its outputs to ``values``.

    Args:
        node: The node.
        values: The values that it reads, by index.
        weights: Parameters and buffers by name, and derived weights by ``DerivedWeight``.
        batch: Number of images.
        device: Device of tensors that the node creates.
    """
    args, kwargs = list(node.args), node.kwargs
    for place, resolver in node.dynamic_args:
        args[place] = resolver(values, weights, batch, device)
    if kwargs:
        kwargs = {
            name: _resolve(argument, values, weights, batch, device)
            for name, argument in kwargs.items()
        }
    result = node.call(*args, **kwargs)
    if node.tuple_length is None:
        values[node.out] = result
    else:
        values.update(zip(node.outputs(), result, strict=True))


def _resolver(argument: Any) -> _Resolver | None:
    """Return a function that resolves a top-level argument; None if the argument is constant."""
    kind = type(argument)
    if kind is Value:
        return lambda values, weights, batch, device: values[argument.index]
    if kind is Weight:
        return lambda values, weights, batch, device: weights[argument.name]
    if isinstance(argument, DerivedWeight):
        return lambda values, weights, batch, device: weights[argument]
    dynamic = (Value, Weight, BatchLinear, WeightLength, DerivedWeight, torch.device)
    if any(isinstance(leaf, dynamic) for leaf in _leaves(argument)):
        return lambda values, weights, batch, device: _resolve(
            argument, values, weights, batch, device
        )
    return None


def _resolve(
    tree: Any,
    values: Mapping[int, Tensor],
    weights: Mapping[Any, Any],
    batch: int,
    device: torch.device,
) -> Any:
    def resolve(argument: Any) -> Any:
        kind = type(argument)
        if kind is Value:
            return values[argument.index]
        if kind is Weight:
            return weights[argument.name]
        if kind is BatchLinear:
            return argument.for_batch(batch)
        if kind is WeightLength:
            return weights[argument.name].shape[0]
        if isinstance(argument, DerivedWeight):
            return weights[argument]
        if kind is torch.device:
            return device
        return argument

    return _map(tree, resolve)
