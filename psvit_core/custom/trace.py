"""Finds candidates for channel groups with torch-pruning's DepGraph.

DepGraph (Fang et al. 2023, arXiv 2301.12900) follows autograd's graph. Spiking networks need three
adaptations, which apply only while a copy of the network is traced:

- Neurons return their input, because SpikingJelly's LIF splits its input along time, which DepGraph
  mistakes for q, k, v.
- DepGraph's index mapping for expanded tensors is disabled, because it mistakes a product of five
  axes for grouped-query attention and drops the dependency.
- The outputs of layers are copied, because ``out += x`` on a view hides the layer.

The result are candidates; ``check`` decides which of them are exact.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from psvit_core.custom.layers import is_depthwise
from psvit_core.custom.network import computed_by, is_unsupported_neuron
from psvit_core.custom.structure import CustomGroup, GroupAxis
from psvit_core.errors import ModelError
from psvit_core.zoo.base import BATCH_NORM

PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_HEAD_NAMES = ("num_heads", "n_heads", "heads", "n_head", "nhead", "num_attention_heads")


@dataclass
class Candidate:
    """A possible channel group, to be checked with each of ``heads`` in turn."""

    group_id: str
    reason: str = ""  # why it is no group, if that is clear without a check
    kind: str = "conv"
    n_units: int = 0
    heads: list[int | None] = field(default_factory=lambda: [None])
    members: tuple[GroupAxis, ...] = ()

    def axes(self) -> list[tuple[str, int]]:
        """Return the (path, axis) pairs that its units lie along."""
        return [(member.path, member.axis) for member in self.members]

    def with_heads(self, heads: int | None) -> CustomGroup:
        """Return this candidate as a group with this number of heads."""
        return CustomGroup(
            group_id=self.group_id,
            kind="attention" if heads else self.kind,
            n_units=self.n_units,
            heads=heads,
            members=self.members,
        )


def trace(net: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> list[Candidate]:
    """Return candidates in the order of the network's layers.

    Every convolution and linear layer belongs to a candidate.

    Args:
        net: The user's module; not changed.
        x: Images, (B, C, H, W).
        run: Returns the logits of such a module for images.

    Raises:
        ModelError: If no gradient reaches the logits.
    """
    net = copy.deepcopy(net).float()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # autograd builds the graph
    for module in net.modules():
        if isinstance(module, neuron.BaseNode) or is_unsupported_neuron(module):
            module.forward = lambda current, *_: current * 1.0
    return _Tracer(net, x, run).candidates()


@contextmanager
def _without_expand_mapping() -> Iterator[Any]:
    import torch_pruning
    from torch_pruning.dependency import index_mapping

    original = index_mapping.update_expand_index_mapping
    index_mapping.update_expand_index_mapping = lambda graph, node: None
    try:
        yield torch_pruning
    finally:
        index_mapping.update_expand_index_mapping = original


class _Tracer:
    def __init__(
        self, net: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]
    ) -> None:
        self._net = net
        self._names = {module: name for name, module in net.named_modules()}
        self._order: list[str] = []  # producing layers, by first call
        self._neurons: dict[Any, str] = {}  # unsupported neurons, by the operation of their output
        for layer in net.modules():
            if isinstance(layer, PRODUCERS):
                layer.register_forward_pre_hook(lambda m, _i: self._record(m))
            if isinstance(layer, (*PRODUCERS, BATCH_NORM)):
                layer.register_forward_hook(lambda _m, _i, out: out * 1.0)
            if is_unsupported_neuron(layer):
                layer.register_forward_hook(lambda m, _i, out: self._record_neuron(m, out))
        with _without_expand_mapping() as pruning, torch.enable_grad():
            self._types = pruning.ops.OPTYPE
            self._graph = pruning.DependencyGraph()
            self._graph.build_dependency(
                net, x, forward_fn=lambda m, images: _traceable(run(m, images)), verbose=False
            )
            self._groups = dict(self._all_groups())

    def _record_neuron(self, module: nn.Module, spikes: Tensor) -> None:
        self._neurons[spikes.grad_fn] = self._names[module]

    def _record(self, layer: nn.Module) -> None:
        if self._names[layer] not in self._order:
            self._order.append(self._names[layer])

    def _all_groups(self) -> Iterator[tuple[str, Any]]:
        """Yield DepGraph's groups, or its error messages, with the layer that they start at."""
        done: set[nn.Module] = set()
        for path in self._order:
            layer = self._net.get_submodule(path)
            if layer in done or layer not in self._graph.module2node:
                continue
            pruner = self._graph.get_pruner_of_module(layer)
            units = list(range(pruner.get_out_channels(layer)))
            try:
                group = self._graph.get_pruning_group(layer, pruner.prune_out_channels, units)
            except Exception as error:  # DepGraph relies on heuristics and may raise anything
                yield path, f"DepGraph fails on it ({type(error).__name__}: {error})"
                continue
            done |= {
                item.dep.target.module
                for item in group
                if self._graph.is_out_channel_pruning_fn(item.dep.handler)
            }
            yield path, group

    def candidates(self) -> list[Candidate]:
        found = [self._candidate(path, group) for path, group in self._groups.items()]
        known = {m.path for c in found for m in c.members if m.axis == 0} | set(self._groups)
        for layer, name in self._names.items():
            if isinstance(layer, PRODUCERS) and name not in known:
                called = name in self._order
                reason = "DepGraph does not reach it." if called else "It is never called."
                found.append(Candidate(name, reason=reason))
        return _shorten_ids(found)

    def _candidate(self, path: str, group: Any) -> Candidate:
        if isinstance(group, str):
            return Candidate(path, reason=f"{group}.")
        indices: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
        sizes: dict[tuple[str, int], int] = {}
        reasons = []
        for item in group:
            key, size, reason = self._axis(item.dep)
            reasons.append(reason)
            if key:
                sizes[key] = size
                indices[key] |= set(zip(item.idxs, item.root_idxs, strict=True))
        members, reason = _members(sizes, indices, self._net)
        n_units = min(sizes.values(), default=0)
        writers = [m.path for m in members if m.axis == 0]
        reasons = [self._neuron_fault(path) for path in writers] + reasons
        reasons += [reason, *(self._silencing_fault(path) for path in writers)]
        return Candidate(
            path,
            next((r for r in reasons if r), ""),
            self._kind(members),
            n_units,
            [None, *self._head_counts(members, n_units)],
            members,
        )

    def _axis(self, dependency: Any) -> tuple[tuple[str, int] | None, int, str]:
        """Return the axis of a dependency, its length, and a reason if it rules the group out."""
        node, types = dependency.target, self._types
        module = node.module
        if node.type == types.OUTPUT:
            return None, 0, "Its units are the model's outputs."
        if node.type == types.PARAMETER:
            name = self._graph._param_to_name[module]
            return (name, node.pruning_dim), module.shape[node.pruning_dim], ""
        path = self._names.get(module)
        if path is None:
            return None, 0, ""  # an operation without channels
        return self._layer_axis(path, module, dependency)

    def _layer_axis(
        self, path: str, layer: nn.Module, dependency: Any
    ) -> tuple[tuple[str, int] | None, int, str]:
        if rule := computed_by(layer):
            return (
                None,
                0,
                f"{path} {rule}; only plain parameters can be pruned. Remove it in build.",
            )
        if isinstance(layer, BATCH_NORM):
            reason = "" if layer.affine else f"{path} has no gamma and beta to silence units with."
            return (path, 0), layer.num_features, reason
        if isinstance(layer, nn.PReLU):
            shared = layer.num_parameters == 1
            return (None if shared else (path, 0)), layer.num_parameters, ""
        if not isinstance(layer, PRODUCERS):
            kind = type(layer).__name__
            return None, 0, f"{path} ({kind}) mixes units, or no rule for removing one is known."
        if getattr(layer, "groups", 1) > 1 and not is_depthwise(layer):
            return None, 0, f"{path} is a grouped convolution."
        is_output = is_depthwise(layer) or self._graph.is_out_channel_pruning_fn(dependency.handler)
        axis = 0 if is_output else 1
        return (path, axis), layer.weight.shape[axis], ""  # (out, in, ...)

    def _silencing_fault(self, path: str) -> str:
        """Return why zeroed BatchNorms do not silence a layer's outputs; empty if they do."""
        if path not in self._order:
            return ""
        for node in self._nodes_after(path, stop_at_norms=True):
            if _mixes(node.module):
                reader = self._names.get(node.module, "a layer")
                return f"{path} has no BatchNorm between it and {reader}, which reads it."
            if node.type == self._types.OUTPUT:
                return f"{path} has no BatchNorm between it and the model's outputs."
        return ""

    def _neuron_fault(self, path: str) -> str:
        """Return which unsupported neuron a layer's outputs reach; empty if they reach none."""
        for node in self._nodes_after(path) if path in self._order else ():
            if name := self._neurons.get(node.grad_fn):
                kind = type(self._net.get_submodule(name)).__name__
                return (
                    f"{name} is a {kind}, which is not derived from SpikingJelly's BaseNode; no "
                    "other neurons are supported."
                )
        return ""

    def _nodes_after(self, path: str, *, stop_at_norms: bool = False) -> Iterator[Any]:
        """Yield the operations from a layer's output to the layers that read it, with these."""
        layer = self._net.get_submodule(path)
        todo, seen = list(self._graph.module2node[layer].outputs), set()
        while todo:
            node = todo.pop()
            if node in seen or (stop_at_norms and node.type == self._types.BN):
                continue
            seen.add(node)
            yield node
            if not _mixes(node.module):
                todo += node.outputs

    def _kind(self, members: tuple[GroupAxis, ...]) -> str:
        """Return ``residual``, ``conv`` or ``linear``.

        A residual stream is read by a layer that runs before the last layer that writes to it.
        """
        wide = [m for m in members if m.path in self._order and not is_depthwise(self._layer(m))]
        writers = [self._order.index(m.path) for m in wide if m.axis == 0]
        readers = [self._order.index(m.path) for m in wide if m.axis == 1]
        if len(writers) > 1 and readers and min(readers) < max(writers):
            return "residual"
        return "linear" if all(isinstance(self._layer(m), nn.Linear) for m in wide) else "conv"

    def _layer(self, member: GroupAxis) -> nn.Module:
        return self._net.get_submodule(member.path)

    def _head_counts(self, members: tuple[GroupAxis, ...], n_units: int) -> list[int]:
        """Return the numbers of heads in attributes of the modules around producing layers."""
        counts: list[int] = []
        for member in members:
            parts = member.path.split(".")
            for depth in range(len(parts) - 1, -1, -1) if member.axis == 0 else ():
                around = self._net.get_submodule(".".join(parts[:depth]))
                counts += [getattr(around, name, 0) for name in _HEAD_NAMES]
        fitting = [h for h in counts if isinstance(h, int) and 1 < h < n_units and n_units % h == 0]
        return list(dict.fromkeys(fitting))


