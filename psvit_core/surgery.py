"""Removing channels for real (``apply_plan``) and in effect (``silenced``).

``silenced`` is the oracle: the full model in which the removed units are silent, done by zeroing
gamma and beta of the group's BatchNorms. A zeroed filter alone would still emit its BatchNorm bias.
Both compute the same function; ``tests/test_surgery.py`` proves it in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from psvit_core.errors import InvalidPlanError
from psvit_core.groups import find_groups
from psvit_core.neurons import LIF
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash


def apply_plan(model: SpikingModel, plan: PrunePlan) -> SpikingModel:
    """The smaller model that ``plan`` leaves; ``model`` stays untouched and shares no memory.

    Raises:
        InvalidPlanError: If the plan was made for other weights or is illegal here.
    """
    groups = find_groups(model)
    plan.check(groups, weights_hash(model))
    widths = dict(model.widths)
    chosen: dict[str, list[tuple[int, Tensor]]] = {}
    for group in groups:
        if group.group_id not in plan.kept:
            continue
        kept = torch.tensor(plan.kept[group.group_id])
        widths[group.group_id] = len(kept)
        for tensor, axis in (*group.writers, *group.readers):
            chosen.setdefault(tensor, []).append((axis, kept))
    tensors = {}
    for name, tensor in model.state_dict().items():
        for axis, kept in chosen.get(name, ()):
            tensor = tensor.index_select(axis, kept.to(tensor.device))
        tensors[name] = tensor.clone() if name not in chosen else tensor
    small = model.resized(widths)
    small.load_state_dict(tensors, strict=True, assign=True)
    small.name = model.name
    small.provenance = _provenance(model, groups, plan)
    return small.train(model.training)


def _provenance(
    model: SpikingModel, groups: tuple[ChannelGroup, ...], plan: PrunePlan
) -> dict[str, object]:
    """Where the smaller model comes from; kept indices composed to the first ancestor."""
    before = model.provenance
    earlier: Mapping[str, list[int]] = before.get("kept", {})
    kept = {name: list(units) for name, units in earlier.items()}
    for group in groups:
        if group.group_id in plan.kept:
            base = earlier.get(group.group_id, list(range(group.n_units)))
            kept[group.group_id] = [base[i] for i in plan.kept[group.group_id]]
    return {
        **before,  # with what was done after the earlier plans: recoveries, fine-tuning
        "origin": before.get("origin", plan.model),
        "origin_weights_hash": before.get("origin_weights_hash", plan.weights_hash),
        "origin_bytes": before.get("origin_bytes", stored_bytes(model)),
        "kept": kept,
        "plans": [*before.get("plans", []), plan.to_dict()],
    }


def stored_bytes(model: SpikingModel) -> int:
    """Bytes in fp32 of what inference reads: parameters and BatchNorm statistics."""
    return sum(
        4 * tensor.numel()
        for name, tensor in model.state_dict().items()
        if name not in model.unused and not name.endswith("num_batches_tracked")
    )


def silencing_edits(
    model: SpikingModel, plan: PrunePlan, groups: tuple[ChannelGroup, ...] | None = None
) -> dict[str, Tensor]:
    """New gamma and beta, by tensor name, that silence the units which ``plan`` removes.

    Raises:
        InvalidPlanError: If silencing at the BatchNorms would not equal removal for this model.
    """
    _assert_silence_is_removal(model)
    tensors = model.state_dict()
    norms = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    edits: dict[str, Tensor] = {}
    for group in groups or find_groups(model):
        if group.group_id not in plan.kept:
            continue
        alive = torch.zeros(group.n_units, dtype=torch.bool)
        alive[list(plan.kept[group.group_id])] = True
        for name, _ in group.writers:
            parent, _, leaf = name.rpartition(".")
            if parent in norms and leaf in ("weight", "bias"):
                edits[name] = tensors[name] * alive.to(tensors[name].device)
    return edits


def _assert_silence_is_removal(model: SpikingModel) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LIF) and not (module.v_reset == 0 and module.v_threshold > 0):
            raise InvalidPlanError(
                f"Neuron {name!r} has v_reset={module.v_reset}, v_threshold={module.v_threshold}: "
                "without input it may fire, so its channels cannot be silenced. Needs v_reset=0 "
                "and v_threshold>0."
            )


class Silenced(nn.Module):
    """A full model whose removed units are silent; shares the weights of ``model``."""

    def __init__(self, model: SpikingModel, edits: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.edits = dict(edits)  # gamma and beta by tensor name

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, num_classes), as of the pruned model."""
        logits: Tensor = torch.func.functional_call(self.model, self.edits, (x,))
        return logits


def silenced(model: SpikingModel, plan: PrunePlan) -> Silenced:
    """The full model with the removed units silent: same function as ``apply_plan``, full shapes.

    ``model`` is not changed, and later changes of its weights show in the result.

    Raises:
        InvalidPlanError: If the plan does not fit, or silencing would not equal removal here.
    """
    plan.check(find_groups(model), weights_hash(model))
    return Silenced(model, silencing_edits(model, plan)).train(model.training)
