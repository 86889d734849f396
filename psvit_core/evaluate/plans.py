"""Predictions of plans, and of the unpruned model as plans run, without building networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.estimates import Seen
from psvit_core.evaluate.inference import (
    Prediction,
    check_labels,
    ignore_batch,
    place_once,
    predict,
)
from psvit_core.groups import find_groups
from psvit_core.incremental.joint import joint_runner
from psvit_core.incremental.recorded import RecordedModel, firing_rates, sops_of
from psvit_core.kernels.ops import UnsupportedError
from psvit_core.records import PrunePlan
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

log = logging.getLogger(__name__)


def prepare_plans(
    model: SpikingModel, data: EvalSet, run: Run, weights_hash: str, *, firing: bool = True
) -> RecordedModel | None:
    """Record a model's forward pass, so that measurements of its plans build no network.

    Arguments as for ``measure``, with the hash of the model's weights; ``firing``: whether firing
    rates are wanted.

    Returns:
        What runs them; None if each is built.
    """
    (x,) = data.take([0]).batches(1)
    placed = place_once(model, run, weights_hash)
    with run.autocast:  # another one may be active while a sweep lets this run in between
        return joint_runner(placed, tuple(x.shape[1:]), weights_hash, run, firing=firing)


def predict_unpruned(
    model: SpikingModel, hashed: str, data: EvalSet, run: Run, tick: Tick, seen: Seen
) -> Prediction:
    """Run a model over images; in a reduced precision as plans run, so that both round alike."""
    if run.is_reduced:
        whole = PrunePlan(model=model.name, weights_hash=hashed, criterion="", kept={})
        found = predict_plan(model, data, whole, run, tick, seen)
        if found is not None:
            return found
    return predict(place_once(model, run, hashed), data, run, tick=tick, seen=seen)


def predict_plan(
    model: SpikingModel,
    data: EvalSet,
    plan: PrunePlan,
    run: Run,
    tick: Tick = keep_going,
    seen: Seen = ignore_batch,
    new: SpikingModel | Mapping[str, torch.Tensor] | None = None,
    firing: bool = True,
) -> Prediction | None:
    """Run a plan's network over all images of ``data`` as ``predict`` does, without building it.

    ``new`` are other weights (``RecordedModel.weights_of``). Without ``firing``, rates may be
    missing. None if the network has to be built.
    """
    runner = prepare_plans(model, data, run, plan.weights_hash, firing=firing)
    if runner is None:
        return None
    check_labels(model, data)
    try:
        parts = runner.run_plan(find_groups(model), plan, data, run, tick, seen, new)
    except UnsupportedError as reason:
        log.info("this plan of %s is built: there is no %s", model.name, reason)
        return None
    logits = np.concatenate([part.logits for part in parts])
    return Prediction(logits, sops=sops_of(parts, model, plan), firing=firing_rates(parts))
