"""The model's evaluation transform, from images to network input.

Resizing and cropping follow timm's evaluation loader: torchvision on PIL images, with antialiasing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psvit_core.errors import DataError
from psvit_core.records import Transform


def normalise(pixels: Tensor, transform: Transform) -> Tensor:
    """Pad and normalise pixels in [0, 1], (..., C, H, W), to network input."""
    return standardise(torch.nn.functional.pad(pixels, (transform.pad,) * 4), transform)


def standardise(pixels: Tensor, transform: Transform) -> Tensor:
    """Subtract the mean of each channel from pixels (..., C, H, W) and divide by the deviation."""
    mean = torch.tensor(transform.mean, dtype=pixels.dtype).view(-1, 1, 1)
    std = torch.tensor(transform.std, dtype=pixels.dtype).view(-1, 1, 1)
    return (pixels - mean) / std


def fit(pixels: Tensor, transform: Transform) -> Tensor:
    """Resize and crop pixels (C, H, W) to the transform's crop."""
    if pixels.shape[-2:] == (transform.crop, transform.crop):
        return pixels
    from torchvision.transforms import v2

    mode = v2.InterpolationMode(transform.interpolation)
    sized: Tensor = v2.functional.resize(pixels, [transform.resize], interpolation=mode)
    cropped: Tensor = v2.functional.center_crop(sized, [transform.crop])
    return cropped


@dataclass(frozen=True)
class Prepare:
    """Converts a PIL image to network input, (C, H, W) float32.

    Raises:
        DataError: If the model takes neither greyscale nor colour images.
    """

    transform: Transform
    _steps: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.transform.channels not in (1, 3):
            raise DataError(
                f"Images have 1 or 3 channels, but this model takes {self.transform.channels}. "
                "Give event data: --data npz:FILE with an array 'frames'."
            )
        from torchvision.transforms import v2  # slow to import

        mode = v2.InterpolationMode(self.transform.interpolation)
        steps = v2.Compose(
            [v2.Resize(self.transform.resize, mode), v2.CenterCrop(self.transform.crop)]
        )
        object.__setattr__(self, "_steps", steps)

    @property
    def mode(self) -> str:
        """PIL's image mode of the network input."""
        return "L" if self.transform.channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network input of an image."""
        sized = np.array(self._steps(image.convert(self.mode)))
        return normalise(to_pixels(np.atleast_3d(sized)), self.transform)


def to_pixels(image: np.ndarray[Any, Any]) -> Tensor:
    """Convert (H, W, C) uint8 to (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div(255)


@dataclass(frozen=True)
class ArrayImages:
    """Loads pixels in memory, (N, H, W, C) uint8."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    prepare: Prepare

    def __call__(self, position: int) -> Tensor:
        """Return the network input of the image at a position."""
        image = self.pixels[position]
        return self.prepare(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image))
