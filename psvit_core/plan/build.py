"""Prune plans from ratios or counts and a ranking of the units; no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from psvit_core.errors import InvalidPlanError
from psvit_core.records import ChannelGroup, Kept, ModelSummary, PrunePlan, n_pruned

#: Default importance criteria, best first: the best one, and the best without calibration images.
#: Mean accuracy on val of uniform plans of two demo models at three savings (docs/results.md):
#: reconstruction 81.6 %, l2_group 76.4 %, l2 70.2 %.
DEFAULT_CRITERIA = ("reconstruction", "l2_group")


def default_criterion(available: Collection[str]) -> str:
    """Return the first available one of ``DEFAULT_CRITERIA``, otherwise any available one.

    Args:
        available: Criteria with a ranking, or that a ranking can be computed by; not empty.
    """
    return next((name for name in DEFAULT_CRITERIA if name in available), next(iter(available)))


def kept_units(group: ChannelGroup, ranking: Sequence[int], removed: int) -> Kept:
    """Return the units that remain after removing the ``removed`` least important ones.

    Args:
        group: The group; with heads, each head loses ``removed / heads`` of its own units.
        ranking: All units of the group, most important first.
        removed: Number of units to remove, as returned by ``n_pruned`` for this group.

    Returns:
        Sorted unit indices.
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
    """Return the plan that removes the least important units of each group.

    Args:
        summary: The model, with its ranking by ``criterion``.
        ratios: Prune ratio (fraction removed, in [0, 1)) by ``group_id``; absent groups are not
            pruned.
        criterion: Name of the importance criterion.
        round_to: Round widths to multiples of this (see ``records.n_pruned``).
        policy: What chose the ratios; stored in the plan.
        note: How they were chosen; stored in the plan.

    Raises:
        InvalidRatioError: If a ratio is outside [0, 1).
        InvalidPlanError: If a group or the criterion is unknown.
    """
    if unknown := sorted(set(ratios) - set(summary.by_id)):
        raise InvalidPlanError(
            f"{summary.model} has no channel groups {unknown}. Its groups: "
            f"{', '.join(summary.by_id)}."
        )
    counts = {
        g.group_id: n_pruned(ratios.get(g.group_id, 0.0), g.n_units, g.heads, round_to)
        for g in summary.groups
    }
    return plan_from_counts(summary, counts, criterion=criterion, policy=policy, note=note)


def plan_from_counts(
    summary: ModelSummary,
    counts: Mapping[str, int],
    *,
    criterion: str,
    policy: str,
    note: str = "",
) -> PrunePlan:
    """Return the plan that removes given numbers of the least important units.

    Args:
        summary: The model, with its ranking by ``criterion``.
        counts: Units to remove by ``group_id``, a multiple of the group's heads.
        criterion: Name of the importance criterion.
        policy: What chose the counts; stored in the plan.
        note: How they were chosen; stored in the plan.

    Raises:
        InvalidPlanError: If the criterion is unknown.
    """
    ranking = summary.ranking(criterion)
    kept: dict[str, Kept] = {
        g.group_id: kept_units(g, ranking[g.group_id], counts[g.group_id])
        for g in summary.groups
        if counts.get(g.group_id)
    }
    return PrunePlan(
        model=summary.model,
        weights_hash=summary.weights_hash,
        criterion=criterion,
        kept=kept,
        policy=policy,
        note=note,
    )


def reached_ratios(summary: ModelSummary, plan: PrunePlan) -> dict[str, float]:
    """Return the fraction of units that ``plan`` removes, by ``group_id``."""
    return {
        g.group_id: (g.n_units - len(plan.kept.get(g.group_id, range(g.n_units)))) / g.n_units
        for g in summary.groups
    }
