"""What the Tune page asks of planners: a plan's predicted drop with its uncertainty, and plans.

One place, so that better predictions and policies need no change on the page; no streamlit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from psvit_core import planners
from psvit_core.errors import TargetError
from psvit_core.plans import reached_ratios
from psvit_core.records import Interval, Kept, Measurement, PrunePlan, SensitivityTable
from psvit_core.size import memory_saving
from ui import drafts
from ui.drafts import Draft

Curve = tuple[list[float], list[float], list[float], list[float]]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Predicts drops from one table.

    The sum of the groups' own drops, as ``planners.predict_drop``, times what measured plans of
    this model have shown (``calibration``). Groups interact: the truth may lie outside the range.
    """

    table: SensitivityTable
    curves: dict[str, Curve]  # group -> reached ratios, drop, its low and its high end (pp)
    calibration: float = 1.0

    def drop(self, plan: PrunePlan) -> Interval:
        """Predicted drop of a plan with the range in which it is expected, percentage points."""
        reached = reached_ratios(self.table.summary, plan)
        if hasattr(planners, "predict_drop_interval"):
            found: Interval = planners.predict_drop_interval(self.table, reached, self.calibration)
            return found
        value, below, above = 0.0, 0.0, 0.0
        for group_id, ratio in reached.items():
            if ratio > 0:
                x, _, low, high = self.curves[group_id]
                own = self.alone(group_id, ratio)
                value += own
                below += (own - float(np.interp(ratio, x, low))) ** 2
                above += (float(np.interp(ratio, x, high)) - own) ** 2
        return Interval(value=value, low=max(value - below**0.5, 0.0), high=value + above**0.5)

    def alone(self, group_id: str, ratio: float) -> float:
        """Predicted drop of one group at a reached ratio, the rest untouched."""
        x, middle, _, _ = self.curves[group_id]
        return float(np.interp(ratio, x, middle))

    def calibrated(self, measured: Sequence[Measurement]) -> Predictor:
        """This predictor, taught by measured plans of the model."""
        if not measured or not hasattr(planners, "calibrate"):
            return self
        return replace(self, calibration=float(planners.calibrate(self.table, measured)))


def predictor(table: SensitivityTable) -> Predictor:
    """A predictor over a table."""
    names = [g.group_id for g in table.summary.groups]
    curves: dict[str, Curve] = {name: ([0.0], [0.0], [0.0], [0.0]) for name in names}
    for row in sorted(table.rows, key=lambda row: row.n_pruned):
        x, middle, low, high = curves[row.group_id]
        x.append(row.n_pruned / table.summary.by_id[row.group_id].n_units)
        middle.append(max(row.drop.value, 0.0))
        low.append(min(row.drop.low, middle[-1]))
        high.append(max(row.drop.high, middle[-1]))
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
    locked = {g: draft.plan.kept.get(g) for g in draft.locked}
    if "locked" in inspect.signature(planners.make_plan).parameters:
        ratios = {g: draft.asked.get(g, 0.0) for g in locked}
        make_plan: Callable[..., PrunePlan] = planners.make_plan
        plan = make_plan(table, policy, memory_saving=saving, locked=ratios)
        kept = {g: units for g, units in plan.kept.items() if g not in locked}
        plan = replace(plan, kept=kept | {g: units for g, units in locked.items() if units})
    else:
        plan = _around(table, policy, saving, locked)
    return drafts.draft_of(table.summary, plan, draft.locked)


def _around(
    table: SensitivityTable, policy: str, saving: float, locked: dict[str, Kept | None]
) -> PrunePlan:
    """A plan around locked groups by a planner that knows none: it aims higher until they fit."""

    def joint(target: float) -> PrunePlan:
        plan = planners.make_plan(table, policy, memory_saving=target)
        kept = {g: units for g, units in plan.kept.items() if g not in locked}
        return replace(plan, kept=kept | {g: units for g, units in locked.items() if units})

    if not locked:
        return planners.make_plan(table, policy, memory_saving=saving)
    low, high, best = 0.01, 0.98, None
    for _ in range(8):
        middle = (low + high) / 2
        try:
            plan = joint(middle)
        except TargetError:
            high = middle
            continue
        if memory_saving(table.summary, plan) >= saving - 1e-9:
            best, high = plan, middle
        else:
            low = middle
    if best is None:
        raise TargetError(
            f"Saving {saving:.1%} of the memory is not reachable around {len(locked)} locked "
            "groups. Unlock some, or ask for less."
        )
    return best
