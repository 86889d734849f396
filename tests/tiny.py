"""Tiny models with reference weights, whose neurons fire."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from psvit_core.data import EvalSet
from psvit_core.groups import find_groups, plan_from_kept
from psvit_core.records import PrunePlan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.registry import FAMILIES, build_model

REFERENCE = Path(__file__).parent / "reference"
#: Names of the reference vectors.
_ALL_NAMES = (
    "spikformer_imagenet",
    "spikformer_cifar",
    "sdt_v1",
    "sdt_v1_cifar",
    "sdt_v2",
    "sdt_v2_kd",
    "sdt_v3",
    "qkformer_imagenet",
    "qkformer_cifar",
    "spikingformer_imagenet",
    "spikingformer_cifar",
    "spikingformer_cml_imagenet",
    "spikingformer_cml_cifar",
    "statten",
    "statten_cifar",
    "max_former_imagenet",
    "max_former_cifar",
    "ms_qkformer_imagenet",
    "ms_qkformer_cifar",
    "sdt_v3_large",
    "sdt_v3_large_base",
    "sdt_v3_large_d8",
    "spikingresformer",
    "spikingresformer_cifar",
)


def _family(name: str) -> str:
    groups = json.loads((REFERENCE / "groups" / f"{name}.json").read_text())
    return str(groups["family"])


NAMES = tuple(name for name in _ALL_NAMES if _family(name) in FAMILIES)


#: One vector of each family. Heavy tests of the other vectors are slow (``tests/conftest.py``).
QUICK_NAMES = (
    "spikformer_cifar",
    "sdt_v1",
    "sdt_v2_kd",
    "sdt_v3",
    "qkformer_cifar",
    "spikingformer_cml_cifar",
    "statten_cifar",
    "max_former_cifar",
    "ms_qkformer_cifar",
    "sdt_v3_large_base",
    "spikingresformer_cifar",
)
#: Vectors of the families with integer neurons.
INTEGER_NAMES = tuple(name for name in NAMES if name.startswith("sdt_v3"))


@dataclass(frozen=True)
class Vector:
    """Contents of a reference file: tensors and metadata."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the state dict."""
        return {
            k.removeprefix("weights."): t
            for k, t in self.tensors.items()
            if k.startswith("weights.")
        }


@cache
def vector(name: str) -> Vector:
    """Read a reference file, cached."""
    with safe_open(REFERENCE / "vectors" / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Vector(tensors, json.loads(file.metadata()["meta"]))


def build_tiny(name: str, widths: Mapping[str, int] | None = None) -> SpikingModel:
    """Build the architecture of a reference vector, with random weights."""
    meta = vector(name).meta
    arguments = {**meta["constructor"], "T": meta["T"]}
    if "img_size" not in arguments:  # many published classes take no size, or ignore it
        arguments["img_size_h"], arguments["img_size_w"] = vector(name).tensors["input"].shape[2:]
    return build_model(meta["family"], widths, **arguments)


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> SpikingModel:
    """Build the model of a reference vector, with its weights."""
    model = build_tiny(name)
    model.load_state_dict({k: t.clone() for k, t in vector(name).weights.items()})
    model.name = name
    return model.to(dtype)


def tiny_input(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the images of a reference vector, (3, C, H, W)."""
    return vector(name).tensors["input"].to(dtype)


def tiny_data(name: str, n_images: int = 7, seed: int = 0) -> EvalSet:
    """Return synthetic data for a tiny model: mixtures of the vector's images, random labels."""
    base = tiny_input(name)
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(n_images, len(base), generator=generator).softmax(1)
    images = torch.einsum("ni,ichw->nchw", mix, base) * 1.5
    classes = vector(name).tensors["logits"].shape[1]
    labels = torch.randint(classes, (n_images,), generator=generator).tolist()
    return EvalSet(
        spec="made",
        split="val",
        transform="none",
        ids=tuple(f"{seed}/{i}" for i in range(n_images)),
        labels=tuple(labels),
        classes=tuple(str(i) for i in range(classes)),
        load=lambda i: images[i],
    )


def random_plan(model: SpikingModel, seed: int) -> PrunePlan:
    """Return a plan that keeps random units, at least half of each group, equally many per head."""
    chance, kept = random.Random(seed), {}
    for g in find_groups(model):
        heads = g.heads or 1
        width = g.n_units // heads
        n = chance.randint(-(-width // 2), width)
        kept[g.group_id] = [
            h * width + i for h in range(heads) for i in sorted(chance.sample(range(width), n))
        ]
    return plan_from_kept(model, kept)
