"""Measured plans and their Pareto fronts: accuracy against size, compute, energy and latency.

The store keeps every measured plan of a model and data set together with its origin. Fronts are
computed from these points, without planners or torch. All points of an archive were measured on the
same images of one split. Planning uses the validation split; the test split has its own archive,
which no planner reads.
"""

from __future__ import annotations

from psvit_core.pareto.archive import ParetoArchive
from psvit_core.pareto.points import FrontPoint, ParetoPoint, PlanOrigin, Unreached
from psvit_core.pareto.stored import (
    add_point,
    add_quantized,
    empty_archive,
    find_archives,
    list_quantized,
    read_archive,
)

__all__ = [
    "FrontPoint",
    "ParetoArchive",
    "ParetoPoint",
    "PlanOrigin",
    "Unreached",
    "add_point",
    "add_quantized",
    "empty_archive",
    "find_archives",
    "list_quantized",
    "read_archive",
]
