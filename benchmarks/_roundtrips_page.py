"""The page docs/round-trips.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Formats of an export: Python file, ONNX, torch.export, pruned file in int8 (and its Python file).
FORMATS = ("torch", "onnx", "pt2", "int8")
#: All outcomes of a row. The last compares a network in int8 with itself in float32.
TRIPS = ("torch", "onnx", "pt2", "int8", "int8 torch")
QUANTIZED = "int8 for float32"
_TITLES = {
    "torch": "torch",
    "onnx": "ONNX",
    "pt2": "pt2",
    "int8": "int8",
    "int8 torch": "int8, torch",
    QUANTIZED: "int8 against float32",
}
_PAGE = """\
# Round trips

`python benchmarks/roundtrips.py` writes this page. For every family a tiny network with random
weights, whose neurons fire, is

- **pruned** at random, by up to half of each group,
- **recovered** by `{recovery}` after that,
- **fine-tuned** for an epoch after pruning, or
- **pruned twice**, the second time from its file,

and written to a pruned file. From that file it is exported:

| format | what is compared |
|---|---|
| torch | the [Python file](export.md#a-python-file), with the pruned file as this program runs it |
| ONNX | the [ONNX file](export.md#onnx-and-torchexport) in onnxruntime, with the same |
| pt2 | the graph of `torch.export`, with the same |
| int8 | the [file in int8](quantize.md) after it was read, with the quantized network in memory |
| int8, torch | the Python file of the int8 file, with the quantized network in memory |
| int8 against float32 | no round trip: what quantizing to int8 changes |

A process in which this program, SpikingJelly, timm and torchvision cannot be imported runs the
exports, on {images} images, with T = {steps}, in float32. Where the images of a batch influence
each other, the graph of `torch.export` is one for a batch of {images}.

{summary}

## All outcomes

- **equal**: logits have the same bits, and so have the spikes of all neurons where they are seen
  (a graph of `torch.export` shows logits only).
- **a number**: the largest difference of a logit. No prediction differs, and no image's logits
  differ by more than 1/1000 of its largest one (the largest of all is {largest:.0f}). Single spikes
  that differ are named. For ONNX they are counted [layer by layer](export.md#the-check) on four
  images, each layer given torch's spikes.
- **predictions**: how many of {images} images have another prediction, how many have logits that
  differ by more than 1/1000, the largest difference of a logit, and the single spikes that flip.
- **refused**: no file is written; the reasons are below.

{table}

Quantizing changes these networks with random weights far more than trained ones:
[what it costs the demos](quantize.md#what-pruning-and-quantizing-give-together).

## What is refused

{refused}
"""


def page(document: Mapping[str, Any]) -> str:
    """Return the page for a stored result."""
    settings, rows = document["settings"], document["rows"]
    return _PAGE.format(
        recovery=settings["recovery"],
        images=settings["images"],
        steps=settings["time steps"],
        largest=max(row["largest logit"] for row in rows),
        summary=_summary(rows, settings["families"]),
        table=table(rows),
        refused=_refused(rows),
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the outcomes as a table, one line per network."""
    lines = [
        f"| family | network | {' | '.join(_TITLES.values())} |",
        "|---|---|" + "---|" * len(_TITLES),
    ]
    for row in rows:
        cells = [_cell(row.get(name)) for name in _TITLES]
        lines.append(f"| `{row['family']}` | {row['network']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcome: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return ""
    kind, difference = outcome["kind"], f"{outcome.get('difference', 0.0):.2g}"
    if kind == "bits":
        return "equal"
    if kind == "refused":
        return "refused"
    flips = outcome.get("flips")
    spikes = f"; {flips:,} of {outcome['outputs']:,} spikes" if flips else ""
    if kind == "rounding":
        return f"{difference}{spikes}"
    return (
        f"predictions {outcome.get('predictions', 0)}; logits {outcome.get('logits', 0)}; "
        f"{difference}{spikes}"
    )


def _summary(rows: list[dict[str, Any]], registered: int) -> str:
    """Return how many round trips have which outcome, as a sentence."""
    trips = list(_trips(rows))
    counts = {kind: sum(o["kind"] == kind for _, _, o in trips) for kind in _WORDS}
    words = [f"{n} {_WORDS[kind]}" for kind, n in counts.items() if n]
    n_families = len({row["family"] for row in rows})
    families = (
        f"{n_families} families"
        if n_families == registered
        else f"{n_families} of {registered} families"
    )
    flips = sum(outcome.get("flips") or 0 for _, _, outcome in trips)
    outputs = sum(outcome.get("outputs") or 0 for _, _, outcome in trips)
    return (
        f"**{len(trips)} round trips of {families}**: {', '.join(words)}. "
        f"Of {outputs:,} outputs of neurons that were compared, {flips:,} differ."
    )


_WORDS = {
    "bits": "are equal",
    "rounding": "differ by rounding alone",
    "differs": "differ by more",
    "refused": "are refused with a reason",
}


def _trips(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Yield every round trip: its row, its format and its outcome."""
    for row in rows:
        for name in TRIPS:
            if name in row:
                yield row, name, row[name]


def _refused(rows: list[dict[str, Any]]) -> str:
    """Return the reasons of refusals, each with its families and formats, as a list."""
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row, name, outcome in _trips(rows):
        if outcome["kind"] == "refused":
            families, formats = reasons.setdefault(outcome["reason"], ({}, {}))
            families[f"`{row['family']}`"] = formats[_TITLES[name]] = None
    if not reasons:
        return "Nothing of what is in the table."
    return "\n".join(
        f'- {", ".join(families)} as {" and ".join(formats)}: "{reason}"'
        for reason, (families, formats) in reasons.items()
    )
