"""``--recover`` of the commands that measure: its default, what it refuses, what is printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from psvit_core.cli import main
from psvit_core.cli.output import measurement_text
from psvit_core.cli.session import follow_recovery, follow_recovery_to_plan
from psvit_core.errors import DataError, UnknownNameError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Interval, Measurement, PrunePlan, SensitivityTable
from psvit_core.storage.store import Store
from psvit_core.zoo.cards import shipped_summary
from tests.made import CONDITIONS
from tests.tasks.test_recovery_condition import TinySession, session_of
from tests.tiny import tiny_data


def table_with(recovery: str) -> SensitivityTable:
    summary = shipped_summary("sdt_v1_digits")
    assert summary is not None
    return SensitivityTable(
        summary=summary,
        criterion="l2",
        conditions=dataclasses.replace(CONDITIONS, recovery=recovery),
        ratios=(0.5,),
        baseline_accuracy=Interval(value=0.9, low=0.8, high=1.0),
        rows=(),
    )


@pytest.mark.parametrize(
    ("method", "cells", "expected"),
    [
        (None, None, "auto"),
        ("none", None, "none"),
        ("bn", None, "bn"),
        (None, "none", "none"),  # plans from a plain table are measured as pruned
        (None, "lsq", "auto"),
        ("none", "lsq", "none"),
    ],
)
def test_the_default_follows_the_table(
    tmp_path: Path, method: str | None, cells: str | None, expected: str
) -> None:
    session = session_of(Store(tmp_path), "none")
    follow_recovery(session, method, table_with(cells) if cells else None)
    assert session.recovery.method == expected
    assert session.warnings == []


def test_without_calibration_images_the_default_is_none(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "none")
    session.with_calib = False
    follow_recovery(session, None)
    assert session.recovery.method == "none"
    assert "no calibration images" in session.warnings[0]
    with pytest.raises(DataError):
        follow_recovery(session, "lsq")


def test_what_is_refused(tmp_path: Path) -> None:
    session = session_of(Store(tmp_path), "none")
    with pytest.raises(UnknownNameError, match="magic"):
        follow_recovery(session, "magic")
    on_test = dataclasses.replace(tiny_data("sdt_v1", 6), split="test")
    judged = TinySession(session.subject, session.store, _model=session.model, _data=on_test)
    with pytest.raises(DataError, match="test split"):
        follow_recovery_to_plan(judged, None)


def small_plan(tmp_path: Path) -> Path:
    summary = shipped_summary("sdt_v1_digits")
    assert summary is not None
    plan: PrunePlan = plan_from_ratios(summary, {"block.0.mlp.hidden": 0.5}, criterion="l2")
    return plan.save(tmp_path / "plan.json")


def test_evaluate_prints_both_drops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan(tmp_path)
    line = f"evaluate sdt_v1_digits --plan {plan} --limit 10 --recover bn --json"
    assert main(line.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"]["recovery"] == found["recovered_by"] == "bn"
    assert found["unrecovered"]["drop"] is not None


@pytest.mark.slow
def test_sweep_and_plan_recover_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, plan = tmp_path / "s.json", tmp_path / "p.json"
    line = f"sweep sdt_v1_digits --limit 20 --ratios 0.5 --out {sweep}"
    assert main(line.split()) == 0
    assert "readers refitted" in capsys.readouterr().out
    assert SensitivityTable.load(sweep).conditions.recovery == "lsq"
    line = f"plan sdt_v1_digits --measure 20 --sweep {sweep} --policy uniform --memory-saving 0.3"
    assert main([*line.split(), "--out", str(plan), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["conditions"]["recovery"] == "auto"
    assert measured["unrecovered"]["conditions"].get("recovery", "none") == "none"
    line = f"plan sdt_v1_digits --measure 20 --sweep {sweep} --policy uniform --memory-saving 0.3"
    assert main([*line.split(), "--out", str(plan), "--recover", "none"]) == 2
    assert "recover" in capsys.readouterr().err


def test_the_text_names_the_recovery() -> None:
    from tests.ui.test_recovery import GAINED, PLAIN

    (line,) = [x for x in measurement_text(GAINED).splitlines() if x.startswith("drop")]
    assert line == (
        "drop      +0.40 pp [-0.60, +1.40] paired, recovered by auto (stages); "
        "pruned alone +6.00 pp [+5.00, +7.00]"
    )
    assert "recover" not in measurement_text(PLAIN)


def test_recover_needs_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "sdt_v1_digits", "--recover", "bn"]) == 2
    assert "nothing is pruned without --plan" in capsys.readouterr().err


def test_documents_of_measurements_are_records(tmp_path: Path) -> None:
    from tests.ui.test_recovery import GAINED

    path = GAINED.save(tmp_path / "m.json")
    assert Measurement.load(path) == GAINED
