"""Class indices and names of ImageNet's 1,000 classes by wnid (WordNet id, e.g. n01440764)."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _info() -> Any:
    from timm.data.imagenet_info import ImageNetInfo  # slow to import

    return ImageNetInfo()


@functools.cache
def imagenet_labels() -> dict[str, int]:
    """Return the class index of each wnid."""
    return {wnid: label for label, wnid in enumerate(_info().label_names())}


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the name of each class: its first word and wnid, since words are not unique."""
    descriptions = _info().label_descriptions()
    return tuple(
        f"{text.split(',')[0]} ({wnid})"
        for text, wnid in zip(descriptions, _info().label_names(), strict=True)
    )
