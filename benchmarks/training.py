"""A training step: before the native loops, and now in float32 and in bfloat16.

    python benchmarks/training.py [--quick] [--json]

"Before" is the fine-tuning step of version 0.2: neurons compiled by torch, torch's BatchNorms,
channels first, float32, and every batch loaded and augmented image by image between two steps. The
three take turns in one process, so that their ratios hold on a machine that is not idle. Each
ratio is the median over the rounds; CPU seconds are those of all threads.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from benchmarks._report import options, report
from psvit_core.data import EvalSet, load_data
from psvit_core.finetune import distillation
from psvit_core.finetune.precision import has_bfloat16
from psvit_core.finetune.training import Training
from psvit_core.kernels import lif
from psvit_core.records import FinetuneSettings
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.registry import build_model

Step = Callable[[], None]
ROUNDS, QUICK_ROUNDS = 5, 3
CIFAR = ("sdt_v1 2-96, CIFAR-10 size", 128)
DIGITS = (("sdt_v1_digits", 64), ("e_spikeformer_digits", 64), ("meta_spikeformer_digits", 64))


def main() -> None:
    """Measure every network."""
    chosen = options(__doc__ or "")
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if chosen.quick else ROUNDS
    cases = DIGITS[:1] if chosen.quick else (CIFAR, *DIGITS)
    rows = [measure(name, batch, rounds) for name, batch in cases]
    settings = {"threads": 1, "rounds": rounds, "bfloat16 in hardware": has_bfloat16()}
    report("training", rows, settings, chosen)


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Time the three steps of one network in turns."""
    model, teacher, train = subject(name, batch * (rounds + 2))
    steps: dict[str, Step] = {"before": previous_step(model, teacher, train, batch)}
    for label, autocast in (("float32", "off"), ("bfloat16", "bfloat16")):
        steps[label] = present_step(model, teacher, train, batch, autocast)
    wall: dict[str, list[float]] = {label: [] for label in steps}
    cpu: dict[str, list[float]] = {label: [] for label in steps}
    for number in range(rounds + 1):
        for label, step in steps.items():
            lif.use_compiled(label == "before")
            began, began_cpu = time.perf_counter(), time.process_time()
            step()
            if number:  # the first round compiles and warms up
                wall[label].append(time.perf_counter() - began)
                cpu[label].append(time.process_time() - began_cpu)
    lif.use_compiled(False)
    row: dict[str, Any] = {
        "network": name,
        "T": model.T,
        "batch": batch,
        "teacher": teacher is not None,
        "CPU s before": round(statistics.median(cpu["before"]), 3),
    }
    for label in ("float32", "bfloat16"):
        row[f"{label}: times faster, CPU"] = round(ratio(cpu["before"], cpu[label]), 2)
        row[f"{label}: wall"] = round(ratio(wall["before"], wall[label]), 2)
    return row


def ratio(before: list[float], now: list[float]) -> float:
    """Return the median of the ratios of each round."""
    return statistics.median(b / n for b, n in zip(before, now, strict=True))


def subject(name: str, n_images: int) -> tuple[SpikingModel, SpikingModel | None, EvalSet]:
    """Return a network, its teacher and training images: made ones for the CIFAR-10 size."""
    if name != CIFAR[0]:
        model = load_model(name)
        data = load_data("digits", split="train", transform=model_card(name).transform)
        return model, model, data.limit(n_images)
    sizes: dict[str, Any] = {
        "img_size_h": 32,
        "img_size_w": 32,
        "in_channels": 3,
        "num_classes": 10,
    }
    torch.manual_seed(0)
    model = build_model(
        "sdt_v1", **sizes, embed_dims=96, num_heads=8, depths=2, T=4, pooling_stat="0011"
    )
    pictures = torch.rand(n_images, 3, 32, 32) * 4 - 2
    train = EvalSet(
        spec="made",
        split="train",
        transform="made",
        ids=tuple(map(str, range(n_images))),
        labels=tuple(i % 10 for i in range(n_images)),
        classes=tuple("0123456789"),
        load=lambda i: pictures[i],
    )
    return model, None, train


def present_step(
    model: SpikingModel, teacher: SpikingModel | None, train: EvalSet, batch: int, autocast: str
) -> Step:
    """Return a function that takes the next step of ``finetune``, with its batch."""
    settings = FinetuneSettings(epochs=9, batch=batch, autocast=autocast)
    training = Training(model, train, train.take(range(8)), teacher, settings, Run(), None)
    training.batches.keep(lambda: None)
    training.model.train()
    items = training.batches.epoch(0, training.per_epoch)

    def step() -> None:
        x, labels = next(items)
        training._learn_batch(x, labels, 0, training.per_epoch)

    return step


def previous_step(
    model: SpikingModel, teacher: SpikingModel | None, train: EvalSet, batch: int
) -> Step:
    """Return a function that takes the next step as version 0.2 did."""
    student, settings = copy.deepcopy(model).train(), FinetuneSettings()
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.lr)
    affine = v2.RandomAffine(degrees=10, translate=(0.07, 0.07), scale=(0.9, 1.1), shear=5)
    inputs: Iterator[Tensor] = train.batches(batch)
    done = 0

    def augmented(x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return torch.stack([affine(image) for image in x])
        flipped = torch.rand(len(x)) < 0.5
        return torch.where(flipped.view(-1, 1, 1, 1), x.flip(-1), x)

    def step() -> None:
        nonlocal done
        x = augmented(next(inputs))
        labels = torch.tensor(train.labels[done : done + batch])
        done += batch
        logits = student(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if teacher is not None:
            with torch.no_grad():
                target = teacher(x)
            loss = loss / 2 + distillation(logits, target, settings.temperature) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
