"""What cards of CIFAR models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit_core.records import Transform
from psvit_core.zoo.cards.card import ModelCard

CIFAR10 = Transform(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
CIFAR100 = Transform(
    resize=32, crop=32, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)
)


def cifar_model(
    name: str, title: str, family: str, arguments: Mapping[str, Any], parameters: int, **card: Any
) -> ModelCard:
    """Return the card of a CIFAR model.

    Args:
        name: Name of the model; its ``cifar10`` or ``cifar100`` gives classes and transform.
        title: Title without the data set.
        family: Family of the model.
        arguments: Arguments of the constructor, without those of the data.
        parameters: Number of parameters.
        card: Further fields of the card.
    """
    classes = 100 if "cifar100" in name else 10
    common = {"img_size_h": 32, "img_size_w": 32, "num_classes": classes, "T": 4}
    fields: dict[str, Any] = {
        "transform": CIFAR100 if classes == 100 else CIFAR10,
        "notes": "Transform and heads as in the official configuration file.",
        **card,
    }
    return ModelCard(
        name=name,
        title=f"{title}, CIFAR-{classes}",
        family=family,
        arguments={**common, **arguments},
        parameters=parameters,
        data=f"cifar{classes}",
        **fields,
    )
