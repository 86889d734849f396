"""Importance criteria, one file each."""

from __future__ import annotations

import torch

from psvit_core.errors import UnknownNameError
from psvit_core.importance._base import Criterion
from psvit_core.importance.l1 import L1
from psvit_core.importance.l2 import L2
from psvit_core.zoo.base import SpikingModel

CRITERIA: dict[str, Criterion] = {c.name: c for c in (L1(), L2())}
DEFAULT_CRITERION = L2.name


def criterion(name: str) -> Criterion:
    """The criterion of that name; ``UnknownNameError`` with the nearest name otherwise."""
    if name not in CRITERIA:
        raise UnknownNameError("criterion", name, CRITERIA)
    return CRITERIA[name]


def rank(model: SpikingModel, name: str) -> dict[str, tuple[int, ...]]:
    """Units of every group, most important first; equal scores in index order."""
    chosen = criterion(name)
    ranking = {}
    for group in model.channel_groups():
        scores = chosen.scores(model, group)
        order = torch.sort(scores, descending=True, stable=True).indices
        ranking[group.group_id] = tuple(order.tolist())
    return ranking


__all__ = ["CRITERIA", "DEFAULT_CRITERION", "Criterion", "criterion", "rank"]
