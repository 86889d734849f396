"""Compare what a run reached with its targets. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.records import Measurement, ModelSummary, PrunePlan, Record, Target

_SLACK = 1e-9  # 1 - 0.8 is less than 0.2 in floating point


@dataclass(frozen=True, kw_only=True)
class Judged(Record):
    """One target and what was reached."""

    target: str  # max_drop, or the saving of a resource
    limit: float  # percentage points for max_drop, a fraction for savings
    reached: float
    low: float | None  # 95 % interval of ``reached``; None for numbers without one
    high: float | None
    unit: str  # points or fraction
    judged_on: str  # exact, timed, or the split with its number of images
    met: bool  # by ``reached``
    certain: bool  # whether all of the interval is on the same side of the limit


def judge(
    target: Target,
    summary: ModelSummary,
    plan: PrunePlan,
    found: tuple[Measurement, Measurement],
    latency: float | None,
) -> list[Judged]:
    """Judge every limit of a target.

    Args:
        target: The limits.
        summary: The unpruned model.
        plan: What was removed.
        found: The unpruned model and the final one, measured on the same images.
        latency: The fraction of the latency that is saved, as timed; None if it is no target.
    """
    base, final = found
    images = f"{final.conditions.split}, {final.conditions.n_images} images"
    judged = []
    for resource, limit in target.all_savings.items():
        reached, judged_on = _saving(resource, summary, plan), "exact"
        if resource == "energy":
            reached, judged_on = 1 - final.energy_pj / base.energy_pj, images
        elif resource == "latency":
            assert latency is not None
            reached, judged_on = latency, "timed on this machine"
        judged.append(
            Judged(
                target=f"saving of {resource}",
                limit=limit,
                reached=reached,
                low=None,
                high=None,
                unit="fraction",
                judged_on=judged_on,
                met=reached >= limit - _SLACK,
                certain=judged_on == "exact",
            )
        )
    return judged + ([_drop(target.max_drop, final, images)] if target.max_drop else [])


def _saving(resource: str, summary: ModelSummary, plan: PrunePlan) -> float:
    """Return the fraction of a resource that follows from the widths alone; 0 for others."""
    if resource == "memory":
        return memory_saving(summary, plan)
    if resource == "macs":
        return 1 - plan_size(summary, plan).macs / plan_size(summary, None).macs
    if resource in ("memory", "memory_int8"):
        return memory_saving(summary, plan, "int8" if resource == "memory_int8" else "float32")
    return 0.0


def _drop(max_drop: float, final: Measurement, images: str) -> Judged:
    drop, limit = final.drop, 100 * max_drop
    assert drop is not None
    met = drop.value <= limit + _SLACK
    return Judged(
        target="max_drop",
        limit=limit,
        reached=drop.value,
        low=drop.low,
        high=drop.high,
        unit="points",
        judged_on=images,
        met=met,
        certain=drop.high <= limit if met else drop.low > limit,
    )


def judged_text(judged: Judged) -> str:
    """Return a judged target as one line of text."""
    verdict = "met" if judged.met else "MISSED"
    if judged.unit == "points":
        certain = "" if judged.certain else ", though the interval contains the limit"
        return (
            f"{verdict:7} at most {judged.limit:.4g} points lost: {judged.reached:+.2f} "
            f"[{judged.low:+.2f}, {judged.high:+.2f}] ({judged.judged_on}){certain}"
        )
    return (
        f"{verdict:7} {judged.target} at least {judged.limit:.2%}: {judged.reached:.2%} "
        f"({judged.judged_on})"
    )
