"""Cards of Spikformer and Spikingformer."""

from __future__ import annotations

from typing import Any

from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.cifar import cifar_model
from psvit_core.zoo.cards.imagenet import block_arguments, imagenet_model
from psvit_core.zoo.cards.papers import (
    APACHE,
    AS_OF,
    MIT,
    PAPERS,
    from_paper,
    from_readme,
    not_published,
)

_HEADS_GUESSED = "The number of heads is not public; 64 channels per head is a guess."
_CIFAR_HEADS_GUESSED = "The number of heads is not public; 32 channels per head is a guess."
_NO_LINK = not_published("the official README links no weights")


def _spikformer(
    depths: int, embed_dims: int, heads: int, parameters: int, top1: float, notes: str = ""
) -> ModelCard:
    return imagenet_model(
        f"spikformer_{depths}_{embed_dims}",
        f"Spikformer {depths}-{embed_dims}",
        "spikformer_imagenet",
        block_arguments(depths, embed_dims, heads),
        parameters,
        from_paper(top1),
        paper=PAPERS["spikformer"],
        licence=MIT,
        available=_NO_LINK,
        notes=notes,
    )


def _spikformer_cifar(
    depths: int, embed_dims: int, heads: int, parameters: int, top1: float, **card: Any
) -> ModelCard:
    return cifar_model(
        f"spikformer_cifar10_{depths}_{embed_dims}",
        f"Spikformer {depths}-{embed_dims}",
        "spikformer_cifar",
        {"depths": depths, "embed_dims": embed_dims, "num_heads": heads},
        parameters,
        paper=PAPERS["spikformer"],
        licence=MIT,
        available=_NO_LINK,
        published=(from_paper(top1, px=32),),
        **card,
    )


CARDS = (
    _spikformer(8, 384, 6, 16_828_312, 70.24, _HEADS_GUESSED),
    _spikformer(6, 512, 8, 23_385_640, 72.46),
    _spikformer(8, 512, 8, 29_705_768, 73.38),
    _spikformer(10, 512, 8, 36_025_896, 73.68),
    _spikformer(8, 768, 12, 66_363_208, 74.81, _HEADS_GUESSED),
    _spikformer_cifar(4, 384, 12, 9_330_874, 95.19),
    _spikformer_cifar(4, 256, 8, 4_159_274, 93.94, notes=_CIFAR_HEADS_GUESSED),
    _spikformer_cifar(2, 384, 12, 5_768_122, 94.80),
)

_SPIKINGFORMER_HEADS = (
    "The number of heads is public for width 768 only; 8 is assumed for the others."
)
_CML_TRAP = (
    "Its weights also load into the variant {other} CML, which has the same tensors and computes "
    "something else."
)


def _baidu(code: str) -> str:
    return (
        f"Baidu netdisk ({AS_OF}, link not followed): pan.baidu.com/s/{code}, password abcd, as "
        "linked in the official README."
    )


def _variant(cml: bool) -> tuple[str, str, dict[str, Any]]:
    """Return prefix, title and common fields of the cards with or without CML."""
    card = {"paper": PAPERS["spikingformer_cml" if cml else "spikingformer"], "licence": APACHE}
    if cml:
        return "spikingformer_cml", "Spikingformer + CML", card
    return "spikingformer", "Spikingformer", card


def _spikingformer(
    embed_dims: int, parameters: int, *published: Published, cml: bool, **card: Any
) -> ModelCard:
    prefix, title, common = _variant(cml)
    notes = _CML_TRAP.format(other="without" if cml else "with")
    if embed_dims != 768:
        notes = f"{_SPIKINGFORMER_HEADS} {notes}"
    return imagenet_model(
        f"{prefix}_8_{embed_dims}",
        f"{title} 8-{embed_dims}",
        f"{prefix}_imagenet",
        block_arguments(8, embed_dims, 8),
        parameters,
        *published,
        notes=notes,
        **{"available": not_published("only the weights of 8-768 are linked"), **common, **card},
    )


def _spikingformer_cifar(
    size: str, heads: int, parameters: int, top1: float | None = None, *, cml: bool, **card: Any
) -> ModelCard:
    prefix, title, common = _variant(cml)
    data, depths, embed_dims = size.split("_")
    return cifar_model(
        f"{prefix}_{size}",
        f"{title} {depths}-{embed_dims}",
        f"{prefix}_cifar",
        {"depths": int(depths), "embed_dims": int(embed_dims), "num_heads": heads},
        parameters,
        published=() if top1 is None else (from_readme(top1, px=32),),
        **{"available": not_published(f"the README links no {data} weights"), **common, **card},
    )


_PLAIN_FILE, _CML_FILE = "checkpoint-284.pth.tar", "checkpoint-306.pth.tar"

SPIKINGFORMER_CARDS = (
    _spikingformer(384, 16_828_312, from_readme(72.45), cml=False),
    _spikingformer(512, 29_705_768, from_readme(74.79), cml=False),
    _spikingformer(
        768,
        66_363_208,
        from_readme(75.85),
        cml=False,
        file_name=_PLAIN_FILE,
        available=_baidu("1LsECpFOxh30O3vHWow8OGQ"),
    ),
    _spikingformer(384, 16_828_312, from_readme(74.35), cml=True),
    _spikingformer(512, 29_705_768, from_readme(76.54), cml=True),
    _spikingformer(
        768,
        66_363_208,
        from_readme(77.64),
        from_readme(78.46, px=288),
        cml=True,
        file_name=_CML_FILE,
        available=_baidu("1uTq6aPMknwb2PjDZ3J4g5g"),
    ),
    _spikingformer_cifar(
        "cifar10_4_384",
        12,
        9_326_266,
        95.61,
        cml=False,
        available=_baidu("1mjpD2gtz5ZX0M8N3jobjzA"),
    ),
    _spikingformer_cifar("cifar10_2_384", 12, 5_765_818, cml=False),
    _spikingformer_cifar("cifar10_4_256", 8, 4_156_202, cml=False, notes=_CIFAR_HEADS_GUESSED),
    _spikingformer_cifar("cifar100_4_384", 12, 9_360_916, 79.09, cml=False),
    _spikingformer_cifar(
        "cifar10_4_384",
        12,
        9_326_266,
        95.81,
        cml=True,
        available=_baidu("1HRLjzLHEu5ANtmtJyinYcQ"),
    ),
    _spikingformer_cifar("cifar100_4_384", 12, 9_360_916, 79.98, cml=True),
)
