"""Node data for Model Explorer: its nodes are those of the file that ``export`` writes."""

from __future__ import annotations

import pytest

from psvit_core.export.traced import plain_network, random_images, traced_program
from psvit_core.picture import GroupValues, bytes_values, node_data
from psvit_core.zoo.cards import shipped_summary
from psvit_core.zoo.checkpoint import load_model

NAME = "sdt_v1_digits"


@pytest.mark.slow
def test_nodes_are_inputs_of_the_exported_graph() -> None:
    model, summary = load_model(NAME), shipped_summary(NAME)
    assert summary is not None
    program = traced_program(model, plain_network(model), random_images(model, 2))
    nodes = {node.name for node in program.graph.nodes if node.op == "placeholder"}
    results = node_data(summary, bytes_values(summary))["graph"]["results"]
    assert {name for name in results if name.startswith("p_")} <= nodes
    weights = [t.name for t in summary.shapes.tensors if t.role == "weight" and t.groups[0]]
    assert {"p_" + name.replace(".", "_") for name in weights} <= set(results)


def test_node_data_has_the_published_form() -> None:
    summary = shipped_summary(NAME)
    assert summary is not None
    values = GroupValues(by_group={"stem0": 1.5, "stem1": float("nan")})
    (graph,) = node_data(summary, values).values()
    assert set(graph) == {"results", "gradient"}
    written = {tensor for tensor, _ in summary.by_id["stem0"].writers}
    assert len(graph["results"]) == len(written)
    assert graph["results"]["p_patch_embed_proj_conv_weight"] == {"value": 1.5}
    assert "b_patch_embed_proj_bn_running_mean" in graph["results"]
    assert [graph["gradient"][i]["stop"] for i in (0, -1)] == [0, 1]
