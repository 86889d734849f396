"""What a plan may save, as exact polynomials of the group widths; no torch.

Bytes and multiply-accumulates are sums of products of axis widths, so at most two pruned axes a
tensor make them a quadratic form: evaluated in microseconds for thousands of plans at once.
``tests/test_planners_search.py`` holds it equal to ``size.plan_size``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.records import ModelSummary

Array = np.ndarray[Any, Any]

CLOSED_FORMS = ("memory", "memory_int8", "macs")
RESOURCES = (*CLOSED_FORMS, "energy", "latency")
_FLOAT_BYTES = 4

Monomial = tuple[float, tuple[str, ...]]  # coefficient, groups whose widths multiply it


@dataclass(frozen=True)
class WidthForm:
    """``constant + linear @ w + w @ pairs @ w`` of the widths ``w`` in network order.

    Args:
        constant: What no group changes.
        linear: (n_groups,).
        pairs: (n_groups, n_groups), symmetric.
    """

    constant: float
    linear: Array
    pairs: Array

    def value(self, widths: Array) -> Array:
        """The resource at widths (..., n_groups); returns (...)."""
        w = np.asarray(widths, dtype=float)
        quadratic = ((w @ self.pairs) * w).sum(axis=-1)
        return np.asarray(self.constant + w @ self.linear + quadratic)

    def slopes(self, widths: Array) -> Array:
        """Change by one unit of each group, without its own square: (..., n_groups)."""
        own = np.diagonal(self.pairs)
        return np.asarray(self.linear + 2 * (widths @ self.pairs - widths * own))

    def moves(self, widths: Array, levels: Array) -> Array:
        """Exact change when one group alone goes to a level; (n_groups,), (n_groups, n_levels)."""
        own = np.diagonal(self.pairs)[:, None]
        now = widths[:, None]
        change = self.slopes(widths)[:, None] * (levels - now) + own * (levels**2 - now**2)
        return np.asarray(change)


def width_form(summary: ModelSummary, resource: str) -> WidthForm:
    """The quadratic form of a resource with a closed form.

    Raises:
        UnknownNameError: If there is no such resource.
        ModelError: If a tensor has more than two pruned axes.
    """
    if resource not in CLOSED_FORMS:
        raise UnknownNameError("resource with a closed form", resource, CLOSED_FORMS)
    terms = _mac_terms(summary) if resource == "macs" else _byte_terms(summary, resource)
    return _collect(summary, terms)


def _byte_terms(summary: ModelSummary, resource: str) -> Iterator[Monomial]:
    for tensor in summary.shapes.tensors:
        if tensor.role in ("counter", "unused"):
            continue
        count, owners = 1, []
        for size, group in zip(tensor.sizes, tensor.groups, strict=True):
            if group is None:
                count *= size
            else:
                owners.append(group)
        if resource == "memory_int8" and tensor.role == "weight":
            yield count, tuple(owners)
            rows = tensor.groups[0] if tensor.groups else None  # one scale an output channel
            if rows is None:
                yield (tensor.sizes[0] if tensor.sizes else 1) * _FLOAT_BYTES, ()
            else:
                yield _FLOAT_BYTES, (rows,)
        else:
            yield count * _FLOAT_BYTES, tuple(owners)


def _mac_terms(summary: ModelSummary) -> Iterator[Monomial]:
    for term in summary.shapes.terms:
        yield term.factor, term.groups


def _collect(summary: ModelSummary, terms: Iterator[Monomial]) -> WidthForm:
    where = {g.group_id: i for i, g in enumerate(summary.groups)}
    constant = 0.0
    linear = np.zeros(len(where))
    pairs = np.zeros((len(where), len(where)))
    for factor, owners in terms:
        index = [where[group] for group in owners]
        if len(index) > 2:
            raise ModelError(
                f"{summary.model} has a tensor with {len(index)} pruned axes ({owners}); planners "
                "count two at most. Leave one of its groups out."
            )
        if not index:
            constant += factor
        elif len(index) == 1:
            linear[index[0]] += factor
        else:
            pairs[index[0], index[1]] += factor / 2
            pairs[index[1], index[0]] += factor / 2
    return WidthForm(constant=constant, linear=linear, pairs=pairs)
