"""Exact parameters, bytes and multiply-accumulates (MACs) of any plan; no torch.

Savings of single groups do not add up because weights shrink along two axes, so every function here
returns the true joint size. ``tests/plan/test_size.py`` compares it with pruned models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from psvit_core.errors import UnknownNameError
from psvit_core.records import (
    ModelSummary,
    PrunePlan,
    ShapeTable,
    Size,
    TensorShape,
    axis_width,
)

#: ``float16`` also stands for bfloat16, which has as many bytes.
PRECISIONS = ("float32", "float16", "int8")
_FLOAT_BYTES = 4
_HALF_BYTES = 2


def size_at(shapes: ShapeTable, widths: Mapping[str, int], precision: str = "float32") -> Size:
    """Return the size of the model with these group widths.

    Args:
        shapes: The model's shape table.
        widths: Remaining units by ``group_id``; absent groups are not pruned.
        precision: Of the weights of convolutions and linear layers, as ``quantize`` stores them:
            ``float32``; ``float16``: two bytes each; or ``int8``: one byte each and one float32
            scale per output channel. Everything else is float32.

    Returns:
        Parameters used at inference; bytes of these and of the BatchNorm statistics, without
        counters and unused tensors; MACs of one image and one time step.

    Raises:
        UnknownNameError: If the precision is unknown.
    """
    _check_precision(precision)
    all_widths = {**shapes.full_widths, **widths}
    params = stored = 0
    for tensor in _stored_tensors(shapes):
        count, n_bytes = _tensor_size(tensor, all_widths, precision)
        params += count if tensor.role != "buffer" else 0
        stored += n_bytes
    macs = 0.0
    for term in shapes.terms:
        product = term.factor
        for group in term.groups:
            product *= all_widths[group]
        macs += product
    return Size(params=params, bytes=stored, macs=round(macs))


def bytes_by_layer(
    shapes: ShapeTable, widths: Mapping[str, int], precision: str = "float32"
) -> dict[str, int]:
    """Return the bytes of each module's own tensors, in the order of the state dict.

    They add up to ``size_at(...).bytes``. A tensor of no module has its own name.

    Args:
        shapes: The model's shape table.
        widths: As for ``size_at``.
        precision: As for ``size_at``.

    Raises:
        UnknownNameError: If the precision is unknown.
    """
    _check_precision(precision)
    all_widths = {**shapes.full_widths, **widths}
    layers: dict[str, int] = {}
    for tensor in _stored_tensors(shapes):
        layer = tensor.name.rpartition(".")[0] or tensor.name
        layers[layer] = layers.get(layer, 0) + _tensor_size(tensor, all_widths, precision)[1]
    return layers


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)


def _stored_tensors(shapes: ShapeTable) -> Iterator[TensorShape]:
    """Yield the tensors that inference reads."""
    return (tensor for tensor in shapes.tensors if tensor.role not in ("counter", "unused"))


def _tensor_size(
    tensor: TensorShape, all_widths: Mapping[str, int], precision: str
) -> tuple[int, int]:
    """Return the entries of a tensor and its bytes."""
    count, rows = 1, 1
    for axis, (size, group) in enumerate(zip(tensor.sizes, tensor.groups, strict=True)):
        width = size if group is None else axis_width(group, all_widths)
        count *= width
        rows = width if axis == 0 else rows
    if tensor.role == "weight" and precision == "float16":
        return count, count * _HALF_BYTES
    if tensor.role == "weight" and precision == "int8":
        return count, count + rows * _FLOAT_BYTES
    return count, count * _FLOAT_BYTES


def real_macs(summary: ModelSummary, plan: PrunePlan | None) -> float:
    """Return the MACs per image, over all time steps, of layers that read real values."""
    terms = tuple(
        dataclasses.replace(t, factor=t.factor * summary.real_fed[t.layer])
        for t in summary.shapes.terms
        if t.layer in summary.real_fed
    )
    shapes = ShapeTable(tensors=summary.shapes.tensors, terms=terms)
    return float(size_at(shapes, plan_widths(summary, plan)).macs)


def plan_widths(summary: ModelSummary, plan: PrunePlan | None) -> dict[str, int]:
    """Return the width of every group under ``plan`` (None: unpruned)."""
    kept = plan.kept if plan else {}
    return {
        g.group_id: len(kept[g.group_id]) if g.group_id in kept else g.n_units
        for g in summary.groups
    }


def plan_size(summary: ModelSummary, plan: PrunePlan | None, precision: str = "float32") -> Size:
    """Return the size of the model under ``plan`` (None: unpruned)."""
    return size_at(summary.shapes, plan_widths(summary, plan), precision)


def memory_saving(summary: ModelSummary, plan: PrunePlan, precision: str = "float32") -> float:
    """Return the fraction of memory that a plan saves, ``1 - bytes / baseline bytes``."""
    baseline = plan_size(summary, None, precision).bytes
    return 1 - plan_size(summary, plan, precision).bytes / baseline
