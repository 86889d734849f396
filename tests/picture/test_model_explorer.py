"""Node data for Model Explorer: its nodes are those of the file that ``export`` writes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from psvit_core.errors import ExportError
from psvit_core.export.traced import plain_network, random_images, traced_program
from psvit_core.picture import GroupValues, bytes_values, node_data, readers_of
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


class Two(torch.nn.Module):
    """A layer whose weight is read twice, and one without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer twice."""
        return self.layer(torch.relu(self.layer(x)))


def test_operations_of_a_graph_are_found_by_what_they_read(tmp_path: Path) -> None:
    path = tmp_path / "two.pt2"
    program = torch.export.export(Two(), (torch.zeros(1, 3),))
    torch.export.save(program, path)
    nodes = {node.name: node for node in program.graph.nodes}
    users = [node.name for node in nodes["p_layer_weight"].users]
    assert len(users) == 2
    assert readers_of(path)["p_layer_weight"] == users


def test_operations_have_the_largest_value_of_what_they_read() -> None:
    summary = shipped_summary(NAME)
    assert summary is not None
    values = GroupValues(by_group={"stem0": 1.5, "stem1": 2.5})
    readers = {"p_patch_embed_proj_conv_weight": ["both"]}
    readers["p_patch_embed_proj_conv1_weight"] = ["both", "second"]
    results = node_data(summary, values, readers)["graph"]["results"]
    assert (results["both"], results["second"]) == ({"value": 2.5}, {"value": 2.5})


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"graph_module": 3}'])
def test_another_file_is_no_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "network.pt2"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not a graph of torch"):
        readers_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("network/models/model.json", content)
    with pytest.raises(ExportError, match="not a graph of torch"):
        readers_of(path)


def test_a_description_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("network/models/model.json", b" " * 100_000)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # the size in the directory of the archive
    content[place : place + 4] = (2_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ExportError, match="ValueError"):
        readers_of(path)
