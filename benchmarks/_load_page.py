"""The section "Many people at one app" of docs/performance.md, from ``benchmarks/load.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._load_people import Memory

HEADING, NEXT = "## Many people at one app\n", "## Recovery without training\n"

_WHY = """\
The goal was a p95 of 1 s for all answers on 2 idle cores. Streamlit collects garbage after each run
of a script, which took 83 % of the interpreter's time (sampled for 25 s of this load): with it, the
p95 was 4.6 s. It is off (`runner.postScriptGC`); Python collects by itself, and the app does once
sessions have ended. In that run all 20 also began in the same instant, and so the p95 of the first
minute was 2.0 to 2.8 s without it, too.

Memory was to return after the sessions close. 33 MB stayed after the first round, with 72 measured
plans, and 9 MB after the second (81 and 83 MB in an earlier run). memray showed why, and it is
mended: every measured plan led to a new table of predictions, whose regression was kept for ever;
closed sessions stayed until the next one closed; jobs were parsed twice; and what was freed stayed
in up to 16 pools of the C library. The results of a measured plan stay in memory, about 80 KB on
this demo."""


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
        "session edits and browses again and again. Memory is what the process has to itself;",
        "resident: with what it shares. All tabs close at once; a session is forgotten",
        f"{about['session kept (s)']} s later, by Streamlit's default 120 s. All begin within six",
        "seconds.",
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
