"""Runs exported files in a process in which this project cannot be imported.

    python -I _roundtrips_run.py FOLDER

FOLDER/todo.json lists the files; each is run on the images in FOLDER/images.safetensors. Logits of
all files and, of Python files, spikes of all neurons go to FOLDER/results.safetensors.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

HIDDEN = {"psvit_core", "timm", "torchvision", "spikingjelly", "benchmarks", "tests"}
_NEURONS = {"LIF", "IntegerLIF"}  # classes of a Python file


class Hide(MetaPathFinder):
    """Finds nothing of what an export must not need."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ``ModuleNotFoundError`` for what is hidden."""
        if fullname.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{fullname} is hidden")


def main() -> None:
    """Run all files of a folder."""
    folder = Path(sys.argv[1])
    sys.meta_path.insert(0, Hide())
    sys.path.insert(0, str(folder))
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    images = load_file(folder / "images.safetensors")["images"]
    results: dict[str, Any] = {}
    for file in json.loads((folder / "todo.json").read_text(encoding="utf-8")):
        logits, spikes = run_file(folder / file, images)
        results[file] = logits
        results.update({f"{file}/{i}": x for i, x in enumerate(spikes)})
    assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}
    save_file({name: x.contiguous() for name, x in results.items()}, folder / "results.safetensors")


def run_file(path: Path, images: Any) -> tuple[Any, list[Any]]:
    """Return the logits of an exported file, and the spikes of each call of a neuron, if any."""
    import torch

    spikes: list[Any] = []
    with torch.no_grad():
        if path.suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            [logits] = session.run(["logits"], {"images": images.numpy()})
            return torch.from_numpy(logits), spikes
        if path.suffix == ".pt2":
            return torch.export.load(path).module()(images), spikes
        network = importlib.import_module(path.stem).load()
        for module in network.modules():
            if type(module).__name__ in _NEURONS:
                module.register_forward_hook(lambda _module, _inputs, out: spikes.append(out))
        return network(images), spikes


if __name__ == "__main__":
    main()
