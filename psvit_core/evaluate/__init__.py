"""Inference over images, and measurements of models and plans, cached in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.data.evalset import visiting_order
from psvit_core.estimates import Seen, Watch
from psvit_core.evaluate.inference import (
    Prediction,
    check_labels,
    ignore_batch,
    place,
    place_once,
    predict,
)
from psvit_core.evaluate.memory import count_memory_access
from psvit_core.evaluate.plans import predict_plan, predict_unpruned, prepare_plans
from psvit_core.evaluate.precision import check_precision
from psvit_core.groups import summarize
from psvit_core.metrics.energy import energy_pj
from psvit_core.metrics.profile import machine, profile_of
from psvit_core.plan.size import memory_saving, plan_size, real_macs
from psvit_core.records import (
    Conditions,
    Measurement,
    MemoryAccess,
    ModelSummary,
    Partial,
    Profile,
    PrunePlan,
    counting_of,
)
from psvit_core.runtime import Run
from psvit_core.storage.baselines import add_outputs, load_outputs
from psvit_core.storage.predictions import (
    Array,
    Outcome,
    add_outcome,
    as_run,
    batches_key,
    kl_divergence,
    load_outcome,
    outcome_key,
    ran_with,
    top5_accuracy,
)
from psvit_core.storage.store import ENGINE_VERSION, Store, digest
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

__all__ = [
    "Baseline",
    "Prediction",
    "check_labels",
    "conditions_of",
    "count_memory_access",
    "measure",
    "measure_against",
    "outcome_of",
    "place",
    "place_once",
    "predict",
    "predict_plan",
    "prepare_plans",
]

#: Predictions of one network, by images and run.
_Once = dict[tuple[tuple[str, ...], Run], Prediction]


def outcome_of(data: EvalSet, prediction: Prediction, baseline_logits: Array, run: Run) -> Outcome:
    """Return the per-image results of a prediction compared with the baseline's logits."""
    return Outcome(
        ids=np.array(data.ids),
        labels=np.array(data.labels),
        predictions=prediction.logits.argmax(axis=1),
        kl=kl_divergence(baseline_logits, prediction.logits),
        sops=prediction.sops,
        ran=ran_with(run.device, run.batch),
    )


