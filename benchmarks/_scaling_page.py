"""The sections of docs/scaling.md that are numbers, from ``benchmarks/scaling.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._report import RESULTS, replace_section

PAGE = RESULTS.parents[1] / "docs" / "scaling.md"
COSTS, FIGURES, DEMO = "## Measured and assumed\n", "## Figures\n", "## Checked on the demo\n"
END = "## What limits\n"  # before which new sections come


def write_page(page: Path = PAGE) -> None:
    """Rewrite the sections whose results are stored."""
    for name, sections in (("scaling", (costs, figures)), ("scaling_demo", (demo,))):
        path = RESULTS / f"{name}.json"
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            for section in sections:
                replace_section(page, section(document), END)


def costs(document: Mapping[str, Any]) -> str:
    """Return the section of what was measured and what is assumed."""
    s = document["settings"]
    measured, n_cells = s["measured"], s["groups"] * s["ratios"]
    lines = [
        COSTS,
        f"`{s['model']}` ({s['parameters'] / 1e6:.1f} M parameters, T = {s['T']}, 224 px,",
        "untrained weights with BatchNorms set so that neurons fire):",
        f"{s['groups']} groups × {s['ratios']} ratios = {n_cells} cells. Measured by",
        "`python benchmarks/scaling.py` in CPU seconds of one thread, on 2 idle cores, on",
        f"{measured['images']} images and {measured['cells measured']} cells:",
        "",
        "| measured | |",
        "|---|---|",
        *(f"| {what} | {number(value)} |" for what, value in s["measured"].items()),
        "",
        "Assumed, since no GPU and no second machine was there:",
        "",
        "| assumed | |",
        "|---|---|",
        *(f"| {what} | {number(value)} |" for what, value in s["assumed"].items()),
        "",
    ]
    return "\n".join(lines)


def figures(document: Mapping[str, Any]) -> str:
    """Return the section of the extrapolated figures."""
    head = ("sweep", "GPUs", "simulated", "speed-up", "workers", "driver", "link")
    lines = [
        FIGURES,
        "50,000 images of ImageNet. Simulated time, its speed-up over one GPU, and the least time",
        "of each resource by the formula. **Extrapolated**, not run.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in document["rows"]:
        hours = [
            hours_text(row[name])
            for name in ("hours", "workers bound (h)", "driver bound (h)", "link bound (h)")
        ]
        lines.append(
            f"| {row['sweep']} | {row['workers']} | {hours[0]} | {row['speed-up']:.1f} × | "
            f"{hours[1]} | {hours[2]} | {hours[3]} |"
        )
    return "\n".join([*lines, ""])


def demo(document: Mapping[str, Any]) -> str:
    """Return the section of the demo on three nodes."""
    s = document["settings"]
    lines = [
        DEMO,
        "`python benchmarks/scaling.py --demo --data cifar10-jpeg:DIR`: the sweep of",
        f"`{s['model']}` on a local Ray of {s['nodes']} nodes with one core each, of which one was",
        "removed while it measured, against a local sweep (ratios",
        f"{', '.join(f'{r:g}' for r in s['ratios'])}). The machine has 2 cores, so that",
        "times say nothing about scaling.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {r['what']} | {yes(r['value'])} |" for r in document["rows"]),
        "",
    ]
    return "\n".join(lines)


def yes(value: Any) -> str:
    """Return a value as text, truth as a word."""
    return {True: "yes", False: "**no**"}[value] if isinstance(value, bool) else f"{value:,}"


def number(value: Any) -> str:
    """Return a number with three digits, or a list of them."""
    if isinstance(value, (list, tuple)):
        return ", ".join(number(v) for v in value)
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def hours_text(hours: float) -> str:
    """Return a time in hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"
