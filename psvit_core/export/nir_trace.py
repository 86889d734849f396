"""A network of the user's own as one time step of layers and neurons, as NIR describes networks.

The forward is traced with ``torch.fx``; layers and neurons stay whole. A sum of two signals becomes
two sources of whatever reads it. Time is not part of the graph: repeating the image at the
beginning and averaging at the end are recognised and left to who runs it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from psvit_core.custom.layers import CountedLayer
from psvit_core.custom.model import CustomModel
from psvit_core.custom.users_code import one_line
from psvit_core.errors import ModelError
from psvit_core.neurons import LIF, NEURONS, IntegerLIF
from psvit_core.zoo.base import BATCH_NORM, SpikingModel
from psvit_core.zoo.products import AttentionProduct

INPUT = "input"
_NEURONS = (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, LIF)
_CONVS = (nn.Conv2d, layer.Conv2d)
_LINEARS = (nn.Linear, layer.Linear)
_FLATTENS = (nn.Flatten, layer.Flatten)
_POOLS = (nn.AvgPool2d, layer.AvgPool2d)
_GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, layer.AdaptiveAvgPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, layer.BatchNorm1d, layer.BatchNorm2d)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, layer.Dropout, layer.Dropout2d)
_SUMS = (operator.add, operator.iadd, torch.add)
_MOST_NAMED = 12  # nodes of a message


@dataclass
class Step:
    """A node of the graph: one layer or one layer of neurons."""

    name: str  # path in the network
    module: nn.Module
    sources: tuple[str, ...]  # names of steps, whose outputs are added up, or ``INPUT``
    shape_in: tuple[int, ...]  # of one image at one time step
    shape_out: tuple[int, ...]
    norms: list[nn.Module] = field(default_factory=list)  # BatchNorms to fold into the layer


@dataclass(frozen=True)
class StepGraph:
    """All steps in the order of their calls."""

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]  # their outputs are added up to the logits of a time step
    time_steps: int

    @property
    def neurons(self) -> tuple[str, ...]:
        """Names of the layers of neurons, in the order of their calls."""
        return tuple(step.name for step in self.steps if isinstance(step.module, _NEURONS))


@dataclass(frozen=True)
class _Value:
    """What an operation of the trace returns."""

    sources: tuple[str, ...]
    lead: int  # axes before the channels: 1 for images, 2 for time and images
    averaged: bool = False  # over time


class _Whole(nn.Module):
    """A layer that counts its calls, as one module of a trace."""

    def __init__(self, counted: nn.Module) -> None:
        super().__init__()
        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        out: Tensor = self.counted(x)
        return out


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (_Whole, base.MemoryModule, *NEURONS)):
            return True
        library = type(m).__module__.startswith(("torch.nn.", "spikingjelly."))
        return library and not list(m.children())


class _Shapes(fx.Interpreter):
    """Notes of each node whether it returns tensors, and the shape of a single one."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["signal"] = any(isinstance(part, Tensor) for part in tree_leaves(result))
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def refuse_family(model: SpikingModel) -> NoReturn:
    """Raise ``ModelError`` for a network of the zoo: it names the nodes that NIR lacks."""
    products = [n for n, m in model.named_modules() if isinstance(m, AttentionProduct)]
    integer = [n for n, m in model.named_modules() if isinstance(m, IntegerLIF)]
    lacking = [f"products of two signals, which attention needs ({_named(products)})"]
    if integer:
        lacking.append(f"integer neurons ({_named(integer)})")
    raise ModelError(
        f"{model.name} cannot be written as a NIR graph: NIR has no nodes for "
        f"{' and '.join(lacking)}. --format onnx, pt2 and torch write it."
    )


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else shown


