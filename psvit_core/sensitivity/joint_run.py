"""Running the joint plans of a sweep (``joint`` says which, and why).

They run on the recorded forward pass with the weights that the plan leaves, or silenced where there
is none: for a hundred images, building a pruned model takes longer than it saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from filelock import Timeout
from torch import Tensor

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.evaluate import Prediction, outcome_of, place, place_once, predict, predict_plan
from psvit_core.groups import find_groups
from psvit_core.plan.size import plan_widths
from psvit_core.records import PrunePlan, SensitivityTable
from psvit_core.recover import recover
from psvit_core.recover.cells import CellRefits
from psvit_core.runtime import Run
from psvit_core.sensitivity.buffer import SweepBaseline, group_lock
from psvit_core.sensitivity.joint import Again, measure_joint, read_joint
from psvit_core.sensitivity.joint_images import joint_images, margins
from psvit_core.sensitivity.spec import SweepSpec
from psvit_core.storage.predictions import Array, Outcome, load_outcome
from psvit_core.storage.store import Store
from psvit_core.surgery import Silenced, apply_plan, silencing_edits
from psvit_core.zoo.base import SpikingModel

_SMALL_DROP = 10.0  # pp
#: What ``auto`` takes most often where the cells' recovery loses much (docs/results.md).
_AGAIN_BY = "stages_bn"


def with_joint_plans(
    table: SensitivityTable,
    spec: SweepSpec,
    model: SpikingModel,
    data: EvalSet,
    *,
    run: Run,
    store: Store,
    refits: CellRefits | None = None,
    tick: Tick = keep_going,
) -> SensitivityTable:
    """Return the finished table of a sweep with its joint plans; run those that the store lacks.

    While another process runs them, the table gets those that it has stored so far.

    Args:
        table: The finished table.
        spec: The sweep.
        model: The model.
        data: Its images, in any order.
        run: Device, batch, precision.
        store: The store with the sweep's results.
        refits: What recovers the sweep's cells, and these plans in the same way. Those that lose
            much are recovered again from its images.
        tick: Called before each batch; may raise to stop.
    """
    baseline = SweepBaseline(spec, store)
    of_baseline = baseline.outcome()
    placed = place_once(model, run, spec.summary.weights_hash)
    runs = _Runs(spec, model, placed, data, run, baseline.logits, of_baseline, refits, tick)
    again = Again(runs.recovered_again, len(refits.images)) if refits else None
    lock = group_lock(store, spec, "joint plans")
    with store.optional(), suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:  # another process runs them, or the disk is full
        return replace(table, joint=read_joint(store, spec.key))
    try:
        lost = _times_lost(spec, store, of_baseline)
        images = joint_images(margins(baseline.logits), lost, spec.cluster)
        rows = measure_joint(table, runs.like_cells, images, store, spec.key, tick, again)
    finally:
        lock.release()
    return replace(table, joint=rows)


@dataclass(frozen=True)
class _Runs:
    """Runs plans on images of a sweep, positions in it; returns results and the baseline's."""

    spec: SweepSpec
    model: SpikingModel
    placed: SpikingModel
    data: EvalSet  # in any order
    run: Run
    logits: Array  # of the unpruned model
    baseline: Outcome
    refits: CellRefits | None
    tick: Tick

    def like_cells(self, plan: PrunePlan, images: Array) -> tuple[Outcome, Outcome]:
        """Run a plan's network, recovered as the sweep's cells are."""
        part = self._part(images)
        refitted = {}
        if self.refits is not None:
            layers = self.refits.of({"plan": plan.kept}, self.tick)["plan"]
            refitted = self.refits.tensors(layers)
        prediction = self._natively(plan, part, refitted)
        if prediction is None:
            edits = silencing_edits(self.placed, plan, find_groups(self.model)) | refitted
            widths = plan_widths(self.spec.summary, plan)
            subject = Silenced(self.placed, edits).eval()
            prediction = predict(subject, part, self.run, widths=widths, tick=self.tick)
        return self._results(part, prediction, images)

    def recovered_again(self, plan: PrunePlan, images: Array) -> tuple[Outcome, Outcome]:
        """Run a plan's network, recovered as ``auto`` does where much is lost."""
        assert self.refits is not None
        part, calib = self._part(images), self.refits.images
        small = apply_plan(self.model, plan)
        found, _ = recover(
            small, self.model, plan, calib, method=_AGAIN_BY, run=self.run, tick=self.tick
        )
        placed = place(found, self.run)
        prediction = self._natively(plan, part, placed)
        if prediction is None:
            prediction = predict(placed, part, self.run, tick=self.tick)
        return self._results(part, prediction, images)

    def _part(self, images: Array) -> EvalSet:
        position = {name: i for i, name in enumerate(self.data.ids)}
        return self.data.take([position[self.spec.ids[i]] for i in images])

    def _natively(
        self, plan: PrunePlan, part: EvalSet, new: SpikingModel | Mapping[str, Tensor]
    ) -> Prediction | None:
        return predict_plan(self.placed, part, plan, self.run, self.tick, new=new, firing=False)

    def _results(
        self, part: EvalSet, prediction: Prediction, images: Array
    ) -> tuple[Outcome, Outcome]:
        outcome = outcome_of(part, prediction, self.logits[images], self.run)
        return outcome, self.baseline.select([self.spec.ids[i] for i in images])


def _times_lost(spec: SweepSpec, store: Store, baseline: Outcome) -> Array:
    """Return how many cells with a small drop lose each image of the sweep, (n_images,)."""
    right = baseline.select(spec.ids).correct
    times = np.zeros(len(spec.ids), dtype=int)
    for cell in spec.cells():
        outcome = load_outcome(store, cell.key)
        if outcome is None or len(outcome) < len(spec.ids):
            continue  # it settled early, as its drop is large
        correct = outcome.select(spec.ids).correct
        if 0 < 100 * (right.mean() - correct.mean()) < _SMALL_DROP:
            times += right & ~correct
    return times
