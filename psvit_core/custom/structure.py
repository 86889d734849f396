"""Channel groups of a custom network as data; pruned files contain it and need no tracing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psvit_core.records import Record


@dataclass(frozen=True, kw_only=True)
class GroupAxis(Record):
    """One axis of one layer or parameter that a group's units lie along."""

    path: str  # of the layer or parameter in the user's module
    axis: int  # of a layer: 0 for its outputs, 1 for its inputs; of a parameter: the tensor's axis
    parts: int = 1  # indices per unit: q, k, v of a combined layer, or pixels of a flattened map


@dataclass(frozen=True, kw_only=True)
class CustomGroup(Record):
    """A channel group of a user's module, unpruned."""

    group_id: str
    kind: str  # residual, attention, conv or linear
    n_units: int
    heads: int | None  # number of heads that must keep equally many units; None without heads
    members: tuple[GroupAxis, ...]


@dataclass(frozen=True, kw_only=True)
class Structure(Record):
    """The groups that passed the check, and the layers that read real values."""

    document: ClassVar[str] = "custom_structure"

    groups: tuple[CustomGroup, ...] = ()
    real_fed: dict[str, int] | None = None  # layer -> runs per image, at ``T`` time steps
    T: int = 1
    batch_coupled: bool = False  # True if an image's logits depend on the rest of its batch


@dataclass(frozen=True, kw_only=True)
class GroupReport(Record):
    """Result of ``check_groups``: accepted channel groups, and rejected ones with reasons."""

    document: ClassVar[str] = "group_report"

    model: str
    accepted: tuple[str, ...]  # group ids: removed equals silenced, alone and together
    refused: dict[str, str]  # group or layer -> reason
    silent: tuple[str, ...]  # neuron layers that never fire on the test images
    uncounted: tuple[str, ...]  # layers whose compute and spikes are in no number
