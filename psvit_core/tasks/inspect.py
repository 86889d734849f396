"""Inspect checkpoint files and image folders before anything is measured.

A user's file may not be a checkpoint or have an unknown architecture, and a folder may have no
images; the reports describe such problems as text. Torch is imported inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from psvit_core.callbacks import Tick, keep_going
from psvit_core.errors import CheckpointError, DataError, ModelError
from psvit_core.records import (
    DataReport,
    FileReport,
    Measurement,
    NearestModel,
    Sizing,
    SplitReport,
)
from psvit_core.tasks.cautions import class_warning, empty_class_warning
from psvit_core.tasks.session import Session
from psvit_core.zoo.cards import list_models, model_card

if TYPE_CHECKING:
    from torch import Tensor

    from psvit_core.zoo.fitting import Fit

N_CHECKED = 64  # validation images that ``check_data`` decodes
_NAMED = 8  # tensors of each kind that a report names
_SPLITS = ("val", "train", "calib", "test")


def inspect_file(
    path: str, tick: Tick = keep_going, *, ema: bool = False, entry: str | None = None
) -> FileReport:
    """Report the contents of a checkpoint file and the models that it fits.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote.
        tick: Called between steps; may raise to stop.
        ema: Inspect the moving average of the weights.
        entry: Name of the state dict to inspect, if the file contains several.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind, contains more than plain
            tensors, or several state dicts of which none is chosen.
    """
    from psvit_core.zoo.header import read_header
    from psvit_core.zoo.opening import find_nearest, find_sizings
    from psvit_core.zoo.tensors import read_tensors

    read = read_tensors(Path(path), ema=ema, entry=entry)
    tick()
    tensors = read.tensors
    origin, nearest = "", None
    recorded: tuple[Measurement, ...] = ()
    fits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sizings: tuple[Sizing, ...] = ()
    weights = "float32"
    if read.is_pruned:
        if ema or entry:
            raise CheckpointError(
                f"{path} is a pruned file, which contains one model. Omit --ema and --entry."
            )
        header = read_header(Path(path))
        origin = header["provenance"]["origin"]
        recorded = tuple(Measurement.from_dict(m) for m in header.get("measurements", ()))
        weights = header.get("weights", weights)
        if weights != "float32":
            notes = (f"the weights of convolutions and linear layers are stored as {weights}",)
    else:
        fits, notes = _fitting_models(Path(path), tensors, ema=ema, entry=entry)
        sizings = tuple(find_sizings(tensors))
        nearest = None if fits or sizings else _nearest(find_nearest(tensors))
    return FileReport(
        path=path,
        bytes=Path(path).stat().st_size,
        n_tensors=len(tensors),
        n_values=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        pruned_from=origin,
        recorded=recorded,
        fits=fits,
        nearest=nearest,
        sizings=sizings,
        notes=(*read.notes, *notes),
        entries=read.entries,
        entry=read.entry,
        weights=weights,
    )


def inspect_entries(path: str, tick: Tick = keep_going, entry: str | None = None) -> FileReport:
    """Inspect a file as ``inspect_file`` does; if an entry must be chosen first, list them.

    Raises:
        CheckpointError: As ``inspect_file``.
    """
    from psvit_core.zoo.entries import AmbiguousEntryError

    try:
        return inspect_file(path, tick, entry=entry)
    except AmbiguousEntryError as error:
        return FileReport(
            path=path,
            bytes=Path(path).stat().st_size,
            n_tensors=sum(found.n_tensors for found in error.entries),
            n_values=0,
            entries=error.entries,
        )


def _fitting_models(
    path: Path, tensors: Mapping[str, Tensor], *, ema: bool, entry: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the registered models, also the user's own, that a file can be loaded as.

    Returns:
        (their names, notes on the user's models that could not be compared).
    """
    from psvit_core.zoo.fitting import compare_models, shapes_of
    from psvit_core.zoo.tensors import read_tensors

    fits = [fit.model for fit in compare_models(tensors) if not fit.n_faults]
    notes = []
    for name in list_models():
        builder = model_card(name).builder
        if builder is None:
            continue
        try:
            expected = builder.tensor_shapes()
        except ModelError as error:  # the code of one model must not hide what the file is
            notes.append(f"the registered model {name} was not compared: {error}".rstrip("."))
            continue
        read = read_tensors(path, ema=ema, entry=entry, expected=expected)
        if shapes_of(read.tensors) == expected:
            fits.append(name)
    return tuple(fits), tuple(notes)


