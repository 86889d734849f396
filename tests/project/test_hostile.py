"""The page on hostile inputs is about tests that exist, and about enough of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from scripts.write_hostile_table import PAGE, ROWS, page_text

ROOT = Path(__file__).resolve().parents[2]
TESTS = [test for row in ROWS for test in row.tests]


def test_every_test_exists_and_counts_once() -> None:
    assert len(set(TESTS)) == len(TESTS)
    for test in TESTS:
        file, _, function = test.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {function or 'test_'}", text, re.MULTILINE), test


def test_the_page_has_all_rows_and_at_least_100_cases() -> None:
    page = PAGE.read_text(encoding="utf-8")
    counts = []
    for row in ROWS:
        found = re.search(
            rf"^\| {re.escape(row.what)} \| {re.escape(row.outcome)} \| (\d+) ", page, re.M
        )
        assert found is not None, row.what
        counts.append(int(found[1]))
    assert min(counts) >= 1 and sum(counts) >= 100
    assert f"Together {sum(counts)} cases" in page


def test_cases_are_counted_by_row() -> None:
    names = [name if "::" in name else f"{name}::test_x" for name in TESTS]
    cases = Counter(dict.fromkeys(names, 2))
    text = page_text(cases, dict.fromkeys(names, 0.25))
    assert f"Together {2 * len(TESTS)} cases" in text
    assert "| 2 | 0.2 | `plan/" not in text and "| 4 | 0.2 | `plan/test_link.py` |" in text
