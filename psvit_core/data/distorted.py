"""The built-in digits, rotated, scaled, sheared and noisy: a harder test on the same splits.

The distortion of each digit is seeded by its position, so its bytes are the same in every run.
Scale, shear along x and rotation about the centre are drawn uniformly and applied in this order
with bilinear interpolation and a black background; then Gaussian noise is added, clipped to 0..255
and rounded. The model's transform is applied afterwards as for any image. Splits and labels are
those of ``digits``; ids begin with ``digits-distorted/``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from psvit_core.data.digits import digits_arrays, digits_source, digits_split
from psvit_core.data.evalset import Source
from psvit_core.data.pixels import fit, normalise
from psvit_core.records import Transform

# 1.5 times the augmentation that the demo models were trained with, plus noise, which they were
# not.
ROTATION = 15.0  # degrees, in both directions
SCALE = (0.85, 1.15)
SHEAR = 7.5  # degrees, in both directions
NOISE = 25.0  # standard deviation, on the scale 0..255
_SEED = 20_240_101


@functools.cache
def distorted_digit(position: int) -> Tensor:
    """Return the distorted digit at a position among the 5,000, (1, 28, 28) uint8."""
    from scipy.ndimage import affine_transform

    random = np.random.RandomState([_SEED, position])  # stable across numpy versions
    angle, shear = np.radians(random.uniform(-1, 1, 2) * (ROTATION, SHEAR))
    scale = random.uniform(*SCALE)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1.0, np.tan(shear)], [0.0, 1.0]]) * scale
    backward = np.linalg.inv(forward)  # from output to input coordinates
    pixels = digits_arrays()[0][position, 0].numpy().astype(np.float64)
    centre = (np.array(pixels.shape) - 1) / 2
    moved = affine_transform(pixels, backward, offset=centre - backward @ centre, order=1)
    noisy = moved + random.normal(0.0, NOISE, pixels.shape)
    return torch.from_numpy(np.rint(noisy.clip(0, 255)).astype(np.uint8)).unsqueeze(0)


@dataclass(frozen=True)
class _Distorted:
    """Loads the distorted digits at given positions."""

    positions: tuple[int, ...]
    transform: Transform

    def __call__(self, position: int) -> Tensor:
        pixels = distorted_digit(self.positions[position]).float() / 255
        return normalise(fit(pixels, self.transform), self.transform)


def distorted_source(split: str, transform: Transform) -> Source:
    """Return a split of the distorted digits."""
    clean = digits_source(split, transform)
    return replace(
        clean,
        identify=lambda i: clean.identify(i).replace("digits/", "digits-distorted/"),
        load=_Distorted(digits_split(split), transform),
    )
