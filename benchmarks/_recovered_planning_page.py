"""The section "Plans from a recovered sweep" of docs/results.md."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HEADING = "## Plans from a recovered sweep\n"
NEXT = "## Predictions\n"
Row = Mapping[str, Any]

_INTRODUCTION = (
    "`python benchmarks/recovered_planning.py`: `optimal` plans from the plain and from the "
    "recovered table, without measuring. Both plans are recovered by `auto` on the same {images} "
    "images and measured on the 750 validation images; seeds: {seeds}, models: {models}. `gain` is "
    "how many points fewer the plan from the recovered table loses."
)
_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "saved": lambda row: f"{100 * row['saving']:.0f}%",
    "plain table: drop": lambda row: f"{row['drop, plain table (pp)']:.2f}",
    "recovered table: drop": lambda row: f"{row['drop, recovered table (pp)']:.2f}",
    "gain": lambda row: f"{row['gain']:.2f}",
    "95 %": lambda row: f"{row['low']:.2f} to {row['high']:.2f}",
    "KL, plain table": lambda row: f"{row['KL, plain']:.4f}",
    "KL, recovered table": lambda row: f"{row['KL, recovered']:.4f}",
}
_REASONS = """\
Likely reasons:

- Refitting single groups saturates. At 60 % of one of the five residual streams of
  `e_spikeformer_digits` the KL falls from between 0.7 and 2.9 to between 0.007 and 0.15, while the
  rest of the network is whole. The planner then prunes streams more, but together the groups lose
  more than the sum: up to 75 % saved the KL after recovery is larger than that of the plain table's
  plans, although all of them lose about half a point or less.
- On `sdt_v1_digits` both tables lead to similar plans: the prune ratios differ by 1 to 7 points on
  average.
- In most of the plans `auto` took a refit of all layers (`stages`, `stages_bn`), which cells do not
  have.

Tried without success, one plan each: adding the square roots of the recovered KLs, as if all groups
were coherent (85 % saved: 2.27 points in place of 0.13 on `e_spikeformer_digits`, 2.00 in place of
1.73 on `sdt_v1_digits`), and the geometric mean of both tables' KLs (85 %, `e_spikeformer_digits`:
0.80). The least summed KL alone gave the plans of `optimal` in the three cases tried.
"""


def section(document: Mapping[str, Any]) -> str:
    """Return the section's text."""
    rows: Sequence[Row] = document["rows"]
    intro = _INTRODUCTION.format(
        images=document["settings"]["calibration images"],
        seeds=", ".join(str(seed) for seed in sorted({row["seed"] for row in rows})),
        models=len({row["model"] for row in rows}),
    )
    lines = [
        HEADING,
        textwrap.fill(intro, 100),
        "",
        f"| model | {' | '.join(_COLUMNS)} |",
        "|" + "---|" * (1 + len(_COLUMNS)),
    ]
    for row in rows:
        cells = " | ".join(cell(row) for cell in _COLUMNS.values())
        lines.append(f"| `{row['model']}` | {cells} |")
    return "\n".join([*lines, "", textwrap.fill(_verdict(rows), 100), _REASONS])


def _verdict(rows: Sequence[Row]) -> str:
    """Return in words what the rows show."""
    apart = [row for row in rows if row["low"] > 0 or row["high"] < 0]
    mean = statistics.fmean(row["gain"] for row in rows)
    named = ", ".join(
        f"`{row['model']}`, {100 * row['saving']:.0f} %: {row['gain']:.2f} points" for row in apart
    )
    which = f" ({named}); with so many intervals that may be chance" if apart else ""
    return (
        f"Intervals that exclude zero: {len(apart)} of {len(rows)}{which}. The mean gain is "
        f"{mean:.2f} points: the recovered table did not make better plans in general."
    )