def trace_steps(model: CustomModel, images: Tensor) -> StepGraph:
    """Trace a network of the user's own.

    Args:
        model: The network; not changed.
        images: Some of its inputs, (n, C, H, W), or frames (n, T, C, H, W).

    Raises:
        ModelError: If it cannot be traced, or has nodes that NIR lacks; it names them.
    """
    net = copy.deepcopy(model.net).cpu().eval()
    wholes: dict[nn.Module, _Whole] = {}
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if path and isinstance(module, CountedLayer):
            parent, _, leaf = path.rpartition(".")
            whole = wholes.setdefault(module, _Whole(module))  # type: ignore[arg-type]
            setattr(net.get_submodule(parent), leaf, whole)
    x, repeats = images[:1].cpu(), model.arguments.get("T")
    if x.dim() == 5:
        x = x.transpose(0, 1)
    elif repeats:
        x = x.unsqueeze(0).repeat(int(repeats), 1, 1, 1, 1)
    try:
        graph = _Tracer().trace(net)
        functional.reset_net(net)
        with torch.no_grad():
            traced = _Shapes(fx.GraphModule(net, graph)).run(x.clone())
            functional.reset_net(net)
            logits = net(x.clone())
    except Exception as error:  # of the user's forward, or of the tracer
        raise ModelError(
            f"{model.name} cannot be written as a NIR graph, because its forward cannot be traced: "
            f"{one_line(error)} A graph needs a forward of layers, neurons and sums without "
            "Python code that depends on shapes or values. --format onnx and pt2 take more."
        ) from error
    if not _equal(traced, logits):
        raise ModelError(
            f"{model.name} cannot be written as a NIR graph: its forward computes something else "
            "than the operations that it calls one after the other. Usually it changes a signal in "
            "place (x += y) that it reads again under another name, or it draws random numbers."
        )
    return _Reader(model.name, net, x).read(graph)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two outputs have the same bits; True for what is no tensor."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True  # refused by the reader
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


