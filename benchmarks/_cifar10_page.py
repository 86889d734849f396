"""The section "CIFAR-10" of docs/results.md, from the rows of ``benchmarks/cifar10.py``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

HEADING, NEXT = "## CIFAR-10\n", "## How it was measured\n"
PUBLISHED = ("psvit", "prime")
OURS = "optimal"
LOSS = 3.0  # points that the better published policy loses at the last saving
PAPER = 0.2668  # saved in the paper of PrimeSVT, where the goals are
Row = Mapping[str, Any]

_INTRODUCTION = (
    "`python benchmarks/cifar10.py --data cifar10-jpeg:DIR`: the demo `{model}` ({unpruned} % of "
    "the 10,000 test pictures right, {megabytes:.2f} MB), on which almost every channel counts. "
    "The plans were made from the sweep on 5,000 validation pictures alone, with nothing measured "
    "during planning, and each was judged once on the test pictures, in a single shot (*as "
    "pruned*) and after recovery without training (`auto`, 256 training pictures without labels). "
    "The last saving is the one at which a bisection on validation pictures found the better of "
    "`psvit` and `prime` to lose 3 points. *Zeros* are single weights of the unpruned network, "
    "smallest first, until the file has the same bytes, without and with what says where the "
    "others are. Drops are in percentage points with paired 95 % intervals."
)


def section(document: Mapping[str, Any]) -> str:
    """Return the section's text."""
    rows: Sequence[Row] = document["rows"]
    about = document["settings"]
    value, low, high = about["unpruned"]
    text = _INTRODUCTION.format(
        model=about["model"],
        unpruned=f"{value:.2f} [{low:.2f}, {high:.2f}]",
        megabytes=about["bytes"] / 1e6,
    )
    lines = [
        HEADING,
        textwrap.fill(text, 100),
        "",
        "| saved | policy | MB | as pruned | 95 % | recovered | 95 % | fine-tuned | 95 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["policy"] if row["policy"].startswith("zeros") else f"`{row['policy']}`"
        cells = [f"{100 * row['saving']:.2f} %", name, f"{row['bytes'] / 1e6:.2f}"]
        for drop in (row["pruned"], row["recovered"], row.get("finetuned")):
            cells += _drop(drop)
        lines.append(f"| {' | '.join(cells)} |")
    goals = [_wrapped(f"- {goal}") for goal in _verdict(rows, about["smallest"])]
    notes = [_training(about["training"]), *_search(about["search"])]
    return "\n".join([*lines, "", *goals, "", "\n\n".join(map(_wrapped, notes)), ""])


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return "\n".join(textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False))


def _drop(numbers: Sequence[float] | None) -> list[str]:
    if numbers is None:
        return ["", ""]
    value, low, high = numbers
    return [f"{value:.2f}", f"{low:.2f} to {high:.2f}"]


def _verdict(rows: Sequence[Row], smallest: Row) -> list[str]:
    """Return in words what the goals were and whether they were met."""
    last = max(row["saving"] for row in rows)
    there = {row["policy"]: row for row in rows if row["saving"] == last}
    best = min(PUBLISHED, key=lambda policy: there[policy]["pruned"][0])
    theirs, ours = there[best]["pruned"][0], there[OURS]["pruned"][0]
    (paper,) = (row for row in rows if row["policy"] == OURS and row["saving"] == PAPER)
    value, low, _ = paper["recovered"]
    trained, trained_low, trained_high = paper["finetuned"]
    ratio = smallest["bytes"] / there[best]["bytes"]
    lost, lost_low, lost_high = smallest["recovered"]
    return [
        (
            f"Goal: at {100 * last:.1f} % saved, `{OURS}` loses at most half of what the better "
            f"published policy does, in a single shot. Measured: {ours:.2f} against {theirs:.2f} "
            f"(`{best}`): {_met(ours <= theirs / 2)}."
        ),
        (
            f"Goal: recovered, `{OURS}` loses at most 0.5 points at {100 * PAPER:.2f} % saved. "
            f"Measured: {value:.2f}: {_met(value <= 0.5)}. That is {'' if low > 0 else 'not '}"
            "significantly more than nothing."
        ),
        (
            f"Goal: fine-tuned, `{OURS}` loses nothing at {100 * PAPER:.2f} % saved: the interval "
            f"contains 0 or lies below it. Measured: {trained:.2f} [{trained_low:.2f}, "
            f"{trained_high:.2f}]: {_met(trained_low <= 0)}."
        ),
        (
            f"Goal: at a loss of 3 points, `{OURS}` with recovery needs at most 0.7 of the bytes "
            "that the better published policy needs without one. Measured: "
            f"{smallest['bytes'] / 1e6:.2f} MB against {there[best]['bytes'] / 1e6:.2f} MB "
            f"(`{best}`), a ratio of {ratio:.2f}: "
            f"{_met(ratio <= 0.7)}. That plan, found by a bisection on validation pictures, loses "
            f"{lost:.2f} [{lost_low:.2f}, {lost_high:.2f}] on the test pictures."
        ),
    ]


def _training(settings: Mapping[str, Any]) -> str:
    """Return in words what *fine-tuned* is."""
    return (
        f"*Fine-tuned*: recovered, then {settings['epochs']:g} epoch on the 45,000 training "
        f"pictures, distilled from the unpruned network (AdamW, learning rate {settings['lr']:g}, "
        f"batch {settings['batch']}, crops and flips), the same for every policy; no other "
        "setting was tried. The unpruned network was trained for 16 epochs with one time step and "
        "5 with four. Further training might improve it as well, so a drop below 0 does not mean "
        "that pruning helps."
    )


def _search(steps: Sequence[Sequence[float]]) -> list[str]:
    """Return in words how near the last saving is to a loss of 3 points."""
    below = [(saving, loss) for saving, loss in steps if loss < LOSS]
    above = [(saving, loss) for saving, loss in steps if loss >= LOSS]
    if not (below and above):
        return []
    nearest, next_up = max(below), min(above)
    return [
        (
            f"On validation pictures, the better published policy loses {nearest[1]:.2f} points at "
            f"{100 * nearest[0]:.1f} % saved and {next_up[1]:.2f} at {100 * next_up[0]:.1f} %: its "
            "plans change in steps, and no saving between them was tried."
        )
    ]


def _met(is_met: bool) -> str:
    return "met" if is_met else "not met"
