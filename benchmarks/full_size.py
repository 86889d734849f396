"""One size of every family at 224 px, from the command line: seconds per image, peak memory.

    python benchmarks/full_size.py [--quick] [--json]

Weights are random and saved in the wrapper of the official trainers; images are generated JPEGs in
ImageNet's folder layout. So this measures loading and the forward pass, not accuracy. Times are CPU
seconds of one thread (wall time on an idle machine). The time per image is the difference of two
runs with different numbers of images, so that start and loading cancel out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

from benchmarks._report import options, report
from psvit_core.zoo.cards import model_card
from psvit_core.zoo.registry import build_model

MODELS = (
    "e_spikeformer_5m",
    "sdt_v1_8_384",
    "spikformer_8_384",
    "qkformer_10_384",
    "meta_spikeformer_15m",
)
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
BATCH = FEW = 4
MANY = 20


def main() -> None:
    """Run every model in its own processes."""
    chosen = options(__doc__ or "")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder) / "imagenet", n=MANY // 2)
        for name in MODELS[:1] if chosen.quick else MODELS:
            rows.append(measure(name, images, Path(folder)))
    settings = {"px": 224, "batch": BATCH, "images": [FEW, MANY], "threads": 1}
    report("full_size", rows, settings, chosen)


def make_images(root: Path, n: int) -> Path:
    """Write ``n`` JPEGs to each of four class folders; half of them are the val split."""
    random = np.random.RandomState(0)
    for wnid in WNIDS:
        (root / "val" / wnid).mkdir(parents=True)
        for i in range(n):
            coarse = random.randint(0, 256, (12, 15, 3)).astype(np.uint8)
            image = Image.fromarray(coarse).resize((320, 256), Image.Resampling.BICUBIC)
            image.save(root / "val" / wnid / f"{i}.JPEG")
    return root


def measure(name: str, images: Path, folder: Path) -> dict[str, Any]:
    """Measure one model and return its row."""
    torch.manual_seed(0)
    card = model_card(name)
    model = build_model(card.family, **card.arguments)
    wrapper = "model" if card.family in ("sdt_v2", "sdt_v3", "qkformer_imagenet") else "state_dict"
    path = folder / f"{name}.pth"
    torch.save({wrapper: model.state_dict(), "args": argparse.Namespace()}, path)
    few, few_memory = run(name, path, images, FEW)
    many, many_memory = run(name, path, images, MANY)
    per_image = (many - few) / (MANY - FEW)
    path.unlink()
    return {
        "model": name,
        "parameters": f"{card.parameters / 1e6:.1f} M",
        "T": model.T,
        "CPU s an image": round(per_image, 2),
        "CPU s start and load": round(few - FEW * per_image, 1),
        "peak memory (MB)": round(max(few_memory, many_memory) / 1e6),
    }


def run(name: str, path: Path, images: Path, limit: int) -> tuple[float, int]:
    """Run ``evaluate`` once; return CPU seconds and peak resident bytes."""
    command = [
        sys.executable,
        "-m",
        "psvit_core",
        "evaluate",
        name,
        "--checkpoint",
        str(path),
        "--data",
        f"imagenet:{images}",
        "--limit",
        str(limit),
        "--batch",
        str(BATCH),
        "--json",
    ]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PSVIT_CACHE": cache, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024  # Linux: kilobytes


if __name__ == "__main__":
    main()
