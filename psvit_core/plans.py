"""From ratios to plans: which units go, by one rule; no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from psvit_core.errors import InvalidPlanError
from psvit_core.records import ChannelGroup, Kept, ModelSummary, PrunePlan, n_pruned

#: Importance criteria that are taken where none is named, the better one first. By the table "Which
#: criterion" of docs/results.md (uniform plans of both demo models at three savings, mean accuracy
#: on val): reconstruction 81.6 %, which needs calibration images; of those that need none l2_group
#: is the best, 76.4 % (l2: 70.2 %).
DEFAULT_CRITERIA = ("reconstruction", "l2_group")


def default_criterion(available: Collection[str]) -> str:
    """The criterion to take of those that are available: by ``DEFAULT_CRITERIA``, else the first.

    Args:
        available: Criteria that there is a ranking by, or all that is needed for one; not empty.
    """
    return next((name for name in DEFAULT_CRITERIA if name in available), next(iter(available)))


def kept_units(group: ChannelGroup, ranking: Sequence[int], removed: int) -> Kept:
    """Units of ``group`` that stay when its ``removed`` least important ones go.

    Args:
        group: The group; where it has heads, each loses ``removed / heads`` of its own units.
        ranking: All its units, most important first.
        removed: A value of ``n_pruned`` for this group.
    """
    heads = group.heads or 1
    width, quota = group.n_units // heads, (group.n_units - removed) // heads
    left = [quota] * heads
    kept = []
    for unit in ranking:
        if left[unit // width]:
            left[unit // width] -= 1
            kept.append(unit)
    return tuple(sorted(kept))


def plan_from_ratios(
    summary: ModelSummary,
    ratios: Mapping[str, float],
    *,
    criterion: str,
    round_to: int = 1,
    policy: str = "by hand",
    note: str = "",
) -> PrunePlan:
    """The plan that removes the least important units of each group.

    Args:
        summary: The model, with its ranking by ``criterion``.
        ratios: Prune ratio (fraction removed, in [0, 1)) by ``group_id``; absent groups stay whole.
        criterion: Name of the importance criterion.
        round_to: Keep widths at multiples of this (see ``records.n_pruned``).
        policy: What chose the ratios, for the record.
        note: How, for the record.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1).
        InvalidPlanError: If a group or the criterion is unknown.
    """
    if unknown := sorted(set(ratios) - set(summary.by_id)):
        raise InvalidPlanError(
            f"{summary.model} has no channel groups {unknown}. Its groups: "
            f"{', '.join(summary.by_id)}."
        )
    ranking = summary.ranking(criterion)
    kept: dict[str, Kept] = {}
    for group in summary.groups:
        removed = n_pruned(ratios.get(group.group_id, 0.0), group.n_units, group.heads, round_to)
        if removed:
            kept[group.group_id] = kept_units(group, ranking[group.group_id], removed)
    return PrunePlan(
        model=summary.model,
        weights_hash=summary.weights_hash,
        criterion=criterion,
        kept=kept,
        policy=policy,
        note=note,
    )


def reached_ratios(summary: ModelSummary, plan: PrunePlan) -> dict[str, float]:
    """Fraction of each group's units that ``plan`` really removes."""
    return {
        g.group_id: (g.n_units - len(plan.kept.get(g.group_id, range(g.n_units)))) / g.n_units
        for g in summary.groups
    }
