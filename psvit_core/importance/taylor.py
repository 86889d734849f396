"""First-order Taylor expansion of the loss (Molchanov et al. 2017, arXiv 1611.06440)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.data import EvalSet
from psvit_core.importance._base import Calibration, Criterion, Scores
from psvit_core.importance._readers import (
    Inputs,
    Reader,
    filter_norms,
    find_readers,
    on_device,
    reader_hooks,
)
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

#: Image positions x time steps of one backward pass: 32 digits at T = 4.
_MAX_POSITIONS = 100_352


class Taylor(Criterion):
    """Mean over images of ``|sum of activation x gradient|``, the estimated change of the loss.

    The sum is over the readers' inputs at all time steps and positions. The loss is the cross
    entropy on the images' labels; gradients are the models' surrogate gradients.

    Tied layers: signed sums over all readers before the absolute value ("sum over readers") because
    all readers lose the unit together. For queries and keys, the sum over the queries at the
    attention product; the sum over the keys is the same.
    """

    name = "taylor"
    needs_images = True

    def all_scores(self, model: SpikingModel, calib: Calibration) -> Scores:
        """Score every group in one forward and backward pass, with memory-limited batches."""
        assert calib.images is not None
        model = on_device(model, calib.run)
        readers = find_readers(model)
        owner = {reader: group_id for group_id, found in readers.items() for reader in found}
        calls: list[tuple[Reader, Inputs]] = []
        totals: Scores = {}

        def hook(reader: Reader, inputs: Inputs, output: Tensor) -> None:
            if inputs[0].requires_grad:
                calls.append((reader, inputs))

        labels = torch.tensor(calib.images.labels, device=calib.run.device)
        constants = {name: p.detach() for name, p in model.named_parameters()}
        batch = _batch(model, calib.images, calib.run)
        done = 0
        # No autocast: small gradients would vanish in half precision.
        with torch.enable_grad(), reader_hooks(model, readers, hook):
            for x in calib.batches(model, batch):
                logits = torch.func.functional_call(
                    model, constants, (x.requires_grad_(),), tie_weights=False
                )
                target = labels[done : done + len(x)]
                loss = F.cross_entropy(logits, target, reduction="sum")
                for group_id, change in _changes(loss, calls, owner, len(x)).items():
                    totals[group_id] = totals.get(group_id, 0.0) + change.abs().sum(0)
                calls.clear()
                done += len(x)
        return {
            group.group_id: totals[group.group_id].cpu() / done
            if group.group_id in totals
            else filter_norms(model, group)
            for group in model.channel_groups()
        }


def _batch(model: SpikingModel, images: EvalSet, run: Run) -> int:
    _, height, width = model.input_shape
    steps = images.time_steps or model.T
    return max(1, min(run.batch, _MAX_POSITIONS // (steps * height * width)))


def _changes(
    loss: Tensor, calls: list[tuple[Reader, Inputs]], owner: dict[Reader, str], n_images: int
) -> Scores:
    """Return the estimated change of each image's loss, (n_images, n_units) by group."""
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
