"""The section "Many people at one app" of docs/performance.md, from ``benchmarks/load.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._load_people import Memory

HEADING, NEXT = "## Many people at one app\n", "## Recovery without training\n"

_WHY = """\
The goal was a p95 of 1 s for all answers on 2 idle cores. Streamlit runs the garbage collector
after each run of a script. That took 83 % of the interpreter's time (sampled for 25 s of this
load), and the p95 was 4.6 s. The app turns it off (`runner.postScriptGC`) and collects only once
sessions have ended, besides Python's own collections. When the 4.6 s were measured, all 20 tabs
also began at the same moment; with such a start and without that collection, the p95 of the first
minute was 2.0 to 2.8 s.

The goal for memory was that it is returned after the sessions close. In an earlier run 81 MB
stayed after the first round and 83 MB after the second. memray found the causes, which are fixed:
every measured plan made a new table of predictions, whose regression was never freed; closed
sessions stayed until the next one closed; jobs were parsed twice; and freed memory stayed in up to
16 malloc arenas. What stays now is in the table. A part of it are the results of measured plans,
about 80 KB each on this demo, which other sessions may ask for; the rest was not traced.

Of one session that edits without measuring, Python's objects were the same after 100 and after 300
runs (120.43 and 120.42 MB by tracemalloc, after a collection). What the process gains beyond them
becomes less with the runs; where it lies was not traced."""


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
        "The wait for measurements is listed apart: they run one after another, those of a tab",
        "that was served least recently first, and an edit drops the tab's earlier one. Then one",
        "session edits and browses again and again. Memory is what the process has to itself",
        "(USS); resident is the resident set size, with what it shares. All tabs begin within six",
        "seconds and close at once. A closed session is dropped after",
        f"{about['session kept (s)']} s here (Streamlit's default: 120 s). The memory of the one",
        "session is read whenever another has ended: then the app collects its garbage, which",
        "Python by itself does rarely.",
        "",
        "| | | |",
        "|---|---|---|",
        *map(_line, document["rows"]),
        "",
        _WHY,
        "",
    ]
    return "\n".join(lines)


def _line(found: Mapping[str, Any]) -> str:
    value = f"{found['value']} {found['unit']}".strip()
    return f"| {found['what']} | {value} | {found['note']} |"


def row(what: str, value: float | str, unit: str = "", note: str = "") -> dict[str, Any]:
    """Return one figure."""
    shown = f"{value:.2f}" if isinstance(value, float) else value
    return {"what": what, "value": shown, "unit": unit, "note": note}


def memory_rows(
    memory: Mapping[str, Memory], count: int, grace: float, workers: float
) -> list[dict[str, Any]]:
    """Return the figures of the app's memory: in all, for a session, and after they have closed.

    Args:
        memory: That of the app ``before`` the sessions, when they were ``opened`` and had
            ``worked``, when they were just ``closed``, ``after`` the app forgot them, and when
            it had forgotten as many others (``again``).
        count: Number of tabs; Chromium has one more session.
        grace: Seconds from closing to ``after``.
        workers: Memory of the worker, MB.
    """
    notes = {
        "before": ("app, before", "after a first session was closed"),
        "opened": (f"app, {count} sessions opened", ""),
        "worked": ("app, after the work", "with Chromium's session"),
        "closed": ("app, all sessions just closed", ""),
        "after": (f"app, {grace:.0f} s later", "the app has forgotten them"),
        "again": (f"app, after {count} other sessions", "that did the same, and are forgotten"),
    }
    moments = {
        name: row(
            what,
            memory[name].own,
            "MB",
            "; ".join(filter(None, (note, f"resident {memory[name].resident:.0f} MB"))),
        )
        for name, (what, note) in notes.items()
    }
    before, worked, after, again = (
        memory[name].own for name in ("before", "worked", "after", "again")
    )
    return [
        *(moments[name] for name in ("before", "opened", "worked")),
        row(f"all {count + 1} sessions", worked - before, "MB", "after the work, less before"),
        row("one session", (worked - before) / (count + 1), "MB", "of them, on average"),
        *(moments[name] for name in ("closed", "after")),
        row("kept of all sessions", after - before, "MB"),
        moments["again"],
        row("kept of the others", again - after, "MB"),
        row("worker", workers, "MB"),
    ]
