"""What cards of ImageNet models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.resizing import RESIZE_RULES, imagenet_transform


def imagenet_model(
    name: str,
    title: str,
    family: str,
    arguments: Mapping[str, Any],
    parameters: int,
    *published: Published,
    **card: Any,
) -> ModelCard:
    """Return the card of an ImageNet model, with the official transform of its family.

    Args:
        name: Name of the model.
        title: Its title.
        family: Its family.
        arguments: Arguments of the constructor that differ from its defaults.
        parameters: Number of parameters, with unused ones.
        published: Published accuracies.
        card: Further fields of the card.
    """
    return ModelCard(
        name=name,
        title=title,
        family=family,
        arguments=arguments,
        parameters=parameters,
        transform=imagenet_transform(family),
        rule=RESIZE_RULES[family],
        data="imagenet",
        published=published,
        **card,
    )


def block_arguments(depths: int, embed_dims: int, heads: int) -> dict[str, Any]:
    """Return the constructor arguments of a model named by depth and width."""
    return {"depths": depths, "embed_dims": embed_dims, "num_heads": heads, "T": 4}