class Baseline:
    """The unpruned model's results on a set of images, cached in the store.

    Args:
        model: The model, placed.
        data: Images.
        run: Device, batch, precision.
        store: Store that results are read from and written to, or None.
        tick: Called before each batch; may raise to stop.
        seen: Called after each batch with (images run, images to run).
    """

    def __init__(
        self,
        model: SpikingModel,
        data: EvalSet,
        run: Run,
        store: Store | None = None,
        tick: Tick = keep_going,
        seen: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        hashed = weights_hash(model)
        self.key = outcome_key(
            hashed,
            {},
            transform=data.transform,
            T=model.T,
            precision=run.precision,
            form="silenced",
            batches=batches_key(model.batch_coupled, run.batch, data.ids),
            counting=counting_of(model.family),
        )
        self._logits = self._stored_logits(store) if store else {}
        outcome = load_outcome(store, self.key) if store else None
        # Logits and outcome are two files: a process stopped between the two writes leaves one.
        stored = self._logits.keys() & set(outcome.ids.tolist() if outcome else ())
        todo = [i for i, name in enumerate(data.ids) if name not in stored]
        self._n_run = 0
        if todo:

            def count(logits: Array) -> None:
                self._n_run += len(logits)
                seen(self._n_run, len(todo))

            part = data.take(todo)
            prediction = predict_unpruned(model, hashed, part, run, tick, count)
            self._logits |= dict(zip(part.ids, prediction.logits, strict=True))
            fresh = outcome_of(part, prediction, prediction.logits, run)
            outcome = outcome.joined(fresh) if outcome else fresh
            if store:
                ids = np.array(part.ids)
                with store.optional():
                    add_outputs(store, self.key, ids, {"logits": prediction.logits})
                    add_outcome(store, self.key, fresh)
        assert outcome is not None
        self.outcome = outcome.select(data.ids)

    def _stored_logits(self, store: Store) -> dict[str, Array]:
        known = load_outputs(store, self.key)
        return dict(zip(known["ids"].tolist(), known["logits"], strict=True)) if known else {}

    def logits(self, data: EvalSet) -> Array:
        """Return the baseline's logits on ``data``, a subset of its images."""
        return np.stack([self._logits[name] for name in data.ids])


def conditions_of(model: SpikingModel, data: EvalSet, run: Run) -> Conditions:
    """Return the conditions under which this model is measured on these images."""
    # If the images of a batch influence each other, their order is part of the conditions.
    names = list(data.ids) if model.batch_coupled else sorted(data.ids)
    return Conditions(
        data=data.name,
        split=data.split,
        n_images=len(data),
        T=model.T,
        batch=run.batch,
        precision=run.precision,
        device=run.device,
        transform=data.transform,
        images=data.reading + digest(names),
        counting=counting_of(model.family),
    )


def measure(  # noqa: PLR0913  # public signature
    model: SpikingModel,
    data: EvalSet,
    plan: PrunePlan | None = None,
    *,
    run: Run | None = None,
    store: Store | None = None,
    summary: ModelSummary | None = None,
    result: SpikingModel | None = None,
    profile: bool = False,
    memory: bool = False,
    tick: Tick = keep_going,
    partial: Callable[[Partial], None] | None = None,
) -> Measurement:
    """Measure a model, or the physically pruned model of a plan, on all images of ``data``.

    Images run in an order in which every prefix is a fair sample (``visiting_order``), so that
    partial results estimate the final one: with 95 % confidence, it lies in the intervals of all
    of them, however often one looks. Batches have the run's size throughout.

    Args:
        model: The model that the plan is for.
        data: Images.
        plan: The plan; None measures the model itself.
        run: Device, batch, precision; the defaults when None.
        store: Store that results are read from and written to, or None.
        summary: ``groups.summarize(model, ...)`` if the caller has it.
        result: The plan's pruned model with other weights, recovered or trained.
        profile: Also measure run-time memory and latency on this machine.
        memory: Also count memory accesses, for ``at_energy``; the images run once more.
        tick: Called before each batch; may raise to stop.
        partial: Called with the result so far after the first batch, then up to ten times a second.

    Returns:
        The measurement; with a plan, compared with the baseline on the same images.

    Raises:
        InvalidPlanError: If the plan does not fit the model.
        DataError: If the data does not fit the model.
    """
    run = run or Run()
    summary = summary or summarize(model, {})
    if plan:
        plan.check(summary.groups, summary.weights_hash)
    request = _Request(model, data, plan, run, store, summary, tick)
    found = _stored(request, result, Watch(partial, run.batch) if partial else None)
    if profile:
        found = dataclasses.replace(found, profile=_profiled(request))
    if memory:
        found = dataclasses.replace(found, memory=request.memory(result))
    return found


def measure_against(
    result: SpikingModel,
    origins: Sequence[tuple[SpikingModel, PrunePlan] | None],
    data: EvalSet,
    *,
    run: Run | None = None,
    store: Store | None = None,
    tick: Tick = keep_going,
) -> list[Measurement]:
    """Measure one network against several others, as ``measure`` does; it runs once.

    Args:
        result: The network, recovered, trained or quantized.
        origins: Networks to compare it with, each with the plan that makes its widths of theirs.
            None: it is measured alone.
        data: Images.
        run: Device, batch, precision; the defaults when None.
        store: Store that results are read from and written to, or None.
        tick: Called before each batch; may raise to stop.

    Returns:
        One measurement per origin.
    """
    run, found = run or Run(), []
    once: _Once = {}
    for origin in origins:
        model, plan = origin or (result, None)
        summary = summarize(model, {})
        if plan:
            plan.check(summary.groups, summary.weights_hash)
        request = _Request(model, data, plan, run, store, summary, tick, once)
        found.append(_stored(request, result if plan else None, None))
    return found


@dataclass(frozen=True)
class _Request:
    """Everything that decides a measurement."""

    model: SpikingModel
    data: EvalSet
    plan: PrunePlan | None
    run: Run
    store: Store | None
    summary: ModelSummary
    tick: Tick
    once: _Once | None = field(default=None, repr=False)  # if others measure the same network

    @property
    def kept(self) -> dict[str, list[int]]:
        """Kept units by group; empty without a plan."""
        return {group: list(units) for group, units in self.plan.kept.items()} if self.plan else {}

    def subject(self) -> SpikingModel:
        """Return the model itself, or the pruned model that the plan makes of it."""
        return apply_plan(self.model, self.plan) if self.plan else self.model

    def predict(
        self,
        data: EvalSet,
        run: Run,
        result: SpikingModel | None,
        seen: Callable[[], Seen] = lambda: ignore_batch,
    ) -> Prediction:
        """Run ``result``, or what the plan makes of the model, or the model itself.

        Args:
            data: Images.
            run: Device, batch, precision; of this request, or exact.
            result: The plan's pruned model with other weights, or None.
            seen: Makes what is called after each batch; once more if a plan's network has to be
                built after all.
        """
        if self.once is None:
            return self._predict(data, run, result, seen)
        key = (tuple(data.ids), run)
        if key not in self.once:
            self.once[key] = self._predict(data, run, result, seen)
        return self.once[key]

    def _predict(
        self, data: EvalSet, run: Run, result: SpikingModel | None, seen: Callable[[], Seen]
    ) -> Prediction:
        if not self.plan and not result:
            hashed = self.summary.weights_hash
            return predict_unpruned(self.model, hashed, data, run, self.tick, seen())
        prediction = None
        if self.plan:
            new = place(result, run) if result else None
            prediction = predict_plan(self.model, data, self.plan, run, self.tick, seen(), new)
        if prediction is None:
            subject = place(result or self.subject(), run)
            prediction = predict(subject, data, run, tick=self.tick, seen=seen())
        return prediction

    def memory(self, result: SpikingModel | None) -> MemoryAccess:
        """Return the memory accesses of ``result``, or of the subject."""
        model = result or self.subject()
        return count_memory_access(model, self.data, run=self.run, tick=self.tick)

    def measurement_key(self, result: SpikingModel | None) -> str:
        """Return the store key; ``result`` is a pruned model with other weights, or None."""
        parts = [
            Measurement.version,
            ENGINE_VERSION,
            self.summary.weights_hash,
            self.kept,
            conditions_of(self.model, self.data, self.run).to_dict(),
            list(self.data.ids),
            bool(self.plan),
            *([weights_hash(result)] if result else []),
        ]
        return "measurement/" + digest(parts)

    def profile_key(self) -> str:
        """Return the store key of the profile on this machine."""
        parts = [
            ENGINE_VERSION,
            self.summary.weights_hash,
            self.kept,
            self.model.T,
            list(self.model.input_shape),
            self.data.transform,
            self.run.precision,
            self.run.batch,
            len(self.data),
            machine(self.run.device).to_dict(),
        ]
        return "profile/" + digest(parts)


def _stored(request: _Request, result: SpikingModel | None, watch: Watch | None) -> Measurement:
    """Return the stored measurement of a request, measured unless there is one."""
    key, store, plan = request.measurement_key(result), request.store, request.plan
    known = store.get(key) if store else None
    if known:
        return Measurement.from_dict({**known, "plan": plan.to_dict() if plan else None})
    found = _measured(request, result, watch)
    if store:
        with store.optional():
            store.put(key, found.to_dict())
    return found


def _measured(request: _Request, result: SpikingModel | None, watch: Watch | None) -> Measurement:
    """Run ``result`` or what the plan makes of the model, and the unpruned model with a plan."""
    model, data, plan, run = request.model, request.data, request.plan, request.run
    store, summary, tick = request.store, request.summary, request.tick
    base = None
    if plan:
        on_baseline = watch.before(len(data)) if watch else lambda done, total: None
        base = Baseline(
            place_once(model, run, summary.weights_hash), data, run, store, tick, on_baseline
        )
    cluster = run.batch if model.batch_coupled else None
    order = visiting_order(data, cluster)
    visited = data.take(order)
    baseline = base.outcome if base else None

    def seen() -> Seen:
        return watch.subject(visited, baseline, cluster) if watch else ignore_batch

    prediction = request.predict(visited, run, result, seen)
    logits = base.logits(visited) if base else prediction.logits
    outcome = outcome_of(visited, prediction, logits, run).select(data.ids)
    size = plan_size(summary, plan)
    sops, macs_real = float(outcome.sops.mean()), real_macs(summary, plan)
    origin = model.provenance.get("origin_bytes", size.bytes)
    saving = memory_saving(summary, plan) if plan else 1 - size.bytes / origin
    return Measurement(
        model=summary.model,
        weights_hash=summary.weights_hash,
        conditions=as_run(
            conditions_of(model, data, run), outcome.runs | (base.outcome.runs if base else set())
        ),
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
        per_class=outcome.by_class(base.outcome, data.classes) if base else None,
        confusions=outcome.confusions(base.outcome, data.classes) if base else None,
        top5=top5_accuracy(prediction.logits, visited.labels, cluster),
        baseline_top5=top5_accuracy(logits, visited.labels, cluster) if base else None,
        precision_check=check_precision(
            lambda part, exact: request.predict(part, exact, result),
            visited,
            prediction.logits,
            run,
            cluster,
        ),
    )


def _profiled(request: _Request) -> Profile:
    """Return the run-time profile on this machine, measured unless it is stored."""
    key, store = request.profile_key(), request.store
    known = store.get(key) if store else None
    if known:
        return Profile.from_dict(known)
    placed = place(request.subject(), request.run)
    found = profile_of(placed, request.data, request.run, tick=request.tick)
    if store:
        with store.optional():
            store.put(key, found.to_dict())
    return found
