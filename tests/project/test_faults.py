"""The table of faults is about tests that exist, and about all of those in ``tests/faults``."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from scripts.case_table import collected
from scripts.write_faults_table import PAGE, ROWS, page_text

ROOT = Path(__file__).resolve().parents[2]
TESTS = [test for row in ROWS for test in row.tests]
#: Tests of the tests, and of a part of a fault that has a row.
NOT_ON_THE_PAGE = {
    "faults/test_power_cuts.py::test_the_record_is_of_all_that_was_written",
    "faults/test_ended.py::test_a_process_that_has_ended_is_none",
}


def test_every_test_exists_and_counts_once() -> None:
    assert len(set(TESTS)) == len(TESTS)
    for test in TESTS:
        file, _, function = test.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {function or 'test_'}", text, re.MULTILINE), test


def test_every_test_of_a_fault_is_on_the_page() -> None:
    found = set()
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        found |= {f"faults/{path.name}::{name}" for name in names}
    assert {name for name in found if not name.startswith(tuple(TESTS))} == NOT_ON_THE_PAGE


def test_the_page_has_exactly_the_rows_of_the_table() -> None:
    """It has no times, so it is equal wherever it is written; ``make faults`` writes it anew."""
    page, number = PAGE.read_text(encoding="utf-8"), re.compile(r"\| (\d+) \||Together \d+ cases")
    assert number.sub("", page) == number.sub("", page_text(Counter()))
    counts = [int(n) for n in re.findall(r"\| (\d+) \|", page)]
    assert min(counts) >= 1 and len(counts) == len(ROWS)
    assert f"Together {sum(counts)} cases" in page


@pytest.mark.slow
def test_the_page_has_exactly_the_cases_of_the_suite() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(collected(TESTS))


def test_cases_are_counted_by_row() -> None:
    names = [name if "::" in name else f"{name}::test_x" for name in TESTS]
    text = page_text(Counter(dict.fromkeys(names, 2)))
    assert f"Together {2 * len(TESTS)} cases" in text
    assert all(f"| {row.what} | {row.outcome} | {2 * len(row.tests)} |" in text for row in ROWS)
