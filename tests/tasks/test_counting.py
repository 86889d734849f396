"""Results that were counted by an older rule load, are marked, and are not mixed with new ones."""

from __future__ import annotations

import dataclasses

import pytest

from psvit_core.errors import InvalidPlanError
from psvit_core.records import Conditions, Interval, SensitivityTable, counting_of
from psvit_core.storage.predictions import outcome_key
from psvit_core.tasks.plan import check_swept, counting_note
from psvit_core.zoo.cards import shipped_summary

CONDITIONS = Conditions(
    data="digits",
    split="val",
    n_images=10,
    T=1,
    batch=5,
    precision="float32",
    device="cpu",
    transform="x",
)


def table(name: str, counting: int) -> SensitivityTable:
    summary = shipped_summary(name)
    assert summary is not None
    return SensitivityTable(
        summary=summary,
        criterion="l2",
        conditions=dataclasses.replace(CONDITIONS, counting=counting),
        baseline_accuracy=Interval(value=0.9, low=0.8, high=1.0),
        ratios=(0.5,),
        rows=(),
    )


def test_older_tables_load_and_are_marked() -> None:
    older = table("meta_spikeformer_digits", 1)
    data = older.to_dict()
    assert "counting" not in data["conditions"]  # as written by older versions
    loaded = SensitivityTable.from_dict(data)
    assert loaded.conditions.counting == 1
    assert "by an older rule. Its accuracies and byte counts are still valid" in counting_note(
        loaded
    )
    with pytest.raises(InvalidPlanError, match="by an older rule"):
        check_swept(loaded, loaded.summary)


@pytest.mark.parametrize("name", ["meta_spikeformer_digits", "sdt_v1_digits"])
def test_present_tables_are_not_marked(name: str) -> None:
    summary = shipped_summary(name)
    assert summary is not None
    present = table(name, counting_of(summary.family))
    assert counting_note(present) == ""
    check_swept(SensitivityTable.from_dict(present.to_dict()), summary)


def test_the_rule_is_part_of_the_keys() -> None:
    def key(counting: int) -> str:
        return outcome_key(
            "h", {}, transform="x", T=1, precision="float32", form="silenced", counting=counting
        )

    assert key(1) == outcome_key("h", {}, transform="x", T=1, precision="float32", form="silenced")
    assert key(2) != key(1)