def _mixes(layer: Any) -> bool:
    """Return True for a layer whose outputs depend on all channels of its input."""
    return isinstance(layer, PRODUCERS) and not is_depthwise(layer)


def _traceable(logits: Tensor) -> Tensor:
    """Return the logits as the output of an operation that belongs to no layer."""
    if logits.grad_fn is None:
        raise ModelError(
            "No gradient reaches the logits, so the layers cannot be traced. Remove no_grad from "
            "the forward, and use neurons with a surrogate gradient."
        )
    return logits * 1.0


def _members(
    sizes: dict[tuple[str, int], int],
    indices: dict[tuple[str, int], set[tuple[int, int]]],
    net: nn.Module,
) -> tuple[tuple[GroupAxis, ...], str]:
    """Return the axes of a group, and the reason if they do not match (otherwise empty).

    The shortest axis determines the number of units. A combined q, k, v layer has three indices per
    unit, and a linear layer after a flattened map one index per pixel.

    Args:
        sizes: Length of each (path, axis).
        indices: Pairs of (index along the axis, unit) for each (path, axis).
        net: The traced module.
    """
    n_units = min(sizes.values(), default=0)
    layers = dict(net.named_modules())
    members, reasons = [], []
    for (path, axis), size in sizes.items():
        parts, rest = divmod(size, n_units)
        members.append(GroupAxis(path=path, axis=axis, parts=parts))
        known = {index for index, _ in indices[path, axis]}
        mapped = {unit for _, unit in indices[path, axis]} <= set(range(n_units))
        # Of a flattened sequence, DepGraph only finds the first pixel's indices.
        flat = known == set(range(n_units)) and isinstance(layers.get(path), nn.Linear)
        if rest or (mapped and known < set(range(size)) and not flat):
            reasons.append(f"{path} reads these units together with others (a concatenation).")
        elif parts > 1 and not _can_split(layers.get(path), axis):
            reasons.append(f"{path} has {parts} indices per unit, and such a layer cannot be cut.")
        elif parts == 1 and mapped and any(index != unit for index, unit in indices[path, axis]):
            reasons.append(f"{path} has these units in another order.")
    return tuple(members), reasons[0] if reasons else ""


def _can_split(layer: nn.Module | None, axis: int) -> bool:
    """Return True if a layer can be split so that a unit is one index of each part."""
    if axis == 1:
        return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    return isinstance(layer, (*PRODUCERS, BATCH_NORM)) and not is_depthwise(layer)


def _shorten_ids(candidates: list[Candidate]) -> list[Candidate]:
    """Remove trailing container indices from ids, if the ids stay distinct."""
    short = [re.sub(r"(?<=.)(\.\d+)+$", "", c.group_id) for c in candidates]
    for candidate, name in zip(candidates, short, strict=True):
        if short.count(name) == 1:
            candidate.group_id = name
    return candidates
