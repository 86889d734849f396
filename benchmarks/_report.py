"""Output of every benchmark: a table on stdout, ``--json``, the stored last full result."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def options(
    description: str, extend: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Parse ``--quick`` (ends within a minute) and ``--json`` (one object instead of a table).

    Args:
        description: The help text.
        extend: Adds options of a benchmark's own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="run only the smallest case; do not store the result"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if extend is not None:
        extend(parser)
    return parser.parse_args()


def stored(name: str) -> dict[str, Any]:
    """Return the stored last full result of a benchmark."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def stored_section(path: Path, section: Callable[[Mapping[str, Any]], str]) -> str:
    """Return the section of a stored result, with an empty line; empty without one."""
    if not path.exists():
        return ""
    return section(json.loads(path.read_text(encoding="utf-8"))) + "\n"


def replace_section(page: Path, text: str, following: str) -> None:
    """Replace a section of a page, or add it; the rest of the page stays.

    Args:
        page: The page.
        text: The section, with its heading.
        following: Heading that a new section is added before.
    """
    old, heading = page.read_text(encoding="utf-8"), text.splitlines(keepends=True)[0]
    start = old.find(heading)
    end = old.find("\n## ", start) + 1
    if start < 0:
        start = end = old.index(following)
    page.write_text(f"{old[:start]}{text}\n{old[end:]}", encoding="utf-8")


def document_of(
    name: str, rows: list[dict[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the rows of a benchmark with its settings and the versions that made them."""
    return {
        "benchmark": name,
        "settings": settings,
        "versions": {p: version(p) for p in ("torch", "spikingjelly")},
        "python": platform.python_version(),
        "rows": rows,
    }


def store_result(document: Mapping[str, Any]) -> None:
    """Store a full result of a benchmark under its name."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    (RESULTS / f"{document['benchmark']}.json").write_text(text, encoding="utf-8")


def report(name: str, rows: list[dict[str, Any]], settings: dict[str, Any], chosen: Any) -> None:
    """Print rows; store them with versions and settings unless the run was quick."""
    document = document_of(name, rows, settings)
    if not chosen.quick:
        store_result(document)
    if chosen.json:
        print(json.dumps(document))
        return
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[c]) for c in columns) + " |")
