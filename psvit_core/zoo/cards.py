"""The registered models as data: cards, without torch.

A card says all that shapes do not: heads, time steps, transform, what was published and where,
under which file name the weights exist. Official checkpoints are not shipped; give them with
``--checkpoint``. ``verified`` is False where a number is known from memory or hearsay only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from psvit_core.errors import ModelError, UnknownNameError
from psvit_core.records import DIGITS_48_TRANSFORM, DIGITS_TRANSFORM, ModelSummary, Transform

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "sdt_v1_digits"


_NO_LICENCE = "none found in the official repository: ask its authors before passing weights on"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published accuracy."""

    top1: float  # percent
    T: int
    px: int  # image side
    source: str
    verified: bool = True  # read at the source, not from memory or hearsay


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A registered model."""

    name: str
    title: str
    family: str
    arguments: Mapping[str, Any]
    parameters: int  # all of the state dict's, unused ones included; 0: not known yet
    transform: Transform
    data: str  # what it was trained for; the default of --data where it is built in
    paper: str
    licence: str = _NO_LICENCE
    batch: int = 32  # default of --batch
    weights: Path | None = None  # shipped weights, or None: give a checkpoint
    file_name: str = ""  # of the published weights, where known
    published: tuple[Published, ...] = ()
    notes: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    own: Any = None  # what builds a model of the user's own (psvit_core.custom), or None

    def at(self, px: int | None) -> ModelCard:
        """This card for images of another side (None: as it is), with the official transform.

        Source:
            The evaluation scripts: QKFormer above 224 px resizes to the input size itself, SDT v1
            at 288 px resizes bilinearly to 320; otherwise the same crop ratio is kept.
        """
        old = self.transform
        if px is None or px == old.crop + 2 * old.pad:
            return self
        crop = px - 2 * old.pad
        if crop < 8:
            raise ModelError(f"Images of {px} pixels are too small for {self.name}.")
        transform = dataclasses.replace(old, crop=crop, resize=round(old.resize * crop / old.crop))
        if self.family == "qkformer_imagenet" and px > 224:
            transform = dataclasses.replace(transform, resize=px)
        if self.family == "sdt_v1" and px == 288:
            transform = dataclasses.replace(transform, resize=320, interpolation="bilinear")
        sides = {"img_size_h": px, "img_size_w": px}
        return dataclasses.replace(self, arguments={**self.arguments, **sides}, transform=transform)


_PAPERS = {
    "spikformer": "Zhou et al. 2023, Spikformer, arXiv 2209.15425",
    "sdt_v1": "Yao et al. 2023, Spike-driven Transformer, arXiv 2307.01694",
    "sdt_v2": "Yao et al. 2024, Spike-driven Transformer V2, arXiv 2404.03663",
    "sdt_v3": "Yao et al. 2025, Scaling Spike-driven Transformer, TPAMI",
    "qkformer": "Zhou et al. 2024, QKFormer, arXiv 2403.16552",
}
_CIFAR_TRANSFORM = Transform(
    resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)
)
_CIFAR_NOTE = "Transform and heads as in the official configuration file."
_IMAGENET_NAMES = {
    "spikformer_imagenet": ("spikformer", "Spikformer", 224),
    "sdt_v1": ("sdt_v1", "Spike-driven Transformer v1", 235),
    "qkformer_imagenet": ("qkformer", "QKFormer", 256),
}


def _block_model(
    family: str, depths: int, embed_dims: int, heads: int, parameters: int, *published: Published,
    notes: str = "", file_name: str = "",
) -> ModelCard:  # fmt: skip
    """Card of an ImageNet model that is named by depth and width."""
    prefix, title, resize = _IMAGENET_NAMES[family]
    return ModelCard(
        name=f"{prefix}_{depths}_{embed_dims}",
        title=f"{title} {depths}-{embed_dims}",
        family=family,
        arguments={"depths": depths, "embed_dims": embed_dims, "num_heads": heads, "T": 4},
        parameters=parameters,
        transform=Transform(resize=resize, crop=224),
        data="imagenet",
        paper=_PAPERS[prefix],
        file_name=file_name,
        published=published,
        notes=notes,
    )


def _meta_model(
    family: str, size: str, embed_dim: tuple[int, ...], parameters: int, *published: Published,
    notes: str = "", file_name: str = "", **arguments: Any,
) -> ModelCard:  # fmt: skip
    """Card of an ImageNet model of the metaformer layout, named by its size."""
    prefix, title, resize = {
        "sdt_v2": ("meta_spikeformer", "Meta-SpikeFormer (SDT v2)", 256),
        "sdt_v3": ("e_spikeformer", "E-SpikeFormer (SDT v3)", 232),
    }[family]
    return ModelCard(
        name=f"{prefix}_{size}",
        title=f"{title} {size.removesuffix('_kd').upper()}"
        + (", distilled" * size.endswith("_kd")),
        family=family,
        arguments={"embed_dim": list(embed_dim), "num_heads": 8, **arguments},
        parameters=parameters,
        transform=Transform(resize=resize, crop=224),
        data="imagenet",
        paper=_PAPERS[family],
        licence="not looked up: see the official repository" if family == "sdt_v3" else _NO_LICENCE,
        file_name=file_name,
        published=published,
        notes=notes,
    )


def _cifar_model(
    name: str, title: str, family: str, arguments: Mapping[str, Any], parameters: int, paper: str,
    *published: Published,
) -> ModelCard:  # fmt: skip
    """Card of a CIFAR-10 model."""
    return ModelCard(
        name=name,
        title=title,
        family=family,
        arguments={"img_size_h": 32, "img_size_w": 32, "num_classes": 10, "T": 4, **arguments},
        parameters=parameters,
        transform=_CIFAR_TRANSFORM,
        data="cifar10",
        paper=_PAPERS[paper],
        published=published,
        notes=_CIFAR_NOTE,
    )


def _paper(top1: float, T: int = 4) -> Published:
    return Published(top1=top1, T=T, px=224, source="paper")


def _readme(top1: float, T: int = 4, px: int = 224) -> Published:
    return Published(top1=top1, T=T, px=px, source="official README")


def _memory(top1: float, T: int, px: int = 224) -> Published:
    return Published(top1=top1, T=T, px=px, source="from memory", verified=False)


_HEADS_GUESSED = "The number of heads is not public; 64 channels a head is a guess."
_COUPLED = (
    "Published with batches of 32 in which images influence each other (batch_coupled); one by one "
    "it is about 5 points lower."
)
_SPIKFORMER = "spikformer_imagenet"
_QKFORMER = "qkformer_imagenet"

_OFFICIAL = (
    _block_model(_SPIKFORMER, 8, 384, 6, 16_828_312, _paper(70.24), notes=_HEADS_GUESSED),
    _block_model(_SPIKFORMER, 6, 512, 8, 23_385_640, _paper(72.46)),
    _block_model(_SPIKFORMER, 8, 512, 8, 29_705_768, _paper(73.38)),
    _block_model(_SPIKFORMER, 10, 512, 8, 36_025_896, _paper(73.68)),
    _block_model(_SPIKFORMER, 8, 768, 12, 66_363_208, _paper(74.81), notes=_HEADS_GUESSED),
    _cifar_model(
        "spikformer_cifar10_4_384", "Spikformer 4-384, CIFAR-10", "spikformer_cifar",
        {"depths": 4, "embed_dims": 384, "num_heads": 12}, 9_330_874, "spikformer",
        Published(top1=95.19, T=4, px=32, source="paper"),
    ),
    _block_model("sdt_v1", 8, 384, 8, 16_816_536, _readme(72.28)),
    _block_model("sdt_v1", 6, 512, 8, 23_373_736, _readme(74.11)),
    _block_model("sdt_v1", 8, 512, 8, 29_689_896, _readme(74.57)),
    _block_model("sdt_v1", 10, 512, 8, 36_006_056, _readme(74.66)),
    _block_model(
        "sdt_v1", 8, 768, 8, 66_339_144,
        Published(top1=77.07, T=4, px=288, source="official README; 288 px is our reading",
                  verified=False),
        _memory(76.3, 4),
        notes="The README does not say at which resolution 77.07 was measured.",
    ),
    _cifar_model(
        "sdt_v1_cifar10_2_512", "Spike-driven Transformer v1 2-512, CIFAR-10", "sdt_v1",
        {"depths": 2, "embed_dims": 512, "num_heads": 8, "pooling_stat": "0011"}, 10_233_546,
        "sdt_v1",
    ),
    _meta_model("sdt_v2", "15m", (64, 128, 256, 360), 15_112_208, _memory(74.1, 4),
                _memory(71.8, 1), T=4,
                notes="Widths as in the authors' detection configurations; no public weights."),
    _meta_model("sdt_v2", "31m", (96, 192, 384, 480), 31_333_864, _paper(77.2), _memory(75.4, 1),
                T=4),
    _meta_model("sdt_v2", "55m", (128, 256, 512, 640), 55_350_248, _paper(79.7), T=4),
    _meta_model("sdt_v2", "55m_kd", (128, 256, 512, 640), 55_991_248, _paper(80.0),
                _memory(79.1, 1), T=4, kd=True, file_name="55M_kd_T4.pth (T=1: 55M_kd.pth)"),
    _meta_model("sdt_v3", "5m", (32, 64, 128, 192), 5_105_608, _memory(75.3, 1),
                file_name="V3_5.1M_1x4.pth"),
    _meta_model("sdt_v3", "10m", (48, 96, 192, 240), 10_023_112, _readme(78.5, 1),
                notes="The 10M and 19M links are known to be swapped in places; shapes tell."),
    _meta_model("sdt_v3", "19m", (64, 128, 256, 360), 18_987_504, _readme(79.8, 1),
                file_name="V3_19.0M_1x4.pth"),
    _block_model(_QKFORMER, 10, 384, 6, 16_473_688, _readme(78.80), notes=_COUPLED),
    _block_model(_QKFORMER, 10, 512, 8, 29_079_336, _readme(82.04), notes=_COUPLED),
    _block_model(_QKFORMER, 10, 768, 12, 64_962_760, _readme(84.22), _readme(85.25, px=288),
                 _readme(85.65, px=384), notes=_COUPLED),
    _cifar_model(
        "qkformer_cifar10_4_384", "QKFormer 4-384, CIFAR-10", "qkformer_cifar",
        {"depths": 4, "embed_dims": 384, "num_heads": 8}, 6_706_234, "qkformer",
        Published(top1=96.21, T=4, px=32, source="official log, best epoch"),
    ),
)  # fmt: skip


def _demo(name: str, title: str, paper: str, transform: Transform) -> ModelCard:
    record = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return ModelCard(
        name=name,
        title=title,
        family=record["family"],
        arguments=record["arguments"],
        parameters=record["training"]["parameters"],
        transform=transform,
        data="digits",
        paper=_PAPERS[paper],
        licence="as this project; the digits are MNIST (CC BY-SA 3.0)",
        batch=125,
        weights=WEIGHTS / f"{name}.safetensors",
        training=record["training"],
    )


_own_cards: dict[str, ModelCard] = {}  # of the user's own models, in this process


def register_card(card: ModelCard) -> None:
    """List a model of the user's own; one of the same name that is there is replaced.

    Raises:
        ModelError: If a model of the zoo has that name.
    """
    if card.name in _cards():
        raise ModelError(f"{card.name!r} is a model of the zoo. Register yours under another name.")
    _own_cards[card.name] = card


@cache
def _cards() -> dict[str, ModelCard]:
    demos = (
        _demo("sdt_v1_digits", "Spike-driven Transformer v1, digits", "sdt_v1", DIGITS_TRANSFORM),
        _demo("e_spikeformer_digits", "E-SpikeFormer (SDT v3), digits", "sdt_v3", DIGITS_TRANSFORM),
        _demo(
            "meta_spikeformer_digits",
            "Meta-SpikeFormer (SDT v2), digits",
            "sdt_v2",
            DIGITS_48_TRANSFORM,
        ),
    )
    return {card.name: card for card in (*demos, *_OFFICIAL)}


def list_models(*, shipped: bool = False) -> list[str]:
    """Names of the registered models, those with shipped weights first (or only those)."""
    cards = {**_cards(), **_own_cards}
    return [name for name, card in cards.items() if card.weights is not None or not shipped]


def model_card(name: str) -> ModelCard:
    """The card of a registered model; ``UnknownNameError`` with the nearest name otherwise."""
    if name not in list_models():
        raise UnknownNameError("model", name, list_models())
    return _own_cards.get(name) or _cards()[name]


@cache
def shipped_summary(name: str) -> ModelSummary | None:
    """The summary that ships with a model's weights, or None (``scripts/describe_models.py``)."""
    path = WEIGHTS / f"{name}.summary.json"
    return ModelSummary.load(path) if name in _cards() and path.exists() else None
