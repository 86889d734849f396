"""Removes channels physically (``apply_plan``) or only in effect (``silenced``).

``silenced`` is the reference: the full model with gamma and beta of the group's BatchNorms set to
zero at the removed units. (A filter of zeros alone would still emit the BatchNorm's bias.) Both
compute the same function; ``tests/core/test_surgery.py`` verifies it in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from psvit_core.errors import InvalidPlanError
from psvit_core.groups import find_groups
from psvit_core.neurons import LIF, stays_silent
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.selection import Selection, alive_positions, select, selections_by_tensor
from psvit_core.zoo.base import SpikingModel, batch_norm_names
from psvit_core.zoo.checkpoint import weights_hash


def apply_plan(model: SpikingModel, plan: PrunePlan) -> SpikingModel:
    """Return a smaller model without the units that ``plan`` removes.

    ``model`` is not changed, and the result shares no memory with it.

    Raises:
        InvalidPlanError: If the plan was made for other weights or does not fit the model.
    """
    groups = find_groups(model)
    plan.check(groups, weights_hash(model))
    widths = dict(model.widths)
    selections = []
    for group in groups:
        if group.group_id in plan.kept:
            kept = torch.tensor(plan.kept[group.group_id])
            widths[group.group_id] = len(kept)
            selections.append(Selection(group, kept))
    chosen = selections_by_tensor(selections)
    tensors = {
        name: select(name, tensor, chosen[name]) if name in chosen else tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    small = model.resized(widths)
    small.load_state_dict(tensors, strict=True, assign=True)
    small.name = model.name
    small.provenance = _provenance(model, groups, plan)
    return small.train(model.training)


def _provenance(
    model: SpikingModel, groups: tuple[ChannelGroup, ...], plan: PrunePlan
) -> dict[str, object]:
    """Return the origin of the smaller model, with kept indices of the first ancestor."""
    before = model.provenance
    earlier: Mapping[str, list[int]] = before.get("kept", {})
    kept = {name: list(units) for name, units in earlier.items()}
    for group in groups:
        if group.group_id in plan.kept:
            base = earlier.get(group.group_id, list(range(group.n_units)))
            kept[group.group_id] = [base[i] for i in plan.kept[group.group_id]]
    return {
        **before,  # including recoveries and fine-tuning after earlier plans
        "origin": before.get("origin", plan.model),
        "origin_weights_hash": before.get("origin_weights_hash", plan.weights_hash),
        "origin_bytes": before.get("origin_bytes", stored_bytes(model)),
        "kept": kept,
        "plans": [*before.get("plans", []), plan.to_dict()],
    }


def stored_bytes(model: SpikingModel) -> int:
    """Return the fp32 bytes that inference reads: parameters and BatchNorm statistics."""
    return sum(
        4 * tensor.numel()
        for name, tensor in model.state_dict().items()
        if name not in model.unused and not name.endswith("num_batches_tracked")
    )


def silencing_edits(
    model: SpikingModel, plan: PrunePlan, groups: tuple[ChannelGroup, ...] | None = None
) -> dict[str, Tensor]:
    """Return the gamma and beta, by tensor name, that silence the units which ``plan`` removes.

    Args:
        model: The full model.
        plan: A plan that was made for it; not checked here.
        groups: The model's channel groups; found if None.

    Raises:
        InvalidPlanError: If silencing at the BatchNorms does not equal removal for this model.
    """
    _check_neurons(model)
    tensors = model.state_dict()
    norms = batch_norm_names(model)
    edits: dict[str, Tensor] = {}
    for group in groups or find_groups(model):
        if group.group_id not in plan.kept:
            continue
        kept = torch.tensor(plan.kept[group.group_id])
        for name, axis in group.writers:
            parent, _, leaf = name.rpartition(".")
            if parent in norms and leaf in ("weight", "bias"):
                before = edits.get(name, tensors[name])  # groups may share a BatchNorm
                alive = alive_positions(group, f"{name}:{axis}", kept, len(before))
                edits[name] = before * alive.to(before.device)
    return edits


def _check_neurons(model: SpikingModel) -> None:
    """Raise ``InvalidPlanError`` if a neuron may fire without input."""
    for name, module in model.named_modules():
        if isinstance(module, LIF) and not stays_silent(module):
            raise InvalidPlanError(
                f"Neuron {name!r} has v_reset={module.v_reset}, v_threshold={module.v_threshold}. "
                "It may fire without input, so its channels cannot be silenced. Use v_reset=0 and "
                "v_threshold>0."
            )


class Silenced(nn.Module):
    """A full model whose removed units are silent; shares the weights of ``model``.

    Args:
        model: The full model.
        edits: Replacements of gamma and beta by tensor name, from ``silencing_edits``.
    """

    def __init__(self, model: SpikingModel, edits: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.edits = dict(edits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the pruned model, (B, num_classes)."""
        # With ``tie_weights``, a module that has two names would keep the edits.
        logits: Tensor = torch.func.functional_call(self.model, self.edits, (x,), tie_weights=False)
        return logits


def silenced(model: SpikingModel, plan: PrunePlan) -> Silenced:
    """Return the full model with silent units: the function of ``apply_plan`` at full shapes.

    ``model`` is not changed. The result shares its weights, so later changes affect both.

    Raises:
        InvalidPlanError: If the plan does not fit, or silencing does not equal removal for this
            model.
    """
    plan.check(find_groups(model), weights_hash(model))
    return Silenced(model, silencing_edits(model, plan)).train(model.training)
