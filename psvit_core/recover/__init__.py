"""Recovery without training: what a pruned model wins back from a few hundred images, no labels.

``bn`` re-estimates the BatchNorm statistics, ``lsq`` refits the layers that lost inputs by least
squares, ``both`` does ``lsq``, then ``bn``. On nearly intact models a recovery can hurt: ``auto``
keeps what lowers the KL to the original's outputs on held-out calibration images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from psvit_core.data import EvalSet
from psvit_core.data.evalset import limited
from psvit_core.errors import DataError, InvalidPlanError, UnknownNameError
from psvit_core.evaluate import Tick, conditions_of, go_on, place
from psvit_core.groups import find_groups
from psvit_core.outcomes import Array, kl_divergence
from psvit_core.records import RECOVERIES, LayerRefit, PrunePlan, RecoveryReport
from psvit_core.recover.lockstep import DEFAULT_MEMORY
from psvit_core.recover.norms import reestimate_norms
from psvit_core.recover.readers import refit_readers
from psvit_core.runtime import Run
from psvit_core.store import digest
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

_HELD_OUT = 0.25  # of the calibration images decide; the others are fitted to

#: Method -> what is done, in this order.
_STEPS: dict[str, tuple[str, ...]] = {
    "none": ("none",),
    "bn": ("none", "bn"),
    "lsq": ("none", "lsq"),
    "both": ("none", "lsq", "both"),
    "auto": ("none", "bn", "lsq", "both"),
}


def recover(
    small: SpikingModel,
    original: SpikingModel,
    plan: PrunePlan,
    calib: EvalSet,
    *,
    method: str = "auto",
    run: Run | None = None,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    tick: Tick = go_on,
) -> tuple[SpikingModel, RecoveryReport]:
    """Win back accuracy that pruning lost, without labels and without training.

    Three quarters of the images (stratified) are fitted to, the others measure the gain; with
    fewer than four images all do both. ``auto`` takes the method with the lowest KL there, and
    nothing where none lowers it.

    Args:
        small: What ``plan`` makes of ``original``; stays untouched.
        original: The model that the plan is for; stays untouched.
        plan: The plan.
        calib: Calibration images, of the training images; labels are not used.
        method: One of ``RECOVERIES``.
        run: Device, batch, precision; the defaults when None.
        seed: What chose ``calib``, for the record.
        memory: Bytes that activations of halted batches may take (see ``lockstep``).
        tick: Called before each batch's step; may raise to stop.

    Returns:
        (a new model whose provenance names the recovery, the report).

    Raises:
        UnknownNameError: If there is no such method.
        DataError: If ``calib`` is of a split that accuracy is measured on.
        InvalidPlanError: If the plan does not fit the models.
    """
    if method not in RECOVERIES:
        raise UnknownNameError("recovery", method, RECOVERIES)
    _check(small, original, plan, calib)
    run = run or Run()
    fit, held_out = _split(calib)
    teacher, work = place(original, run), _Work(small, run)
    wished = _logits(teacher, held_out, run, tick)
    models, kl = {"none": work.model}, {}
    for step in _STEPS[method]:
        with work.timed(step):
            if step == "lsq":
                models[step] = work.refitted(models["none"], teacher, plan, fit, memory, tick)
            elif step != "none":
                base = models["none" if step == "bn" else "lsq"]
                models[step] = work.renormed(base, fit, memory, tick)
        found = _logits(models[step], held_out, run, tick)
        kl[step] = float(kl_divergence(wished, found).mean())
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
        layers=work.layers if used in ("lsq", "both") else (),
        seconds=work.seconds,
        statistics_bytes=work.statistics_bytes,
        held_bytes=work.held_bytes,
    )
    return work.finished(models[used], report), report


def _check(small: SpikingModel, original: SpikingModel, plan: PrunePlan, calib: EvalSet) -> None:
    if calib.split not in ("calib", "train"):
        raise DataError(
            f"A recovery is fitted to training images, not to the {calib.split} split: accuracy "
            "could not be judged on it any more. Use the split calib or train."
        )
    groups = find_groups(original)
    plan.check(groups, weights_hash(original))
    wanted = {g.group_id: len(plan.kept.get(g.group_id, range(g.n_units))) for g in groups}
    if {g.group_id: g.n_units for g in find_groups(small)} != wanted:
        raise InvalidPlanError(
            f"The pruned model does not have the widths that the plan leaves of {plan.model}. "
            "Recover what apply_plan(original, plan) gave."
        )


def _split(calib: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Images to fit to, and images to judge on."""
    n_held_out = int(_HELD_OUT * len(calib))
    if n_held_out == 0:
        return calib, calib
    chosen = set(limited(calib.labels, n_held_out))
    return calib.take([i for i in range(len(calib)) if i not in chosen]), calib.take(sorted(chosen))


@torch.no_grad()
def _logits(model: SpikingModel, data: EvalSet, run: Run, tick: Tick) -> Array:
    found = []
    with run.autocast:
        for x in data.batches(run.batch, run.dtype, run.workers):
            tick()
            found.append(model(x.to(run.device)).double().cpu())
    return torch.cat(found).numpy()


class _Work:
    """The models of one recovery on the run's device, and what making them took."""

    def __init__(self, small: SpikingModel, run: Run) -> None:
        self.run = run
        self.small = small
        self.model: SpikingModel = copy.deepcopy(small).to(run.device, run.dtype).eval()
        self.layers: tuple[LayerRefit, ...] = ()
        self.seconds: dict[str, float] = {}
        self.statistics_bytes = self.held_bytes = 0

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if step != "none":
            self.seconds[step] = time.perf_counter() - started

    def renormed(self, base: SpikingModel, fit: EvalSet, memory: int, tick: Tick) -> SpikingModel:
        model = copy.deepcopy(base)
        held = reestimate_norms(model, fit, self.run, memory=memory, tick=tick)
        self.held_bytes = max(self.held_bytes, held)
        return model

    def refitted(
        self,
        base: SpikingModel,
        teacher: SpikingModel,
        plan: PrunePlan,
        fit: EvalSet,
        memory: int,
        tick: Tick,
    ) -> SpikingModel:
        model = copy.deepcopy(base)
        done = refit_readers(model, teacher, plan, fit, self.run, memory=memory, tick=tick)
        self.layers, self.statistics_bytes = done.layers, done.statistics_bytes
        self.held_bytes = max(self.held_bytes, done.held_bytes)
        return model

    def finished(self, model: SpikingModel, report: RecoveryReport) -> SpikingModel:
        """``model`` where the pruned one was, with its provenance."""
        first = next(self.small.parameters())
        done: SpikingModel = copy.deepcopy(model).to(first.device, first.dtype)
        if report.method != "none":
            earlier = done.provenance.get("recoveries", [])
            done.provenance = {**done.provenance, "recoveries": [*earlier, report.to_dict()]}
        return done.train(self.small.training)
