"""Candidates for channel groups: torch-pruning's DepGraph on a user's module, made to fit spikes.

DepGraph (Fang et al. 2023, arXiv 2301.12900) follows autograd's graph. On spiking networks it needs
help, all of it during tracing only and on a copy: neurons pass their input on (SpikingJelly's LIF
splits its input along time, which DepGraph takes for q, k, v), its index mapping for expanded
tensors is off (it takes a product of five axes for grouped-query attention and drops the link), and
the outputs of layers are copied (``out += x`` on a view would hide the layer).

What comes out are candidates. Whether one is exact, only ``check`` says.
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

from psvit_core.custom.layers import BATCH_NORM, is_depthwise
from psvit_core.custom.structure import Found, Member
from psvit_core.errors import ModelError

PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_HEAD_NAMES = ("num_heads", "n_heads", "heads", "n_head", "nhead", "num_attention_heads")


@dataclass
class Candidate:
    """What may be a channel group: tried with each of ``heads`` in turn."""

    group_id: str
    reason: str = ""  # why it is none, where that is seen without trying
    kind: str = "conv"
    n_units: int = 0
    heads: list[int | None] = field(default_factory=lambda: [None])
    members: tuple[Member, ...] = ()

    def axes(self) -> list[tuple[str, int]]:
        """The axes of layers that its units lie along."""
        return [(member.path, member.axis) for member in self.members]

    def found(self, heads: int | None) -> Found:
        """This candidate as a group with so many heads."""
        return Found(
            group_id=self.group_id, kind="attention" if heads else self.kind,
            n_units=self.n_units, heads=heads, members=self.members,
        )  # fmt: skip


def trace(
    net: nn.Module, x: Tensor, logits: Callable[[nn.Module, Tensor], Tensor]
) -> list[Candidate]:
    """Candidates in the order in which the network runs; every producing layer is in one.

    Args:
        net: The user's module; not changed.
        x: Images to trace with.
        logits: Runs a module of this kind on images.
    """
    net = copy.deepcopy(net).float()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # the graph is autograd's
    for module in net.modules():
        if isinstance(module, neuron.BaseNode):
            module.forward = lambda current, *_: current * 1.0
    return _Tracer(net, x, logits).candidates()


@contextmanager
def _without_expand_mapping() -> Iterator[Any]:
    import torch_pruning  # type: ignore[import-untyped]
    from torch_pruning.dependency import index_mapping  # type: ignore[import-untyped]

    kept = index_mapping.update_expand_index_mapping
    index_mapping.update_expand_index_mapping = lambda graph, node: None
    try:
        yield torch_pruning
    finally:
        index_mapping.update_expand_index_mapping = kept


class _Tracer:
    def __init__(
        self, net: nn.Module, x: Tensor, logits: Callable[[nn.Module, Tensor], Tensor]
    ) -> None:
        self._net = net
        self._names = {module: name for name, module in net.named_modules()}
        self._order: list[str] = []  # producing layers as they are first called
        for layer in net.modules():
            if isinstance(layer, PRODUCERS):
                layer.register_forward_pre_hook(lambda m, _i: self._called(m))
            if isinstance(layer, (*PRODUCERS, BATCH_NORM)):
                layer.register_forward_hook(lambda _m, _i, out: out * 1.0)
        with _without_expand_mapping() as pruning, torch.enable_grad():
            self._types = pruning.ops.OPTYPE
            self._graph = pruning.DependencyGraph()
            self._graph.build_dependency(
                net, x, forward_fn=lambda m, images: _followed(logits(m, images)), verbose=False
            )
            self._groups = dict(self._all_groups())

    def _called(self, layer: nn.Module) -> None:
        if self._names[layer] not in self._order:
            self._order.append(self._names[layer])

    def _all_groups(self) -> Iterator[tuple[str, Any]]:
        """DepGraph's groups (or the error that it ends with) by the layer that they start at."""
        done: set[nn.Module] = set()
        for path in self._order:
            layer = self._net.get_submodule(path)
            if layer in done or layer not in self._graph.module2node:
                continue
            pruner = self._graph.get_pruner_of_module(layer)
            units = list(range(pruner.get_out_channels(layer)))
            try:
                group = self._graph.get_pruning_group(layer, pruner.prune_out_channels, units)
            except Exception as error:  # of a library that guesses
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
                why = "DepGraph does not reach it" if name in self._order else "It is never called"
                found.append(Candidate(name, reason=f"{why}."))
        return _shorter_ids(found)

    def _candidate(self, path: str, group: Any) -> Candidate:
        if isinstance(group, str):
            return Candidate(path, reason=f"{group}.")
        places: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
        sizes: dict[tuple[str, int], int] = {}
        reasons = []
        for item in group:
            key, size, reason = self._axis(item.dep)
            reasons.append(reason)
            if key:
                sizes[key] = size
                places[key] |= set(zip(item.idxs, item.root_idxs, strict=True))
        members, layout = _members(sizes, places, self._net)
        n_units = min(sizes.values(), default=0)
        reasons += [layout, *(self._unsilenced(m.path) for m in members if m.axis == 0)]
        return Candidate(
            path, next((r for r in reasons if r), ""), self._kind(members), n_units,
            [None, *self._head_counts(members, n_units)], members,
        )  # fmt: skip

    def _axis(self, dependency: Any) -> tuple[tuple[str, int] | None, int, str]:
        """The axis that an item of a group is about, its length, and why it spoils the group."""
        node, types = dependency.target, self._types
        module = node.module
        if node.type == types.OUTPUT:
            return None, 0, "Its units are the model's outputs."
        if node.type == types.PARAMETER:
            name = self._graph._param_to_name[module]
            return (name, node.pruning_dim), module.shape[node.pruning_dim], ""
        path = self._names.get(module)
        if path is None:
            return None, 0, ""  # an operation without channels of its own
        if isinstance(module, BATCH_NORM):
            plain = "" if module.affine else f"{path} has no gamma and beta to silence units with."
            return (path, 0), module.num_features, plain
        if isinstance(module, nn.PReLU):
            shared = module.num_parameters == 1
            return (None if shared else (path, 0)), module.num_parameters, ""
        if not isinstance(module, PRODUCERS):
            kind = type(module).__name__
            return None, 0, f"{path} ({kind}) mixes the units or has no rule for removing one."
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            return None, 0, f"{path} is a grouped convolution."
        lengths = module.weight.shape  # (out, in, ...)
        if is_depthwise(module) or self._graph.is_out_channel_pruning_fn(dependency.handler):
            return (path, 0), lengths[0], ""
        return (path, 1), lengths[1], ""

    def _unsilenced(self, path: str) -> str:
        """Why zeroing BatchNorms does not silence this layer's outputs; empty where it does."""
        if path not in self._order:
            return ""
        layer, types = self._net.get_submodule(path), self._types
        todo, seen = list(self._graph.module2node[layer].outputs), set()
        while todo:
            node = todo.pop()
            if node in seen or node.type == types.BN:
                continue
            seen.add(node)
            if isinstance(node.module, PRODUCERS) and not is_depthwise(node.module):
                reader = self._names.get(node.module, "a layer")
                return f"{path} has no BatchNorm between it and {reader}, which reads it."
            if node.type == types.OUTPUT:
                return f"{path} has no BatchNorm between it and the model's outputs."
            todo += node.outputs
        return ""

    def _kind(self, members: tuple[Member, ...]) -> str:
        """``residual`` for a stream: read by a layer that runs before another one writes to it."""
        wide = [m for m in members if m.path in self._order and not is_depthwise(self._layer(m))]
        writers = [self._order.index(m.path) for m in wide if m.axis == 0]
        readers = [self._order.index(m.path) for m in wide if m.axis == 1]
        if len(writers) > 1 and readers and min(readers) < max(writers):
            return "residual"
        return "linear" if all(isinstance(self._layer(m), nn.Linear) for m in wide) else "conv"

    def _layer(self, member: Member) -> nn.Module:
        return self._net.get_submodule(member.path)

    def _head_counts(self, members: tuple[Member, ...], n_units: int) -> list[int]:
        """Head counts that the modules around the group's producing layers state."""
        counts: list[int] = []
        for member in members:
            parts = member.path.split(".")
            for depth in range(len(parts) - 1, -1, -1) if member.axis == 0 else ():
                around = self._net.get_submodule(".".join(parts[:depth]))
                counts += [getattr(around, name, 0) for name in _HEAD_NAMES]
        fitting = [h for h in counts if isinstance(h, int) and 1 < h < n_units and n_units % h == 0]
        return list(dict.fromkeys(fitting))


