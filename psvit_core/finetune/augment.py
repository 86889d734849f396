"""Random augmentation of training images, as tensor operations on whole batches.

Every batch has seeds of its own, so that a resumed training sees the same images, whatever else
draws random numbers in between, and so that another thread can prepare a batch ahead.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from psvit_core.data import EvalSet
from psvit_core.records import FinetuneSettings
from psvit_core.zoo.base import SpikingModel

DEGREES, SHEAR, SHIFT, SCALES = 10.0, 5.0, 0.07, (0.9, 1.1)  # of the affine augmentation


class Use(IntEnum):
    """What random numbers are for; each use has seeds of its own."""

    ORDER = 1  # of an epoch's images
    DRAWN = 2  # a step's affine transforms, crops and flips
    MIXED = 3  # a step's erasing and mixup


def seed_of(seed: int, use: Use, number: int) -> int:
    """Return the seed of a training's epoch or step for one use."""
    return int(np.random.SeedSequence((seed, use, number)).generate_state(1)[0])


def generator_of(seed: int, use: Use, number: int) -> torch.Generator:
    """Return a generator with the seed ``seed_of``."""
    return torch.Generator().manual_seed(seed_of(seed, use, number))


def random_affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shear, scale and shift every image of a batch by random amounts.

    The amounts are uniform: up to 10 degrees, 5 degrees, a factor of 0.9 to 1.1, and 7 % of the
    size in whole pixels.

    Args:
        x: (B, C, H, W).
        generator: Source of the random numbers.
    """
    size = torch.tensor([x.shape[3], x.shape[2]])
    u = torch.rand(5, len(x), generator=generator, dtype=torch.float64) * 2 - 1  # in [-1, 1)
    shift = torch.round(u[3:].T * SHIFT * size)
    scale = sum(SCALES) / 2 + (SCALES[1] - SCALES[0]) / 2 * u[2]
    return affine(x, u[0] * DEGREES, u[1] * SHEAR, scale, shift)


def affine(x: Tensor, angle: Tensor, shear: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Transform every image of a batch as torchvision's ``affine``, with the nearest pixel.

    Pixels from outside get the smallest value of their channel in the batch, which is black.

    Args:
        x: (B, C, H, W).
        angle: Rotation in degrees, (B,).
        shear: Horizontal shear in degrees, (B,).
        scale: Enlargement, (B,).
        shift: Shift to the right and downwards in pixels, (B, 2).
    """
    height, width = x.shape[-2:]
    turn, tan = torch.deg2rad(angle), torch.tan(torch.deg2rad(shear))
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    # An output position p, relative to the centre, shows the input at inverse @ (p - shift).
    inverse = torch.stack([cos - tan * sin, sin + tan * cos, -sin, cos], dim=1).view(-1, 2, 2)
    half = torch.tensor([width / 2, height / 2], dtype=inverse.dtype)  # affine_grid's unit
    offset = -(inverse @ shift.to(inverse.dtype).unsqueeze(2)) / half.view(1, 2, 1)
    theta = torch.cat([inverse * half / half.view(2, 1), offset], dim=2).to(x.dtype)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    black = x.amin(dim=(0, 2, 3), keepdim=True)
    return F.grid_sample(x - black, grid, mode="nearest", align_corners=False) + black


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images of a batch, (B, ..., W)."""
    flipped = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flipped.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)


def random_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image of a batch by up to an eighth of its size, padding with black.

    Args:
        x: (B, ..., C, H, W); black is the smallest value of a channel in the batch.
        generator: Source of the random numbers.
    """
    height, width = x.shape[-2:]
    pads = [height // 8, width // 8]
    other_axes = [axis for axis in range(x.dim()) if axis != x.dim() - 3]
    black = x.amin(dim=other_axes, keepdim=True)
    padded = F.pad(x - black, (pads[1], pads[1], pads[0], pads[0]))
    rows, columns = (
        torch.randint(0, 2 * pad + 1, (len(x), 1), generator=generator) + torch.arange(size)
        for pad, size in zip(pads, (height, width), strict=True)
    )
    maps = padded.flatten(1, -3)  # (B, ..., H, W) with one axis of maps
    images = torch.arange(len(x)).view(-1, 1, 1, 1)
    index = torch.arange(maps.shape[1]).view(1, -1, 1, 1)
    shifted = maps[images, index, rows[:, None, :, None], columns[:, None, None, :]]
    return shifted.view(x.shape) + black


class Augmentation:
    """Random augmentation of a batch: affine, crop or flip per image, erasing, mixup, cutmix."""

    def __init__(self, settings: FinetuneSettings, model: SpikingModel, train: EvalSet) -> None:
        self.kind = settings.augment
        self.seed = settings.seed
        if self.kind == "auto":
            grayscale = model.input_shape[0] == 1
            self.kind = "none" if train.time_steps else "affine" if grayscale else "flip"
        self.erase: Any = None
        self.mixup: Any = None
        if settings.erase:
            from timm.data.random_erasing import RandomErasing

            self.erase = RandomErasing(settings.erase, device="cpu")  # type: ignore[no-untyped-call]
        if settings.mixup or settings.cutmix:
            from timm.data import Mixup  # type: ignore[attr-defined]

            self.mixup = Mixup(  # type: ignore[no-untyped-call]
                settings.mixup,
                settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=model.num_classes,
            )

    def drawn(self, x: Tensor, step: int) -> Tensor:
        """Return the images of a step, moved and mirrored; any thread may call it.

        Args:
            x: Images on the CPU.
            step: Number of the batch since training began; decides the random numbers.
        """
        generator = generator_of(self.seed, Use.DRAWN, step)
        if self.kind == "affine":
            return random_affine(x, generator)
        if self.kind == "crop":
            return random_flip(random_crop(x, generator), generator)
        return random_flip(x, generator) if self.kind == "flip" else x

    def mixed(self, x: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the erased and mixed images and their targets: labels, or class weights.

        timm draws from the global generators, so they are seeded for this step.
        """
        if self.erase is None and self.mixup is None:
            return x, labels
        with seeded_generators(seed_of(self.seed, Use.MIXED, step)):
            if self.erase is not None:
                x = self.erase(x)
            if self.mixup is not None:
                x, labels = self.mixup(x, labels)
        return x, labels


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed all generators for the ``with`` block, then restore the caller's state."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # timm's mixup draws from it
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
