"""Train the demo models on the built-in digits and write them beside their cards.

    python scripts/train_demos.py sdt_v1_digits e_spikeformer_digits

Trains on the 3,500 training digits, keeps the epoch with the best validation accuracy, and
evaluates the 750 test digits once, at the end. Source of the recipe: AdamW, one-cycle schedule,
gradient clipping at 1, light affine augmentation, label smoothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from psvit_core import fused
from psvit_core.data import EvalSet, digits_arrays, digits_split, fit, load_data, normalise
from psvit_core.finetune import random_affine
from psvit_core.records import DIGITS_48_TRANSFORM, DIGITS_TRANSFORM
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.e_spikeformer import ESpikeFormer
from psvit_core.zoo.meta_spikeformer import MetaSpikeFormer
from psvit_core.zoo.sdt import SpikeDrivenTransformer

DIGITS: dict[str, Any] = {"img_size_h": 32, "img_size_w": 32, "in_channels": 1, "num_classes": 10}
RECIPES: dict[str, dict[str, Any]] = {
    "sdt_v1_digits": {
        "build": SpikeDrivenTransformer,
        "arguments": {
            **DIGITS,
            "embed_dims": 64,
            "num_heads": 8,
            "mlp_ratios": 4,
            "depths": 6,
            "T": 4,
            "pooling_stat": "1011",
        },
        "max_lr": 3e-3,
        "transform": DIGITS_TRANSFORM,
    },
    "e_spikeformer_digits": {
        "build": ESpikeFormer,
        "arguments": {**DIGITS, "embed_dim": [16, 32, 48, 64], "num_heads": 8, "mlp_ratios": 4},
        "max_lr": 4e-3,
        "transform": DIGITS_TRANSFORM,
    },
    # At 32 px (2 x 2 tokens) attention never reaches its threshold and nothing is learnt; hence 48
    # px, few heads, and a large start value of the last BatchNorm before the q, k, v neurons.
    "meta_spikeformer_digits": {
        "build": MetaSpikeFormer,
        "arguments": {
            **DIGITS,
            "img_size_h": 48,
            "img_size_w": 48,
            "embed_dim": [8, 16, 32, 48],
            "num_heads": 2,
            "mlp_ratios": 4,
            "T": 4,
        },
        "max_lr": 3e-3,
        "transform": DIGITS_48_TRANSFORM,
        "start": {f"attn.{x}_conv.1.weight": 3.0 for x in "qkv"},
    },
}
OUT = Path(__file__).resolve().parents[1] / "psvit_core" / "zoo" / "weights"


def main() -> None:
    """Train each named model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fused.use_compiled()
    for name in options.models:
        train(name, options.epochs, options.seed)


def train(name: str, epochs: int, seed: int, batch: int = 64) -> None:
    """Train one demo model and write weights and training record."""
    torch.manual_seed(seed)
    recipe = RECIPES[name]
    model: SpikingModel = recipe["build"](**recipe["arguments"])
    for name_end, value in recipe.get("start", {}).items():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(name_end):
                nn.init.constant_(parameter, value)
    transform = recipe["transform"]
    images, labels = _training_digits()
    augment = random_affine()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["max_lr"], weight_decay=0.01)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["max_lr"], total_steps=steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    val, started = load_data("digits", split="val", transform=transform), time.perf_counter()
    best_correct, best_epoch, best = -1, 0, {}
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        order = torch.randperm(len(images))[: len(images) // batch * batch]
        for chosen in order.split(batch):
            pixels = torch.stack([augment(images[i]) for i in chosen.tolist()]).float() / 255
            x = normalise(fit(pixels, transform), transform)
            loss = criterion(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        correct = count_correct(model, val)
        if correct >= best_correct:
            best_correct, best_epoch = correct, epoch
            best = {k: v.clone() for k, v in model.state_dict().items()}
        mean_loss = total / (len(images) // batch)
        seconds = time.perf_counter() - started
        print(
            f"{name} epoch {epoch}/{epochs} loss {mean_loss:.3f} val {correct}/{len(val)} "
            f"({seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    model.load_state_dict(best)
    record = {
        "command": f"python scripts/train_demos.py {name} --epochs {epochs} --seed {seed}",
        "seed": seed,
        "epochs": epochs,
        "best_epoch": best_epoch,
        "seconds": round(time.perf_counter() - started),
        "val_correct": best_correct,
        "val_images": len(val),
        "test_correct": count_correct(
            model, load_data("digits", split="test", transform=transform)
        ),
        "test_images": 750,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    write(name, model, recipe["arguments"], record)


def _training_digits() -> tuple[Tensor, Tensor]:
    images, labels = digits_arrays()
    positions = list(digits_split("train"))
    return images[positions], torch.tensor(labels)[positions]


@torch.no_grad()
def count_correct(model: nn.Module, data: EvalSet) -> int:
    """Images of ``data`` that ``model`` classifies correctly."""
    model.eval()
    predictions = torch.cat([model(x).argmax(1) for x in data.batches(125)])
    return int((predictions == torch.tensor(data.labels)).sum())


def write(
    name: str, model: SpikingModel, arguments: dict[str, Any], record: dict[str, Any]
) -> None:
    """Write the weights and the training record."""
    from safetensors.torch import save_file

    OUT.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), OUT / f"{name}.safetensors")
    document = {"family": model.family, "arguments": arguments, "training": record}
    text = json.dumps(document, indent=1)
    (OUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {record}", file=sys.stderr)


if __name__ == "__main__":
    main()
