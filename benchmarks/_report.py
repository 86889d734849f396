"""What every benchmark shares: the table on stdout, ``--json``, the kept last full result."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def options(description: str) -> argparse.Namespace:
    """``--quick`` ends within a minute; ``--json`` prints one object instead of a table."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="the smallest case only; not kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def report(name: str, rows: list[dict[str, Any]], settings: dict[str, Any], chosen: Any) -> None:
    """Print rows, and keep them with versions and settings unless the run was a quick one."""
    document = {
        "benchmark": name,
        "settings": settings,
        "versions": {p: version(p) for p in ("torch", "spikingjelly")},
        "python": platform.python_version(),
        "rows": rows,
    }
    if not chosen.quick:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(document, indent=1) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    if chosen.json:
        print(json.dumps(document))
        return
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[c]) for c in columns) + " |")
