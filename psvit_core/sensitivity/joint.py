"""Joint plans that a sweep measures at its end, to calibrate predictions.

A cell prunes one group; what several groups lose together can only be measured. The plans lie on
the planners' own paths, with and without locked groups, so that predictions are best where they are
needed, and some are random mixtures. They run on a part of the sweep's images (``joint_images``)
and take about ``SHARE`` of its work.

In a recovered sweep they are recovered like its cells, by a refit of the readers. ``auto`` does
better where much is lost, at several times the work of a joint plan. So a few of the plans that
lose much are recovered again as ``auto`` does there; they take up to ``_AGAIN_SHARE`` of the work.

Nothing here knows how a plan is run: ``measure_joint`` is given a function, so that recovered
tables are calibrated in the same way. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle
from math import sqrt

import numpy as np

from psvit_core.callbacks import Tick, keep_going
from psvit_core.errors import PsvitError
from psvit_core.plan.build import plan_from_ratios, reached_ratios
from psvit_core.planners import MIN_JOINT, MUCH_LOST, make_plan
from psvit_core.records import POLICIES, JointRow, PrunePlan, SensitivityTable
from psvit_core.sensitivity.joint_images import JointImages
from psvit_core.storage.predictions import Array, Outcome
from psvit_core.storage.store import ENGINE_VERSION, Store, digest

#: Runs a plan on images, positions in the sweep; returns its results and the baseline's on them.
RunPlan = Callable[[PrunePlan, Array], tuple[Outcome, Outcome]]

SHARE = 0.1  # of the sweep's work
#: Of memory, the most telling first.
SAVINGS = (0.45, 0.65, 0.25, 0.55, 0.35, 0.15, 0.75, 0.5, 0.3, 0.6, 0.4, 0.7, 0.2)
MIXED = "mixed"  # policy of a random mixture
_N_OPTIMAL = 2  # savings at which ``optimal`` plans: it takes longer than measuring its plan does
_LARGEST_MIXED = (0.3, 0.5, 0.7)  # largest prune ratio of a round's mixture, in turn
_LARGEST_LOCK = 0.6  # largest prune ratio that a group is locked at
_TRIES = 4  # locks that forbid the saving are drawn again

#: A joint plan runs everything, a cell only what differs from the unpruned model, and the less of
#: it the deeper the model. Measured in processor seconds on an image, a cell has 0.50, 0.27 and
#: 0.23 of a joint plan's work with 16, 45 and 69 groups: about this, divided by their square root.
_CELL_WORK, _MOST_CELL_WORK = 1.8, 0.5
_PLAN_WORK = 180  # of choosing a plan and writing its program, in images of a joint plan
#: Of recovering a plan by ``stages_bn``, in images of a joint plan, for each calibration image. In
#: processor seconds: 8.5 with 69 groups, 11 with 45.
_RECOVERY_WORK = 9
_AGAIN_SHARE = 0.5  # of the joint plans' work


def cell_work(n_groups: int) -> float:
    """Return the work of a cell on an image, relative to a joint plan's."""
    return min(_CELL_WORK / sqrt(max(n_groups, 1)), _MOST_CELL_WORK)


@dataclass(frozen=True)
class Again:
    """Recovers joint plans again that lose much after the cells' recovery.

    Attributes:
        run_plan: Recovers and runs a plan.
        n_calib: Calibration images of the recovery.
    """

    run_plan: RunPlan
    n_calib: int


def n_joint_plans(
    table: SensitivityTable, n_images: int, n_again: int = 0, n_calib: int = 0
) -> int:
    """Return how many joint plans take about ``SHARE`` of the sweep's work.

    None if they are too few to calibrate anything.

    Args:
        table: The finished table.
        n_images: Images that a joint plan runs on.
        n_again: How many of them are recovered again.
        n_calib: Calibration images of that recovery.
    """
    work = _all_work(table) - n_again * _RECOVERY_WORK * n_calib
    wanted = int(work / (n_images + _PLAN_WORK))
    return wanted if wanted >= MIN_JOINT else 0


