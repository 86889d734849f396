"""Cards of models in files: registered origins, and files of any size. Imports no torch.

A file of a size that is not registered has no card of its own. Its transform is the official one
of its family, at its image size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psvit_core.records import DIGITS_48_TRANSFORM, DIGITS_TRANSFORM, Transform
from psvit_core.zoo.cards import ModelCard, list_models, model_card
from psvit_core.zoo.cards.cifar import CIFAR100
from psvit_core.zoo.header import read_header

_OWN = "not a registered model: see the file's origin"
_DIGITS = {32: DIGITS_TRANSFORM, 48: DIGITS_48_TRANSFORM}


def header_card(path: Path) -> ModelCard:
    """Return the card of the model that a pruned file was made from.

    Raises:
        CheckpointError: If the file is not a valid pruned file.
    """
    header = read_header(path)
    return card_for(header["provenance"]["origin"], header["family"], header["arguments"])


def card_for(origin: str, family: str, arguments: Mapping[str, Any]) -> ModelCard:
    """Return the card of a registered origin, or one derived from family and arguments.

    Args:
        origin: Registered name, or path of a file of any size.
        family: The model's family.
        arguments: Its complete constructor arguments.
    """
    if origin in list_models():
        return model_card(origin)
    template = _template(family, arguments)
    return ModelCard(
        name=origin,
        title=Path(origin).name,
        family=family,
        arguments=dict(arguments),
        parameters=0,
        transform=_transform(template, arguments),
        rule=template.rule if template else None,
        side_arguments=template.side_arguments if template else ModelCard.side_arguments,
        data="",
        paper=template.paper if template else "",
        licence=_OWN,
    )


def _template(family: str, arguments: Mapping[str, Any]) -> ModelCard | None:
    """Return the family's first published card, with the same pooling and classes if possible.

    The classes tell CIFAR-10 from CIFAR-100, whose pixels are normalised differently.
    """
    cards = [model_card(name) for name in list_models()]
    cards = [card for card in cards if card.family == family and card.weights is None]
    usual = {"pooling_stat": "1111", "num_classes": 1000}
    given = {name: arguments.get(name, default) for name, default in usual.items()}

    def n_equal(card: ModelCard) -> tuple[bool, bool]:
        pooling, classes = (
            card.arguments.get(name, usual[name]) == value for name, value in given.items()
        )
        return pooling, classes

    return max(cards, key=n_equal, default=None)  # the first of several best


def _transform(template: ModelCard | None, arguments: Mapping[str, Any]) -> Transform:
    """Return the evaluation transform of the family at this image size and channel count."""
    side = int(arguments.get("img_size_h") or arguments.get("img_size") or 224)
    channels = int(arguments.get("in_channels", 3))
    if channels == 1:
        return _DIGITS.get(
            side, dataclasses.replace(DIGITS_TRANSFORM, resize=side, crop=side, pad=0)
        )
    transform = template.at(side).transform if template else Transform(resize=side, crop=side)
    if template and template.data == "cifar10" and arguments.get("num_classes") == 100:
        # no model of CIFAR-100 is registered for this family
        transform = dataclasses.replace(transform, mean=CIFAR100.mean, std=CIFAR100.std)
    if channels != 3:  # event frames, which no transform changes
        return dataclasses.replace(
            transform, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
        )
    return transform
