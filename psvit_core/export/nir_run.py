"""Runs a NIR file by the definitions of its nodes, to check it. Nothing here knows how it was made.

Neurons take forward Euler steps of ``dt`` from zero state: v += dt / tau ((v_leak - v) + R I) for
LIF, v += dt R I for IF; a spike where v > v_threshold, and then v = v_reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NirNetwork(nn.Module):
    """A NIR file; every node runs once in a time step, and outputs are averaged over time.

    Args:
        path: The file. Its metadata have ``dt`` and ``time_steps``.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        import nir

        graph = nir.read(path)
        self.nodes: dict[str, Any] = graph.nodes
        self.dt = float(graph.metadata["dt"])
        self.time_steps = int(graph.metadata["time_steps"])
        self.sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for before, after in graph.edges:
            self.sources[after].append(before)
        self.order = list(TopologicalSorter(self.sources).static_order())
        [self.output] = graph.outputs
        [self.input] = graph.inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) or frames (B, T, C, H, W) to logits (B, num_classes)."""
        return self.run(x, {})[0]

    def run(self, x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return logits, and current and spikes, both (T, B, ...), by name of neurons.

        Args:
            x: Images, or frames.
            given: Spikes, (T, B, ...), that the readers of these neurons get instead of theirs.
        """
        frames = x.transpose(0, 1) if x.dim() == 5 else x.expand(self.time_steps, *x.shape)
        potentials: dict[str, Tensor] = {}
        seen: dict[str, list[list[Tensor]]] = {}
        outputs = []
        for t, frame in enumerate(frames):
            values: dict[str, Tensor] = {self.input: frame}
            for name in self.order:
                if name == self.input:
                    continue
                into = _sum([values[source] for source in self.sources[name]])
                node = self.nodes[name]
                if type(node).__name__ not in ("LIF", "IF"):
                    values[name] = _layer(node, into)
                    continue
                fired, potentials[name] = self._neuron(node, into, potentials.get(name))
                currents, spikes = seen.setdefault(name, [[], []])
                currents.append(into)
                spikes.append(fired)
                values[name] = given[name][t] if name in given else fired
            outputs.append(values[self.output])
        records = {name: [torch.stack(part) for part in parts] for name, parts in seen.items()}
        return torch.stack(outputs).mean(0), records

    def _neuron(self, node: Any, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return spikes and potential of one time step."""
        v = torch.zeros_like(x) if v is None else v
        r = _tensor(node.r, x)
        if type(node).__name__ == "LIF":
            rate = _tensor(self.dt / node.tau, x)
            v = v + rate * ((_tensor(node.v_leak, x) - v) + r * x)
        else:
            v = v + _tensor(self.dt * node.r, x) * x
        fired = v > _tensor(node.v_threshold, x)
        return fired.to(x), torch.where(fired, _tensor(node.v_reset, x), v)


def spikes_by_layer(
    network: NirNetwork, image: Tensor, spikes: Sequence[Tensor], neurons: Sequence[str]
) -> list[Tensor | None]:
    """Run each layer of a graph on given spikes (``agreement.Layers``).

    Args:
        network: The file.
        image: One image, or frames.
        spikes: Of each layer of neurons, (T, B, ...), or (B, ...) if T is 1.
        neurons: Their names, in the same order.
    """
    given = {
        name: part.reshape(-1, len(image), *part.shape[part.dim() - _rank(network, name) :])
        for name, part in zip(neurons, spikes, strict=True)
    }
    logits, seen = network.run(image, given)
    result: list[Tensor | None] = [logits]
    for name, shaped in zip(neurons, spikes, strict=True):
        result += [part.reshape(shaped.shape) for part in seen[name]]
    return result


def _rank(network: NirNetwork, name: str) -> int:
    return int(np.asarray(network.nodes[name].v_threshold).ndim)


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for other in parts[1:]:
        total = total + other
    return total


def _tensor(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(values)).to(like.dtype)


def _pair(values: Any) -> tuple[int, int]:
    pair = np.broadcast_to(np.asarray(values), (2,))
    return int(pair[0]), int(pair[1])


def _layer(node: Any, x: Tensor) -> Tensor:
    """Run a node without state."""
    kind = type(node).__name__
    if kind == "Conv2d":
        weight, bias = _tensor(node.weight, x), _tensor(node.bias, x)
        stride, padding, dilation = map(_pair, (node.stride, node.padding, node.dilation))
        return F.conv2d(x, weight, bias, stride, padding, dilation, int(node.groups))
    if kind in ("Linear", "Affine"):
        out = F.linear(x, _tensor(node.weight, x))
        return out + _tensor(node.bias, x) if kind == "Affine" else out
    if kind == "AvgPool2d":
        return F.avg_pool2d(x, _pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    if kind == "Flatten":
        return x.flatten(1 + int(node.start_dim), int(node.end_dim))
    assert kind == "Output", kind
    return x
