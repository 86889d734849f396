"""Pages of the documentation that are tables of the suite's own tests, and what they show."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
Cases = Counter[str]  # passed cases by FILE::FUNCTION
Times = dict[str, float]  # the longest time of one of them, seconds


@dataclass(frozen=True)
class Row:
    """Inputs or faults of one kind."""

    what: str
    outcome: str
    tests: tuple[str, ...]  # FILE::FUNCTION below ``tests``


def run(tests: list[str]) -> tuple[Cases, Times]:
    """Run tests; return the passed cases and the longest time in seconds of each FILE::FUNCTION.

    Raises:
        SystemExit: If one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={report}"]
        if subprocess.run([*command, *tests], cwd=ROOT, check=False).returncode:
            raise SystemExit("A test failed, so no table was written.")
        root = ElementTree.parse(report)
    cases, longest = Counter[str](), defaultdict[str, float](float)
    for case in root.iter("testcase"):
        if case.find("skipped") is not None:
            continue
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        name = f"{file}::{case.attrib['name'].partition('[')[0]}"
        cases[name] += 1
        longest[name] = max(longest[name], float(case.attrib["time"]))
    return cases, longest


def collected(tests: Sequence[str]) -> Cases:
    """Return how many cases each FILE::FUNCTION of ``tests`` (below ``tests``) has, unrun."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", ""]
    command += [f"tests/{test}" for test in tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = (line for line in done.stdout.splitlines() if line.startswith("tests/"))
    return Counter(line.removeprefix("tests/").partition("[")[0] for line in lines)


def count(row: Row, cases: Cases) -> int:
    """Return the number of a row's cases."""
    return sum(n for name, n in cases.items() if name.startswith(row.tests))


def files(row: Row) -> str:
    """Return the files of a row's tests."""
    return ", ".join(f"`{file}`" for file in sorted({n.partition("::")[0] for n in row.tests}))


def rows_text(rows: Sequence[Row], cases: Cases, longest: Times) -> str:
    """Return the rows of a table with their numbers, and the line below it."""
    lines, total = [], 0
    for row in rows:
        names = [name for name in cases if name.startswith(row.tests)]
        number, seconds = count(row, cases), max(longest[name] for name in names)
        lines.append(f"| {row.what} | {row.outcome} | {number} | {seconds:.1f} | {files(row)} |\n")
        total += number
    end = "Times are those of 2 cores, and include what a test prepares."
    return f"{''.join(lines)}\nTogether {total} cases, all with the outcome named. {end}\n"


def write_page(page: Path, rows: Sequence[Row], text: Callable[[Cases, Times], str]) -> None:
    """Run the tests of a table and write its page."""
    cases, longest = run([f"tests/{test}" for row in rows for test in row.tests])
    page.write_text(text(cases, longest), encoding="utf-8")
    print(f"{page.relative_to(ROOT)}: {sum(cases.values())} cases")
