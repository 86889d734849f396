"""The section on latency: its tables and sentences are those of the rows."""

from __future__ import annotations

from typing import Any

from benchmarks._latency_page import HEADING, NEXT, TABLE_HEADING, section, table_section
from benchmarks._report import RESULTS, stored_section


def row(saving: float, step: int, macs: float, latency: float, **other: Any) -> dict[str, Any]:
    """Return a row of the benchmark."""
    return {
        "model": "m",
        "engine": "torch",
        "threads": 1,
        "batch": 1,
        "unpruned (ms)": 1234.5,
        "saving": saving,
        "round to": step,
        "bytes saved": saving,
        "MAC ratio": macs,
        "latency ratio": latency,
        **other,
    }


def test_the_section() -> None:
    rows = [
        row(0.5, 1, 0.6, 0.8),
        row(0.5, 8, 0.5, 0.6),
        row(0.5, 1, 0.6, 0.92, batch=32),  # has no rounded plan
    ]
    machine = {"processor": "a processor", "torch": "9.9"}
    text = section({"rows": rows, "settings": {"machine": machine, "load": [0.25, 1, 2]}})
    assert text.startswith(HEADING)
    assert "on a processor (torch 9.9; load average 0.2 at the start)" in text
    assert "| MAC ratio | 50 % | 50 % to 8 |" in text
    assert "| `m` | 0.60 | 0.50 |" in text
    assert "| `m` | torch | 1 | 1 | 1,234.5 | 0.80 | 0.60 |" in text
    assert "| `m` | torch | 1 | 32 | 1,234.5 | 0.92 |  |" in text
    assert "| torch | 1 | 0.35, 0.20 to 0.50 |" in text  # (1 - 0.8) / 0.4 and (1 - 0.92) / 0.4
    # 0.6 / 0.8 of the time; (0.6 / 0.5) / (0.8 / 0.6) of that for each MAC
    assert (
        "faster than the plan without rounding in 1 of 1 rows, 0.75 × its time (median), " in text
    )
    assert "0.90 × its time for each MAC." in text


def test_the_page_has_the_stored_section() -> None:
    page = (RESULTS.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert NEXT in page
    assert stored_section(RESULTS / "latency.json", section) in page


def test_the_section_on_predictions() -> None:
    common = {"model": "m", "table (s)": 8.4, "unpruned (ms)": 5.0, "between layers": 0.07}
    rows = [
        {"plan": "uniform 50%", "MAC ratio": 0.3, "predicted ratio": 0.45, "measured ratio": 0.5},
        {"plan": "random 0", "MAC ratio": 0.4, "predicted ratio": 0.55, "measured ratio": 0.5},
    ]
    rows = [{**common, **r, "error": e} for r, e in zip(rows, (-0.1, 0.05), strict=True)]
    machine = {"processor": "a processor", "torch": "9.9"}
    text = table_section({"rows": rows, "settings": {"machine": machine, "load": [0.5, 1, 2]}})
    assert text.startswith(TABLE_HEADING)
    assert "Errors at most 10.0%, median 7.5%." in text
    assert "| `m` | 8 s | 5.0 ms | 7% | uniform 50% | 0.30 | 0.45 | 0.50 | -10.0% |" in text
    assert "|  |  |  |  | random 0 | 0.40 | 0.55 | 0.50 | +5.0% |" in text


def test_the_page_has_the_stored_section_on_predictions() -> None:
    page = (RESULTS.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert stored_section(RESULTS / "latency_table.json", table_section) in page
