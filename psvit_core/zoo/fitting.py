"""Fits tensors to architectures: strict loading, and the registered models that a file matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psvit_core.errors import CheckpointError
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import CUSTOM_FAMILY, list_models, model_card
from psvit_core.zoo.registry import build_model
from psvit_core.zoo.renaming import (
    Layout,
    adapt_names,
    count_renamed,
    layout_of,
    position_text,
    renaming_note,
)
from psvit_core.zoo.sizing import Shapes


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Comparison of a file's tensors with those of a registered model."""

    model: str
    missing: tuple[str, ...]  # in the model only
    unexpected: tuple[str, ...]  # in the file only
    reshaped: tuple[str, ...]  # in both, with different shapes
    n_matching: int  # in both, with equal shapes
    by_position: str = ""  # first differences by position, if the family may load that way

    @property
    def n_faults(self) -> int:
        """Number of tensors that do not match."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)


def compare_models(tensors: Mapping[str, Tensor]) -> list[Fit]:
    """Compare a file's tensors with every registered model; the best match comes first.

    The best match shares the most tensors, and of several such models it has the fewest others.
    Networks of a user's own are left out (``compare_shapes`` compares one).
    """
    n_classes = class_count(tensors).get("num_classes")
    fits = [
        compare_layout(name, _card_layout(name, n_classes), tensors)
        for name in list_models()
        if not model_card(name).builder
    ]
    return sorted(fits, key=rank_fit)


@lru_cache(maxsize=256)  # building all of them takes seconds
def _card_layout(name: str, n_classes: int | None) -> Layout:
    card = model_card(name)
    classes = {} if n_classes is None else {"num_classes": n_classes}
    return layout_of(build_empty(card.family, {**card.arguments, **classes}, {}))


def rank_fit(fit: Fit) -> tuple[int, int]:
    """Return the sort key of a comparison: the nearest model has the lowest."""
    return -fit.n_matching, fit.n_faults


def compare_layout(name: str, layout: Layout, tensors: Mapping[str, Tensor]) -> Fit:
    """Compare a file's tensors with one model.

    Args:
        name: Name of the model, for display.
        layout: Its tensors.
        tensors: The file's state dict; older names are matched as in loading.
    """
    named = adapt_names(layout, tensors)
    expected, found = layout.shapes, shapes_of(named)
    both = expected.keys() & found.keys()
    reshaped = sorted(key for key in both if expected[key] != found[key])
    n_renamed = count_renamed(layout, found)
    return Fit(
        model=name,
        missing=tuple(sorted(expected.keys() - both)),
        unexpected=tuple(sorted(found.keys() - both)),
        reshaped=tuple(reshaped),
        n_matching=len(both) - len(reshaped) + n_renamed,
        by_position=position_text(layout, named),
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def class_count(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the argument ``num_classes`` that the shape of the head implies, if there is one."""
    for name in ("head.weight", "classifier.weight"):
        head = tensors.get(name)
        if head is not None and head.dim() == 2:
            return {"num_classes": head.shape[0]}
    return {}


def build_empty(
    family: str, arguments: Mapping[str, Any], widths: Mapping[str, int]
) -> SpikingModel:
    """Build a model without weights, on the meta device.

    Raises:
        UnknownNameError: If the family is unknown.
        ModelError: If no model can be built from the arguments or widths.
    """
    if family == CUSTOM_FAMILY:
        return model_card(arguments["name"]).builder.rebuild(arguments, widths)
    with torch.device("meta"):
        return build_model(family, widths, **arguments)


def load_tensors(model: SpikingModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into ``model``, in place and strictly.

    Args:
        model: A model, possibly on the meta device.
        tensors: Its complete state dict.
        path: File that the tensors come from, for messages.

    Raises:
        CheckpointError: If keys or shapes differ, or values are missing or not finite floats.
    """
    expected = model.state_dict()
    named = adapt_names(layout_of(model), tensors)
    if note := renaming_note(tensors, named):
        model.notes = (*model.notes, note)
    tensors = named
    _check_keys(model, tensors, path)
    cast = {key: _cast(key, tensor, expected[key].dtype, path) for key, tensor in tensors.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if fault := model.fault_of_values():
        raise CheckpointError(f"{path}: {fault}")


def _cast(key: str, tensor: Tensor, dtype: torch.dtype, path: Path) -> Tensor:
    """Return a copy of a tensor in the type that the model computes with."""
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "no values" if tensor.is_meta else f"the layout {tensor.layout}"
        raise CheckpointError(
            f"{path}: {key} has {kind}. Save the weights as ordinary dense tensors."
        )
    if dtype.is_floating_point != tensor.is_floating_point():
        wanted = "a float" if dtype.is_floating_point else "an integer"
        raise CheckpointError(f"{path}: {key} has type {tensor.dtype}; expected {wanted}.")
    cast = tensor.detach().to(dtype, copy=True)
    if dtype.is_floating_point and not bool(torch.isfinite(cast).all()):
        raise CheckpointError(f"{path}: {key} contains NaN or infinite values.")
    return cast


def _check_keys(model: SpikingModel, tensors: Mapping[str, Tensor], path: Path) -> None:
    layout, found = layout_of(model), shapes_of(tensors)
    expected: Shapes = layout.shapes
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    reshaped = [
        f"{key} {found[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if not (missing or unexpected or reshaped):
        return
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", reshaped))
    details = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds
        if names
    ]
    details += filter(None, [position_text(layout, tensors)])
    fitting = [fit.model for fit in compare_models(tensors) if not fit.n_faults]
    raise CheckpointError(
        f"{path} does not fit {model.family} as configured: {'; '.join(details)}. "
        + (f"It fits {', '.join(fitting)}." if fitting else "It fits no registered model.")
    )
