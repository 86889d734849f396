"""Stored measurements of the unpruned model: shipped with it, or profiled with a front."""

from __future__ import annotations

from psvit_core.errors import RecordError
from psvit_core.pareto import ParetoArchive
from psvit_core.records import Measurement
from psvit_core.storage.store import Store, digest


def shipped_measurement_key(weights_hash: str) -> str:
    """Return the key of the measurement that ships with a model."""
    return f"baseline/{weights_hash}"


def profiled_measurement_key(archive: ParetoArchive) -> str:
    """Return the key of the profiled measurement that belongs to an archive's plans."""
    return f"unpruned/{digest(archive.key)}"


def read_measurement(store: Store, key: str) -> Measurement | None:
    """Return the measurement under a key; None if there is none that this version can read."""
    data = store.get(key)
    if data is None:
        return None
    try:
        return Measurement.from_dict(data)
    except RecordError:
        return None
