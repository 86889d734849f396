"""Cards of STAtten."""

from __future__ import annotations

from psvit_core.zoo.cards.card import ModelCard
from psvit_core.zoo.cards.cifar import cifar_model
from psvit_core.zoo.cards.imagenet import block_arguments, imagenet_model
from psvit_core.zoo.cards.papers import MIT, PAPERS, not_published

_NONE = not_published("users of the official code train their own checkpoints")
_TRAP = (
    "Tensors and parameters equal those of Spike-driven Transformer v1, which computes another "
    "attention: a file does not show which one it is. The repository states no accuracies."
)
_LAYOUT = {"num_heads": 8, "chunk_size": 2, "attention_mode": "STAtten"}


def _imagenet(embed_dims: int, parameters: int) -> ModelCard:
    return imagenet_model(
        f"statten_8_{embed_dims}",
        f"STAtten 8-{embed_dims}",
        "statten",
        {**block_arguments(8, embed_dims, 8), **_LAYOUT, "pooling_stat": "1111"},
        parameters,
        paper=PAPERS["statten"],
        licence=MIT,
        available=_NONE,
        notes=_TRAP,
    )


def _cifar(data: str, embed_dims: int, parameters: int) -> ModelCard:
    return cifar_model(
        f"statten_{data}_2_{embed_dims}",
        f"STAtten 2-{embed_dims}",
        "statten",
        {"depths": 2, "embed_dims": embed_dims, **_LAYOUT, "pooling_stat": "0011"},
        parameters,
        paper=PAPERS["statten"],
        licence=MIT,
        available=_NONE,
        notes=_TRAP,
    )


CARDS = (
    _imagenet(512, 29_689_896),
    _imagenet(768, 66_339_144),
    _cifar("cifar10", 512, 10_233_546),
    _cifar("cifar10", 256, 2_567_082),
    _cifar("cifar100", 512, 10_279_716),
)
