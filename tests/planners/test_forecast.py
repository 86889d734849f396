"""Predictions calibrated with joint plans, on tables whose true joint drops are known."""

from __future__ import annotations

import dataclasses
import gc
import random
import weakref

import pytest

from psvit_core.errors import RecordError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.planners import (
    for_recovery,
    is_calibrated,
    largest_drop,
    predict_drop,
    predict_drop_interval,
    prediction_note,
    sum_of_drops,
    with_measured,
)
from psvit_core.planners.forecast import MIN_JOINT
from psvit_core.planners.predict import sum_interval
from psvit_core.records import Interval, JointRow, SensitivityTable
from tests.made import exactly, hand_made, measured_as

PLAIN = hand_made({"a": 0.02, "b": 0.05, "c": 0.1, "d": 0.2, "e": 0.03})
GROUPS = [g.group_id for g in PLAIN.summary.groups]


def true_drop(ratios: dict[str, float]) -> float:
    """Return a drop in which groups interact: twice their sum, and more the larger it is."""
    alone = sum_of_drops(PLAIN, ratios)
    return min(2 * alone + 0.05 * alone**2, largest_drop(PLAIN))


def some_ratios(rng: random.Random) -> dict[str, float]:
    largest = rng.choice((0.2, 0.4, 0.6, 0.8))
    return {g: largest * rng.random() for g in rng.sample(GROUPS, rng.randint(2, len(GROUPS)))}


def joint_row(ratios: dict[str, float], drop: float) -> JointRow:
    return JointRow(policy="mixed", ratios=ratios, drop=exactly(drop), kl=0.1, n_images=100)


def calibrated(n_plans: int) -> SensitivityTable:
    rng = random.Random(1)
    plans = [some_ratios(rng) for _ in range(n_plans)]
    return dataclasses.replace(PLAIN, joint=tuple(joint_row(p, true_drop(p)) for p in plans))


def test_few_joint_plans_correct_the_sum_of_drops() -> None:
    table, rng = calibrated(14), random.Random(2)
    tests = [some_ratios(rng) for _ in range(60)]
    truth = [true_drop(ratios) for ratios in tests]
    found = [predict_drop_interval(table, ratios) for ratios in tests]
    error = sum(abs(p.value - drop) for p, drop in zip(found, truth, strict=True))
    before = sum(abs(sum_of_drops(PLAIN, r) - d) for r, d in zip(tests, truth, strict=True))
    assert error < before / 2
    inside = [p.low <= drop <= p.high for p, drop in zip(found, truth, strict=True)]
    assert sum(inside) >= 54  # 9 of 10
    assert all(-0.5 <= p.low <= p.value <= p.high <= largest_drop(table) for p in found)
    assert predict_drop(table, tests[0]) == found[0].value


def test_a_table_that_nobody_uses_any_more_leaves_the_memory() -> None:
    ratios = {"a": 0.2, "b": 0.4}
    table = calibrated(MIN_JOINT)
    first = predict_drop_interval(table, ratios)
    assert predict_drop_interval(table, ratios) == first
    unused = weakref.ref(table)
    del table
    for _ in range(30):  # as after measurements, which each make another table
        assert predict_drop_interval(calibrated(MIN_JOINT), ratios) == first
    gc.collect()
    assert unused() is None


def test_the_range_is_narrow_near_joint_plans_and_wide_far_from_them() -> None:
    rows = tuple(joint_row({"d": 0.3 + n / 50, "e": 0.3}, 4.0 + n / 5) for n in range(10))
    table = dataclasses.replace(PLAIN, joint=rows)
    near = predict_drop_interval(table, {"d": 0.41, "e": 0.3})
    far = predict_drop_interval(table, {"a": 0.9, "b": 0.7, "c": 0.4})
    assert near.low <= 5.1 <= near.high
    assert near.value == pytest.approx(5.1, abs=0.5)
    assert far.high - far.low > 2 * (near.high - near.low)


def test_a_joint_plan_of_few_images_says_less() -> None:
    """Drops that a sample of 96 images can show by chance; the true drop is 4 points."""
    rng = random.Random(3)
    plans = [{"d": 0.4 + n / 200, "e": 0.3 + n / 200} for n in range(12)]
    drops = [4.0 + rng.choice((-4.0, -2.0, 0.0, 2.0, 4.0)) for _ in plans]
    rows = [joint_row(plan, drop) for plan, drop in zip(plans, drops, strict=True)]
    sure = dataclasses.replace(PLAIN, joint=tuple(rows))
    unsure = dataclasses.replace(
        PLAIN, joint=tuple(dataclasses.replace(row, effective_images=10.0) for row in rows)
    )
    at = {"d": 0.43, "e": 0.33}
    wide, narrow = predict_drop_interval(unsure, at), predict_drop_interval(sure, at)
    assert wide.low <= 4.0 <= wide.high
    assert wide.high - wide.low > narrow.high - narrow.low
    same = dataclasses.replace(rows[0], effective_images=100.0)  # 0 means n_images
    assert predict_drop(dataclasses.replace(PLAIN, joint=(same, *rows[1:])), at) == narrow.value


