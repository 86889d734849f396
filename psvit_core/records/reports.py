"""Reports on checkpoint files and data sets, created before any measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from psvit_core.records._base import Record
from psvit_core.records.results import Measurement


@dataclass(frozen=True, kw_only=True)
class NearestModel(Record):
    """The model that shares the most tensors with a checkpoint file, and how the two differ."""

    model: str
    n_missing: int  # tensors of the model that the file lacks
    n_unexpected: int  # tensors of the file that the model lacks
    n_reshaped: int  # in both, with different shapes
    examples: tuple[str, ...]  # a few differences of each kind, as text
    n_matching: int = 0  # in both, with equal shapes


@dataclass(frozen=True)
class Option(Record):
    """One possible value of an argument, with what speaks for it."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Choice(Record):
    """An argument that no tensor reveals."""

    argument: str  # the family's own name; ``image_size`` is the side in pixels
    options: tuple[Option, ...]  # possible values, published ones first
    open_ended: bool = False  # other values are possible, as for time steps


@dataclass(frozen=True, kw_only=True)
class Sizing(Record):
    """A family that all tensors of a file fit, with the size read from their shapes."""

    family: str
    title: str  # of the family, for display
    size: dict[str, Any]  # constructor arguments that the shapes reveal
    parameters: int
    n_groups: int  # channel groups
    cards: tuple[str, ...] = ()  # registered models with these shapes: one supplies the rest
    choices: tuple[Choice, ...] = ()  # what must be given unless a registered model supplies it
    cautions: tuple[str, ...] = ()  # warnings, as sentences


@dataclass(frozen=True, kw_only=True)
class FileEntry(Record):
    """One state dict of a checkpoint file."""

    name: str  # its dotted path, as --entry takes it
    n_tensors: int
    is_average: bool = False  # a moving average of the weights


@dataclass(frozen=True, kw_only=True)
class FileReport(Record):
    """Contents of a checkpoint file."""

    document: ClassVar[str] = "file_report"

    path: str
    bytes: int
    n_tensors: int
    n_values: int
    pruned_from: str = ""  # registered model, if the explorer wrote the file
    #: Of a pruned file, as its header says; ``load_model`` keeps those of its weights.
    recorded: tuple[Measurement, ...] = ()
    fits: tuple[str, ...] = ()  # registered models that it can be loaded as
    nearest: NearestModel | None = None  # if it fits none
    sizings: tuple[Sizing, ...] = ()  # families that it fits, of whatever size
    notes: tuple[str, ...] = ()  # what was renamed, dropped, added or converted while reading
    entries: tuple[FileEntry, ...] = ()  # all state dicts of a file that has several
    entry: str = ""  # the one that was inspected; empty if one of several must be chosen first
    weights: str = "float32"  # of a pruned file, as stored; or one of ``names.STORED_WEIGHTS``


@dataclass(frozen=True, kw_only=True)
class SplitReport(Record):
    """Image counts of one split."""

    split: str
    n_images: int = 0
    n_classes: int = 0  # with at least one image
    fewest: int = 0  # images of the smallest of these classes
    most: int = 0  # images of the largest class
    problem: str = ""  # why it cannot be used; empty if it can


@dataclass(frozen=True, kw_only=True)
class DataReport(Record):
    """Splits of a data specification, checked for one model."""

    document: ClassVar[str] = "data_report"

    spec: str
    model: str
    splits: tuple[SplitReport, ...]
    n_looked: int = 0  # decoded validation images
    shape: tuple[int, ...] = ()  # of one image, as the model receives it
    problem: str = ""  # the first reason why the model cannot be measured on it
    warnings: tuple[str, ...] = ()  # why numbers measured on it may be wrong
