"""Inference: a placed model over all images of a set."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.data.ahead import batches_of, placed
from psvit_core.errors import CheckpointError, DataError
from psvit_core.estimates import Seen
from psvit_core.metrics.spikes import count_spikes
from psvit_core.runtime import Portions, Run, channels_last, device_of, out_of_memory_explained
from psvit_core.storage.predictions import Array
from psvit_core.surgery import Silenced
from psvit_core.zoo.base import SpikingModel


def ignore_batch(logits: Array) -> None:
    """Ignore a batch."""


@dataclass(frozen=True)
class Prediction:
    """Raw results of one pass over images."""

    logits: Array  # (n_images, num_classes)
    sops: Array  # (n_images,) float64
    firing: dict[str, float]  # neuron layer -> firing rate
    # Reader -> SOPs, the mean over images; None if they were not counted by reader.
    by_reader: dict[str, float] | None = None


def place(model: SpikingModel, run: Run) -> SpikingModel:
    """Return the model on the run's device and precision: itself if it is there, or a copy.

    Raises:
        CheckpointError: If the model has values that it cannot run with.
    """
    if fault := model.fault_of_values():
        raise CheckpointError(f"{model.name}: {fault}")
    first = next(model.parameters())
    if (first.device, first.dtype) == (device_of(run.device), run.dtype):
        return model
    placed: SpikingModel = copy.deepcopy(model).to(device=run.device, dtype=run.dtype)
    return placed


def place_once(model: SpikingModel, run: Run, weights_hash: str) -> SpikingModel:
    """Return ``place``'s model, one copy for all calls with these weights.

    A copy costs time on an accelerator, and what is recorded of a model (``incremental.joint``) is
    known by the object. A model keeps the copy of the last call.

    Args:
        model: The model.
        run: Device and precision.
        weights_hash: Hash of the model's weights.
    """
    key = (weights_hash, model.T, model.training, run.device, run.dtype)
    known = _copies.get(model)
    if known is not None and known[0] == key:
        return known[1]
    placed = place(model, run)
    if placed is not model:
        _copies[model] = (key, placed)
    return placed


_copies: weakref.WeakKeyDictionary[SpikingModel, tuple[object, SpikingModel]]
_copies = weakref.WeakKeyDictionary()


def predict(
    model: SpikingModel | Silenced,
    data: EvalSet,
    run: Run | None = None,
    *,
    widths: Mapping[str, int] | None = None,
    tick: Tick = keep_going,
    seen: Seen = ignore_batch,
) -> Prediction:
    """Run a model over all images of ``data``, each from zero state.

    Args:
        model: A model in evaluation mode, placed on the run's device (``place``).
        data: Images.
        run: Device, batch, precision; the defaults when None.
        widths: Group widths for the SOPs of a silenced model.
        tick: Called before each batch; may raise to stop.
        seen: Called after each batch with its logits, (B, num_classes).

    Raises:
        DataError: If the data has more classes than the model has outputs.
        DeviceError: If the device has not enough memory for one image, or for a batch whose images
            influence each other. Otherwise it gets fewer images at a time.
    """
    run = run or Run()
    base = model.model if isinstance(model, Silenced) else model
    check_labels(base, data)
    logits = []
    weights = {name: channels_last(t.detach()) for name, t in base.named_parameters()}
    if isinstance(model, Silenced):
        weights |= model.edits
    portions = Portions(run.batch, least=run.batch if base.batch_coupled else 1)
    with (
        torch.no_grad(),
        out_of_memory_explained(run),
        count_spikes(base, widths) as count,
    ):

        def logits_of(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
            images = placed(x[low:high], run)
            with count.whole_batches(), run.autocast:
                # With ``tie_weights``, a module that has two names would keep the replacements.
                answer = torch.func.functional_call(base, weights, (images,), tie_weights=False)
                return answer.to(run.dtype).cpu()

        for x in batches_of(data, run):
            with count.paused():  # the tick may run another job on the same model
                tick()
            logits.append(torch.cat(list(portions.over(len(x), partial(logits_of, x)))))
            seen(logits[-1].numpy())
    return Prediction(
        logits=torch.cat(logits).numpy(),
        sops=torch.cat(count.sops).cpu().numpy(),
        firing=count.firing_rates(),
        by_reader=count.sops_by_reader(),
    )


def check_labels(model: SpikingModel, data: EvalSet) -> None:
    """Raise ``DataError`` if the data has more classes than the model has outputs."""
    if max(data.labels) >= model.num_classes:
        raise DataError(
            f"{data.spec} has labels up to {max(data.labels)}, but {model.name} has "
            f"{model.num_classes} outputs. Use images of the classes that it was trained on."
        )
