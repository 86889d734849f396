"""Recovery of pruned models without training or labels, from a few hundred images.

``bn`` re-estimates the BatchNorm statistics, ``lsq`` refits the layers that lost inputs by least
squares, ``both`` runs ``lsq``, then ``bn``. ``stages`` refits all layers, corrects the error of the
residual streams on the way and fits the classifier to the unpruned model's probabilities;
``stages_bn`` also re-estimates each BatchNorm in turn. Recovery can hurt a model that lost little:
``auto`` tries all but ``bn``, which was best for no plan (docs/results.md), and selects the method
with the lowest KL divergence from the unpruned model's outputs on held-out calibration images, or
none.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.data.evalset import stratified_subset
from psvit_core.errors import DataError, InvalidPlanError, UnknownNameError
from psvit_core.evaluate import conditions_of
from psvit_core.groups import find_groups
from psvit_core.records import RECOVERIES, LayerRefit, PrunePlan, RecoveryReport
from psvit_core.recover.chains import Part, run_parts
from psvit_core.recover.lockstep import DEFAULT_MEMORY
from psvit_core.recover.norms import reestimate_norms
from psvit_core.recover.readers import refit_readers
from psvit_core.recover.stages import refit_stages
from psvit_core.recover.teacher import Teacher, find_teacher, run_logits
from psvit_core.runtime import Run, out_of_memory_explained
from psvit_core.storage.predictions import kl_divergence
from psvit_core.storage.store import digest
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

#: Raised whenever a method gives other weights; part of the keys of results.
VERSION = 2
_HELD_OUT = 0.25  # fraction of the calibration images that choose the method

#: Steps of each method, in order.
_STEPS: dict[str, tuple[str, ...]] = {
    "none": ("none",),
    "bn": ("none", "bn"),
    "lsq": ("none", "lsq"),
    "both": ("none", "lsq", "both"),
    "stages": ("none", "stages"),
    "stages_bn": ("none", "stages_bn"),
    "auto": ("none", "lsq", "both", "stages", "stages_bn"),
}


#: Steps of ``auto`` that can run at once, and the step that continues each. In this order, two at a
#: time end at about the same time.
_PARTS = (("stages_bn", None), ("lsq", "both"), ("stages", None), ("none", None))


def recover(  # noqa: PLR0913  # public signature
    small: SpikingModel,
    original: SpikingModel,
    plan: PrunePlan,
    calib: EvalSet,
    *,
    method: str = "auto",
    run: Run | None = None,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    tick: Tick = keep_going,
) -> tuple[SpikingModel, RecoveryReport]:
    """Recover accuracy that pruning lost, without labels and without training.

    Fits on three quarters of the images (stratified) and measures the gain on the others; with
    fewer than four images, on all. ``auto`` takes the method with the lowest KL, if any lowers it.

    Args:
        small: The pruned model of ``plan``; not modified.
        original: The unpruned model; not modified.
        plan: The plan.
        calib: Calibration images from the training images; labels are not used.
        method: One of ``RECOVERIES``.
        run: Device, batch, precision (of fits: ``Run.exact``); the defaults when None.
        seed: Seed that selected ``calib``, for the report.
        memory: Memory limit of halted batches, in bytes (see ``lockstep``).
        tick: Called before each step of a batch; may raise to stop.

    Returns:
        (a new model with the recovery in its provenance, the report).

    Raises:
        UnknownNameError: If the method is unknown.
        DataError: If ``calib`` is a split that accuracy is measured on.
        InvalidPlanError: If the plan does not fit the models.
    """
    if method not in RECOVERIES:
        raise UnknownNameError("recovery", method, RECOVERIES)
    weights, run = _check(small, original, plan, calib), (run or Run()).exact
    fit, held_out = _split(calib)
    work = _RecoveryRun(small, find_teacher(original, weights, fit, held_out, run), memory, tick)
    kl = _tried(work, method, plan)
    used = min(kl, key=lambda step: kl[step]) if method == "auto" else method
    report = RecoveryReport(
        model=plan.model,
        method=method,
        used=used,
        conditions=conditions_of(small, calib, run),
        calib_id=digest(list(calib.ids)),
        seed=seed,
        n_fit=len(fit),
        n_held_out=len(held_out),
        kl=kl,
        layers=work.layers.get("lsq" if used == "both" else used, ()),
        seconds=work.seconds,
        statistics_bytes=work.statistics_bytes,
        held_bytes=work.held_bytes,
    )
    return work.finished(used, report), report


def prepare(original: SpikingModel, calib: EvalSet, run: Run, tick: Tick = keep_going) -> None:
    """Compute what recoveries of a model's plans take from the model; the process keeps it.

    Without it, the first recovery does. Only where ``auto`` may try several methods at once.

    Args:
        original: The unpruned model; not modified.
        calib: The calibration images of the recoveries.
        run: Device, batch, precision of the recoveries (``recover``).
        tick: Called before each batch; may raise to stop.

    Raises:
        DataError: If ``calib`` is a split that accuracy is measured on.
    """
    check_calibration(calib)
    teacher = find_teacher(original, weights_hash(original), *_split(calib), run.exact)
    teacher.is_shared(DEFAULT_MEMORY, tick)


def _tried(work: _RecoveryRun, method: str, plan: PrunePlan) -> dict[str, float]:
    """Try the steps of a method; return the KL of each."""
    with out_of_memory_explained(work.run):
        if method == "auto" and work.may_split:
            return _try_at_once(work, plan)
        return {step: work.try_step(step, plan) for step in _STEPS[method]}


def _try_at_once(work: _RecoveryRun, plan: PrunePlan) -> dict[str, float]:
    """Try all steps of ``auto``, several at a time; return the KL of each as ``try_step`` does.

    The results are those of one step after another: steps that run together have models of their
    own, and what they share of the unpruned model is complete.
    """
    found: dict[str, float] = {}
    idle = [work.sharing(work.model)]  # no more models than threads: each is copied once

    def part(step: str, following: str | None) -> Part:
        def run(tick: Tick) -> Part | None:
            try:
                own = idle.pop()
            except IndexError:
                own = work.sharing(work.copied())
            own.tick = tick
            found[step] = own.try_step(step, plan)
            idle.append(own)
            return part(following, None) if following else None

        return run

    run_parts([part(*steps) for steps in _PARTS], work.tick)
    for own in idle:
        work.take_bytes(own)
    return {step: found[step] for step in _STEPS["auto"]}


def _check(small: SpikingModel, original: SpikingModel, plan: PrunePlan, calib: EvalSet) -> str:
    """Return the hash of the unpruned model's weights, if all arguments fit together."""
    check_calibration(calib)
    groups = find_groups(original)
    weights = weights_hash(original)
    plan.check(groups, weights)
    wanted = {g.group_id: len(plan.kept.get(g.group_id, range(g.n_units))) for g in groups}
    if {g.group_id: g.n_units for g in find_groups(small)} != wanted:
        raise InvalidPlanError(
            f"The pruned model does not have the widths of the plan for {plan.model}. "
            "Create it with apply_plan(original, plan)."
        )
    return weights


