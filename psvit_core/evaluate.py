"""Running a model over images, and measuring models and plans through the store."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from filelock import FileLock

from psvit_core.data import EvalSet
from psvit_core.data.evalset import stratified_order
from psvit_core.errors import DataError
from psvit_core.groups import summarize
from psvit_core.metrics.energy import energy_pj
from psvit_core.metrics.profile import machine, profile_of
from psvit_core.metrics.spikes import count_spikes
from psvit_core.outcomes import (
    Array,
    Outcome,
    add_outcome,
    as_run,
    batches_key,
    kl_divergence,
    load_outcome,
    outcome_key,
    ran_with,
)
from psvit_core.records import (
    Conditions,
    Measurement,
    ModelSummary,
    Partial,
    Profile,
    PrunePlan,
)
from psvit_core.runtime import Run, channels_last
from psvit_core.size import memory_saving, plan_size, real_macs
from psvit_core.store import ENGINE_VERSION, Store, digest
from psvit_core.surgery import Silenced, apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

Tick = Callable[[], None]  # called before each batch; raises to stop
Seen = Callable[[Array], None]  # called after each batch with its logits

_PARTIAL_SECONDS = 0.5  # partial results are told at most this often, the first at once


def go_on() -> None:
    """Never stop."""


def keep_nothing(logits: Array) -> None:
    """Look at no batch."""


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
    seen: Seen = keep_nothing,
) -> Prediction:
    """Run a model over all images of ``data``, each from zero state.

    Args:
        model: A model in evaluation mode, already placed (``place``) where ``run`` says.
        data: Images.
        run: Device, batch, precision; the defaults when None.
        widths: Group widths that SOPs are counted at, for a silenced model.
        tick: Called before each batch; may raise to stop.
        seen: Called after each batch with its logits, (B, num_classes).

    Raises:
        DataError: If the data has more classes than the model has outputs.
    """
    run = run or Run()
    base = model.model if isinstance(model, Silenced) else model
    check_labels(base, data)
    logits = []
    weights = {name: channels_last(t.detach()) for name, t in base.named_parameters()}
    if isinstance(model, Silenced):
        weights |= model.edits
    with torch.no_grad(), run.autocast, count_spikes(base, widths) as count:
        for x in data.batches(run.batch, run.dtype, run.workers):
            tick()
            answer = torch.func.functional_call(base, weights, (channels_last(x.to(run.device)),))
            logits.append(answer.to(run.dtype).cpu())
            seen(logits[-1].numpy())
    return Prediction(
        logits=torch.cat(logits).numpy(),
        sops=torch.cat(count.sops).cpu().numpy(),
        firing=count.firing_rates(),
    )


def check_labels(model: SpikingModel, data: EvalSet) -> None:
    """Raise ``DataError`` if the data has more classes than the model has outputs."""
    if max(data.labels) >= model.num_classes:
        raise DataError(
            f"{data.spec} has labels up to {max(data.labels)}, but {model.name} has "
            f"{model.num_classes} outputs. Give images of the classes that it was trained on."
        )


def outcome_of(data: EvalSet, prediction: Prediction, baseline_logits: Array, run: Run) -> Outcome:
    """Per-image results of a prediction over ``data`` beside the baseline's logits."""
    return Outcome(
        ids=np.array(data.ids),
        labels=np.array(data.labels),
        predictions=prediction.logits.argmax(axis=1),
        kl=kl_divergence(baseline_logits, prediction.logits),
        sops=prediction.sops,
        ran=ran_with(run.device, run.batch),
    )


