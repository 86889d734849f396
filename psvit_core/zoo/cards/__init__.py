"""Registered models as data ("cards"), without torch.

A card contains everything that tensor shapes do not: heads, time steps, transform, published
results, and where the published weights can be had. Official checkpoints are not shipped; pass them
with ``--checkpoint``. Each module of this package has the cards of some families.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.records import DIGITS_48_TRANSFORM, DIGITS_TRANSFORM, ModelSummary, Transform
from psvit_core.zoo.cards import maxformer, qkformer, sdt, spikformer, spikingresformer, statten
from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.cifar import CIFAR10
from psvit_core.zoo.cards.papers import PAPERS

__all__ = [
    "CUSTOM_FAMILY",
    "WEIGHTS",
    "ModelCard",
    "Published",
    "list_models",
    "model_card",
    "register_card",
    "shipped_summary",
]

WEIGHTS = Path(__file__).parents[1] / "weights"
CUSTOM_FAMILY = "custom"  # family of models that users register

_OFFICIAL = (
    *spikformer.CARDS,
    *sdt.CARDS,
    *qkformer.CARDS,
    *spikformer.SPIKINGFORMER_CARDS,
    *statten.CARDS,
    *maxformer.CARDS,
    *sdt.LARGE_CARDS,
    *spikingresformer.CARDS,
)


#: Data that a demo was trained on, and what its card says of their licence.
_DEMO_LICENCES = {
    "digits": "the digits are MNIST (CC BY-SA 3.0)",
    "cifar10-jpeg": "the pictures are CIFAR-10 (no licence is stated), and not included",
}


def _demo(
    name: str, title: str, paper: str, transform: Transform, data: str = "digits"
) -> ModelCard:
    record = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return ModelCard(
        name=name,
        title=title,
        family=record["family"],
        arguments=record["arguments"],
        parameters=record["training"]["parameters"],
        transform=transform,
        data=data,
        paper=PAPERS[paper],
        licence=f"same as this project; {_DEMO_LICENCES[data]}",
        batch=125,
        weights=WEIGHTS / f"{name}.safetensors",
        training=record["training"],
    )


_custom_cards: dict[str, ModelCard] = {}  # models registered in this process


def register_card(card: ModelCard) -> None:
    """Register a custom model, replacing an earlier one of the same name.

    Raises:
        ModelError: If a built-in model has that name.
    """
    if card.name in _cards():
        raise ModelError(f"{card.name!r} is a built-in model. Register yours under another name.")
    _custom_cards[card.name] = card


@cache
def _cards() -> dict[str, ModelCard]:
    demos = (
        _demo("sdt_v1_digits", "Spike-driven Transformer v1, digits", "sdt_v1", DIGITS_TRANSFORM),
        _demo("e_spikeformer_digits", "E-SpikeFormer (SDT v3), digits", "sdt_v3", DIGITS_TRANSFORM),
        _demo(
            "meta_spikeformer_digits",
            "Meta-SpikeFormer (SDT v2), digits",
            "sdt_v2",
            DIGITS_48_TRANSFORM,
        ),
        _demo(
            "sdt_v1_cifar10",
            "Spike-driven Transformer v1, CIFAR-10",
            "sdt_v1",
            CIFAR10,
            "cifar10-jpeg",
        ),
    )
    return {card.name: card for card in (*demos, *_OFFICIAL)}


def list_models(*, shipped: bool = False) -> list[str]:
    """Return the names of all registered models: shipped ones first, custom ones last.

    Args:
        shipped: Return only models whose weights are shipped.
    """
    cards = {**_cards(), **_custom_cards}
    return [name for name, card in cards.items() if card.weights is not None or not shipped]


def model_card(name: str) -> ModelCard:
    """Return the card of a registered model.

    Raises:
        UnknownNameError: If the name is unknown; the message suggests the nearest one.
    """
    if name not in list_models():
        raise UnknownNameError("model", name, list_models())
    return _custom_cards.get(name) or _cards()[name]


@cache
def shipped_summary(name: str) -> ModelSummary | None:
    """Return the summary shipped with a model's weights, or None.

    ``scripts/describe_models.py`` writes these files.
    """
    path = WEIGHTS / f"{name}.summary.json"
    return ModelSummary.load(path) if name in _cards() and path.exists() else None
