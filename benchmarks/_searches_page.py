"""The section "Searches" of docs/results.md, from the rows of ``benchmarks/searches.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADING, NEXT = "## Searches stopped at 20 plans\n", "## How it was measured\n"
_COLUMNS = ("model", "saving", "policy", "limit", "plans", "drop (pp)", "seconds", "of it")


def section(document: Mapping[str, Any]) -> str:
    """Return the section's text."""
    rows = document["rows"]
    lines = [
        HEADING,
        "`python benchmarks/searches.py`: a search with real measurements on all 750 validation",
        "images, stopped after 20 plans or not at all, each from the sweep alone. *Of it* is the",
        "share of the time estimated beforehand, at most, that the search took. It can exceed 1:",
        "the estimate is an upper bound by the number of plans, at the pace that is known by then.",
        "Whole searches on `meta_spikeformer_digits` take more than a quarter of an hour each, and",
        "were not run. `prime` can end with a worse plan when it measures more: it takes the",
        "smallest limit of the drop whose walk reaches the saving, and its first groups soon use",
        "up a limit of measured drops, which predicted ones do not.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---|" * len(_COLUMNS),
        *(f"| {' | '.join(str(row[column]) for column in _COLUMNS)} |" for row in rows),
        "",
    ]
    return "\n".join(lines)
