"""Numbers from the cells of ``policies.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from benchmarks._cells import HOWS, PUBLISHED, Cell, Cells, unpack
from psvit_core.stats import paired_drop_interval
from psvit_core.storage.predictions import Array

POLICIES = ("uniform", "psvit", "prime", "optimal")

RECOVERIES = ("none", "bn", "lsq", "both")

SETS = ("digits", "digits:distorted")

LOSS, NEAR = 3.0, 1.0  # pp: the loss in the papers, and the tolerance around it

SEEDS = (0, 1, 2)

TUNED, EPOCHS = (0.4, 0.55, 0.7), (1.0, 5.0)  # fine-tuning: savings, epochs


class Results:
    """Numbers from the cells.

    Args:
        cells: The result file.
        hows: Of the plans that were made in these ways.
    """

    def __init__(self, cells: Cells, hows: Sequence[str] = HOWS) -> None:
        self.cells, self.hows = cells, hows
        self.models = [json.loads(k)[1] for k in cells.cells if k.startswith('["baseline"')]
        settings = [json.loads(k) for k in cells.cells if k.startswith('["plan"')]
        self.savings = sorted({s[3] for s in settings})

    def plan(self, model: str, policy: str, saving: float) -> Cell | None:
        """Return the chosen plan of a policy at a saving."""
        return self.cells.best_plan(model, policy, saving, self.hows)

    def right(self, cell: Cell, model: str, sets: Sequence[str] = SETS) -> Array:
        """Return which test images a final model classifies correctly."""
        n = (self.cells.get("baseline", model) or {})["n"]
        return np.concatenate([unpack(cell[f"{spec} right"], n) for spec in sets])

    def baseline(self, model: str, sets: Sequence[str] = SETS) -> Array:
        """Return which test images the unpruned model classifies correctly."""
        return self.right(self.cells.get("baseline", model) or {}, model, sets)

    def test(
        self, model: str, policy: str, saving: float, recovery: str = "none", seed: int = 0
    ) -> Cell | None:
        """Return the test cell of a policy's chosen plan."""
        plan = self.plan(model, policy, saving)
        seed = 0 if recovery == "none" else seed
        return self.cells.get("test", model, plan["id"], recovery, seed) if plan else None

    def drop(
        self,
        model: str,
        policy: str,
        saving: float,
        recovery: str = "none",
        sets: Sequence[str] = SETS[:1],
    ) -> float | None:
        """Return the points lost on the test images, mean over seeds; None if not measured."""
        seeds = SEEDS[:1] if recovery == "none" else SEEDS
        cells = [c for s in seeds if (c := self.test(model, policy, saving, recovery, s))]
        if not cells:
            return None
        left = float(np.mean([self.right(cell, model, sets).mean() for cell in cells]))
        return 100 * (float(self.baseline(model, sets).mean()) - left)

    def best_published(
        self, model: str, saving: float, recovery: str = "none"
    ) -> tuple[str, float] | None:
        """Return the published policy that loses less on the test images, and its loss."""
        found = [
            (policy, drop)
            for policy in PUBLISHED
            if (drop := self.drop(model, policy, saving, recovery)) is not None
        ]
        return min(found, key=lambda item: item[1], default=None)

    def crossing(self, model: str, recovery: str = "none") -> float | None:
        """Return the tested saving where the better published policy loses about 3 pp.

        The larger of equally near ones; None where none is within ``NEAR``.
        """
        found = [
            (abs(best[1] - LOSS), -saving)
            for saving in self.savings
            if (best := self.best_published(model, saving, recovery))
        ]
        off, saving = min(found, default=(NEAR + 1, 0.0))
        return -saving if off <= NEAR else None

    def bytes_at_loss(self, model: str, policy: str, recovery: str) -> tuple[float, bool] | None:
        """Return the remaining fraction of bytes at a loss of 3 pp, linear between measured plans.

        Args:
            model: Which.
            policy: ``optimal``, or ``published``: the better of the two at each saving.
            recovery: Which.

        Returns:
            (fraction, whether 3 pp were lost at all: otherwise it is that of the largest saving).
        """
        points = []
        for saving in self.savings:
            if policy == "published":
                found = self.best_published(model, saving, recovery)
                name, drop = found or ("", None)
            else:
                name, drop = policy, self.drop(model, policy, saving, recovery)
            plan = self.plan(model, name, saving) if drop is not None else None
            if plan and drop is not None:
                points.append((plan["saved"], drop))
        return at_loss(points)


