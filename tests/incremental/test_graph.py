"""Graphs: a forward pass as nodes for any batch size, or the reason why it is not recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from psvit_core.incremental.executor import IncrementalExecutor
from psvit_core.incremental.graph import BatchLinear, Graph, GraphError, record_graph
from psvit_core.incremental.propagation import propagate, record_network
from tests.tiny import NAMES, tiny_data, tiny_model


def graph_of(function: Callable[..., Tensor], **weights: Tensor) -> Graph:
    meta = {name: t.to("meta") for name, t in weights.items()}
    return record_graph(lambda x: function(x, **meta), meta, (3, 4), torch.float32)


def test_sizes_grow_with_the_batch() -> None:
    def forward(x: Tensor, w: Tensor) -> Tensor:
        rows = x.unsqueeze(0).expand(2, *x.shape).flatten(0, 1) @ w  # 2 time steps x images
        return rows.unflatten(0, (2, x.shape[0])).mean(0)

    graph = graph_of(forward, w=torch.randn(4, 5))
    assert graph.shapes[-1] == (BatchLinear(0, 1), 3, 5)
    merged = [s for s in graph.shapes if s[0] == BatchLinear(0, 2)]
    assert merged
    assert BatchLinear(0, 2).for_batch(7) == 14


def test_identical_calls_share_a_node() -> None:
    once = graph_of(lambda x: x.sum(2))
    twice = graph_of(lambda x: x.sum(2) * x.sum(2))
    assert len(twice.nodes) == len(once.nodes) + 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (x * 2).add_(1), "writes in place"),
        (lambda x: x if x.sum() > 0 else -x, "meta|item|data-dependent"),
        (lambda x: x[: len(x) // 2], "batch size"),
        (lambda x: torch.stack(list(x)), "batch size|returns"),
    ],
)
def test_errors_give_the_reason(function: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(GraphError, match=reason):
        graph = graph_of(function)
        pytest.fail(f"recorded {graph}")


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_network_gives_the_models_logits(name: str) -> None:
    model, data = tiny_model(name, torch.float64), tiny_data(name, 3)
    network = record_network(model, model.input_shape)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {n: t.detach() for n, t in tensors.items()}
    (x,) = data.batches(3, torch.float64)
    with torch.no_grad():
        expected = model(x)
        executor = IncrementalExecutor(network, {}, weights, independent_images=False)
        logits, reached = executor.run_full_model(x)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-9)
    assert expected.std() > 0
    assert all(count.shape == (3,) for count in reached.values())


@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_cifar"])
def test_later_groups_affect_fewer_nodes(name: str) -> None:
    model = tiny_model(name)
    network = record_network(model, model.input_shape)
    hidden = [g for g in model.channel_groups() if g.kind == "mlp"]
    counts = [len(propagate(network, g).nodes) for g in hidden]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < len(network.graph.nodes) / 4
    for group in hidden:  # cells start from the spikes of the hidden units
        found = propagate(network, group)
        assert {network.graph.shapes[i][axis] for i, axis in found.sliced.items()} == {
            group.n_units
        }
