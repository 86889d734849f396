"""What an exported file says of its origin, as comments.

Names and notes come from files that anybody may have written. They are shortened and reduced to
printable ASCII on one line, so that nothing in them can end a comment.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch

from psvit_core.records import FinetuneReport, Interval, Measurement, PrunePlan, RecoveryReport
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import card_of
from psvit_core.zoo.quantized import FLOAT32, weights_bytes, weights_kind
from psvit_core.zoo.recorded import recorded_measurements

_LONGEST = 300  # characters of a text from a file
_LABEL = 12
_WIDTH = 98


def origin_comment(model: SpikingModel) -> str:
    """Return the origin of a model as lines of comment."""
    return "\n".join(line for label, text in facts(model) for line in _comment(label, text))


def one_line(text: object) -> str:
    """Return a text that is safe in a comment: one line of printable ASCII, not too long."""
    words = " ".join(str(text).split())
    plain = words.encode("ascii", "backslashreplace").decode("ascii")
    printable = "".join(c if c.isprintable() else "?" for c in plain)
    return printable if len(printable) <= _LONGEST else f"{printable[: _LONGEST - 3]}..."


def _comment(label: str, text: str) -> list[str]:
    blank = "# " + " " * _LABEL
    return textwrap.wrap(
        one_line(text),
        width=_WIDTH,
        initial_indent=f"# {label:{_LABEL}}",
        subsequent_indent=blank,
        break_on_hyphens=False,
    )


def facts(model: SpikingModel) -> Iterator[tuple[str, str]]:
    """Return what is known of a model: pairs of a label and a text."""
    card, provenance = card_of(model), model.provenance
    origin = Path(str(provenance.get("origin", model.name))).name  # of a file, not its folders
    yield "Model", f"{origin}: {card.title}, family {model.family}"
    if card.paper:
        yield "Paper", card.paper
    licence = card.licence.replace("this project", "the PSViT explorer (Apache-2.0)")
    yield "Weights", f"licence: {licence}"
    yield "Code", "licence: Apache-2.0; the definitions below are those of the PSViT explorer"
    if provenance:
        yield "Source hash", str(provenance["origin_weights_hash"])
    for record in provenance.get("plans", ()):
        plan = PrunePlan.from_dict(record)
        note = f"; {plan.note}" if plan.note else ""
        yield "Pruned", f"by policy {plan.policy}, criterion {plan.criterion}{note}"
    if provenance:
        before, after = int(provenance["origin_bytes"]), weights_bytes(model)
        yield (
            "Saves",
            f"{1 - after / before:.2%} of the weights' bytes: {after:,} of {before:,} stay",
        )
    for record in provenance.get("recoveries", ()):
        yield "Recovered", _recovery(RecoveryReport.from_dict(record))
    for record in provenance.get("finetunes", ()):
        yield "Fine-tuned", _finetuning(FinetuneReport.from_dict(record))
    if (kind := weights_kind(model)) != FLOAT32:
        each = " with a scale per output channel" if kind == "int8" else ""
        yield "Quantized", f"weights of convolutions and linear layers to {kind}{each}"
    recorded = recorded_measurements(model)
    for measured in recorded:
        yield "Accuracy", _accuracy(measured)
    if not (recorded or provenance.get("finetunes")):
        yield "Accuracy", "not recorded in the exported file"
    if model.batch_coupled:
        yield "Note", "an image's logits depend on the other images of its batch, as published"
    yield "Written", f"with torch {torch.__version__}"


def _recovery(report: RecoveryReport) -> str:
    c = report.conditions
    return (
        f"without training, by {report.used} ({report.method} was asked for), from "
        f"{report.n_fit} images of {c.data}; KL to the original {report.kl_before:.4f} -> "
        f"{report.kl_after:.4f} nats on {report.n_held_out} images"
    )


def _finetuning(report: FinetuneReport) -> str:
    return (
        f"on {report.conditions.data}; best after {report.best_epoch:g} epochs, with validation "
        f"accuracy {_percent(report.best_accuracy)}"
    )


def _accuracy(m: Measurement) -> str:
    c = m.conditions
    stored = "" if c.weights == FLOAT32 else f", weights {c.weights}"
    before = f", {_percent(m.baseline_accuracy)} before" if m.baseline_accuracy else ""
    return (
        f"{_percent(m.accuracy)}{before}, measured on {c.n_images} images of {c.data} "
        f"({c.split}), T = {c.T}, {c.precision}, {c.device}{stored}"
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:.2%} [95 %: {interval.low:.2%}, {interval.high:.2%}]"
