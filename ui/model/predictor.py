"""Predicted drops of plans, and plans made by the planners within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from psvit_core import planners
from psvit_core.plan.build import reached_ratios
from psvit_core.records import Interval, Measurement, PrunePlan, SensitivityTable
from ui.model.formats import POLICY_NAMES

Curve = tuple[list[float], list[float]]
_SCALES = (0.05, 8.0)  # a group's own drop counts between these factors


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts drops from one sensitivity table, and from plans that the user has measured.

    With joint plans in the table (``planners.is_calibrated``), measured plans are added to them. In
    an older table they give a factor for the sum of the groups' own drops (``calibration``).
    """

    table: SensitivityTable
    curves: dict[str, Curve]  # group -> reached ratios, its own drop (pp)
    calibration: float = 1.0
    recalibrated: SensitivityTable | None = None  # the table with measured plans

    def drop(self, plan: PrunePlan) -> Interval:
        """Return a plan's predicted drop with its expected range, percentage points.

        It may be fitted to a measurement of this plan: compare that with ``from_sweep``.
        """
        table = self.recalibrated or self.table
        reached = reached_ratios(table.summary, plan)
        return planners.predict_drop_interval(table, reached, self.calibration)

    def from_sweep(self, plan: PrunePlan, measured: Measurement | None) -> Interval:
        """Return the prediction that a measurement of the plan may be compared with.

        Args:
            plan: The plan.
            measured: Its measurement; None if it has none.

        Returns:
            The prediction that was frozen with the measurement, or what the sweep alone predicts.
        """
        if measured is not None and measured.predicted is not None:
            return measured.predicted
        reached = reached_ratios(self.table.summary, plan)
        return planners.predict_drop_interval(self.table, reached)

    @property
    def is_recalibrated(self) -> bool:
        """Whether measured plans have changed the predictions of the sweep."""
        return self.recalibrated is not None or self.calibration != 1.0

    def scale(self, plan: PrunePlan) -> float:
        """Return by how much a group's own drop counts in the prediction, near this plan."""
        if not planners.is_calibrated(self.table):
            return self.calibration
        alone = planners.sum_of_drops(self.table, reached_ratios(self.table.summary, plan))
        return float(np.clip(self.drop(plan).value / alone, *_SCALES)) if alone > 0 else 1.0

    @property
    def version(self) -> list[float]:
        """What tells two predictors of one sweep apart."""
        now = self.recalibrated or self.table
        drops = [row.calibrating_drop.value for row in now.joint]
        return [self.calibration, len(self.table.joint), *drops]

    @property
    def note(self) -> str:
        """What a prediction and its range are, in words."""
        return planners.prediction_note(self.table)

    @property
    def largest_drop(self) -> float:
        """The largest drop possible, percentage points."""
        return planners.largest_drop(self.table)

    def group_drop(self, group_id: str, ratio: float) -> float:
        """Return the predicted drop of one group at a reached ratio, all others unpruned."""
        return float(np.interp(ratio, *self.curves[group_id]))

    def calibrated(self, measured: Sequence[Measurement]) -> Predictor:
        """Return this predictor, recalibrated with measured plans of the model."""
        if planners.is_calibrated(self.table):
            table = planners.with_measured(self.table, measured)
            return replace(self, recalibrated=None if table is self.table else table)
        return replace(self, calibration=planners.calibrate(self.table, measured))


def make_predictor(table: SensitivityTable) -> Predictor:
    """Return an uncalibrated predictor."""
    curves: dict[str, Curve] = {g.group_id: ([0.0], [0.0]) for g in table.summary.groups}
    for group in table.summary.groups:
        if group.group_id in table.by_group:  # absent until its first cell is measured
            removed, drops = planners.group_curve(table, group)
            curves[group.group_id] = ([n / group.n_units for n in removed], drops)
    return Predictor(table=table, curves=curves)


def policies() -> list[str]:
    """Return the names of the available policies, best first."""
    return [name for name in POLICY_NAMES if name in planners.POLICIES]
