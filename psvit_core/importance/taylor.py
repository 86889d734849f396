"""First-order Taylor expansion of the loss (Molchanov et al. 2017, arXiv 1611.06440)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.data import EvalSet
from psvit_core.importance._base import Calibration, Criterion, Scores
from psvit_core.importance._readers import Inputs, Reader, find_readers, placed, unread, watched
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

#: Image positions x time steps that one backward pass holds: 32 digits at T = 4.
_POSITIONS_AT_ONCE = 100_352


class Taylor(Criterion):
    """Mean over images of ``|sum of activation x gradient|``: the loss that removal changes.

    The activation form: of what a unit's readers see, over all time steps and positions, with the
    cross entropy on the images' labels and the models' surrogate gradients.

    Tied members: signed sums over all readers before the absolute value ("sum over readers"), as
    all of them lose the unit at once. For queries and keys the sum over the queries at the
    attention product; the keys' is the same number.
    """

    name = "taylor"
    needs_images = True

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Scores of every group; one pass forward and backward, in batches that memory bounds."""
        assert calib.images is not None
        model = placed(model, calib.run)
        readers = find_readers(model)
        owner = {reader: group_id for group_id, found in readers.items() for reader in found}
        calls: list[tuple[Reader, Inputs]] = []
        totals: Scores = {}

        def watch(reader: Reader, inputs: Inputs, output: Tensor) -> None:
            if inputs[0].requires_grad:
                calls.append((reader, inputs))

        labels = torch.tensor(calib.images.labels, device=calib.run.device)
        constants = {name: p.detach() for name, p in model.named_parameters()}
        batch = _batch(model, calib.images, calib.run)
        done = 0
        # Without autocast: small gradients would vanish in half precision.
        with torch.enable_grad(), watched(model, readers, watch):
            for x in calib.batches(model, batch):
                logits = torch.func.functional_call(model, constants, (x.requires_grad_(),))
                target = labels[done : done + len(x)]
                loss = F.cross_entropy(logits, target, reduction="sum")
                for group_id, change in _changes(loss, calls, owner, len(x)).items():
                    totals[group_id] = totals.get(group_id, 0.0) + change.abs().sum(0)
                calls.clear()
                done += len(x)
        return {
            group.group_id: totals[group.group_id].cpu() / done
            if group.group_id in totals
            else unread(model, group)
            for group in model.channel_groups()
        }


def _batch(model: SpikingModel, images: EvalSet, run: Run) -> int:
    _, height, width = model.input_shape
    steps = images.time_steps or model.T
    return max(1, min(run.batch, _POSITIONS_AT_ONCE // (steps * height * width)))


def _changes(
    loss: Tensor, calls: list[tuple[Reader, Inputs]], owner: dict[Reader, str], n_images: int
) -> Scores:
    """First-order change of each image's loss by each unit, (n_images, n_units) by group."""
    if not calls:
        return {}
    gradients = torch.autograd.grad(loss, [inputs[0] for _, inputs in calls], allow_unused=True)
    changes: Scores = {}
    for (reader, inputs), gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            continue
        x = reader.values(inputs)[0].detach()
        g = reader.values((gradient, *inputs[1:]))[0]
        rows = (x * g).sum(2, dtype=torch.float64)  # time-major (T * B, n_units), or (B, n_units)
        change = rows.view(-1, n_images, reader.n_units).sum(0)
        known = changes.get(owner[reader])
        changes[owner[reader]] = change if known is None else known + change
    return changes
