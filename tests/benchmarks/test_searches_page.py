"""The section on searches, and how a section of the results page is replaced."""

from __future__ import annotations

from pathlib import Path

from benchmarks._report import RESULTS, replace_section, stored_section
from benchmarks._searches_page import HEADING, NEXT, section

ROW = {
    "model": "m",
    "saving": 0.5,
    "policy": "psvit",
    "limit": "none",
    "plans": 300,
    "drop (pp)": 1.25,
    "seconds": 90.0,
    "of it": 0.8,
}


def test_the_table() -> None:
    text = section({"rows": [ROW]})
    assert text.startswith(HEADING)
    assert "| m | 0.5 | psvit | none | 300 | 1.25 | 90.0 | 0.8 |" in text


def test_a_section_is_added_and_replaced_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n## First\n\nolder text\n\n{NEXT}\nlast\n", encoding="utf-8")
    replace_section(page, section({"rows": []}), NEXT)
    replace_section(page, section({"rows": [ROW]}), NEXT)
    replace_section(page, "## First\n\ntwo\n", NEXT)
    text = page.read_text(encoding="utf-8")
    assert text.count(HEADING) == 1 and "older text" not in text
    expected = f"# Page\n\n## First\n\ntwo\n\n{section({'rows': [ROW]})}\n{NEXT}\nlast\n"
    assert text == expected


def test_the_page_has_the_stored_section() -> None:
    page = (RESULTS.parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    assert stored_section(RESULTS / "searches.json", section) in page
