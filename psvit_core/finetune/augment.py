"""Random changes of training images, and the generators that they draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psvit_core.data import EvalSet
from psvit_core.records import FinetuneSettings
from psvit_core.zoo.base import SpikingModel


def random_affine(fill: float = 0.0) -> nn.Module:
    """The light augmentation of small grey images: torchvision's, at the demos' strengths."""
    from torchvision.transforms import v2

    return v2.RandomAffine(degrees=10, translate=(0.07, 0.07), scale=(0.9, 1.1), shear=5, fill=fill)


class Augmentation:
    """Random changes of a batch: geometry an image, erasing, mixing with labels."""

    def __init__(self, settings: FinetuneSettings, model: SpikingModel, train: EvalSet) -> None:
        self.kind = settings.augment
        if self.kind == "auto":
            grey = model.input_shape[0] == 1
            self.kind = "none" if train.time_steps else "affine" if grey else "flip"
        self.erase: Any = None
        self.mixup: Any = None
        if settings.erase:
            from timm.data.random_erasing import RandomErasing

            self.erase = RandomErasing(settings.erase, device="cpu")  # type: ignore[no-untyped-call]
        if settings.mixup:
            from timm.data import Mixup  # type: ignore[attr-defined]

            self.mixup = Mixup(  # type: ignore[no-untyped-call]
                settings.mixup, label_smoothing=settings.label_smoothing,
                num_classes=model.num_classes,
            )  # fmt: skip

    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets: labels, or with mixup a distribution for each image."""
        if self.kind == "affine":
            affine = random_affine(fill=float(x.min()))  # normalised black
            x = torch.stack([affine(image) for image in x])
        elif self.kind == "flip":
            flipped = torch.rand(len(x)) < 0.5
            x = torch.where(flipped.view(-1, *[1] * (x.dim() - 1)).to(x.device), x.flip(-1), x)
        if self.erase is not None:
            x = self.erase(x)
        if self.mixup is not None:
            x, labels = self.mixup(x, labels)
        return x, labels


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed every generator that training and augmentation use; the caller's go on as they were."""
    before = random_state()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  timm's mixup draws from it
        random.seed(seed)
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Any]:
    """Of all generators, as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where ``random_state`` found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    random.setstate(state["python"])
