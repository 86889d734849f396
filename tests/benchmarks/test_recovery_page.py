"""The section on recovery in the results: its verdicts, and that the stored page has it."""

from __future__ import annotations

import pytest

from benchmarks._recovery_page import section
from benchmarks._report import RESULTS, stored


@pytest.mark.parametrize(("relative", "verdict"), [(0.5, "met"), (0.51, "not met")])
def test_the_verdict(relative: float, verdict: str) -> None:
    row = {"model": "m", "drop (pp)": 1.2, "low": 0.1, "high": 2.3, "relative": relative}
    rows = [{**row, "method": "auto", "images": 5000, "split": "val"}]
    settings = {"memory saving": 0.9, "calibration images": 256, "seeds": [0, 1]}
    text = section({"rows": rows, "settings": settings})
    assert f"| `m` | 5,000 val | `auto` | 1.2 | 0.1 to 2.3 | {relative} |" in text
    assert f"the goal of 0.5 was {verdict}." in text
    assert "90 % saved" in text and "2 seeds" in text.replace("\n", " ")


def test_the_page_has_the_stored_section() -> None:
    page = (RESULTS.parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    assert section(stored("recovery")) in page
