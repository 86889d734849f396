"""Sensitivities as node data of Google's Model Explorer, for an exported ``.pt2`` file.

The format is that of Model Explorer's ``node_data_builder``: graph id -> node id -> value, with a
gradient of colours. Its adapter for ``torch.export`` names the graph ``graph`` and the nodes as
``torch.export`` does: a parameter ``a.b.weight`` is the node ``p_a_b_weight``.
"""

from __future__ import annotations

import re
from typing import Any

from psvit_core.picture.colours import HEAT_LIGHT
from psvit_core.picture.values import GroupValues
from psvit_core.records import ModelSummary

_GRAPH = "graph"


def node_data(summary: ModelSummary, values: GroupValues) -> dict[str, Any]:
    """Return the values of channel groups as node data for Model Explorer.

    Each weight, bias and BatchNorm statistic that writes a group gets the group's value. A tensor
    that writes several groups gets the largest. Groups without a value are left out.

    Args:
        summary: The model; the nodes are those of its ``.pt2`` file.
        values: The values by group.

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
            node = node_id(tensor, roles.get(tensor, ""))
            known = results.get(node, {"value": value})["value"]
            results[node] = {"value": max(known, value)}
    stops = len(HEAT_LIGHT) - 1
    gradient = [{"stop": i / stops, "bgColor": colour} for i, colour in enumerate(HEAT_LIGHT)]
    return {_GRAPH: {"results": results, "gradient": gradient}}


def node_id(tensor: str, role: str) -> str:
    """Return the name that ``torch.export`` gives to the input of a parameter or buffer."""
    prefix = "b_" if role in ("buffer", "counter") else "p_"
    return prefix + re.sub(r"[^a-zA-Z0-9]", "_", tensor)
