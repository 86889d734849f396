"""Networks of every kind (recovered, fine-tuned, ...) through the formats of an export.

``benchmarks/roundtrips.py`` makes all trips of all families. Here two kinds of every published
family become a Python file and int8, and one of them a graph: each kind becomes each graph.
Families whose graph is ONNX here are not written as ONNX once more in ``test_traced``.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks._roundtrips_networks import KINDS, N_IMAGES
from benchmarks.roundtrips import rows_of
from tests.tiny import QUICK_NAMES, vector

ALWAYS, GRAPHS = ("torch", "int8"), ("onnx", "pt2")
COUPLED = ("qkformer_cifar",)  # refused as ONNX
#: Small networks, whose ONNX files are quickly written elsewhere.
AS_PT2 = ("spikformer_cifar", "sdt_v1", "spikingformer_cml_cifar", "statten_cifar")
AS_ONNX = tuple(
    sorted(set(QUICK_NAMES) - set(AS_PT2), key=lambda name: (name in COUPLED, name)),
)
#: Network, the kind of it that becomes a graph, and the graph.
CASES = [
    (name, KINDS[i % len(KINDS)], graph)
    for graph, names in zip(GRAPHS, (AS_ONNX, AS_PT2), strict=True)
    for i, name in enumerate(names)
]


def test_every_kind_becomes_every_graph() -> None:
    independent = [case for case in CASES if case[0] not in COUPLED]
    assert {(kind, graph) for _, kind, graph in independent} == {
        (kind, graph) for kind in KINDS for graph in GRAPHS
    }


def assert_equal(outcome: dict[str, Any]) -> None:
    """Check that rounding explains an outcome: a spike that flips reaches all later layers."""
    assert outcome.get("predictions", 0) == 0, outcome
    assert outcome.get("logits", 0) <= N_IMAGES // 4, outcome
    assert outcome.get("flips", 0) <= 0.001 * outcome.get("outputs", 1), outcome


@pytest.mark.slow
@pytest.mark.parametrize(("name", "graphed", "graph"), CASES)
def test_every_kind_makes_its_round_trips(name: str, graphed: str, graph: str) -> None:
    family = vector(name).meta["family"]
    kinds = (graphed, KINDS[(KINDS.index(graphed) + 1) % len(KINDS)])
    rows = list(rows_of(family, name, kinds, lambda kind: ALWAYS + (graph,) * (kind == graphed)))
    assert [row["network"] for row in rows] == list(kinds)
    for row in rows:
        assert row["int8"]["kind"] == "bits", row
        assert row["int8"]["outputs"] > 10_000
        assert_equal(row["torch"])
        assert_equal(row["int8 torch"])
        if row["network"] != graphed:
            assert not set(GRAPHS) & set(row)
        elif name in COUPLED and graph == "onnx":
            assert row[graph]["kind"] == "refused"
        else:
            assert_equal(row[graph])
