"""The parts of an exported file that are the same for all networks.

The constants are written anew for each network, and ``Network`` becomes part of its class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from psvit_core.quantize import unpacked

ARGUMENTS: dict[str, Any] = {}
WIDTHS: dict[str, int] = {}
WEIGHTS = ""
INPUT_SHAPE: tuple[int, int, int] = (3, 224, 224)
PAD = 0
MEAN: tuple[float, ...] = (0.0,)
STD: tuple[float, ...] = (1.0,)


class Network(nn.Module):
    """What a network adds to the modules and the forward pass of its family."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments = dict(ARGUMENTS)
        self.widths = dict(WIDTHS)
        self._build()

    def _build(self) -> None:
        raise NotImplementedError

    @property
    def T(self) -> int:  # noqa: N802  # the letter of every paper
        """Number of time steps that an image is repeated for."""
        return int(self.arguments.get("T", 1))

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        return int(self.arguments["num_classes"])


def build() -> Network:
    """Return the network with random weights."""
    return Network()


def load(weights: str | Path | None = None) -> Network:
    """Return the network with its weights, in evaluation mode, on the CPU.

    Args:
        weights: The .safetensors file; None for the one beside this file.
    """
    network = build()
    tensors = load_file(Path(__file__).with_name(WEIGHTS) if weights is None else weights)
    network.load_state_dict(unpacked(tensors), assign=True)
    return network.eval()


def normalise(pixels: Tensor) -> Tensor:
    """Return network input for pixels in [0, 1], (..., C, H, W), already resized and cropped."""
    pixels = F.pad(pixels, (PAD, PAD, PAD, PAD))
    mean = torch.tensor(MEAN, dtype=pixels.dtype).view(-1, 1, 1)
    std = torch.tensor(STD, dtype=pixels.dtype).view(-1, 1, 1)
    return (pixels - mean) / std


def main() -> None:
    """Run the network on two random images."""
    network = load()
    images = torch.rand(2, *INPUT_SHAPE, dtype=next(network.parameters()).dtype)
    with torch.inference_mode():
        logits = network(images)
    print(f"{tuple(images.shape)} -> logits {tuple(logits.shape)}")
