"""A sweep's rows without running a model: sizes are true, drops are made up by a simple rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psvit_core.plans import plan_from_ratios
from psvit_core.records import (
    ChannelGroup,
    Conditions,
    Interval,
    ModelSummary,
    SensitivityRow,
    n_pruned,
)
from psvit_core.size import plan_size
from psvit_core.zoo.cards import shipped_summary

RATIOS = (0.1, 0.5, 0.9)
CONDITIONS = Conditions(
    data="digits", split="val", n_images=64, T=1, batch=125, precision="float32", device="cpu",
    transform="none",
)  # fmt: skip
Drop = Callable[[ChannelGroup, float], Interval]


def summary(name: str = "e_spikeformer_digits") -> ModelSummary:
    found = shipped_summary(name)
    assert found is not None
    return found


def steep_streams(group: ChannelGroup, ratio: float) -> Interval:
    """Residual streams cost 20 pp at ratio 1, everything else stays within noise."""
    if group.kind == "residual":
        return Interval(value=20 * ratio, low=20 * ratio - 1, high=20 * ratio + 1)
    return Interval(value=0.1, low=-1.5, high=1.7)


def rows(
    model: ModelSummary, ratios: Sequence[float] = RATIOS, drop: Drop = steep_streams
) -> list[SensitivityRow]:
    return [
        SensitivityRow(
            group_id=group.group_id,
            prune_ratio=ratio,
            n_pruned=n_pruned(ratio, group.n_units, group.heads),
            accuracy=Interval(value=0.9, low=0.8, high=0.95),
            drop=drop(group, ratio),
            kl=ratio / 10,
            agreement=0.9,
            size=plan_size(model, plan_from_ratios(model, {group.group_id: ratio}, criterion="l2")),
            sops=1e6,
            n_images=64,
        )
        for group in model.groups
        for ratio in ratios
    ]
