"""The table of docs/quantize.md is that of the stored result."""

from __future__ import annotations

from benchmarks._quantized_page import section
from benchmarks._report import RESULTS, stored


def test_the_page_has_the_stored_result() -> None:
    page = (RESULTS.parents[1] / "docs" / "quantize.md").read_text(encoding="utf-8")
    assert section(stored("quantized")) in page


def test_ratios_and_losses_are_those_of_the_rows() -> None:
    rows = stored("quantized")["rows"]
    first = {r["model"]: r for r in rows if (r["network"], r["weights"]) == ("unpruned", "fp32")}
    assert len(first) == len(rows) / 6
    for row in rows:
        whole = first[row["model"]]
        assert row["ratio"] == round(row["file (bytes)"] / whole["file (bytes)"], 4)
        if row["drop (points)"]:
            lost = whole["accuracy (%)"][0] - row["accuracy (%)"][0]
            assert abs(row["drop (points)"][0] - lost) < 0.011