class _Reader:
    """Turns a trace into steps.

    Args:
        name: Of the model, for messages.
        net: What was traced.
        x: What it was run on.
    """

    def __init__(self, name: str, net: nn.Module, x: Tensor) -> None:
        self._name, self._net, self._x = name, net, x
        #: None: no signal, or one that comes after what NIR lacks, which is named already.
        self._values: dict[fx.Node, _Value | None] = {}
        self._steps: dict[str, Step] = {}
        #: The step whose output a node has, unless something else reads that output, too.
        self._made_by: dict[fx.Node, Step] = {}
        self._fired: set[str] = set()  # paths of neurons that were called
        self._lacking: list[str] = []
        self._time_steps = x.shape[0] if x.dim() == 5 else 1

    def read(self, graph: fx.Graph) -> StepGraph:
        """Return the steps, or refuse what NIR lacks by name."""
        outputs: tuple[str, ...] = ()
        for node in graph.nodes:
            if node.op == "placeholder":
                first = not self._values  # others have defaults
                image = _Value((INPUT,), 2 if self._x.dim() == 5 else 1)
                self._values[node] = image if first else None
            elif node.op == "output":
                [result] = node.args
                value = self._values.get(result) if isinstance(result, fx.Node) else None
                outputs = value.sources if value else ()
            elif node.op == "call_module":
                self._values[node] = self._module(node)
            else:
                self._values[node] = self._operation(node)
        read = {*outputs, *(name for step in self._steps.values() for name in step.sources)}
        unread = [name for name in self._steps if name not in read]
        if outputs and not self._lacking:
            self._lacking += [f"{name} (a layer whose output nothing reads)" for name in unread]
        if self._lacking or not outputs or INPUT in outputs:
            lacking = _named(self._lacking) or "its output, which is not one tensor of a layer"
            raise ModelError(
                f"{self._name} cannot be written as a NIR graph. NIR has no node for: {lacking}. "
                "It has Conv2d, Linear, LIF and IF neurons with a hard reset to 0, AvgPool2d, "
                "Flatten and sums; BatchNorms are folded into the layer before them. --format onnx "
                "and pt2 take more."
            )
        return StepGraph(tuple(self._steps.values()), outputs, self._time_steps)

    def _lacks(self, what: str) -> None:
        """Note what NIR has no node for."""
        if what not in self._lacking:
            self._lacking.append(what)

    # ---- modules -----------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> _Value | None:
        path, module = str(node.target), self._net.get_submodule(str(node.target))
        if isinstance(module, _Whole):
            module = module.counted
        kind = _class_of(module)
        signals = _signals(node)
        value = self._values[signals[0]] if len(signals) == 1 else None
        if kind in _NOTHING:
            return self._passed(node, signals[0], value) if value else None
        if isinstance(module, BATCH_NORM):
            return self._norm(path, module, value, node) if value else None
        fault = _fault_of(module, kind, value)
        if fault is None and len(signals) != 1:
            fault = f" of {len(signals)} signals"
        if fault is None and kind in _NEURONS and path in self._fired:
            fault = (
                ", called again: register the network with T=... and let it take sequences "
                "(T, B, C, H, W) instead of looping over time"
            )
        if fault is not None:
            self._lacks(f"{path} ({kind.__name__}{fault})")
            return None
        if value is None:
            return None  # what comes before is named already
        if kind in _NEURONS:
            self._fired.add(path)
        if kind in _FLATTENS:
            assert isinstance(module, nn.Flatten)
            start = module.start_dim + (getattr(module, "step_mode", "s") == "m")
            if start != value.lead or module.end_dim != -1:
                self._lacks(f"{path} (Flatten of axes {start} to {module.end_dim})")
                return None
        return self._add(path, module, value, node, signals[0])

    def _passed(self, node: fx.Node, source: fx.Node, value: _Value) -> _Value:
        """Return the value of a node that is no step: it changes nothing, or was folded."""
        if source in self._made_by and len(source.users) == 1:
            self._made_by[node] = self._made_by[source]
        return value

    def _add(
        self, name: str, module: nn.Module, value: _Value, node: fx.Node, source: fx.Node
    ) -> _Value:
        lead = value.lead
        while name in self._steps:  # a layer that is called again
            name += "_again"
        shape_in, shape_out = source.meta["shape"][lead:], node.meta["shape"][lead:]
        self._steps[name] = Step(name, module, value.sources, shape_in, shape_out)
        self._made_by[node] = self._steps[name]
        if isinstance(module, nn.Linear) and len(shape_in) != 1:
            self._lacks(f"{name} (Linear on axes {shape_in}; NIR's has one)")
        return _Value((name,), lead, value.averaged)

    def _norm(self, path: str, module: nn.Module, value: _Value, node: fx.Node) -> _Value | None:
        """Fold a BatchNorm into the layer before it, whose output nothing else may read."""
        [source] = _signals(node)
        before = self._made_by.get(source)
        folds = _class_of(module) in _NORMS and module.running_mean is not None
        layer_before = before is not None and isinstance(before.module, (*_CONVS, *_LINEARS))
        if before is None or not (folds and layer_before and len(source.users) == 1):
            self._lacks(f"{path} ({type(module).__name__} that follows no layer of its own)")
            return None
        before.norms.append(module)
        return self._passed(node, source, value)

    # ---- operations --------------------------------------------------------------------------

    def _operation(self, node: fx.Node) -> _Value | None:
        if not node.meta["signal"]:
            return None  # a shape or a number
        signals = _signals(node)
        values = [self._values[one] for one in signals]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None  # what comes before is named already
        name = str(getattr(node.target, "__name__", node.target))
        handlers: dict[str, Callable[..., _Value | None]] = {
            "flatten": self._flatten,
            "mean": self._mean,
            "unsqueeze": self._unsqueeze,
            "repeat": self._repeat,
            "contiguous": lambda node, value: self._passed(node, signals[0], value),
        }
        is_sum = node.target in _SUMS or (node.op == "call_method" and name in ("add", "add_"))
        result: _Value | None = None
        if is_sum and len(known) == 2 and not node.kwargs:
            result = self._sum(known[0], known[1], signals)
        elif name in handlers and len(known) == 1:
            result = handlers[name](node, known[0])
        if result is None and node.op == "get_attr":
            self._lacks(f"{node.target} (a tensor that is no layer's)")
        elif result is None:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            where = str(stack[-1][0]) if stack else ""
            n_signals = f"{len(signals)} signal{'' if len(signals) == 1 else 's'}"
            self._lacks(f"{name} of {n_signals}{f' in {where}' if where else ''}")
        return result

    def _sum(self, one: _Value, other: _Value, signals: list[fx.Node]) -> _Value | None:
        shapes = {signal.meta["shape"] for signal in signals}
        if len(shapes) > 1 or set(one.sources) & set(other.sources):
            return None  # broadcast, or twice the same signal
        if (one.lead, one.averaged) != (other.lead, other.averaged):
            return None
        return _Value((*one.sources, *other.sources), one.lead, one.averaged)

    def _flatten(self, node: fx.Node, value: _Value) -> _Value | None:
        [source] = _signals(node)
        start, end = _given(node, start_dim=0, end_dim=-1)
        if start != value.lead or end not in (-1, len(source.meta["shape"]) - 1):
            return None
        return self._add("flatten", nn.Flatten(), value, node, source)

    def _mean(self, node: fx.Node, value: _Value) -> _Value | None:
        """Average over time, which who runs the graph does: what follows must be linear."""
        axis, keeps, dtype = _given(node, dim=None, keepdim=False, dtype=None)
        if value.lead != 2 or axis not in (0, (0,), [0]) or keeps or dtype is not None:
            return None
        return _Value(value.sources, 1, averaged=True)

    def _unsqueeze(self, node: fx.Node, value: _Value) -> _Value | None:
        """Give the image a time axis."""
        first = value.sources == (INPUT,) and value.lead == 1
        return _Value(value.sources, 2) if first and _given(node, dim=None) == [0] else None

    def _repeat(self, node: fx.Node, value: _Value) -> _Value | None:
        """Repeat the image over time."""
        [source] = _signals(node)
        before, after = source.meta["shape"], node.meta["shape"]
        image = value.sources == (INPUT,) and value.lead == 2 and before[0] == 1
        if not image or after[1:] != before[1:]:
            return None
        self._time_steps = int(after[0])
        return value


