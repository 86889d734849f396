"""Running a model over images, and measuring models and plans through the store."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from psvit_core.data import EvalSet
from psvit_core.errors import DataError
from psvit_core.groups import summarize
from psvit_core.metrics.energy import energy_pj
from psvit_core.metrics.spikes import count_spikes
from psvit_core.outcomes import (
    Array,
    Outcome,
    batches_key,
    kl_divergence,
    load_outcome,
    outcome_key,
    save_outcome,
)
from psvit_core.records import Conditions, Measurement, ModelSummary, PrunePlan
from psvit_core.runtime import Run
from psvit_core.size import memory_saving, plan_size, real_macs
from psvit_core.store import ENGINE_VERSION, Store, digest
from psvit_core.surgery import Silenced, apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

Tick = Callable[[], None]  # called before each batch; raises to stop


def go_on() -> None:
    """Never stop."""


@dataclass(frozen=True)
class Prediction:
    """Raw results of one pass over images."""

    logits: Array  # (n_images, num_classes)
    sops: Array  # (n_images,) float64
    firing: dict[str, float]  # neuron layer -> firing rate


def place(model: SpikingModel, run: Run) -> SpikingModel:
    """``model`` on the run's device and in its precision: itself if it is there, else a copy."""
    first = next(model.parameters())
    if (first.device, first.dtype) == (torch.device(run.device), run.dtype):
        return model
    placed: SpikingModel = copy.deepcopy(model).to(device=run.device, dtype=run.dtype)
    return placed


def predict(
    model: SpikingModel | Silenced,
    data: EvalSet,
    run: Run | None = None,
    *,
    widths: Mapping[str, int] | None = None,
    tick: Tick = go_on,
) -> Prediction:
    """Run a model over all images of ``data``, each from zero state.

    Args:
        model: A model in evaluation mode, already placed (``place``) where ``run`` says.
        data: Images.
        run: Device, batch, precision; the defaults when None.
        widths: Group widths that SOPs are counted at, for a silenced model.
        tick: Called before each batch; may raise to stop.

    Raises:
        DataError: If the data has more classes than the model has outputs.
    """
    run = run or Run()
    base = model.model if isinstance(model, Silenced) else model
    if max(data.labels) >= base.num_classes:
        raise DataError(
            f"{data.spec} has labels up to {max(data.labels)}, but {base.name} has "
            f"{base.num_classes} outputs. Give images of the classes that it was trained on."
        )
    logits = []
    with torch.no_grad(), run.autocast, count_spikes(base, widths) as count:
        for x in data.batches(run.batch, run.dtype, run.workers):
            tick()
            logits.append(model(x.to(run.device)).to(run.dtype).cpu())
    return Prediction(
        logits=torch.cat(logits).numpy(),
        sops=torch.cat(count.sops).cpu().numpy(),
        firing=count.firing_rates(),
    )


def outcome_of(data: EvalSet, prediction: Prediction, baseline_logits: Array) -> Outcome:
    """Per-image results of a prediction over ``data`` beside the baseline's logits."""
    return Outcome(
        ids=np.array(data.ids),
        labels=np.array(data.labels),
        predictions=prediction.logits.argmax(axis=1),
        kl=kl_divergence(baseline_logits, prediction.logits),
        sops=prediction.sops,
    )


