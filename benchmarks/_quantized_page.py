"""The section "What pruning and quantizing give together" of docs/quantize.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADING, NEXT = "## What pruning and quantizing give together\n", "## What is refused\n"
_INTRODUCTION = (
    "`python benchmarks/quantized.py --data cifar10-jpeg:DIR`: plans by `{policy}` that save "
    "{saving:.0%} of the float32 bytes, from a sweep with recovery on validation images, recovered "
    "by `auto`. Measured on test images, which nothing has seen: {images}. `ratio` is that of the "
    "file to the unpruned float32 file. `drop` is paired with the unpruned float32 network. "
    "`against fp32` is paired with the same network in float32: what quantizing alone costs. "
    "Intervals are 95 %.\n"
)
_COLUMNS = (
    "model",
    "network",
    "weights",
    "file (bytes)",
    "ratio",
    "ONNX (bytes)",
    "accuracy (%)",
    "drop (points)",
    "against fp32",
)
_STEPS = (
    "\n### From the network to the file that runs elsewhere\n\nThe CIFAR-10 demo, step by step, "
    "from the same run. Accuracy and `drop` are of {images:,} test images; ONNX files were run by "
    "onnxruntime, one thread. Latency is relative to the unpruned network in torch (1.00), for one "
    "image and for 32: all networks ran by turns in one process. On a machine with other load that "
    "is a ratio only, so no milliseconds are stated.\n"
)
_STEP_COLUMNS = (
    "network",
    "format",
    "file (bytes)",
    "ratio",
    "accuracy (%)",
    "drop (points)",
    "latency, batch 1",
    "latency, batch 32",
)


def section(document: Mapping[str, Any]) -> str:
    """Return the section for a stored result."""
    settings, rows = document["settings"], document["rows"]
    lines = [HEADING]
    saving, images = settings["memory saving"], _images(rows)
    lines.append(_INTRODUCTION.format(saving=saving, images=images, policy=settings["policy"]))
    lines.append("| " + " | ".join(_COLUMNS) + " |")
    lines.append("|" + "---|" * 3 + "---:|" * (len(_COLUMNS) - 3))
    lines += ["| " + " | ".join(_cell(row, name) for name in _COLUMNS) + " |" for row in rows]
    if steps := settings.get("steps"):
        lines.append(_STEPS.format(images=steps[0]["images"]))
        lines.append("| " + " | ".join(_STEP_COLUMNS) + " |")
        lines.append("|" + "---|" * 2 + "---:|" * (len(_STEP_COLUMNS) - 2))
        lines += [
            "| " + " | ".join(_cell(row, name) for name in _STEP_COLUMNS) + " |" for row in steps
        ]
    return "\n".join(lines) + "\n"


def _images(rows: list[dict[str, Any]]) -> str:
    counts = {row["model"]: row["images"] for row in rows}
    return ", ".join(f"{n:,} of `{model}`" for model, n in counts.items())


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if name == "ratio":
        return f"{value:.1%}"
    if name.startswith("latency"):
        return f"{value:.2f}"
    if isinstance(value, list):  # value, low, high
        sign = "" if name.startswith("accuracy") else "+"
        shown, low, high = (f"{v:{sign}.2f}" for v in value)
        return f"{shown} [{low}, {high}]"
    return f"{value:,}" if isinstance(value, int) else f"`{value}`" if name == "model" else value
