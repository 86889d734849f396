"""Cards of Max-Former and MS-QKFormer."""

from __future__ import annotations

from typing import Any

from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.cifar import cifar_model
from psvit_core.zoo.cards.imagenet import imagenet_model
from psvit_core.zoo.cards.papers import (
    AS_OF,
    PAPERS,
    from_last_epoch,
    from_log,
    from_readme,
    not_published,
)

_RELEASE = "https://github.com/bic-L/MaxFormer/releases/download/checkpoints/"
_OLD_NAMES = (
    "The file may have older names in the patch embeddings. They are matched by position, so the "
    "accuracy is the only proof that they fit."
)
_NO_CIFAR = not_published("the release contains ImageNet weights only")
_TITLES = {"max_former": "Max-Former", "ms_qkformer": "MS-QKFormer"}


def _imagenet(
    prefix: str, embed_dims: int, parameters: int, *published: Published, T: int = 4, **card: Any
) -> ModelCard:
    """Return the card of one released file; names of models for one time step end in ``_t1``."""
    if file_name := card.get("file_name"):
        card["available"] = f"Plain download ({AS_OF}): {_RELEASE}{file_name}"
        card["notes"] = _OLD_NAMES
    return imagenet_model(
        f"{prefix}_10_{embed_dims}" + ("" if T == 4 else f"_t{T}"),
        f"{_TITLES[prefix]} 10-{embed_dims}" + ("" if T == 4 else f", T = {T}"),
        f"{prefix}_imagenet",
        {"embed_dims": embed_dims, "T": T},
        parameters,
        *published,
        paper=PAPERS["max_former"],
        **card,
    )


def _cifar(prefix: str, data: str, parameters: int, *published: Published) -> ModelCard:
    return cifar_model(
        f"{prefix}_{data}_4_384",
        f"{_TITLES[prefix]} 4-384",
        f"{prefix}_cifar",
        {"embed_dims": 384},
        parameters,
        paper=PAPERS["max_former"],
        published=published,
        available=_NO_CIFAR,
        notes="The class always has 8 heads; num_heads of the official configuration is not used.",
    )


CARDS = (
    _imagenet(
        "max_former",
        384,
        16_237_240,
        from_log(77.78),
        from_last_epoch(77.49),
        file_name="10-384-T4.pth.tar",
    ),
    _imagenet("max_former", 512, 28_653_480, file_name="10-512-T4.pth.tar"),
    _imagenet(
        "max_former",
        512,
        28_653_480,
        from_log(75.43, T=1),
        from_last_epoch(75.21, T=1),
        T=1,
        file_name="10-512-T1.pth.tar",
    ),
    _imagenet(
        "max_former",
        768,
        63_992_200,
        from_readme(82.39),
        from_last_epoch(82.27),
        file_name="10-768-T4.pth.tar",
    ),
    _imagenet(
        "max_former",
        768,
        63_992_200,
        from_log(78.60, T=1),
        T=1,
        file_name="10-768-T1.pth.tar",
    ),
    _imagenet("ms_qkformer", 384, 16_473_688, file_name="ms_qk_10-384_T4.pth.tar"),
    _imagenet(
        "ms_qkformer",
        512,
        29_079_336,
        available=not_published("the release has 10-384 and 10-768 only"),
    ),
    _imagenet(
        "ms_qkformer",
        768,
        64_962_760,
        T=1,
        file_name="ms_qk_10-768_T1.pth.tar",
    ),
    _cifar("max_former", "cifar10", 6_568_282, from_log(97.04, px=32)),
    _cifar("max_former", "cifar100", 6_602_932, from_log(82.65, px=32)),
    _cifar("ms_qkformer", "cifar10", 6_706_234),
    _cifar("ms_qkformer", "cifar100", 6_740_884),
)
