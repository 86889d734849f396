"""The section "Many people at one app" of docs/performance.md, from ``benchmarks/load.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADING, NEXT = "## Many people at one app\n", "## Recovery without training\n"


def section(document: Mapping[str, Any]) -> str:
    """Return the section's text."""
    about = document["settings"]
    lines = [
        HEADING,
        f"`python benchmarks/load.py`: {about['tabs']} tabs that speak Streamlit's protocol, and",
        "one Chromium beside them, each with a plan of its own (`PSVIT_PLANS=own`), browse, edit",
        f"and measure `{about['model']}` on {about['images']} images for two minutes, an action",
        f"every 2 to 6 s, on {about['cpus']} cores with one worker beside the app. An answer is",
        "the time until an edit's figures have come from the server, or a page is complete.",
        "Waiting of measurements is counted apart: they run one after another, those of a tab that",
        "was served least recently first, and an edit drops the tab's earlier one. Then one",
        "session edits and browses again and again. Memory is what the process has to itself. A",
        f"session is forgotten {about['session kept (s)']} s after its tab was closed, by",
        "Streamlit's default after 120 s.",
        "",
        "| | | |",
        "|---|---|---|",
        *(f"| {r['what']} | {r['value']} {r['unit']} | {r['note']} |" for r in document["rows"]),
        "",
    ]
    return "\n".join(lines)
