"""Planners on synthetic tables: targets, unequal ratios, notes and error messages."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psvit_core.errors import InvalidRatioError, RecordError, TargetError, UnknownNameError
from psvit_core.plan.build import reached_ratios
from psvit_core.plan.size import memory_saving
from psvit_core.planners import Problem, group_drop, make_plan, predict_drop, predict_drop_interval
from psvit_core.records import (
    POLICIES,
    ParetoSettings,
    PrunePlan,
    SensitivityTable,
    Target,
)
from tests.made import RATIOS, TABLE, exactly, hand_made, measured_as


def edited(*steps: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Return an edit that replaces the value at these steps of a document, or deletes it (None)."""

    def edit(document: Any) -> None:
        for step in steps[:-1]:
            document = document[step]
        if to is None:
            del document[steps[-1]]
        else:
            document[steps[-1]] = to

    return edit


SHAPES = ("summary", "shapes")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("ratios", to=[]), "prune ratios"),
        (edited("ratios", to=[5.0]), "prune ratios"),
        (edited("ratios", 0, to=math.nan), "prune ratios"),
        (edited("criterion", to="l1"), "no ranking by the criterion"),
        (edited("summary", "groups", to=[]), "no channel group"),
        (edited("summary", "groups", 0, "group_id", to="middle"), "a group twice"),
        (edited("summary", "groups", 0, "n_units", to=0), "0 units"),
        (edited("summary", "groups", 0, "n_units", to=10**12), "ranking by 'l2'"),
        (edited("summary", "groups", 0, "heads", to=3), "20 units in 3 heads"),
        (edited("summary", "rankings", "l2", "middle", to=None), "ranking by 'l2'"),
        (edited("summary", "rankings", "l2", "middle", to=[0]), "ranking by 'l2'"),
        (edited("summary", "rankings", "l2", "middle", 0, to=1), "ranking by 'l2'"),
        (edited(*SHAPES, "tensors", to=[]), "no tensor with weights"),
        (edited(*SHAPES, "tensors", 0, "groups", 0, to="zzz"), "do not match"),
        (edited(*SHAPES, "tensors", 0, "groups", to=["robust"]), "do not match"),
        (edited(*SHAPES, "tensors", 0, "sizes", 0, to=3), "do not match"),
        (edited(*SHAPES, "tensors", 0, "sizes", 1, to=10**400), "do not match"),
        (edited(*SHAPES, "terms", to=[]), "positive, finite"),
        (edited(*SHAPES, "terms", 0, "groups", to=["zzz", "zzz"]), "positive, finite"),
        (edited(*SHAPES, "terms", 0, "factor", to=math.nan), "positive, finite"),
        (edited("rows", 0, "drop", "value", to=math.nan), "infinite or undefined"),
        (edited("rows", 0, "kl", to=math.nan), "infinite or undefined"),
        (edited("rows", 0, "kl", to=math.inf), "infinite or undefined"),
        (edited("rows", 0, "group_id", to="zzz"), "cell of 'zzz'"),
        (edited("rows", 0, "n_pruned", to=20), "20 units removed"),
        (edited("rows", 0, "n_images", to=0), "on 0 images"),
        (edited("baseline_accuracy", "value", to=math.nan), "baseline"),
        (edited("baseline_sops", to=math.inf), "baseline"),
    ],
)
def test_inconsistent_table_is_rejected(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = hand_made({"robust": 0.1, "middle": 0.2}).save(tmp_path / "t.json")
    document = json.loads(path.read_text())
    assert SensitivityTable.load(path).to_dict() == document
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=f"t.json is not a valid.*{message}.*Sweep again"):
        SensitivityTable.load(path)