def at_loss(points: Iterable[tuple[float, float]]) -> tuple[float, bool] | None:
    """Return the remaining fraction of bytes where ``LOSS`` is first reached.

    Args:
        points: (fraction saved, drop in pp).

    Returns:
        As ``Results.bytes_at_loss``; None without points.
    """
    line = [(0.0, 0.0), *sorted(points)]
    if len(line) == 1:
        return None
    for (s0, d0), (s1, d1) in pairwise(line):
        if d1 >= LOSS:
            return 1 - (s0 + (LOSS - d0) / (d1 - d0) * (s1 - s0)), True
    return 1 - line[-1][0], False


def paired(better: Array, worse: Array) -> tuple[float, float, float]:
    """Return the paired accuracy difference of two models: percentage points with interval."""
    counts = (better & worse, better & ~worse, ~better & worse, ~better & ~worse)
    value, low, high = paired_drop_interval(*(int(c.sum()) for c in counts))
    return 100 * value, 100 * low, 100 * high


Points = tuple[float, float, float]  # pp, and their interval

Numbers = tuple[Points, Points, Points]  # published loses, optimal loses, optimal better by

Row = tuple[str, str, Numbers]  # where, on which images, the numbers


def holds(lost_there: Points, lost_here: Points, gain: Points) -> bool:
    """Return whether ``optimal`` loses at most half, and significantly less."""
    return lost_here[0] <= lost_there[0] / 2 and gain[1] > 0


def crossings(r: Results, recovery: str) -> dict[str, float]:
    """Return, by model, the saving where the better published policy loses about 3 pp."""
    found = {model: r.crossing(model, recovery) for model in r.models}
    return {model: saving for model, saving in found.items() if saving is not None}


def compared(r: Results, recovery: str, places: dict[str, float]) -> list[Row]:
    """Compare ``optimal`` with the better published policy, by model, then pooled.

    All seeds of a recovery that both have are pooled.
    """
    rows: list[Row] = []
    parts: dict[str, list[list[Array]]] = {}  # by kind of images: unpruned, published, optimal
    for model, saving in places.items():
        best = r.best_published(model, saving, recovery)
        seeds = [0] if recovery == "none" else SEEDS
        pairs = [
            (other, mine)
            for seed in seeds
            if best
            and (other := r.test(model, best[0], saving, recovery, seed))
            and (mine := r.test(model, "optimal", saving, recovery, seed))
        ]
        if not best or not pairs:
            continue
        for kind, sets in (("clean", SETS[:1]), ("clean + distorted", SETS)):
            base = np.tile(r.baseline(model, sets), len(pairs))
            rights = [
                np.concatenate([r.right(pair[i], model, sets) for pair in pairs]) for i in (0, 1)
            ]
            parts.setdefault(kind, []).append([base, *rights])
            where = f"{model}, {100 * saving:.4g} %, {best[0]}"
            of = f"{len(base)} {kind}" + (f", {len(pairs)} seeds" if len(pairs) > 1 else "")
            rows.append((where, of, _numbers(base, *rights)))
    for kind, models in parts.items():
        if len(models) > 1:
            whole = [np.concatenate([one[i] for one in models]) for i in range(3)]
            rows.append(("pooled", f"{len(whole[0])} {kind}", _numbers(*whole)))
    return rows


def _numbers(base: Array, theirs: Array, ours: Array) -> Numbers:
    return paired(base, theirs), paired(base, ours), paired(ours, theirs)


def against_published(r: Results, model: str, saving: float) -> tuple[Points, str] | None:
    """Return by how many points ``optimal`` beats the best published policy, and which one."""
    best, mine = r.best_published(model, saving), r.test(model, "optimal", saving)
    if best is None or mine is None:
        return None
    other = r.test(model, best[0], saving)
    assert other is not None
    return paired(r.right(mine, model), r.right(other, model)), best[0]


def criteria_means(r: Results) -> dict[str, float]:
    """Return the mean val accuracy of uniform plans by criterion, best first."""
    best: dict[tuple[str, str, float], float] = {}
    for key, cell in r.cells.cells.items():
        kind, *settings = json.loads(key)
        if kind == "criterion" and "right" in cell:
            model, name, saving, _ = settings
            n = (r.cells.get("baseline", model) or {})["val n"]
            place, value = (name, model, saving), float(unpack(cell["right"], n).mean())
            best[place] = max(best.get(place, 0.0), value)
    means = {
        name: float(np.mean([value for place, value in best.items() if place[0] == name]))
        for name in {name for name, _, _ in best}
    }
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def tuned(r: Results, model: str, policy: str, saving: float, epochs: float) -> Cell | None:
    """Return the fine-tuned cell of a policy's chosen plan."""
    plan = r.plan(model, policy, saving)
    return r.cells.get("tuned", model, plan["id"], epochs) if plan else None
