"""Channel groups of a model, its shape table, and the summary that screens and planners use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from psvit_core.records import (
    ChannelGroup,
    ComputeTerm,
    ModelSummary,
    PrunePlan,
    ShapeTable,
    TensorShape,
)
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash
from psvit_core.zoo.layers import SpikeProduct

COMPUTE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def find_groups(model: SpikingModel) -> tuple[ChannelGroup, ...]:
    """The channel groups of a model, pruned or not, in network order."""
    return model.channel_groups()


def plan_from_kept(model: SpikingModel, kept: Mapping[str, Sequence[int]]) -> PrunePlan:
    """A plan from index lists: the units of each named group that stay.

    Raises:
        InvalidPlanError: If a group is unknown or its indices are illegal.
    """
    plan = PrunePlan(
        model=model.name,
        weights_hash=weights_hash(model),
        criterion="given",
        kept={group_id: tuple(int(i) for i in units) for group_id, units in kept.items()},
    )
    plan.check(find_groups(model), plan.weights_hash)
    return plan


def axis_groups(groups: Sequence[ChannelGroup]) -> dict[tuple[str, int], str]:
    """Which group owns each (tensor, axis)."""
    return {(tensor, axis): g.group_id for g in groups for tensor, axis in (*g.writers, *g.readers)}


def shape_table(model: SpikingModel) -> ShapeTable:
    """All that decides the model's size and compute at any widths."""
    owners = axis_groups(find_groups(model))
    norms = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    tensors = tuple(
        TensorShape(
            name=name,
            role=_role(name, norms, model.unused),
            sizes=tuple(tensor.shape),
            groups=tuple(owners.get((name, axis)) for axis in range(tensor.dim())),
        )
        for name, tensor in model.state_dict().items()
    )
    return ShapeTable(tensors=tensors, terms=_compute_terms(model, owners))


def _role(name: str, norms: set[str], unused: Sequence[str]) -> str:
    parent, _, leaf = name.rpartition(".")
    if name in unused:
        return "unused"
    if leaf == "num_batches_tracked":
        return "counter"
    if leaf.startswith("running_"):
        return "buffer"
    return "affine" if parent in norms or leaf == "bias" else "weight"


def _compute_terms(
    model: SpikingModel, owners: Mapping[tuple[str, int], str]
) -> tuple[ComputeTerm, ...]:
    """Run the architecture once without data and read off each layer's output positions."""
    empty = model.resized(model.widths)
    terms: list[ComputeTerm] = []

    def add(layer: str, factor: float, groups: Sequence[str]) -> None:
        terms.append(ComputeTerm(layer=layer, factor=factor, groups=tuple(groups)))

    def on_layer(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            positions = output[0, 0].numel() if output.dim() > 2 else 1  # (rows, C, ...)
            shape = empty.get_parameter(f"{name}.weight").shape
            named = [owners.get((f"{name}.weight", axis)) for axis in range(len(shape))]
            fixed = [n for n, group in zip(shape, named, strict=True) if group is None]
            factor = positions * torch.Size(fixed).numel()
            add(name, factor, [group for group in named if group])

        return hook

    def on_product(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            tokens = inputs[0].shape[-1]
            path = name.rpartition(".")[0]
            add(f"{name}.qk", tokens * tokens, [f"{path}.qk"])
            add(f"{name}.v", tokens * tokens, [f"{path}.v"])

        return hook

    for name, module in empty.named_modules():
        if isinstance(module, COMPUTE_LAYERS):
            module.register_forward_hook(on_layer(name))
        elif isinstance(module, SpikeProduct):
            module.register_forward_hook(on_product(name))
    with torch.no_grad():
        empty(torch.empty(1, *model.input_shape, device="meta"))
    return tuple(terms)


def summarize(
    model: SpikingModel, rankings: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> ModelSummary:
    """The record of a model that needs no torch to be used.

    Args:
        model: The model.
        rankings: Units of every group, best first, by criterion (``importance.rank``).
    """
    return ModelSummary(
        model=model.name,
        family=model.family,
        weights_hash=weights_hash(model),
        T=model.T,
        input_shape=model.input_shape,
        num_classes=model.num_classes,
        real_fed=model.real_fed(),
        batch_coupled=model.batch_coupled,
        groups=find_groups(model),
        shapes=shape_table(model),
        rankings={criterion: dict(by_group) for criterion, by_group in rankings.items()},
    )
