"""Cards of the Spike-driven Transformers: v1, v2 (Meta-SpikeFormer) and v3 (E-SpikeFormer)."""

from __future__ import annotations

from typing import Any

from psvit_core.zoo.cards.card import ModelCard, Published
from psvit_core.zoo.cards.cifar import cifar_model
from psvit_core.zoo.cards.imagenet import block_arguments, imagenet_model
from psvit_core.zoo.cards.papers import (
    APACHE,
    PAPERS,
    from_paper,
    from_readme,
    linked,
    not_published,
    unverified,
)


def _sdt_v1(
    depths: int, embed_dims: int, parameters: int, *published: Published, **card: Any
) -> ModelCard:
    return imagenet_model(
        f"sdt_v1_{depths}_{embed_dims}",
        f"Spike-driven Transformer v1 {depths}-{embed_dims}",
        "sdt_v1",
        block_arguments(depths, embed_dims, 8),
        parameters,
        *published,
        paper=PAPERS["sdt_v1"],
        licence=APACHE,
        available=linked("Google Drive, one file for each ImageNet size"),
        **card,
    )


def _sdt_v1_cifar(embed_dims: int, parameters: int) -> ModelCard:
    return cifar_model(
        f"sdt_v1_cifar10_2_{embed_dims}",
        f"Spike-driven Transformer v1 2-{embed_dims}",
        "sdt_v1",
        {"depths": 2, "embed_dims": embed_dims, "num_heads": 8, "pooling_stat": "0011"},
        parameters,
        paper=PAPERS["sdt_v1"],
        licence=APACHE,
        available=not_published("the README links ImageNet weights only"),
    )


_V2_NOT_PUBLISHED = not_published("only the 55M weights with distillation are linked")


def _sdt_v2(
    size: str,
    embed_dim: tuple[int, ...],
    parameters: int,
    *published: Published,
    title: str = "",
    kd: bool = False,
    **card: Any,
) -> ModelCard:
    name = title or size.removesuffix("_kd").upper() + (", distilled" if kd else "")
    return imagenet_model(
        f"meta_spikeformer_{size}",
        f"Meta-SpikeFormer (SDT v2) {name}",
        "sdt_v2",
        {"embed_dim": list(embed_dim), "num_heads": 8, "T": 4, **({"kd": True} if kd else {})},
        parameters,
        *published,
        paper=PAPERS["sdt_v2"],
        **{"available": _V2_NOT_PUBLISHED, **card},
    )


_V3_LINKED = linked("5M, 10M and 19M")
_SWAPPED_LINKS = "The 10M and 19M links are sometimes swapped; check the shapes."


def _sdt_v3(
    size: str, embed_dim: tuple[int, ...], parameters: int, *published: Published, **card: Any
) -> ModelCard:
    return imagenet_model(
        f"e_spikeformer_{size}",
        f"E-SpikeFormer (SDT v3) {'tiny' if size == 't' else size.upper()}",
        "sdt_v3",
        {"embed_dim": list(embed_dim), "num_heads": 8},
        parameters,
        *published,
        paper=PAPERS["sdt_v3"],
        **{"available": _V3_LINKED, **card},
    )


