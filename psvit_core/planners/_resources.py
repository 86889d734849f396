"""Bytes and multiply-accumulates as exact quadratic forms of the group widths; no torch.

Both are sums of products of axis widths, with at most two pruned axes per tensor. A quadratic form
is evaluated in microseconds for thousands of plans at once. ``tests/planners/test_search.py``
compares it with ``plan.size.plan_size``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.records import CLOSED_FORMS, ModelSummary

Array = np.ndarray[Any, Any]

_FLOAT_BYTES = 4

Monomial = tuple[float, tuple[str, ...]]  # coefficient, groups whose widths are multiplied


@dataclass(frozen=True)
class WidthForm:
    """The quadratic form ``constant + linear @ w + w @ pairs @ w`` of widths in network order.

    Args:
        constant: Part that does not depend on any width.
        linear: Coefficients of single widths, (n_groups,).
        pairs: Symmetric coefficients of products of widths, (n_groups, n_groups).
    """

    constant: float
    linear: Array
    pairs: Array

    def value(self, widths: Array) -> Array:
        """Return the resource at widths (..., n_groups), of shape (...)."""
        w = np.asarray(widths, dtype=float)
        quadratic = ((w @ self.pairs) * w).sum(axis=-1)
        return np.asarray(self.constant + w @ self.linear + quadratic)

    def slopes(self, widths: Array) -> Array:
        """Return the derivative by each width without its squared term, (..., n_groups)."""
        own = np.diagonal(self.pairs)
        return np.asarray(self.linear + 2 * (widths @ self.pairs - widths * own))

    def moves(self, widths: Array, levels: Array) -> Array:
        """Return the exact change of the resource when a single group moves to a level.

        Args:
            widths: Current widths, (n_groups,).
            levels: Widths to move to, (n_groups, n_levels).

        Returns:
            (n_groups, n_levels).
        """
        own = np.diagonal(self.pairs)[:, None]
        now = widths[:, None]
        change = self.slopes(widths)[:, None] * (levels - now) + own * (levels**2 - now**2)
        return np.asarray(change)


def width_form(summary: ModelSummary, resource: str) -> WidthForm:
    """Return the quadratic form of a resource of ``CLOSED_FORMS``.

    Raises:
        UnknownNameError: If the resource is another.
        ModelError: If a tensor has more than two pruned axes.
    """
    if resource not in CLOSED_FORMS:
        raise UnknownNameError("exact resource", resource, CLOSED_FORMS)
    terms = _mac_terms(summary) if resource == "macs" else _byte_terms(summary, resource)
    return _collect(summary, terms)


def _byte_terms(summary: ModelSummary, resource: str) -> Iterator[Monomial]:
    for tensor in summary.shapes.tensors:
        if tensor.role in ("counter", "unused"):
            continue
        if resource == "memory_int8" and tensor.role == "weight":
            yield from tensor.monomials()
            # one scale per output channel
            rows = dataclasses.replace(tensor, sizes=tensor.sizes[:1], groups=tensor.groups[:1])
            yield from _scaled(rows.monomials())
        else:
            yield from _scaled(tensor.monomials())


def _scaled(monomials: Iterator[Monomial]) -> Iterator[Monomial]:
    for factor, owners in monomials:
        yield factor * _FLOAT_BYTES, owners


def _mac_terms(summary: ModelSummary) -> Iterator[Monomial]:
    for term in summary.shapes.terms:
        yield term.factor, term.groups


def _collect(summary: ModelSummary, terms: Iterator[Monomial]) -> WidthForm:
    position = {g.group_id: i for i, g in enumerate(summary.groups)}
    constant = 0.0
    linear = np.zeros(len(position))
    pairs = np.zeros((len(position), len(position)))
    for factor, owners in terms:
        index = [position[group] for group in owners]
        if len(index) > 2:
            raise ModelError(
                f"{summary.model} has a tensor with {len(index)} pruned axes ({owners}); planners "
                "support at most two. Remove one of its groups."
            )
        if not index:
            constant += factor
        elif len(index) == 1:
            linear[index[0]] += factor
        else:
            pairs[index[0], index[1]] += factor / 2
            pairs[index[1], index[0]] += factor / 2
    return WidthForm(constant=constant, linear=linear, pairs=pairs)