def _signals(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose tensors a node reads, each once."""
    return [source for source in node.all_input_nodes if source.meta["signal"]]


def _given(node: fx.Node, **defaults: Any) -> list[Any]:
    """Return the arguments after the signal, by their names and defaults in order."""
    positions = dict(zip(defaults, node.args[1:], strict=False))
    found = {**defaults, **positions, **node.kwargs}
    return [found[name] for name in defaults]


def _class_of(module: nn.Module) -> type:
    """Return the class of a module as the user wrote it."""
    kind = type(module)
    return kind.__mro__[2] if isinstance(module, CountedLayer) else kind


def _fault_of(module: nn.Module, kind: type, value: _Value | None) -> str | None:
    """Return why a module has no node in NIR, to follow its class; None if it has one.

    Only the classes themselves have one: subclasses may compute something else.
    """
    if kind in (*_LINEARS, *_FLATTENS):
        return None
    if kind in _NEURONS:
        return _fault_of_neuron(module, value)
    if kind in _CONVS:
        assert isinstance(module, nn.Conv2d)
        return _fault_of_conv(module)
    if kind in _POOLS:
        assert isinstance(module, nn.AvgPool2d)
        return _fault_of_pool(module)
    if kind in _GLOBAL_POOLS:
        assert isinstance(module, nn.AdaptiveAvgPool2d)
        return None if module.output_size in (1, (1, 1)) else " to more than one pixel"
    return ""


def _fault_of_neuron(module: nn.Module, value: _Value | None) -> str | None:
    if module.v_reset is None:
        return " with soft reset"
    if module.v_reset != 0:
        return f" with reset to {module.v_reset}"
    if value is None:
        return None
    if value.averaged:
        return " after an average over time"
    mode = "m" if value.lead == 2 else "s"
    if module.step_mode != mode:
        return f" with step_mode {module.step_mode!r} on inputs that need {mode!r}"
    return None


def _fault_of_conv(module: nn.Conv2d) -> str | None:
    if module.groups != 1:
        return " with groups, which the nir library does not type"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f" with padding {module.padding!r}, {module.padding_mode}"
    return None


def _fault_of_pool(module: nn.AvgPool2d) -> str | None:
    padded = module.padding not in (0, (0, 0)) and not module.count_include_pad
    if module.ceil_mode or padded or module.divisor_override is not None:
        return " with ceil_mode, divisor_override or uncounted padding"
    return None
