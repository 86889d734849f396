"""Records of whether a model fits a device by its bytes; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from psvit_core.records._base import Record


@dataclass(frozen=True, kw_only=True)
class TargetDevice(Record):
    """Memories of a device, as its source states them."""

    name: str  # as it is typed
    title: str
    kind: str  # microcontroller, module, neuromorphic or own
    flash_bytes: int | None  # for the weights; None: they share the RAM with everything else
    ram_bytes: int
    source: str  # title of the document, and what it states
    url: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Limit(Record):
    """One memory of a device against what the model needs of it."""

    memory: str  # flash or RAM
    need_bytes: int
    available_bytes: int

    @property
    def spare_bytes(self) -> int:
        """Bytes that are left; negative: bytes that are missing."""
        return self.available_bytes - self.need_bytes

    @property
    def use(self) -> float:
        """Needed fraction of the memory; above 1 it does not fit."""
        return self.need_bytes / self.available_bytes


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    """Whether a model fits one device."""

    device: TargetDevice
    fits: bool
    binds: str  # the memory that is used most: flash or RAM
    limits: tuple[Limit, ...]


@dataclass(frozen=True, kw_only=True)
class PositionBytes(Record):
    """Largest number of bytes that tensors occupy while one module runs, for one image."""

    position: str  # name of the innermost module; empty: between modules
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Schedule(Record):
    """One way to run the time steps, and the bytes that it needs besides the weights."""

    name: str  # "all steps" (each layer runs all at once) or "one step" (the network, T times)
    steps: int  # time steps that activations hold at once
    state_bytes: int  # membrane potentials kept between steps; 0 if all steps run at once
    peak_activation_bytes: int
    positions: tuple[PositionBytes, ...]  # without the state, in the order in which they run

    @property
    def bytes(self) -> int:
        """Activations at their peak and state."""
        return self.state_bytes + self.peak_activation_bytes


@dataclass(frozen=True, kw_only=True)
class SpikeExpansion(Record):
    """What integer neurons become where spikes are binary: each step is ``levels`` sub-steps."""

    T: int
    levels: int  # D
    steps: int  # T x D
    values: dict[str, int]  # neuron layer -> integers that it puts out for one image, all T steps
    level_bits: int  # bits of all values as integers 0 to D
    spike_bits: int  # bits of all values as D binary spikes each


@dataclass(frozen=True, kw_only=True)
class FitReport(Record):
    """Bytes that a model needs, and the devices that they fit."""

    document: ClassVar[str] = "fit_report"

    model: str
    weights_hash: str
    weights: str  # float32, float16 or int8
    arithmetic: bool  # the size is computed; no weights of this precision were made
    weight_bytes: int
    layers: dict[str, int]  # module -> bytes of its weights
    schedules: tuple[Schedule, ...]
    schedule: str  # the one with the fewest bytes, which the devices are compared with
    expansion: SpikeExpansion | None  # None: no integer neurons
    fits: tuple[Fit, ...]

    @property
    def ram_bytes(self) -> int:
        """Bytes besides the weights under ``schedule``."""
        return next(s.bytes for s in self.schedules if s.name == self.schedule)
