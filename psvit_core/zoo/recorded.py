"""Measurements that a pruned file carries: of the network in it, for whoever gets the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from safetensors.torch import load_file, save_file

from psvit_core.files import check_model_file, write_atomic
from psvit_core.records import Measurement
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash
from psvit_core.zoo.header import METADATA_KEY, PRUNED_FORMAT, read_header, write_header
from psvit_core.zoo.pruned import licence_of, load_pruned


def record_measurement(path: str | Path, measurement: Measurement) -> Path:
    """Write a measurement of a pruned file into its header, atomically.

    Its ``weights_hash`` becomes that of the network in the file, so that the measurement of other
    weights is never shown for these. Plan, profile, firing rates and classes are left out: the
    provenance has the plan, and the rest is long. A measurement under equal conditions is replaced.

    Args:
        path: A file that ``save_pruned`` wrote.
        measurement: A measurement of the network in it, for example of ``tasks.written``.

    Raises:
        CheckpointError: If the file is not a pruned file, or is damaged.
        OutputError: If it cannot be written.
    """
    path = check_model_file(path)
    model = load_pruned(path)
    header = read_header(path)
    new = dataclasses.replace(without_details(measurement), weights_hash=weights_hash(model))
    others = [m for m in recorded_measurements(model) if m.conditions != new.conditions]
    header = {
        **header,
        "format": max(PRUNED_FORMAT, header["format"]),
        "licence": header.get("licence") or licence_of(model),
        "measurements": [m.to_dict() for m in (*others, new)],
    }
    metadata = {METADATA_KEY: write_header(header, str(path)), "format": "pt"}
    tensors = load_file(path)
    return write_atomic(path, lambda part: save_file(tensors, part, metadata=metadata))


def recorded_measurements(model: SpikingModel) -> tuple[Measurement, ...]:
    """Return the measurements in the file of a loaded model that are of its present weights."""
    if not model.recorded:
        return ()
    present = weights_hash(model)
    return tuple(m for m in model.recorded if m.weights_hash == present)


def without_details(measurement: Measurement) -> Measurement:
    """Return a measurement without what is long or is in the file anyway."""
    before = measurement.unrecovered
    return dataclasses.replace(
        measurement,
        plan=None,
        profile=None,
        per_class=None,
        confusions=None,
        firing={},
        unrecovered=without_details(before) if before else None,
    )
