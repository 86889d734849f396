"""What the Tune page asks of planners: a plan's predicted drop with its range, and plans.

One place, so that better predictions and policies need no change on the page; no streamlit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from psvit_core import planners
from psvit_core.plans import reached_ratios
from psvit_core.records import Interval, Measurement, PrunePlan, SensitivityTable
from ui import drafts
from ui.drafts import Draft

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts drops from one table.

    The sum of the groups' own drops, times what measured plans of this model have shown
    (``calibration``). Groups interact: the truth may lie outside the range.
    """

    table: SensitivityTable
    curves: dict[str, Curve]  # group -> reached ratios, its own drop (pp)
    calibration: float = 1.0

    def drop(self, plan: PrunePlan) -> Interval:
        """Predicted drop of a plan with the range in which it is expected, percentage points."""
        reached = reached_ratios(self.table.summary, plan)
        return planners.predict_drop_interval(self.table, reached, self.calibration)

    @property
    def most(self) -> float:
        """The largest drop there can be, percentage points."""
        return planners.largest_drop(self.table)

    def alone(self, group_id: str, ratio: float) -> float:
        """Predicted drop of one group at a reached ratio, the rest untouched."""
        return float(np.interp(ratio, *self.curves[group_id]))

    def calibrated(self, measured: Sequence[Measurement]) -> Predictor:
        """This predictor, taught by measured plans of the model."""
        return replace(self, calibration=planners.calibrate(self.table, measured))


def predictor(table: SensitivityTable) -> Predictor:
    """A predictor over a table."""
    curves: dict[str, Curve] = {g.group_id: ([0.0], [0.0]) for g in table.summary.groups}
    for group in table.summary.groups:
        if group.group_id in table.by_group:  # else its first cell is still to come
            removed, drops = planners.group_curve(table, group)
            curves[group.group_id] = ([n / group.n_units for n in removed], drops)
    return Predictor(table=table, curves=curves)


#: The policies that can be asked for, best first, with their names on screen.
POLICY_NAMES = {
    "optimal": "Optimal",
    "psvit": "PSViT",
    "prime": "PrimeSVT",
    "uniform": "Uniform",
}


def policies() -> list[str]:
    """The policies that the planners have, best first."""
    return [name for name in POLICY_NAMES if name in planners.POLICIES]


def fit(table: SensitivityTable, policy: str, saving: float, draft: Draft) -> Draft:
    """The draft of a policy's plan that saves so much memory, around the draft's locked groups.

    Raises:
        PsvitError: If no plan of these groups saves so much.
    """
    reached = reached_ratios(table.summary, draft.plan)
    locked = {group: reached[group] for group in draft.locked}
    plan = planners.make_plan(table, policy, memory_saving=saving, locked=locked)
    # As many units as in the draft, and the very same ones, also where a file chose them.
    kept = {g: units for g, units in plan.kept.items() if g not in locked}
    kept |= {g: draft.plan.kept[g] for g in locked if g in draft.plan.kept}
    return drafts.draft_of(table.summary, replace(plan, kept=kept), draft.locked)
