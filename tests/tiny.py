"""Tiny models with the reference weights: small, and their neurons really fire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from psvit_core.data import EvalSet
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import build_model

REFERENCE = Path(__file__).parent / "reference"
#: Reference vectors of the families that are built so far.
NAMES = (
    "spikformer_imagenet",
    "spikformer_cifar",
    "sdt_v1",
    "sdt_v1_cifar",
    "sdt_v2",
    "sdt_v2_kd",
    "sdt_v3",
    "qkformer_imagenet",
    "qkformer_cifar",
)


@dataclass(frozen=True)
class Vector:
    """A reference file: its tensors and what it says about them."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict."""
        return {
            k.removeprefix("weights."): t
            for k, t in self.tensors.items()
            if k.startswith("weights.")
        }


@cache
def vector(name: str) -> Vector:
    """A reference file, read once."""
    with safe_open(REFERENCE / "vectors" / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Vector(tensors, json.loads(file.metadata()["meta"]))


def build_tiny(name: str, widths: Mapping[str, int] | None = None) -> SpikingModel:
    """The architecture of a reference vector, with random weights."""
    meta = vector(name).meta
    return build_model(meta["family"], widths, **{**meta["constructor"], "T": meta["T"]})


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> SpikingModel:
    """The model of a reference vector with its weights."""
    model = build_tiny(name)
    model.load_state_dict({k: t.clone() for k, t in vector(name).weights.items()})
    model.name = name
    return model.to(dtype)


def tiny_input(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The vector's images, (3, C, H, W)."""
    return vector(name).tensors["input"].to(dtype)


def tiny_data(name: str, n_images: int = 7, seed: int = 0) -> EvalSet:
    """Made images for a tiny model: the vector's own, mixed and shifted, with made labels."""
    base = tiny_input(name)
    random = torch.Generator().manual_seed(seed)
    mix = torch.rand(n_images, len(base), generator=random).softmax(1)
    images = torch.einsum("ni,ichw->nchw", mix, base) * 1.5
    classes = vector(name).tensors["logits"].shape[1]
    labels = torch.randint(classes, (n_images,), generator=random).tolist()
    return EvalSet(
        spec="made",
        split="val",
        transform="none",
        ids=tuple(f"{seed}/{i}" for i in range(n_images)),
        labels=tuple(labels),
        classes=tuple(str(i) for i in range(classes)),
        load=lambda i: images[i],
    )
