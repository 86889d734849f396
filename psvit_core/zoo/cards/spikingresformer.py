"""Cards of SpikingResformer."""

from __future__ import annotations

import dataclasses
from typing import Any

from psvit_core.records import Transform
from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.imagenet import imagenet_model
from psvit_core.zoo.cards.papers import MIT, PAPERS, linked, not_published, unverified

_LINKED = linked("one Google Drive folder")
_SIDE = ("img_size",)
_LAYERS = [["DSSA", "GWFFN"], ["DSSA", "GWFFN"] * 2, ["DSSA", "GWFFN"] * 3]


def _arguments(planes: tuple[int, ...], heads: tuple[int, ...], side: int) -> dict[str, Any]:
    return {
        "layers": _LAYERS,
        "planes": list(planes),
        "num_heads": list(heads),
        "patch_sizes": [4, 2, 1],
        "img_size": side,
        "T": 4,
    }


def _imagenet(
    size: str,
    planes: tuple[int, ...],
    heads: tuple[int, ...],
    parameters: int,
    *published: Published,
) -> ModelCard:
    return imagenet_model(
        f"spikingresformer_{size.lower()}",
        f"SpikingResformer {size}",
        "spikingresformer",
        _arguments(planes, heads, 224),
        parameters,
        *published,
        paper=PAPERS["spikingresformer"],
        licence=MIT,
        available=_LINKED,
        side_arguments=_SIDE,
    )


def _transform(mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    return Transform(resize=32, crop=32, mean=mean, std=std)


_CIFAR10 = _transform((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100 = _transform(
    (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)
)


def _cifar(classes: int, parameters: int, transform: Transform) -> ModelCard:
    card = _imagenet("Ti", (64, 192, 384), (1, 3, 6), parameters)
    return dataclasses.replace(
        card,
        name=f"spikingresformer_cifar{classes}_ti",
        title=f"SpikingResformer Ti, CIFAR-{classes}",
        family="spikingresformer_cifar",
        arguments={**card.arguments, "img_size": 32, "num_classes": classes},
        transform=transform,
        rule=None,
        data=f"cifar{classes}",
        available=not_published("the official README links ImageNet weights only"),
        notes="The variant with a 3x3 prologue.",
    )


CARDS = (
    _imagenet("Ti", (64, 192, 384), (1, 3, 6), 11_180_992, unverified(74.34, 4)),
    _imagenet("S", (64, 256, 512), (1, 4, 8), 17_813_824, unverified(75.95, 4)),
    _imagenet("M", (64, 384, 768), (1, 6, 12), 35_601_472, unverified(77.24, 4)),
    _imagenet(
        "L",
        (128, 512, 1024),
        (2, 8, 16),
        60_375_680,
        unverified(79.40, 4, 288, "paper; 288 px assumed"),
        unverified(78.77, 4),
    ),
    _cifar(10, 10_793_152, _CIFAR10),
    _cifar(100, 10_827_712, _CIFAR100),
)
