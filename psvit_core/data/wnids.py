"""ImageNet's 1,000 classes by wnid (a WordNet name, such as n01440764), as heads number them."""

from __future__ import annotations

import functools
import re
from typing import Any

WNID = re.compile(r"n\d{8}")


@functools.cache
def _info() -> Any:
    from timm.data.imagenet_info import ImageNetInfo  # takes seconds

    return ImageNetInfo()


@functools.cache
def imagenet_labels() -> dict[str, int]:
    """The head's index of each wnid."""
    return {wnid: label for label, wnid in enumerate(_info().label_names())}


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """What each index is called: first word and wnid, since words occur twice."""
    descriptions = _info().label_descriptions()
    return tuple(
        f"{text.split(',')[0]} ({wnid})"
        for text, wnid in zip(descriptions, _info().label_names(), strict=True)
    )
