"""Channel groups of a model, its shape table, and the summary that the app and planners use."""

from __future__ import annotations

from collections import Counter
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
    divided_owner,
    shared_owner,
)
from psvit_core.zoo.base import SpikingModel, batch_norm_names
from psvit_core.zoo.checkpoint import weights_hash
from psvit_core.zoo.products import AttentionProduct

COMPUTE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def find_groups(model: SpikingModel) -> tuple[ChannelGroup, ...]:
    """Return the channel groups of a model, pruned or not, in network order."""
    return model.channel_groups()


def plan_from_kept(model: SpikingModel, kept: Mapping[str, Sequence[int]]) -> PrunePlan:
    """Return a plan that keeps the given units of each named group.

    Args:
        model: The model that the plan is for.
        kept: Unit indices to keep, by ``group_id``. Groups that are not named stay whole.

    Raises:
        InvalidPlanError: If a group is unknown or its indices are invalid.
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
    """Map each (tensor, axis) to the groups whose units lie along it, as ``axis_owners`` reads."""
    owners: dict[tuple[str, int], str] = {}
    for g in groups:
        for tensor, axis in (*g.writers, *g.readers):
            key = f"{tensor}:{axis}"
            if key in g.maps and (tensor, axis) in owners:
                owners[tensor, axis] = shared_owner(owners[tensor, axis], g.group_id)
            elif key in g.local:
                owners[tensor, axis] = divided_owner(g.group_id, g.local[key])
            else:
                owners[tensor, axis] = g.group_id
    return owners


def shape_table(model: SpikingModel) -> ShapeTable:
    """Return everything that determines the model's size and compute at any widths."""
    owners = axis_groups(find_groups(model))
    norms = batch_norm_names(model)
    tensors = tuple(
        TensorShape(
            name=name,
            role=_role(name, tensor, norms, model),
            sizes=tuple(tensor.shape),
            groups=tuple(owners.get((name, axis)) for axis in range(tensor.dim())),
        )
        for name, tensor in model.state_dict(keep_vars=True).items()
    )
    return ShapeTable(tensors=tensors, terms=_compute_terms(model, owners))


def _role(name: str, tensor: Tensor, norms: set[str], model: SpikingModel) -> str:
    parent, _, leaf = name.rpartition(".")
    if name in model.unused:
        return "unused"
    if leaf == "num_batches_tracked":
        return "counter"
    if not isinstance(tensor, nn.Parameter):
        return "buffer"
    return "affine" if parent in norms or leaf == "bias" or tensor.dim() == 1 else "weight"


def _compute_terms(
    model: SpikingModel, owners: Mapping[tuple[str, int], str]
) -> tuple[ComputeTerm, ...]:
    """Run the architecture once on the meta device and read each layer's output positions."""
    empty = model.resized(model.widths)
    terms: list[ComputeTerm] = []
    n_calls: Counter[str] = Counter()

    def add(layer: str, factor: float, groups: Sequence[str]) -> None:
        terms.append(ComputeTerm(layer=layer, factor=factor, groups=tuple(groups)))

    def on_layer(name: str) -> Any:
        per_step = empty.calls_per_step(name)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            n_calls[name] += 1
            if per_step is not None and n_calls[name] > per_step:
                return  # a later time step
            positions = output[0, 0].numel() if output.dim() > 2 else 1  # (rows, C, ...)
            assert isinstance(module, COMPUTE_LAYERS)
            shape = module.weight.shape
            named = tuple(owners.get((f"{name}.weight", axis)) for axis in range(len(shape)))
            sizes = TensorShape(name=name, role="weight", sizes=tuple(shape), groups=named)
            for factor, groups in sizes.monomials():
                add(name, positions * factor, groups)

        return hook

    def on_product(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for suffix, factor, groups in module.macs(name, inputs):
                add(f"{name}.{suffix}", factor, groups)

        return hook

    for name, module in empty.named_modules():
        if isinstance(module, COMPUTE_LAYERS):
            module.register_forward_hook(on_layer(name))
        elif isinstance(module, AttentionProduct):
            module.register_forward_hook(on_product(name))
    with torch.no_grad():
        dtype = next(empty.parameters()).dtype
        empty(torch.empty(1, *model.input_shape, dtype=dtype, device="meta"))
    return tuple(terms)


def summarize(
    model: SpikingModel, rankings: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> ModelSummary:
    """Return the record of a model that can be used without torch.

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
