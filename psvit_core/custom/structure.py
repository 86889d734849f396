"""What was found in a user's module, as data: pruned files carry it and need no tracing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psvit_core.records import Record


@dataclass(frozen=True, kw_only=True)
class Member(Record):
    """One axis of one layer or parameter that a group's units lie along."""

    path: str  # of the layer or parameter in the user's module
    axis: int  # 0: the outputs of a layer, 1: its inputs; of a parameter its own axis
    parts: int = 1  # places that a unit has there: q, k, v of one layer, or pixels of a flattening


@dataclass(frozen=True, kw_only=True)
class Found(Record):
    """A channel group of a user's module, unpruned."""

    group_id: str
    kind: str  # residual, attention, conv or linear
    n_units: int
    heads: int | None  # None, or every one of this many heads keeps the same count
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class Structure(Record):
    """The groups that passed the check, and the layers that read real values."""

    document: ClassVar[str] = "custom_structure"

    groups: tuple[Found, ...] = ()
    real_fed: dict[str, int] | None = None  # layer -> runs an image, at ``T`` time steps
    T: int = 1
    batch_coupled: bool = False  # whether an image's logits depend on the batch around it


@dataclass(frozen=True, kw_only=True)
class GroupReport(Record):
    """Which channel groups of a model are exact, and why others are not offered."""

    document: ClassVar[str] = "group_report"

    model: str
    accepted: tuple[str, ...]  # group ids: removed equals silenced, alone and together
    refused: dict[str, str]  # group or layer -> reason
    silent: tuple[str, ...]  # neuron layers that never fire on the images of the check
    uncounted: tuple[str, ...]  # layers whose compute and spikes no number includes