class Baseline:
    """The unpruned model's results on a set of images, through the store.

    Args:
        model: The model, placed.
        data: Images.
        run: Device, batch, precision.
        store: Where results are kept, or None.
        tick: Called before each batch; may raise to stop.
        seen: Called after each batch with (images run, images that are to be run).
    """

    def __init__(
        self,
        model: SpikingModel,
        data: EvalSet,
        run: Run,
        store: Store | None = None,
        tick: Tick = go_on,
        seen: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.key = outcome_key(
            weights_hash(model), {}, transform=data.transform, T=model.T,
            precision=run.precision, form="silenced",
            batches=batches_key(model.batch_coupled, run.batch, data.ids),
        )  # fmt: skip
        self._logits = self._kept_logits(store) if store else {}
        outcome = load_outcome(store, self.key) if store else None
        # Logits and outcome are two files: whoever was stopped between them has written one.
        there = self._logits.keys() & set(outcome.ids.tolist() if outcome else ())
        todo = [i for i, name in enumerate(data.ids) if name not in there]
        self._n_run = 0
        if todo:

            def count(logits: Array) -> None:
                self._n_run += len(logits)
                seen(self._n_run, len(todo))

            part = data.take(todo)
            prediction = predict(model, part, run, tick=tick, seen=count)
            self._logits |= dict(zip(part.ids, prediction.logits, strict=True))
            fresh = outcome_of(part, prediction, prediction.logits, run)
            outcome = outcome.joined(fresh) if outcome else fresh
            if store:
                self._keep_logits(store)
                add_outcome(store, self.key, fresh)
        assert outcome is not None
        self.outcome = outcome.select(data.ids)

    @property
    def _logits_key(self) -> str:
        return digest(["logits", self.key])

    def _kept_logits(self, store: Store) -> dict[str, Array]:
        known = store.get_arrays(self._logits_key)
        return dict(zip(known["ids"].tolist(), known["logits"], strict=True)) if known else {}

    def _keep_logits(self, store: Store) -> None:
        """Add ours to those in the store; images that are there stay as they are."""
        with FileLock(store.place("locks", f"outcome-{self._logits_key[:2]}.lock")):
            whole = {**self._logits, **self._kept_logits(store)}
            names, logits = np.array(list(whole)), np.stack(list(whole.values()))
            store.put_arrays(self._logits_key, {"ids": names, "logits": logits})

    def logits(self, data: EvalSet) -> Array:
        """The baseline's logits on images of the set that this was made for."""
        return np.stack([self._logits[name] for name in data.ids])


def conditions_of(model: SpikingModel, data: EvalSet, run: Run) -> Conditions:
    """How a number measured with these is measured."""
    # Where images of a batch influence each other, their order is part of which they are.
    names = list(data.ids) if model.batch_coupled else sorted(data.ids)
    return Conditions(
        data=data.spec,
        split=data.split,
        n_images=len(data),
        T=model.T,
        batch=run.batch,
        precision=run.precision,
        device=run.device,
        transform=data.transform,
        images=digest(names),
    )


def measure(
    model: SpikingModel,
    data: EvalSet,
    plan: PrunePlan | None = None,
    *,
    run: Run | None = None,
    store: Store | None = None,
    summary: ModelSummary | None = None,
    result: SpikingModel | None = None,
    profile: bool = False,
    tick: Tick = go_on,
    partial: Callable[[Partial], None] | None = None,
) -> Measurement:
    """Measure a model, or what a plan makes of it by real surgery, on all images of ``data``.

    Images are run in an order in which every beginning is a fair sample (``visiting_order``), so
    that partial results estimate the final one; batch sizes are the run's throughout.

    Args:
        model: The model that the plan is for.
        data: Images.
        plan: The plan; None measures the model itself.
        run: Device, batch, precision; the defaults when None.
        store: Where results are kept and taken from, or None.
        summary: ``groups.summarize(model, ...)`` where the caller has it.
        result: What the plan left of the model, with other weights since: recovered or trained.
        profile: Also measure run-time memory and latency here; kept with the machine.
        tick: Called before each batch; may raise to stop.
        partial: Told what the images so far say: after the first batch, then about twice a second.

    Returns:
        The measurement; compared with the baseline on the same images where there is a plan.

    Raises:
        InvalidPlanError: If the plan does not fit the model.
        DataError: If the data does not fit the model.
    """
    run = run or Run()
    summary = summary or summarize(model, {})
    if plan:
        plan.check(summary.groups, summary.weights_hash)
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
            *([weights_hash(result)] if result else []),
        ]
    )
    known = store.get(key) if store else None
    if known:
        found = Measurement.from_dict({**known, "plan": plan.to_dict() if plan else None})
    else:
        watch = _Watch(partial) if partial else None
        subject = result or (apply_plan(model, plan) if plan else model)
        found = _measured(subject, model, data, plan, run, store, summary, tick, watch)
        if store:
            store.put(key, found.to_dict())
    if profile:
        parts = [
            ENGINE_VERSION, summary.weights_hash, kept, model.T, list(model.input_shape),
            data.transform, run.precision, run.batch, len(data),
        ]  # fmt: skip
        measured = _profiled(model, data, plan, run, store, parts, tick)
        found = dataclasses.replace(found, profile=measured)
    return found