def _nearest(fit: Fit) -> NearestModel:
    kinds = (("missing", fit.missing), ("unexpected", fit.unexpected), ("shape", fit.reshaped))
    return NearestModel(
        model=fit.model,
        n_missing=len(fit.missing),
        n_unexpected=len(fit.unexpected),
        n_reshaped=len(fit.reshaped),
        n_matching=fit.n_matching,
        examples=(
            *(f"{kind}: {name}" for kind, names in kinds for name in names[:_NAMED]),
            *filter(None, [fit.by_position]),
        ),
    )


def check_data(session: Session, tick: Tick = keep_going) -> DataReport:
    """Count the images of a session's data and decode some; the report has any problem as text.

    Args:
        session: The model and the data specification.
        tick: Called between steps; may raise to stop.

    Raises:
        UnknownNameError: If the specification's kind of data is unknown.
        CheckpointError: If the model cannot be loaded.
    """
    spec = session.data_spec
    splits = []
    warnings: list[str] = []
    for split in _SPLITS:
        tick()
        splits.append(_check_split(session, spec, split, warnings))
    problem, n_looked = splits[0].problem, 0
    shape: tuple[int, ...] = ()
    if not problem:
        try:
            n_looked, shape = _decode_some(session, spec, tick)
        except DataError as error:
            problem = str(error)
    return DataReport(
        spec=spec,
        model=session.subject.model,
        splits=tuple(splits),
        n_looked=n_looked,
        shape=shape,
        problem=problem,
        warnings=() if problem else tuple(dict.fromkeys(warnings)),
    )


def _check_split(session: Session, spec: str, split: str, warnings: list[str]) -> SplitReport:
    from psvit_core.data import count_images

    try:
        counts, classes = count_images(spec, split, session.card.transform)
    except DataError as error:
        return SplitReport(split=split, problem=str(error))
    model = session.model
    found = (
        class_warning(spec, len(classes), model.name, model.num_classes),
        empty_class_warning(split, counts, classes),
    )
    warnings += [warning for warning in found if warning]
    there = [count for count in counts if count]
    return SplitReport(
        split=split,
        n_images=sum(there),
        n_classes=len(there),
        fewest=min(there, default=0),
        most=max(there, default=0),
        problem="" if there else f"There are no images in {split}.",
    )


def _decode_some(session: Session, spec: str, tick: Tick) -> tuple[int, tuple[int, ...]]:
    """Decode some validation images with the model's transform.

    Returns:
        (number of images, shape of one).

    Raises:
        DataError: If they do not fit the model or cannot be read.
    """
    from psvit_core.data import count_images, load_data

    model = session.model
    counts, _ = count_images(spec, "val", session.card.transform)
    if any(counts[model.num_classes :]):
        raise DataError(
            f"{spec} has {sum(map(bool, counts))} classes with labels up to {len(counts) - 1}, but "
            f"{model.name} has {model.num_classes} outputs. Use images of the classes that it was "
            "trained on."
        )
    data = load_data(spec, split="val", transform=session.card.transform, limit=N_CHECKED)
    shape: tuple[int, ...] = ()
    for batch in data.batches(16):
        tick()
        shape = tuple(batch.shape[1:])
    if shape[-3:] != model.input_shape:
        raise DataError(
            f"{spec} gives images of shape {shape[-3:]}, but {model.name} takes "
            f"{model.input_shape}. Use images like those that it was trained on."
        )
    return len(data), shape