def check_calibration(images: EvalSet) -> None:
    """Raise ``DataError`` if calibration images are a split that accuracy is measured on."""
    if images.split not in ("calib", "train"):
        raise DataError(
            f"Recovery cannot use the {images.split} split: accuracy is measured on it. "
            "Use the split calib or train."
        )


def _split(calib: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Return the images to fit on and the held-out images."""
    n_held_out = int(_HELD_OUT * len(calib))
    if n_held_out == 0:
        return calib, calib
    chosen = set(stratified_subset(calib.labels, n_held_out))
    return calib.take([i for i in range(len(calib)) if i not in chosen]), calib.take(sorted(chosen))


class _RecoveryRun:
    """One recovery on the run's device: its pruned model, and the time and memory of its steps.

    Args:
        small: The pruned model.
        teacher: The unpruned model and the images.
        memory: Memory limit of halted batches, in bytes.
        tick: Called before each step of a batch; may raise to stop.
    """

    def __init__(self, small: SpikingModel, teacher: Teacher, memory: int, tick: Tick) -> None:
        self.layers: dict[str, tuple[LayerRefit, ...]] = {}  # by step
        self.seconds: dict[str, float] = {}
        self.statistics_bytes = self.held_bytes = 0
        self._small, self._teacher = small, teacher
        self.model = self.copied()
        self._states = {"none": _state(self.model)}  # the model's tensors after each step
        self._memory, self.tick = memory, tick

    @property
    def run(self) -> Run:
        """Device, batch and precision."""
        return self._teacher.run

    @property
    def may_split(self) -> bool:
        """Whether steps may run at once, each on a copy."""
        return self._teacher.is_shared(self._memory, self.tick)

    def copied(self) -> SpikingModel:
        """Return a copy of the pruned model, placed."""
        run = self._teacher.run
        return copy.deepcopy(self._small).to(run.device, run.dtype).eval()

    def sharing(self, model: SpikingModel) -> _RecoveryRun:
        """Return this run on another model: what its steps find is also found by this one."""
        other = copy.copy(self)
        other.model = model
        return other

    def take_bytes(self, other: _RecoveryRun) -> None:
        """Take the memory of another run's steps, which ``sharing`` does not share."""
        self.statistics_bytes = max(self.statistics_bytes, other.statistics_bytes)
        self.held_bytes = max(self.held_bytes, other.held_bytes)

    def try_step(self, step: str, plan: PrunePlan) -> float:
        """Run a step; return the mean KL divergence on the held-out images, in nats."""
        self._load("lsq" if step == "both" else "none")
        started = time.perf_counter()
        if step in ("bn", "both"):
            fit, run = self._teacher.fit, self._teacher.fit_run(self._memory)
            held = reestimate_norms(self.model, fit, run, memory=self._memory, tick=self.tick)
            self.held_bytes = max(self.held_bytes, held)
        elif step != "none":
            self._refit(step, plan)
        if step != "none":
            self.seconds[step] = time.perf_counter() - started
            self._states[step] = _state(self.model)
        teacher, tick = self._teacher, self.tick
        found = run_logits(self.model, teacher.held_out, teacher.run, tick)
        return float(kl_divergence(teacher.expected(tick), found).mean())

    def _refit(self, step: str, plan: PrunePlan) -> None:
        model, teacher, memory, tick = self.model, self._teacher, self._memory, self.tick
        if step == "lsq":
            done = refit_readers(model, teacher, plan, memory=memory, tick=tick)
        else:
            norms = step == "stages_bn"
            done = refit_stages(model, teacher, plan, norms=norms, memory=memory, tick=tick)
        self.layers[step] = done.layers
        self.statistics_bytes = max(self.statistics_bytes, done.statistics_bytes)
        self.held_bytes = max(self.held_bytes, done.held_bytes)

    @torch.no_grad()
    def _load(self, step: str) -> None:
        state = self._states[step]
        for name, tensor in _tensors(self.model):
            tensor.copy_(state[name])

    def finished(self, used: str, report: RecoveryReport) -> SpikingModel:
        """Return the model after a step, where the pruned model is, with its provenance."""
        self._load(used)
        first = next(self._small.parameters())
        done = self.model.to(first.device, first.dtype)
        if report.method != "none":
            earlier = done.provenance.get("recoveries", [])
            done.provenance = {**done.provenance, "recoveries": [*earlier, report.to_dict()]}
        return done.train(self._small.training)


def _tensors(model: SpikingModel) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _state(model: SpikingModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}