def coarse(table: SensitivityTable, *ratios: float) -> SensitivityTable:
    """Return the table of a sweep of fewer ratios."""
    rows = tuple(r for r in table.rows if r.prune_ratio in ratios)
    return dataclasses.replace(table, ratios=ratios, rows=rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_exceeds_the_measured_ratios(policy: str) -> None:
    table = coarse(TABLE, 0.1, 0.2)
    for how in (None, measured_as(TABLE)):
        plan = make_plan(table, policy, max_drop=0.9, measure=how)
        assert max(reached_ratios(TABLE.summary, plan).values()) == 0.2
    with pytest.raises(TargetError, match=r"the maximum is 20\.0%"):
        make_plan(table, policy, memory_saving=0.6)
    locked = make_plan(table, policy, memory_saving=0.3, locked={"robust": 0.8})
    assert reached_ratios(TABLE.summary, locked)["robust"] == 0.8


@pytest.mark.parametrize("policy", POLICIES)
def test_all_groups_locked(policy: str) -> None:
    everything = {g.group_id: 0.3 for g in TABLE.summary.groups}
    assert set(
        reached_ratios(
            TABLE.summary, make_plan(TABLE, policy, memory_saving=0.3, locked=everything)
        ).values()
    ) == {0.3}
    with pytest.raises(TargetError, match=r"the maximum is 30\.0%"):
        make_plan(TABLE, policy, memory_saving=0.5, locked=everything)


def test_locks_beyond_the_limit_only_by_prediction() -> None:
    """The measured drop is within the limit; every predicted one is not."""
    plan = make_plan(
        TABLE, "optimal", max_drop=0.02, locked={"middle": 0.8}, measure=measured_as(TABLE, 0.3)
    )
    assert reached_ratios(TABLE.summary, plan)["middle"] == 0.8


def test_predictions_beyond_the_grid_are_extrapolated() -> None:
    group = TABLE.summary.by_id["robust"]
    assert group_drop(TABLE, group, 0.9) == pytest.approx(0.081)
    assert group_drop(TABLE, group, 0.95) == pytest.approx(0.081 + (0.081 - 0.064) / 2)
    known, beyond = (predict_drop_interval(TABLE, {"robust": r}) for r in (0.9, 0.95))
    assert known.high < 1
    assert beyond.value < 1
    assert beyond.high == pytest.approx(88)


def test_predictions_end_at_chance_level() -> None:
    everything = {g.group_id: 0.9 for g in TABLE.summary.groups}
    assert predict_drop(TABLE, everything) == pytest.approx(98 - 10)  # 10 classes; the sum is 126
    found = predict_drop_interval(TABLE, everything)
    assert found.low == found.value == found.high == pytest.approx(88)


def test_uniform_is_the_smallest_ratio() -> None:
    plan = make_plan(TABLE, "uniform", memory_saving=0.224)
    assert set(reached_ratios(TABLE.summary, plan).values()) == {0.25}  # 5 of 20; 4 are not enough
    assert memory_saving(TABLE.summary, plan) == pytest.approx(0.25)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_counts_below_one_are_rejected(policy: str) -> None:
    for round_to in (0, -8):
        with pytest.raises(InvalidRatioError, match=f"round_to must be at least 1; got {round_to}"):
            make_plan(TABLE, policy, memory_saving=0.2, round_to=round_to)
        with pytest.raises(InvalidRatioError, match="round_to must be"):
            ParetoSettings(round_to=round_to)
    for budget in (0, -3):
        with pytest.raises(InvalidRatioError, match=f"at least 1; got {budget}"):
            make_plan(TABLE, policy, memory_saving=0.2, budget=budget, measure=measured_as(TABLE))


def test_psvit_prunes_unequally_and_hurts_less() -> None:
    plan = make_plan(TABLE, "psvit", memory_saving=0.4)
    ratios = reached_ratios(TABLE.summary, plan)
    assert memory_saving(TABLE.summary, plan) >= 0.4 - 1e-9
    assert ratios["robust"] > ratios["middle"] > ratios["fragile"] >= ratios["stream"] > 0
    uniform = reached_ratios(TABLE.summary, make_plan(TABLE, "uniform", memory_saving=0.4))
    assert predict_drop(TABLE, ratios) < predict_drop(TABLE, uniform) / 2


def test_psvit_reaches_half_of_the_target_uniformly() -> None:
    log: list[PrunePlan] = []
    make_plan(TABLE, "psvit", memory_saving=0.4, measure=measured_as(TABLE, log=log), budget=100)
    uniform = reached_ratios(TABLE.summary, log[0])
    assert set(uniform.values()) == {0.2}
    for plan in log[1:]:  # the sensitivities are measured on that uniformly pruned model
        raised = {g: r for g, r in reached_ratios(TABLE.summary, plan).items() if r != 0.2}
        assert len(raised) == 1
        assert min(raised.values()) > 0.2
    assert len(log) == 1 + 4 * 7


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("saving", [0.05, 0.224, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("measured", [False, True])
def test_memory_targets_are_met(policy: str, saving: float, measured: bool) -> None:
    measure = measured_as(TABLE, 1.3) if measured else None
    plan = make_plan(TABLE, policy, memory_saving=saving, measure=measure)
    assert memory_saving(TABLE.summary, plan) >= saving - 1e-9
    assert ("predicted" in plan.note) != measured
    assert plan.policy == policy


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("interaction", [0.5, 1.0, 3.0])
def test_drop_limits_are_respected(policy: str, interaction: float) -> None:
    measure = measured_as(TABLE, interaction)
    plan = make_plan(TABLE, policy, max_drop=0.03, measure=measure)
    drop = measure(plan).drop
    assert drop is not None and drop.value <= 3.0
    assert memory_saving(TABLE.summary, plan) > 0.04
    if policy == "psvit":
        uniform = make_plan(TABLE, "uniform", max_drop=0.03, measure=measure)
        assert memory_saving(TABLE.summary, plan) > memory_saving(TABLE.summary, uniform)


def test_cell_better_than_a_smaller_ratio_is_not_trusted() -> None:
    rows = tuple(
        r
        if not (r.group_id == "fragile" and r.prune_ratio == 0.9)
        else dataclasses.replace(r, drop=exactly(-1.0))
        for r in TABLE.rows
    )
    lucky = dataclasses.replace(TABLE, rows=rows)
    plan = make_plan(lucky, "psvit", memory_saving=0.4)
    assert plan.kept == make_plan(TABLE, "psvit", memory_saving=0.4).kept


def test_inner_scope_does_not_prune_the_residual_stream() -> None:
    for policy in POLICIES:
        plan = make_plan(TABLE, policy, memory_saving=0.3, scope="inner")
        assert "stream" not in plan.kept
        assert memory_saving(TABLE.summary, plan) >= 0.3 - 1e-9


@pytest.mark.parametrize("policy", POLICIES)
def test_unreachable_targets_name_the_largest_saving(policy: str) -> None:
    with pytest.raises(TargetError, match=r"not reachable.*the maximum is \d"):
        make_plan(TABLE, policy, memory_saving=0.99)


def test_targets_and_names_are_checked() -> None:
    for target in (
        {},
        {"savings": {"macs": 0.2}, "memory_saving": 1.2},
        {"memory_saving": 1.0},
        {"max_drop": 0.0},
    ):
        with pytest.raises(InvalidRatioError, match="at least one target"):
            make_plan(TABLE, "uniform", **target)
    with pytest.raises(UnknownNameError, match="Did you mean 'psvit'"):
        make_plan(TABLE, "psvit2", memory_saving=0.2)
    with pytest.raises(UnknownNameError, match="inner"):
        make_plan(TABLE, "uniform", memory_saving=0.2, scope="inside")


def test_unfinished_tables_are_rejected() -> None:
    rows = tuple(r for r in TABLE.rows if r.group_id != "middle")
    partial = dataclasses.replace(TABLE, rows=rows)
    with pytest.raises(TargetError, match="Finish the sweep"):
        make_plan(partial, "psvit", memory_saving=0.2)


@given(st.lists(st.floats(0.0, 2.0), min_size=2, max_size=6), st.floats(0.05, 0.85))
def test_psvit_on_random_tables(slopes: list[float], saving: float) -> None:
    table = hand_made({f"g{i}": s for i, s in enumerate(slopes)})
    plan = make_plan(table, "psvit", memory_saving=saving)
    ratios = reached_ratios(table.summary, plan)
    assert memory_saving(table.summary, plan) >= saving - 1e-9
    # The plan is minimal: lowering any raised group by one grid step misses the target.
    problem = Problem(table=table, target=Target(saving=saving))
    base = min(ratios.values())
    for group, ratio in ratios.items():
        lower = max([base, *(r for r in RATIOS if r < ratio - 1e-9)])
        if ratio > base:
            assert problem.saving({**ratios, group: lower}) < saving - 1e-9


def test_interpolation_between_cells() -> None:
    group = TABLE.summary.groups[2]
    at = {r: group_drop(TABLE, group, r) for r in (0.0, 0.1, 0.15, 0.2)}
    assert at[0.0] == 0
    assert at[0.15] == pytest.approx((at[0.1] + at[0.2]) / 2)
