"""Tiny networks for round trips: pruned, recovered, fine-tuned and pruned twice, each as a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from psvit_core.finetune import finetune
from psvit_core.neurons import NEURONS
from psvit_core.records import FinetuneSettings
from psvit_core.recover import recover
from psvit_core.runtime import Run
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.registry import FAMILIES
from tests.tiny import NAMES, random_plan, tiny_data, tiny_model, vector

KINDS = ("pruned", "recovered", "fine-tuned", "pruned twice")
TIME_STEPS = 2  # a graph has them written out, so that it takes long to write
RECOVERY = "stages_bn"  # changes every layer, BatchNorms and the classifier
N_IMAGES = 8  # of every comparison
_N_FIT, _BATCH = 16, 8


def vectors() -> dict[str, str]:
    """Return family -> its first network with reference weights; every family has one."""
    found: dict[str, str] = {}
    for name in NAMES:
        found.setdefault(vector(name).meta["family"], name)
    missing = [family for family in FAMILIES if family not in found]
    assert not missing, missing
    return {family: found[family] for family in FAMILIES}


def images_of(name: str) -> torch.Tensor:
    """Return the images that a network is compared on, (N_IMAGES, C, H, W)."""
    return next(tiny_data(name, N_IMAGES, seed=3).batches(N_IMAGES)).contiguous()


def written(name: str, kind: str, folder: Path) -> SpikingModel:
    """Write the network of a kind to a file, and return the model that is read from it.

    Args:
        name: The reference network.
        kind: One of ``KINDS``.
        folder: Folder for the file.
    """
    original = tiny_model(name)
    if "T" in original.arguments:
        original.set_time_steps(TIME_STEPS)
    make: dict[str, Callable[[SpikingModel], SpikingModel]] = {
        "pruned": lambda small: small,
        "recovered": lambda small: _recovered(name, original, small),
        "fine-tuned": lambda small: _finetuned(name, small),
        "pruned twice": lambda small: _again(small, folder),
    }
    small = apply_plan(original, random_plan(original, 0))
    path = folder / f"{kind.replace(' ', '_').replace('-', '_')}.safetensors"
    return load_model(save_pruned(make[kind](small), path))


def _recovered(name: str, original: SpikingModel, small: SpikingModel) -> SpikingModel:
    calib = dataclasses.replace(tiny_data(name, _N_FIT, seed=1), split="calib")
    plan, run = random_plan(original, 0), Run(batch=_BATCH)
    return recover(small, original, plan, calib, method=RECOVERY, run=run)[0]


def _finetuned(name: str, small: SpikingModel) -> SpikingModel:
    """Return the network after one epoch, whichever validates best."""
    train = dataclasses.replace(tiny_data(name, _N_FIT, seed=1), split="train")
    settings = FinetuneSettings(epochs=1, batch=_BATCH, augment="none", autocast="off")
    val, run = tiny_data(name, _BATCH, seed=2), Run(batch=_BATCH)
    return finetune(small, train, val, settings=settings, run=run).last


def _again(small: SpikingModel, folder: Path) -> SpikingModel:
    """Prune a network once more, from its file."""
    once = load_model(save_pruned(small, folder / "once.safetensors"))
    return apply_plan(once, random_plan(once, 1))


@torch.no_grad()
def run_model(model: SpikingModel, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a model's logits, and the spikes of each call of a neuron, in order."""
    spikes: list[torch.Tensor] = []
    neurons = [module for module in model.modules() if isinstance(module, NEURONS)]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: spikes.append(out))
        for module in neurons
    ]
    try:
        return model(images), spikes
    finally:
        for hook in hooks:
            hook.remove()
