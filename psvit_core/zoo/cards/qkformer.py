"""Cards of QKFormer."""

from __future__ import annotations

from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.cifar import cifar_model
from psvit_core.zoo.cards.imagenet import block_arguments, imagenet_model
from psvit_core.zoo.cards.papers import AS_OF, PAPERS, from_log, from_readme

_COUPLED = (
    "Published with batches of 32, in which images influence each other (batch_coupled). With one "
    "image at a time the accuracy is about 5 points lower."
)
_REMOVED = (
    f"No longer public ({AS_OF}): the authors removed the links in April 2026. The "
    "Max-Former repository publishes weights of MS-QKFormer, which is a different model."
)
_CIFAR_NONE = f"Not published ({AS_OF}): the official README never linked CIFAR weights."


def _qkformer(embed_dims: int, heads: int, parameters: int, *published: Published) -> ModelCard:
    return imagenet_model(
        f"qkformer_10_{embed_dims}",
        f"QKFormer 10-{embed_dims}",
        "qkformer_imagenet",
        block_arguments(10, embed_dims, heads),
        parameters,
        *published,
        paper=PAPERS["qkformer"],
        available=_REMOVED,
        notes=_COUPLED,
    )


CARDS = (
    _qkformer(384, 6, 16_473_688, from_readme(78.80)),
    _qkformer(512, 8, 29_079_336, from_readme(82.04)),
    _qkformer(
        768,
        12,
        64_962_760,
        from_readme(84.22),
        from_readme(85.25, px=288),
        from_readme(85.65, px=384),
    ),
    cifar_model(
        "qkformer_cifar10_4_384",
        "QKFormer 4-384",
        "qkformer_cifar",
        {"depths": 4, "embed_dims": 384, "num_heads": 8},
        6_706_234,
        paper=PAPERS["qkformer"],
        available=_CIFAR_NONE,
        published=(from_log(96.21, px=32),),
    ),
)
