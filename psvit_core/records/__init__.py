"""The data that flows through the explorer: frozen, JSON-able, versioned, without torch.

A decision is data (``PrunePlan``), a result is data (``SensitivityTable``, ``Measurement``). Every
record has ``to_dict`` and ``from_dict``; ``from_dict`` checks type, version and field names, so a
foreign or damaged document raises ``RecordError`` and never half-loads.
"""

from __future__ import annotations

from psvit_core.records._base import (
    Axis,
    Interval,
    Kept,
    Record,
    check_ratio,
    n_pruned,
)
from psvit_core.records.model import (
    DIGITS_48_TRANSFORM,
    DIGITS_TRANSFORM,
    ChannelGroup,
    ComputeTerm,
    ModelSummary,
    PrunePlan,
    ShapeTable,
    TensorShape,
    Transform,
    check_kept,
)
from psvit_core.records.results import (
    ENERGY_45NM,
    Conditions,
    EnergyModel,
    Machine,
    Measurement,
    Partial,
    Profile,
    Quartiles,
    SensitivityRow,
    SensitivityTable,
    Size,
)
from psvit_core.records.training import (
    RECOVERIES,
    EpochRecord,
    FinetuneReport,
    FinetuneSettings,
    LayerRefit,
    RecoveryReport,
    read_curve,
)

__all__ = [
    "Axis",
    "ChannelGroup",
    "ComputeTerm",
    "Conditions",
    "DIGITS_48_TRANSFORM",
    "DIGITS_TRANSFORM",
    "ENERGY_45NM",
    "EnergyModel",
    "EpochRecord",
    "FinetuneReport",
    "FinetuneSettings",
    "Interval",
    "Kept",
    "LayerRefit",
    "Machine",
    "Measurement",
    "ModelSummary",
    "Partial",
    "Profile",
    "PrunePlan",
    "Quartiles",
    "RECOVERIES",
    "Record",
    "RecoveryReport",
    "SensitivityRow",
    "SensitivityTable",
    "ShapeTable",
    "Size",
    "TensorShape",
    "Transform",
    "check_kept",
    "check_ratio",
    "n_pruned",
    "read_curve",
]
