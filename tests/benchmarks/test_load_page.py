"""The section on many people at one app."""

from __future__ import annotations

from benchmarks._load_page import HEADING, section
from benchmarks._load_people import rank
from benchmarks._report import RESULTS, stored_section

ABOUT = {"tabs": 20, "model": "m", "images": "250", "cpus": 2, "session kept (s)": 10}


def test_the_table() -> None:
    row = {"what": "edits, p95", "value": "0.61", "unit": "s", "note": "500 of 20 tabs"}
    text = section({"rows": [row], "settings": ABOUT})
    assert text.startswith(HEADING)
    assert "| edits, p95 | 0.61 s | 500 of 20 tabs |" in text


def test_the_page_has_the_stored_section() -> None:
    page = (RESULTS.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert stored_section(RESULTS / "load.json", section) in page


def test_ranks() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (rank(values, 0.5), rank(values, 0.95), rank([], 0.5)) == (51.0, 96.0, 0.0)
