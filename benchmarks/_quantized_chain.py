"""One network step by step: pruned, recovered, in int8, as ONNX; bytes, accuracy and latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psvit_core.export.onnx_file import OnnxNetwork, export_onnx
from psvit_core.export.traced import random_images
from psvit_core.metrics.profile import latencies_in_turns
from psvit_core.records import Interval, Measurement
from psvit_core.stats import paired_drop_interval, wilson_interval
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.prune import write_pruned
from psvit_core.tasks.recover import provenance_plan
from psvit_core.tasks.session import Session
from psvit_core.zoo.checkpoint import load_model

BATCHES = (1, 32)  # images of a timed forward pass
_IMAGES_AT_ONCE = 50


def chain(
    test: Session, files: Mapping[str, tuple[Path, Measurement]], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield one row per step, with latencies relative to the unpruned network in torch.

    All networks run by turns in this process, on one thread, so that other load on the machine
    meets all of them. Accuracies in torch are those of measurements; ONNX files run all images.

    Args:
        test: The unpruned network on test images.
        files: The files with their measurements on these images.
        folder: For the files that are not there yet.
    """
    whole, found = files["unpruned fp32"]
    recovered, int8 = files["pruned, recovered fp32"], files["pruned, recovered int8"]
    plan = provenance_plan(load_model(recovered[0]))
    pruned, _ = write_pruned(test, plan, folder / "chain_pruned.safetensors")
    steps = {
        "unpruned": (whole, found),
        "pruned": (pruned, evaluate(test, plan)),
        "pruned, recovered": recovered,
        "pruned, recovered, int8": int8,
    }
    graphs = {
        name: export_onnx(load_model(path), folder / f"chain_{i}.onnx").path
        for i, (name, (path, _)) in enumerate(steps.items())
        if name != "pruned"
    }
    networks: list[nn.Module] = [load_model(path).eval() for path, _ in steps.values()]
    networks += [OnnxNetwork(str(path)) for path in graphs.values()]
    times = [latencies_in_turns(networks, random_images(test.model, n)) for n in BATCHES]
    right = correct_images(networks[0], test)
    rows = [(name, "torch", path, m.accuracy, m.drop) for name, (path, m) in steps.items()]
    for network, (name, path) in zip(networks[len(rows) :], graphs.items(), strict=True):
        rows.append((name, "ONNX", path, *compared(right, correct_images(network, test))))
    for i, (name, kind, path, accuracy, drop) in enumerate(rows):
        yield {
            "network": name,
            "format": kind,
            "file (bytes)": path.stat().st_size,
            "ratio": round(path.stat().st_size / whole.stat().st_size, 4),
            "images": len(right),
            "accuracy (%)": ends(accuracy, 100),
            "drop (points)": ends(drop) if drop else None,
            **{
                f"latency, batch {n}": round(turns[i] / turns[0], 3)
                for n, turns in zip(BATCHES, times, strict=True)
            },
        }


def correct_images(network: nn.Module, test: Session) -> Tensor:
    """Return which of the session's images a network classifies correctly, (n,) bool."""
    with torch.no_grad():
        chosen = [network(x).argmax(dim=1) for x in test.data.batches(_IMAGES_AT_ONCE)]
    return torch.cat(chosen) == torch.as_tensor(test.data.labels)


def compared(baseline: Tensor, other: Tensor) -> tuple[Interval, Interval]:
    """Return the accuracy (a fraction) and the paired drop (points) of a network.

    Args:
        baseline: Which images the unpruned network classifies correctly, (n,) bool.
        other: The same of the network.
    """
    n, correct = len(other), int(other.sum())
    low, high = wilson_interval(correct, n)
    pairs = (
        int((baseline & other).sum()),
        int((baseline & ~other).sum()),
        int((~baseline & other).sum()),
        int((~baseline & ~other).sum()),
    )
    drop, least, most = (100 * x for x in paired_drop_interval(*pairs))
    return Interval(value=correct / n, low=low, high=high), Interval(
        value=drop, low=least, high=most
    )


def ends(interval: Interval, factor: float = 1) -> list[float]:
    """Return value and ends of an interval."""
    return [round(factor * x, 2) for x in (interval.value, interval.low, interval.high)]