def test_a_plan_of_one_group_is_a_cell_and_an_empty_one_loses_nothing() -> None:
    table = calibrated(14)
    assert predict_drop_interval(table, {"d": 0.5}) == sum_interval(PLAIN, {"d": 0.5})
    assert predict_drop(table, {"d": 0.5}) == pytest.approx(100 * 0.2 * 0.25)
    assert predict_drop_interval(table, {}) == Interval(value=0.0, low=0.0, high=0.0)


def test_a_table_without_enough_joint_plans_keeps_the_sum_and_says_so() -> None:
    ratios = {"a": 0.5, "d": 0.4}
    few = calibrated(7)
    for table in (PLAIN, few):
        assert not is_calibrated(table)
        assert predict_drop_interval(table, ratios) == sum_interval(table, ratios)
        assert predict_drop(table, ratios, 2.0) == pytest.approx(2 * sum_of_drops(table, ratios))
        assert "sum of the groups' own drops" in prediction_note(table)
    assert "9 of 10 plans" in prediction_note(calibrated(8))
    older = PLAIN.to_dict()
    del older["joint"]
    assert SensitivityTable.from_dict(older) == PLAIN


def test_measured_plans_join_the_joint_plans() -> None:
    table, ratios = calibrated(14), {"a": 0.6, "b": 0.3, "e": 0.7}
    plan = plan_from_ratios(table.summary, ratios, criterion="l2")
    measured = measured_as(table, 12.0)(plan)
    assert measured.drop is not None
    again = with_measured(table, [measured])
    assert [row.ratios for row in again.joint[14:]] == [ratios]
    gap = abs(predict_drop(again, ratios) - measured.drop.value)
    assert gap < abs(predict_drop(table, ratios) - measured.drop.value)
    assert predict_drop(table, ratios) == predict_drop(calibrated(14), ratios)  # unchanged
    other = dataclasses.replace(measured, weights_hash="1")
    assert with_measured(table, [other]) is table


def recovered_again() -> SensitivityTable:
    """Return a table of plans that lose 1 to 2 or 40 points; two of those lose 8 under ``auto``."""
    little = [joint_row({"a": 0.2 + n / 40, "e": 0.3}, 1.0 + n / 10) for n in range(10)]
    much = [joint_row({"c": 0.6, "d": 0.5 + n / 50}, 40.0) for n in range(6)]
    better = [dataclasses.replace(row, auto_drop=exactly(8.0)) for row in much[1:5:3]]
    return dataclasses.replace(PLAIN, joint=(*little, much[0], *better, *much[2:4], much[5]))


def test_predictions_follow_what_auto_recovered_where_it_ran() -> None:
    table, at = recovered_again(), {"c": 0.6, "d": 0.55}
    found = predict_drop_interval(table, at)
    assert found.value == pytest.approx(8.0, abs=1.5) and found.low < 8.0 < found.high
    by_refit = for_recovery(table, "lsq")
    assert predict_drop(by_refit, at) == pytest.approx(40.0, abs=6)
    assert predict_drop(by_refit, at) == predict_drop(for_recovery(table, "both"), at)
    assert for_recovery(table, "auto") is table and for_recovery(PLAIN, "lsq") is PLAIN
    small = {"a": 0.3, "e": 0.3}
    assert predict_drop(table, small) == pytest.approx(predict_drop(by_refit, small), abs=0.3)
    assert "with 12 joint plans" in prediction_note(table)
    assert "with 16 joint plans" in prediction_note(by_refit)


def test_a_measured_plan_counts_however_much_it_loses() -> None:
    ratios = {"b": 0.7, "d": 0.6}
    plan = plan_from_ratios(PLAIN.summary, ratios, criterion="l2")
    for table in (recovered_again(), for_recovery(recovered_again(), "lsq")):
        again = with_measured(table, [measured_as(table, 30.0)(plan)])
        measured = again.joint[-1].calibrating_drop.value
        gaps = [abs(predict_drop(t, ratios) - measured) for t in (again, table)]
        assert gaps[0] < gaps[1]


def test_rows_without_the_field_of_auto_are_read() -> None:
    table = recovered_again()
    older = table.to_dict()
    for row in older["joint"]:
        row.pop("auto_drop", None)
    assert SensitivityTable.from_dict(older) == for_recovery(table, "lsq")
    assert SensitivityTable.from_dict(table.to_dict()) == table


@pytest.mark.parametrize(
    "wrong",
    [{"ratios": {"zzz": 0.5}}, {"ratios": {"a": 1.0}}, {"n_images": 0}, {"kl": float("nan")}],
)
def test_wrong_joint_plans_are_rejected(wrong: dict[str, object]) -> None:
    table = calibrated(8)
    row = dataclasses.replace(table.joint[0], **wrong)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="joint plan"):
        dataclasses.replace(table, joint=(row,)).check()