def n_recovered_again(table: SensitivityTable, n_images: int, n_calib: int) -> int:
    """Return how many joint plans may be recovered again, if so many lose much.

    Arguments as for ``n_joint_plans``.
    """
    work = _all_work(table)
    rest = min(_AGAIN_SHARE * work, work - MIN_JOINT * (n_images + _PLAN_WORK))
    return max(int(rest / (_RECOVERY_WORK * n_calib)), 0) if n_calib else 0


def _all_work(table: SensitivityTable) -> float:
    """Return the work of all joint plans of a sweep, in images of a joint plan."""
    cells = sum(row.n_images for row in table.rows if row.n_pruned)
    return SHARE * cells * cell_work(len(table.summary.groups))


def joint_plans(table: SensitivityTable) -> Iterator[PrunePlan]:
    """Iterate over plans to calibrate with, the most telling first.

    At each of ``SAVINGS`` every policy's plan, if it reaches the saving, a random mixture, and a
    plan of a policy with locked groups. After the first savings, those of ``optimal`` lie between
    its first plans.
    """
    rng = random.Random(0)
    groups = [g.group_id for g in table.summary.groups]
    fast = [policy for policy in POLICIES if policy != "optimal"]
    turns = cycle(fast)
    found: dict[float, dict[str, float]] = {0.0: {}, 1.0: dict.fromkeys(groups, 1.0)}
    for number, (saving, largest) in enumerate(zip(SAVINGS, cycle(_LARGEST_MIXED), strict=False)):
        yield from filter(None, (_plan(table, policy, saving, {}) for policy in fast))
        if number >= _N_OPTIMAL:
            yield _mixed(table, _between(found, saving))
        elif plan := _plan(table, "optimal", saving, {}):
            found[saving] = reached_ratios(table.summary, plan)
            yield plan
        chosen = rng.sample(groups, rng.randint(max(len(groups) // 3, 1), len(groups)))
        yield _mixed(table, {group: largest * rng.random() for group in chosen})
        if plan := _locked_plan(table, next(turns), saving, rng):
            yield plan


def _mixed(table: SensitivityTable, ratios: dict[str, float]) -> PrunePlan:
    most = max(table.ratios)  # beyond it nothing is measured
    inside = {group: min(ratio, most) for group, ratio in ratios.items()}
    return plan_from_ratios(table.summary, inside, criterion=table.criterion, policy=MIXED)


def _between(plans: dict[float, dict[str, float]], saving: float) -> dict[str, float]:
    """Interpolate the prune ratios of plans by saving, linearly between the two nearest."""
    low = max(s for s in plans if s <= saving)
    high = min(s for s in plans if s > saving)
    part = (saving - low) / (high - low)
    return {
        group: (1 - part) * plans[low].get(group, 0.0) + part * ratio
        for group, ratio in plans[high].items()
    }


def _locked_plan(
    table: SensitivityTable, policy: str, saving: float, rng: random.Random
) -> PrunePlan | None:
    """Return a policy's plan with some groups locked, half of them whole; None if none is found."""
    groups = [g.group_id for g in table.summary.groups]
    for _ in range(_TRIES):
        chosen = rng.sample(groups, min(max(len(groups) // 6, 2), len(groups)))
        locked = {group: rng.choice((0.0, _LARGEST_LOCK * rng.random())) for group in chosen}
        if plan := _plan(table, policy, saving, locked):
            return plan
    return None


def _plan(
    table: SensitivityTable, policy: str, saving: float, locked: dict[str, float]
) -> PrunePlan | None:
    """Return a policy's plan; None if it does not save so much."""
    try:
        return make_plan(table, policy, memory_saving=saving, locked=locked)
    except PsvitError:
        return None


def measure_joint(
    table: SensitivityTable,
    run_plan: RunPlan,
    images: JointImages,
    store: Store,
    key: str,
    tick: Tick = keep_going,
    again: Again | None = None,
) -> tuple[JointRow, ...]:
    """Measure joint plans of a finished sweep, as many as its work allows, and store them.

    Plans that are stored under ``key`` are not run again.

    Args:
        table: The finished table.
        run_plan: Runs a plan on some images of the sweep.
        images: Draws the images.
        store: Where rows are stored.
        key: Key of the sweep (``SweepSpec.key``).
        tick: Called before each plan; may raise to stop.
        again: Of a recovered sweep: recovers plans again that lose much.
    """
    place = joint_key(key, recovered=again is not None)
    stored = store.get(place) or store.get(joint_key(key)) or ()  # of an older version
    rows = [JointRow.from_dict(row) for row in stored]
    n_images, n_calib = sum(images.sizes), again.n_calib if again else 0
    most_again = n_recovered_again(table, n_images, n_calib)

    def is_enough() -> bool:
        n_again = min(most_again, sum(row.drop.value >= MUCH_LOST for row in rows))
        return len(rows) >= n_joint_plans(table, n_images, n_again, n_calib)

    def keep(*, durable: bool = False) -> None:
        store.put(place, [row.to_dict() for row in rows], durable=durable)

    before = tuple(rows)

    if not is_enough():
        seen: list[dict[str, float]] = [row.ratios for row in rows]
        for number, plan in zip(count(), joint_plans(table), strict=False):
            reached = reached_ratios(table.summary, plan)
            ratios = {group: ratio for group, ratio in reached.items() if ratio}
            if len(ratios) < 2 or ratios in seen:
                continue  # a cell, or the same plan by another policy
            tick()
            drawn = images.draw(number)
            rows.append(_row(plan.policy, ratios, images, drawn, *run_plan(plan, drawn)))
            seen.append(ratios)
            keep()
            if is_enough():
                break
    for number in _lost_much(rows, most_again):
        assert again is not None  # otherwise none may be recovered
        tick()
        rows[number] = _under_auto(table, rows[number], images, images.draw(number), again)
        keep()
    if tuple(rows) != before:
        keep(durable=True)
    return tuple(rows)


def _lost_much(rows: Sequence[JointRow], most: int) -> list[int]:
    """Return which joint plans are still to be recovered again.

    They are at equal distances in the order of all that lose much.
    """
    order = sorted(
        (number for number, row in enumerate(rows) if row.drop.value >= MUCH_LOST),
        key=lambda number: rows[number].drop.value,
    )
    n = min(most, len(order))
    chosen = [order[int((i + 0.5) * len(order) / n)] for i in range(n)]
    return [number for number in chosen if rows[number].auto_drop is None]


def _under_auto(
    table: SensitivityTable, row: JointRow, images: JointImages, drawn: Array, again: Again
) -> JointRow:
    """Return a joint plan's row with its drop under ``auto``, which takes the lower KL."""
    plan = plan_from_ratios(table.summary, row.ratios, criterion=table.criterion, policy=row.policy)
    better = _row(row.policy, row.ratios, images, drawn, *again.run_plan(plan, drawn))
    return replace(row, auto_drop=better.drop if better.kl < row.kl else row.drop)


def _row(
    policy: str,
    ratios: dict[str, float],
    images: JointImages,
    drawn: Sequence[int] | Array,
    outcome: Outcome,
    baseline: Outcome,
) -> JointRow:
    """Return a joint plan's row from its results and the baseline's on the images drawn."""
    where = np.asarray(drawn)
    lost = baseline.correct.astype(int) - outcome.correct.astype(int)
    return JointRow(
        policy=policy,
        ratios=ratios,
        drop=images.drop(where, lost),
        kl=images.mean(where, outcome.kl),
        n_images=len(where),
        effective_images=images.effective,
    )


def joint_key(sweep_key: str, *, recovered: bool = False) -> str:
    """Return the store key of a sweep's joint plans."""
    drawn = "stratified, again as auto" if recovered else "stratified"
    return "joint/" + digest([ENGINE_VERSION, sweep_key, drawn])


def _older_key(sweep_key: str) -> str:
    """Return the key of joint plans that ran on the sweep's first images."""
    return "joint/" + digest([ENGINE_VERSION, sweep_key])


def read_joint(store: Store, sweep_key: str) -> tuple[JointRow, ...]:
    """Return a sweep's joint plans so far; those of an older version while there are no others."""
    plain, recovered = joint_key(sweep_key), joint_key(sweep_key, recovered=True)
    for key in (recovered, plain, _older_key(sweep_key)):
        if rows := store.get(key):
            return tuple(JointRow.from_dict(row) for row in rows)
    return ()
