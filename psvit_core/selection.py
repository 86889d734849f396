"""Selects the remaining units of channel groups along tensor axes.

Most axes hold one group's units in order. An axis may also be shared by several groups on disjoint
positions, or be the input axis of a grouped convolution (``ChannelGroup.maps``, ``.local``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psvit_core.records import ChannelGroup, PrunePlan


@dataclass(frozen=True)
class Selection:
    """The units of a group that stay."""

    group: ChannelGroup
    units: Tensor  # int64, sorted


def selections_by_tensor(
    selections: Sequence[Selection],
) -> dict[str, list[tuple[Selection, int]]]:
    """Return, by tensor, the selections that apply to it, with their axes."""
    found: dict[str, list[tuple[Selection, int]]] = {}
    for selection in selections:
        for tensor, axis in (*selection.group.writers, *selection.group.readers):
            found.setdefault(tensor, []).append((selection, axis))
    return found


def select(name: str, tensor: Tensor, selections: Sequence[tuple[Selection, int]]) -> Tensor:
    """Return a tensor with only the selected units along each axis.

    Args:
        name: The tensor's name in the state dict.
        tensor: The tensor.
        selections: All selections that apply to it, with their axes.
    """
    alive: dict[int, Tensor] = {}  # masks of axes with mapped positions
    local: list[tuple[Selection, int, int]] = []
    for selection, axis in selections:
        key, units = f"{name}:{axis}", selection.units.to(tensor.device)
        if key in selection.group.maps:
            mask = alive.setdefault(axis, torch.ones(tensor.shape[axis], dtype=torch.bool))
            mask &= alive_positions(selection.group, key, selection.units, len(mask))
        elif key in selection.group.local:
            local.append((selection, axis, selection.group.local[key]))
        else:
            tensor = tensor.index_select(axis, units)
    for axis, mask in alive.items():
        tensor = tensor.index_select(axis, mask.nonzero()[:, 0].to(tensor.device))
    for selection, axis, conv_groups in local:
        tensor = _select_local(tensor, selection, axis, conv_groups)
    return tensor


def alive_positions(group: ChannelGroup, key: str, units: Tensor, length: int) -> Tensor:
    """Return a mask of an axis that is False at the positions of the removed units."""
    mask = torch.ones(length, dtype=torch.bool)
    positions = torch.tensor(group.maps.get(key, tuple(range(group.n_units))))
    removed = torch.ones(group.n_units, dtype=torch.bool)
    removed[units.cpu()] = False
    mask[positions[removed]] = False
    return mask


def remaining_positions(
    name: str, axis: int, groups: Sequence[ChannelGroup], plan: PrunePlan
) -> Tensor | None:
    """Return the positions of a tensor's axis that remain under a plan; None if all do.

    Args:
        name: The tensor's name.
        axis: An axis that is not the input of a grouped convolution.
        groups: The model's groups.
        plan: The plan.
    """
    key, length = f"{name}:{axis}", 0
    removed: list[int] = []
    for group in groups:
        if (name, axis) not in (*group.writers, *group.readers):
            continue
        positions = group.maps.get(key, tuple(range(group.n_units)))
        kept = set(plan.kept.get(group.group_id, range(group.n_units)))
        removed += [position for unit, position in enumerate(positions) if unit not in kept]
        length = max(length, *(position + 1 for position in positions))
    if not removed:
        return None
    mask = torch.ones(length, dtype=torch.bool)
    mask[removed] = False
    return mask.nonzero()[:, 0]


def _select_local(tensor: Tensor, selection: Selection, axis: int, conv_groups: int) -> Tensor:
    """Select inputs of a grouped convolution, whose rows are selected already."""
    size = selection.group.n_units // conv_groups
    units = selection.units.to(tensor.device)
    parts = [
        rows.index_select(axis, units[units // size == i] - i * size)
        for i, rows in enumerate(tensor.chunk(conv_groups))
    ]
    return torch.cat(parts)