def _followed(out: Tensor) -> Tensor:
    """The logits, by an operation that is not a layer's."""
    if out.grad_fn is None:
        raise ModelError(
            "No gradient reaches the logits, so that the layers cannot be followed. Is there a "
            "no_grad, or a neuron without surrogate gradient?"
        )
    return out * 1.0


def _members(
    sizes: dict[tuple[str, int], int],
    places: dict[tuple[str, int], set[tuple[int, int]]],
    net: nn.Module,
) -> tuple[tuple[Member, ...], str]:
    """The axes of a group, and why they do not fit together (empty where they do).

    The shortest axis says how many units there are: a layer that holds q, k and v has three places
    for each, a linear layer behind a flattening one for every pixel.
    """
    n_units = min(sizes.values(), default=0)
    layers = dict(net.named_modules())
    members, reasons = [], []
    for (path, axis), size in sizes.items():
        parts, rest = divmod(size, n_units)
        members.append(Member(path=path, axis=axis, parts=parts))
        known = {place for place, _ in places[path, axis]}
        told = {unit for _, unit in places[path, axis]} <= set(range(n_units))
        first = known == set(range(n_units))  # of flattened sequences DepGraph knows no more
        flat = first and isinstance(layers.get(path), nn.Linear)
        if rest or (told and known < set(range(size)) and not flat):
            reasons.append(f"{path} reads these units beside others (a concatenation).")
        elif parts > 1 and not _splits(layers.get(path), axis):
            reasons.append(f"{path} has {parts} places for each unit; no rule to cut such a layer.")
        elif parts == 1 and told and any(place != unit for place, unit in places[path, axis]):
            reasons.append(f"{path} has these units in another order.")
    return tuple(members), reasons[0] if reasons else ""


def _splits(layer: nn.Module | None, axis: int) -> bool:
    """Whether a layer can be split so that a unit is one index of each part."""
    if axis == 1:
        return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    return isinstance(layer, (*PRODUCERS, BATCH_NORM)) and not is_depthwise(layer)


def _shorter_ids(candidates: list[Candidate]) -> list[Candidate]:
    """Ids without the numbers that containers put last, where they stay distinct."""
    short = [re.sub(r"(?<=.)(\.\d+)+$", "", c.group_id) for c in candidates]
    for candidate, name in zip(candidates, short, strict=True):
        if short.count(name) == 1:
            candidate.group_id = name
    return candidates
