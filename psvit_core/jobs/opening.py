"""Looking into files and folders before anything is measured: what they hold, what is wrong.

What a user opens may be no checkpoint, of an unknown architecture or without images; the reports
say so in words. Torch is imported inside, so that this module can be named without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from psvit_core.errors import DataError
from psvit_core.jobs.engine import Engine
from psvit_core.records import Record

if TYPE_CHECKING:
    from psvit_core.zoo.checkpoint import Fit

LOOKED = 64  # images that are decoded for a look
_NAMED = 8  # tensors that a report names of each kind
_SPLITS = ("val", "train", "calib", "test")


@dataclass(frozen=True, kw_only=True)
class NearestModel(Record):
    """The registered model that a file comes nearest to, and what stands between them."""

    model: str
    n_missing: int  # tensors of the model that the file has not
    n_unexpected: int  # the other way round
    n_reshaped: int  # in both, with other shapes
    examples: tuple[str, ...]  # in words, a few of each


@dataclass(frozen=True, kw_only=True)
class FileReport(Record):
    """What a checkpoint file holds."""

    document: ClassVar[str] = "file_report"

    path: str
    bytes: int
    n_tensors: int
    n_values: int
    pruned_from: str = ""  # registered model, where this tool wrote the file
    fits: tuple[str, ...] = ()  # registered models that it can be opened as
    nearest: NearestModel | None = None  # where it fits none


@dataclass(frozen=True, kw_only=True)
class SplitReport(Record):
    """One split of the data."""

    split: str
    n_images: int = 0
    n_classes: int = 0  # that have images
    fewest: int = 0  # images of a class that has any
    most: int = 0
    problem: str = ""  # why it cannot be used; empty where it can


@dataclass(frozen=True, kw_only=True)
class DataReport(Record):
    """What a data specification holds for a model."""

    document: ClassVar[str] = "data_report"

    spec: str
    model: str
    splits: tuple[SplitReport, ...]
    n_looked: int = 0  # validation images that were decoded
    shape: tuple[int, ...] = ()  # of one, as the model gets it
    problem: str = ""  # the first thing that keeps the model from being measured on it


def inspect_file(path: str, tick: Callable[[], None] = lambda: None) -> FileReport:
    """What a checkpoint file holds, and as what it can be opened.

    Args:
        path: ``.safetensors``, or anything that ``torch.save`` wrote.
        tick: Called between steps; may raise to stop.

    Raises:
        CheckpointError: If the file is missing, damaged, or more than plain tensors.
    """
    from psvit_core.zoo.checkpoint import METADATA_KEY, compare_models, find_card
    from psvit_core.zoo.tensors import read_tensors

    tensors, metadata = read_tensors(Path(path))
    tick()
    origin, nearest = "", None
    fits: tuple[str, ...] = ()
    if METADATA_KEY in metadata:
        origin = find_card(path).name
    else:
        compared = compare_models(tensors)
        fits = tuple(fit.model for fit in compared if not fit.n_faults)
        nearest = None if fits else _nearest(compared[0])
    return FileReport(
        path=path,
        bytes=Path(path).stat().st_size,
        n_tensors=len(tensors),
        n_values=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        pruned_from=origin,
        fits=fits,
        nearest=nearest,
    )


def _nearest(fit: Fit) -> NearestModel:
    kinds = (("missing", fit.missing), ("unexpected", fit.unexpected), ("shape", fit.reshaped))
    return NearestModel(
        model=fit.model,
        n_missing=len(fit.missing),
        n_unexpected=len(fit.unexpected),
        n_reshaped=len(fit.reshaped),
        examples=tuple(f"{kind}: {name}" for kind, names in kinds for name in names[:_NAMED]),
    )


def check_data(engine: Engine, tick: Callable[[], None] = lambda: None) -> DataReport:
    """Count the images of a subject's data and look at some; problems are told, not raised.

    Raises:
        UnknownNameError: If the specification names no kind of data.
        CheckpointError: If the model cannot be loaded.
    """
    spec = engine.subject.data or engine.card.data
    splits = []
    for split in _SPLITS:
        tick()
        splits.append(_check_split(engine, spec, split))
    problem, n_looked = splits[0].problem, 0
    shape: tuple[int, ...] = ()
    if not problem:
        try:
            n_looked, shape = _look(engine, spec, tick)
        except DataError as error:
            problem = str(error)
    return DataReport(
        spec=spec, model=engine.subject.model, splits=tuple(splits), n_looked=n_looked,
        shape=shape, problem=problem,
    )  # fmt: skip


def _check_split(engine: Engine, spec: str, split: str) -> SplitReport:
    from psvit_core.data import count_images

    try:
        counts, _ = count_images(spec, split, engine.card.transform)
    except DataError as error:
        return SplitReport(split=split, problem=str(error))
    there = [count for count in counts if count]
    return SplitReport(
        split=split, n_images=sum(there), n_classes=len(there), fewest=min(there, default=0),
        most=max(there, default=0), problem="" if there else f"There are no images in {split}.",
    )  # fmt: skip


def _look(engine: Engine, spec: str, tick: Callable[[], None]) -> tuple[int, tuple[int, ...]]:
    """Decode some validation images as the model would get them; (how many, shape of one)."""
    from psvit_core.data import count_images, load_data

    model = engine.model
    counts, _ = count_images(spec, "val", engine.card.transform)
    if any(counts[model.num_classes :]):
        raise DataError(
            f"{spec} has {sum(map(bool, counts))} classes with labels up to {len(counts) - 1}, but "
            f"{model.name} has {model.num_classes} outputs. Give images of the classes that it was "
            "trained on."
        )
    data = load_data(spec, split="val", transform=engine.card.transform, limit=LOOKED)
    shape: tuple[int, ...] = ()
    for batch in data.batches(16):
        tick()
        shape = tuple(batch.shape[1:])
    if shape[-3:] != model.input_shape:
        raise DataError(
            f"{spec} gives images of shape {shape[-3:]}, but {model.name} takes "
            f"{model.input_shape}. Choose images that it was trained for."
        )
    return len(data), shape