CARDS = (
    _sdt_v1(8, 384, 16_816_536, from_readme(72.28)),
    _sdt_v1(6, 512, 23_373_736, from_readme(74.11)),
    _sdt_v1(8, 512, 29_689_896, from_readme(74.57)),
    _sdt_v1(10, 512, 36_006_056, from_readme(74.66)),
    _sdt_v1(
        8,
        768,
        66_339_144,
        unverified(77.07, 4, 288, "official README; 288 px assumed"),
        unverified(76.3, 4),
        notes="The README does not give the resolution at which 77.07 was measured.",
    ),
    _sdt_v1_cifar(512, 10_233_546),
    _sdt_v1_cifar(256, 2_567_082),
    _sdt_v2(
        "15m",
        (64, 128, 256, 360),
        15_112_208,
        unverified(74.1, 4),
        unverified(71.8, 1),
        notes="Widths are those of the authors' detection configurations.",
    ),
    _sdt_v2("31m", (96, 192, 384, 480), 31_333_864, from_paper(77.2), unverified(75.4, 1)),
    _sdt_v2("55m", (128, 256, 512, 640), 55_350_248, from_paper(79.7)),
    _sdt_v2(
        "55m_kd",
        (128, 256, 512, 640),
        55_991_248,
        from_paper(80.0),
        unverified(79.1, 1),
        kd=True,
        file_name="55M_kd_T4.pth (T=1: 55M_kd.pth)",
        available=linked("one Google Drive folder with the weights for T=4 and T=1"),
    ),
    _sdt_v2(
        "8_768",
        (192, 384, 768, 960),
        123_741_160,
        title="8-768",
        notes="The function metaspikformer_8_768 exists in the official code; no results for it "
        "were published.",
    ),
    _sdt_v3("5m", (32, 64, 128, 192), 5_105_608, unverified(75.3, 1), file_name="V3_5.1M_1x4.pth"),
    _sdt_v3("10m", (48, 96, 192, 240), 10_023_112, from_readme(78.5, 1), notes=_SWAPPED_LINKS),
    _sdt_v3(
        "19m",
        (64, 128, 256, 360),
        18_987_504,
        from_readme(79.8, 1),
        file_name="V3_19.0M_1x4.pth",
        notes=_SWAPPED_LINKS,
    ),
    _sdt_v3(
        "t",
        (24, 48, 96, 128),
        2_702_048,
        notes="The function Efficient_Spiking_Transformer_t exists in the official code; no "
        "results for it were published.",
        available=not_published("the README links 5M, 10M and 19M only"),
    ),
)

_LARGE_WIDTHS = {"83m": (128, 256, 512), "173m": (196, 384, 768), "173m_192": (192, 384, 768)}
_PRETRAINING_WIDTH = (
    "The first width of the official pre-training code; its fine-tuning code has 196."
)


def _large(
    name: str,
    parameters: int,
    *published: Published,
    kd: bool = False,
    levels: int = 4,
    **card: Any,
) -> ModelCard:
    size = name.removesuffix("_kd").removesuffix("_1x8")
    base = size == "83m"
    family = "sdt_v3_large_d8" if levels == 8 else "sdt_v3_large_base" if base else "sdt_v3_large"
    shown = size.partition("_")[0].upper() + (" (192 wide)" if size.endswith("_192") else "")
    return imagenet_model(
        f"e_spikeformer_large_{name}",
        f"E-SpikeFormer Large (SDT v3) {shown}, 1x{levels}" + (", distilled" if kd else ""),
        family,
        {
            "embed_dim": list(_LARGE_WIDTHS[size]),
            "num_heads": 8,
            "mlp_ratios": 4,
            "depths": 12,
            "choice": "base" if base else "large",
            "kd": kd,
        },
        parameters,
        *published,
        paper=PAPERS["sdt_v3"],
        **{
            "available": linked("Google Drive, in Train_Large.md; 83M at 384 pixels has no link"),
            **card,
        },
    )


LARGE_CARDS = (
    _large("83m", 82_502_952, unverified(84.0, 1, 224, "official README; file assumed")),
    _large("83m_kd", 83_015_952, kd=True),
    _large("83m_1x8", 82_502_952, levels=8),
    _large("83m_1x8_kd", 83_015_952, kd=True, levels=8),
    _large("173m", 170_971_714),
    _large("173m_kd", 171_740_714, kd=True),
    _large(
        "173m_192",
        170_810_824,
        notes=_PRETRAINING_WIDTH,
        available=not_published("it is the width of the pre-training code"),
    ),
    _large(
        "173m_1x8",
        170_971_714,
        unverified(86.2, 1, 384, "official README; file assumed"),
        levels=8,
    ),
    _large("173m_1x8_kd", 171_740_714, kd=True, levels=8),
    _large(
        "173m_192_1x8",
        170_810_824,
        levels=8,
        notes=_PRETRAINING_WIDTH,
        available=not_published("it is the width of the pre-training code"),
    ),
)
