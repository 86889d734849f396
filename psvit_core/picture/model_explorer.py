"""Sensitivities as node data of Google's Model Explorer, for an exported ``.pt2`` file.

The format is that of Model Explorer's ``node_data_builder``: graph id -> node id -> value, with a
gradient of colours. Its adapter for ``torch.export`` names the graph ``graph`` and the nodes as
``torch.export`` does: a parameter ``a.b.weight`` is the node ``p_a_b_weight``.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psvit_core.errors import ExportError
from psvit_core.files import expand
from psvit_core.picture.colours import HEAT_LIGHT
from psvit_core.picture.values import GroupValues
from psvit_core.records import ModelSummary

_GRAPH = "graph"
_MOST_BYTES = 500_000_000  # of a graph's description
_MOST_DEFLATE = 1032  # largest ratio that deflate reaches


def node_data(
    summary: ModelSummary, values: GroupValues, readers: Mapping[str, list[str]] | None = None
) -> dict[str, Any]:
    """Return the values of channel groups as node data for Model Explorer.

    Each weight, bias and BatchNorm statistic that writes a group gets the group's value, and so do
    the operations that read it. A node of several groups gets the largest. Groups without a value
    are left out.

    Args:
        summary: The model; the nodes are those of its ``.pt2`` file.
        values: The values by group.
        readers: Operations by the parameter that they read, from ``readers_of``.

    Returns:
        A JSON object: the file's content.
    """
    roles = {tensor.name: tensor.role for tensor in summary.shapes.tensors}
    results: dict[str, dict[str, float]] = {}
    for group in summary.groups:
        value = values.of(group.group_id)
        if value is None:
            continue
        for tensor, _ in group.writers:
            parameter = node_id(tensor, roles.get(tensor, ""))
            for node in (parameter, *(readers or {}).get(parameter, ())):
                known = results.get(node, {"value": value})["value"]
                results[node] = {"value": max(known, value)}
    stops = len(HEAT_LIGHT) - 1
    gradient = [{"stop": i / stops, "bgColor": colour} for i, colour in enumerate(HEAT_LIGHT)]
    return {_GRAPH: {"results": results, "gradient": gradient}}


def node_id(tensor: str, role: str) -> str:
    """Return the name that ``torch.export`` gives to the input of a parameter or buffer."""
    prefix = "b_" if role in ("buffer", "counter") else "p_"
    return prefix + re.sub(r"[^a-zA-Z0-9]", "_", tensor)


def readers_of(path: str | Path) -> dict[str, list[str]]:
    """Return the operations of a ``.pt2`` file by the parameter that they read.

    Only the graph's description is read, which is JSON: no torch is needed and no code runs.

    Args:
        path: A file that ``torch.export.save`` wrote.

    Raises:
        ExportError: If it is another file, or damaged.
    """
    try:
        graph = json.loads(_description(expand(path)))["graph_module"]["graph"]
        readers: dict[str, list[str]] = {}
        for node in graph["nodes"]:
            names = [_name(output) for output in node["outputs"]]
            for given in node["inputs"]:
                if (parameter := _name(given["arg"])) is not None:
                    readers.setdefault(parameter, []).extend(name for name in names if name)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        raise ExportError(
            f"{path!s:.200} is not a graph of torch.export ({type(error).__name__}). Give the .pt2 "
            "file that `psvit export --format pt2` wrote."
        ) from error
    return readers


def _description(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("models/model.json")]
        entry = archive.getinfo(names[0])
        # The declared size is checked first: a small file can unpack to gigabytes.
        if entry.file_size > min(_MOST_BYTES, _MOST_DEFLATE * path.stat().st_size):
            raise ValueError("a description that is too large")
        return archive.read(entry)


def _name(value: Any) -> str | None:
    """Return the name of a tensor in a graph's description; None for anything else."""
    tensor = value.get("as_tensor")
    return str(tensor["name"]) if tensor else None