class Baseline:
    """The unpruned model's results on a set of images, through the store.

    Args:
        model: The model, placed.
        data: Images.
        run: Device, batch, precision.
        store: Where results are kept, or None.
        tick: Called before each batch; may raise to stop.
    """

    def __init__(
        self,
        model: SpikingModel,
        data: EvalSet,
        run: Run,
        store: Store | None = None,
        tick: Tick = go_on,
    ) -> None:
        self.key = outcome_key(
            weights_hash(model), {}, transform=data.transform, T=model.T,
            precision=run.precision, form="silenced",
            batches=batches_key(model.batch_coupled, run.batch, data.ids),
        )  # fmt: skip
        self._logits: dict[str, Array] = {}
        known = store.get_arrays(self._logits_key) if store else None
        if known:
            self._logits = dict(zip(known["ids"].tolist(), known["logits"], strict=True))
        outcome = load_outcome(store, self.key) if store and known else None
        todo = outcome.missing(data.ids) if outcome else list(range(len(data)))
        if todo:
            part = data.take(todo)
            prediction = predict(model, part, run, tick=tick)
            self._logits |= dict(zip(part.ids, prediction.logits, strict=True))
            fresh = outcome_of(part, prediction, prediction.logits)
            outcome = outcome.joined(fresh) if outcome else fresh
            if store:
                names = np.array(list(self._logits))
                stacked = np.stack(list(self._logits.values()))
                store.put_arrays(self._logits_key, {"ids": names, "logits": stacked})
                save_outcome(store, self.key, outcome)
        assert outcome is not None
        self.outcome = outcome.select(data.ids)

    @property
    def _logits_key(self) -> str:
        return digest(["logits", self.key])

    def logits(self, data: EvalSet) -> Array:
        """The baseline's logits on images of the set that this was made for."""
        return np.stack([self._logits[name] for name in data.ids])


def conditions_of(model: SpikingModel, data: EvalSet, run: Run) -> Conditions:
    """How a number measured with these is measured."""
    return Conditions(
        data=data.spec,
        split=data.split,
        n_images=len(data),
        T=model.T,
        batch=run.batch,
        precision=run.precision,
        device=run.device,
        transform=data.transform,
    )


def measure(
    model: SpikingModel,
    data: EvalSet,
    plan: PrunePlan | None = None,
    *,
    run: Run | None = None,
    store: Store | None = None,
    summary: ModelSummary | None = None,
    tick: Tick = go_on,
) -> Measurement:
    """Measure a model, or what a plan makes of it by real surgery, on all images of ``data``.

    Args:
        model: The model that the plan is for.
        data: Images.
        plan: The plan; None measures the model itself.
        run: Device, batch, precision; the defaults when None.
        store: Where results are kept and taken from, or None.
        summary: ``groups.summarize(model, ...)`` where the caller has it.
        tick: Called before each batch; may raise to stop.

    Returns:
        The measurement; compared with the baseline on the same images where there is a plan.

    Raises:
        InvalidPlanError: If the plan does not fit the model.
        DataError: If the data does not fit the model.
    """
    run = run or Run()
    summary = summary or summarize(model, {})
    subject = apply_plan(model, plan) if plan else model
    conditions = conditions_of(model, data, run)
    kept = {group: list(units) for group, units in plan.kept.items()} if plan else {}
    key = "measurement/" + digest(
        [
            Measurement.version,
            ENGINE_VERSION,
            summary.weights_hash,
            kept,
            conditions.to_dict(),
            list(data.ids),
            bool(plan),
        ]
    )
    known = store.get(key) if store else None
    if known:
        return Measurement.from_dict({**known, "plan": plan.to_dict() if plan else None})
    base = Baseline(place(model, run), data, run, store, tick) if plan else None
    prediction = predict(place(subject, run), data, run, tick=tick)
    outcome = outcome_of(data, prediction, base.logits(data) if base else prediction.logits)
    size = plan_size(summary, plan)
    sops, macs_real = float(outcome.sops.mean()), real_macs(summary, plan)
    if plan:
        saving = memory_saving(summary, plan)
    else:
        saving = 1 - size.bytes / model.provenance.get("origin_bytes", size.bytes)
    cluster = run.batch if model.batch_coupled else None
    result = Measurement(
        model=summary.model,
        weights_hash=summary.weights_hash,
        conditions=conditions,
        accuracy=outcome.accuracy(cluster),
        size=size,
        sops=sops,
        macs_real=macs_real,
        energy_pj=energy_pj(macs_real, sops),
        firing=prediction.firing,
        memory_saving=saving,
        baseline_accuracy=base.outcome.accuracy(cluster) if base else None,
        drop=outcome.drop_from(base.outcome, cluster) if base else None,
        kl=float(outcome.kl.mean()) if base else None,
        agreement=outcome.agreement_with(base.outcome) if base else None,
        plan=plan,
    )
    if store:
        store.put(key, result.to_dict())
    return result