def _measured(
    subject: SpikingModel,
    model: SpikingModel,
    data: EvalSet,
    plan: PrunePlan | None,
    run: Run,
    store: Store | None,
    summary: ModelSummary,
    tick: Tick,
    watch: _Watch | None,
) -> Measurement:
    """Run the model, or what became of it by ``plan``, and the baseline."""
    base = None
    if plan:
        on_baseline = watch.baseline(len(data)) if watch else lambda done, total: None
        base = Baseline(place(model, run), data, run, store, tick, on_baseline)
    cluster = run.batch if model.batch_coupled else None
    order = visiting_order(data, cluster)
    visited = data.take(order)
    seen = watch.subject(visited, base, cluster) if watch else keep_nothing
    prediction = predict(place(subject, run), visited, run, tick=tick, seen=seen)
    logits = base.logits(visited) if base else prediction.logits
    outcome = outcome_of(visited, prediction, logits, run).select(data.ids)
    size = plan_size(summary, plan)
    sops, macs_real = float(outcome.sops.mean()), real_macs(summary, plan)
    if plan:
        saving = memory_saving(summary, plan)
    else:
        saving = 1 - size.bytes / model.provenance.get("origin_bytes", size.bytes)
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
    )


def _profiled(
    model: SpikingModel,
    data: EvalSet,
    plan: PrunePlan | None,
    run: Run,
    store: Store | None,
    parts: list[object],
    tick: Tick,
) -> Profile:
    """The profile of the model or of what ``plan`` makes of it, kept for this machine only."""
    key = "profile/" + digest([*parts, machine(run.device).to_dict()])
    known = store.get(key) if store else None
    if known:
        return Profile.from_dict(known)
    subject = apply_plan(model, plan) if plan else model
    found = profile_of(place(subject, run), data, run, tick=tick)
    if store:
        store.put(key, found.to_dict())
    return found


def visiting_order(data: EvalSet, cluster: int | None) -> list[int]:
    """Positions of ``data`` in an order in which every beginning is a fair sample.

    Data sets are often sorted by class, so their first images say little about all. Seeded and
    stratified, as ``EvalSet.limit``: the first n images are those of a limit of n.

    Args:
        data: Images.
        cluster: Batch size where the images of a batch influence each other: then the batches stay
            as they are and come in a seeded random order, a short one last.
    """
    if cluster is None:
        return stratified_order(data.labels)
    whole = len(data) // cluster
    starts = np.random.RandomState(0).permutation(whole) * cluster
    order = [int(start) + i for start in starts for i in range(cluster)]
    return order + list(range(whole * cluster, len(data)))


class _Watch:
    """Makes partial results of the batches so far, seldom enough to cost little."""

    def __init__(self, tell: Callable[[Partial], None]) -> None:
        self._tell = tell
        self._next = 0.0  # on the clock of time.monotonic
        self._before = 0  # images of the baseline that were run

    def baseline(self, n_images: int) -> Callable[[int, int], None]:
        """What the baseline's run is watched with; ``n_images`` are to come after it."""

        def seen(done: int, todo: int) -> None:
            self._before = done
            self._when_due(lambda: Partial(done=done, total=todo + n_images))

        return seen

    def subject(self, data: EvalSet, base: Baseline | None, cluster: int | None) -> Seen:
        """What the measured model's run over ``data`` is watched with."""
        predictions: list[int] = []
        self._next = 0.0  # its first batch is told at once

        def estimate() -> Partial:
            n = len(predictions)
            nothing = np.zeros(n)
            outcome = Outcome(
                ids=np.array(data.ids[:n]), labels=np.array(data.labels[:n]),
                predictions=np.array(predictions), kl=nothing, sops=nothing,
            )  # fmt: skip
            return Partial(
                done=self._before + n,
                total=self._before + len(data),
                n_images=n,
                accuracy=outcome.accuracy(cluster),
                drop=outcome.drop_from(base.outcome, cluster) if base else None,
            )

        def seen(logits: Array) -> None:
            predictions.extend(logits.argmax(axis=1).tolist())
            if len(predictions) < len(data):  # the whole is no partial result
                self._when_due(estimate)

        return seen

    def _when_due(self, make: Callable[[], Partial]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._tell(make())
        cost = time.monotonic() - now  # a bootstrap over many batches takes its time
        self._next = time.monotonic() + max(_PARTIAL_SECONDS, 10 * cost)
