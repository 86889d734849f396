"""A latency table: how long each layer of a model takes at a grid of widths on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psvit_core.records._base import Record
from psvit_core.records.results import Machine


@dataclass(frozen=True, kw_only=True)
class LayerLatency(Record):
    """The times of one module; time ``i`` was measured at the widths ``i`` of its groups."""

    name: str
    kind: str  # class of the module
    groups: tuple[str, ...]  # whose widths change the shapes that it works on
    widths: tuple[tuple[int, ...], ...]  # remaining units of ``groups``; one () without groups
    ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LatencyTable(Record):
    """Times of the layers of an unpruned model and of its pruned networks.

    What no layer accounts for (additions, copies, calls) is the rest: ``rest_ms`` unpruned, and
    ``rest_slope_ms`` less for each unit of the mean share of channels that a plan removes.
    """

    document: ClassVar[str] = "latency_table"

    model: str
    weights_hash: str
    machine: Machine
    precision: str
    T: int
    batch: int
    input_shape: tuple[int, ...]  # of one image
    full_widths: dict[str, int]  # unpruned units by group
    total_ms: float  # of one forward pass of the unpruned network, measured as a whole
    rest_ms: float  # that time less the times of its layers; may be negative
    rest_slope_ms: float
    layers: tuple[LayerLatency, ...]  # in the order in which they first run
