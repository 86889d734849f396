"""The numbers of the section on predictions, by hand, and that the stored page has them."""

from __future__ import annotations

import json

import pytest

from benchmarks._predictions_page import judged, section
from benchmarks._report import RESULTS


def row(drop: float, value: float, low: float, high: float) -> dict[str, object]:
    predicted = [value, low, high]
    return {"model": "m", "drop": drop, "predicted": predicted, "sum": predicted, "joint_plans": 9}


def test_the_judgement() -> None:
    rows = [row(1, 2, 0, 4), row(5, 2.5, 2, 3), row(8, 9, 7, 13), row(50, 40, 30, 60)]
    found = judged(rows, "predicted")
    assert found["inside"] == 75
    assert found["width"] == 4
    assert found["error"] == pytest.approx((1 + 2.5 + 1) / 3)
    assert found["off"] == 2.5
    text = section({"rows": rows})
    assert "| `m` | none | calibrated | 4 | 75 % | 4.0 | 1.50 | 2.5 |" in text
    assert "- `m`, recovery none: 75 % of the plans are inside the range, the goal was 80" in text


def test_the_page_has_the_stored_section() -> None:
    stored = json.loads((RESULTS / "predictions.json").read_text(encoding="utf-8"))
    page = (RESULTS.parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    assert section(stored) in page
    assert len(stored["rows"]) == 360
