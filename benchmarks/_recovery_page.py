"""The section "Recovery at a high saving" of docs/results.md, from ``benchmarks/recovery.py``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

HEADING, NEXT = "## Recovery at a high saving\n", "## Predictions\n"
GOAL = 0.5  # of the drop of the best earlier method

_INTRODUCTION = (
    "`python benchmarks/recovery.py`: `optimal` at {saving:.0f} % saved, measured on the "
    "validation images while planning. Each method fits to {calib} calibration images, with "
    "{seeds} seeds; the drop is that on the images named (mean of the seeds, with the mean ends "
    "of their paired 95 % intervals). The plan of `sdt_v1_cifar10` is from the shipped sweep "
    "alone. `relative` compares a drop with the best of `bn`, `lsq` and `both`, the methods up to "
    "version 0.2."
)
_WHY = (
    "Half of the earlier loss was the goal. What lowered the KL divergence on the validation "
    "images (`sdt_v1_digits`, `e_spikeformer_digits`; mean of three seeds, from 0.098 and "
    "0.082 with the earlier `stages_bn`): a classifier fitted to probabilities (0.081, "
    "0.074); means left free and the variance kept before streams (0.091, 0.066); both "
    "(0.075, 0.057). The drop hardly followed: on the validation images 2.62 and 2.09 points "
    "became 2.36 and 1.69, on the test images 2.62 and 1.87 became 2.80 and 2.13, all within "
    "the intervals. What did not lower the divergence: half of the variance's correction "
    "(0.092, 0.067), a larger weight for the mean over positions (0.094, 0.094), BatchNorms "
    "shifted and scaled so that a neuron's spikes correlate most with those of the unpruned "
    "model (0.099, 0.084) or fire as often (`e_spikeformer_digits`: 0.082), five shifted "
    "copies of each calibration image (`e_spikeformer_digits`: 0.065 in place of 0.066). "
    "On the validation images `auto` itself went from 2.45 to 2.22 points and from 1.69 to 1.47 "
    "(`optimal` at 90 % from the table alone, the version before beside this one, three seeds), "
    "which is why the change stays although the test images do not show it. "
    "Runs of this table differ, too: in the one before, by an earlier version, planning chose "
    "another plan for `e_spikeformer_digits`, of which `auto` lost 1.24 points (0.52 of `lsq`'s), "
    "and 2.53 (0.92) of that for `sdt_v1_digits`. "
    "Earlier: two rounds, ridges of 0.01 and 0.1, 1,024 images, and planning with "
    "measurements after recovery. After the fit, 20 to 55 % of a layer's output is missed "
    "(`lsq` on `sdt_v1_digits`, `psvit` at 60 %, already): the narrow network cannot compute "
    "the unpruned one's features, and a fit of one layer at a time cannot choose which errors "
    "matter."
)


def section(document: Mapping[str, Any]) -> str:
    """Return the section for a stored result."""
    rows, settings = document["rows"], document["settings"]
    lines = [HEADING]
    introduction = _INTRODUCTION.format(
        saving=100 * settings["memory saving"],
        calib=settings["calibration images"],
        seeds=len(settings["seeds"]),
    )
    lines += [textwrap.fill(introduction, 100), ""]
    lines += ["| model | images | recovery | drop, points | 95 % | relative |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| `{row['model']}` | {row['images']:,} {row['split']} | `{row['method']}` | "
            f"{row['drop (pp)']} | "
            f"{row['low']} to {row['high']} | {row['relative']} |"
        )
    lines.append("")
    for row in (row for row in rows if row["method"] == "auto"):
        verdict = "met" if row["relative"] <= GOAL else "not met"
        lines.append(
            f"- `{row['model']}`: `auto` loses {row['relative']} of it; the goal of {GOAL} was "
            f"{verdict}."
        )
    return "\n".join([*lines, "", textwrap.fill(_WHY, 100), ""])
