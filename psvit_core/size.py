"""Parameters, bytes and multiply-accumulates of any plan, in closed form; no torch.

Savings of single groups do not add up, since weights shrink on two axes: everything here is the
true joint size. ``tests/test_size.py`` compares it with real surgery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from psvit_core.errors import UnknownNameError
from psvit_core.records import ModelSummary, PrunePlan, ShapeTable, Size

PRECISIONS = ("float32", "int8")
_FLOAT_BYTES = 4


def size_at(shapes: ShapeTable, widths: Mapping[str, int], precision: str = "float32") -> Size:
    """Size of the model with these group widths; absent groups are whole.

    Args:
        shapes: The model's shape table.
        widths: Units that stay, by ``group_id``.
        precision: ``float32``, or ``int8``: one byte a convolution or linear weight, one fp32 scale
            an output channel, everything else fp32.

    Returns:
        Parameters that inference reads; bytes of those and of the BatchNorm statistics (counters
        and never-read tensors left out); MACs of one image and one time step.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    params = stored = 0
    for tensor in shapes.tensors:
        if tensor.role in ("counter", "unused"):
            continue
        count, rows = 1, 1
        for axis, (size, group) in enumerate(zip(tensor.sizes, tensor.groups, strict=True)):
            width = size if group is None else widths.get(group, size)
            count *= width
            rows = width if axis == 0 else rows
        if tensor.role != "buffer":
            params += count
        if tensor.role == "weight" and precision == "int8":
            stored += count + rows * _FLOAT_BYTES
        else:
            stored += count * _FLOAT_BYTES
    macs = 0.0
    for term in shapes.terms:
        product = term.factor
        for group in term.groups:
            product *= widths[group] if group in widths else _full_width(shapes, group)
        macs += product
    return Size(params=params, bytes=stored, macs=round(macs))


def real_macs(summary: ModelSummary, plan: PrunePlan | None) -> float:
    """MACs of the layers that read real values instead of spikes, one image, all time steps."""
    terms = tuple(
        dataclasses.replace(t, factor=t.factor * summary.real_fed[t.layer])
        for t in summary.shapes.terms
        if t.layer in summary.real_fed
    )
    shapes = ShapeTable(tensors=summary.shapes.tensors, terms=terms)
    return float(size_at(shapes, plan_widths(summary, plan)).macs)


def _full_width(shapes: ShapeTable, group: str) -> int:
    for tensor in shapes.tensors:
        for size, owner in zip(tensor.sizes, tensor.groups, strict=True):
            if owner == group:
                return size
    raise KeyError(group)


def plan_widths(summary: ModelSummary, plan: PrunePlan | None) -> dict[str, int]:
    """Width of every group of ``summary`` under ``plan`` (None: unpruned)."""
    kept = plan.kept if plan else {}
    return {
        g.group_id: len(kept[g.group_id]) if g.group_id in kept else g.n_units
        for g in summary.groups
    }


def plan_size(summary: ModelSummary, plan: PrunePlan | None, precision: str = "float32") -> Size:
    """Size of ``summary``'s model under ``plan`` (None: unpruned)."""
    return size_at(summary.shapes, plan_widths(summary, plan), precision)


def memory_saving(summary: ModelSummary, plan: PrunePlan, precision: str = "float32") -> float:
    """``1 - bytes / baseline bytes`` of a plan: the fraction of memory saved."""
    baseline = plan_size(summary, None, precision).bytes
    return 1 - plan_size(summary, plan, precision).bytes / baseline
