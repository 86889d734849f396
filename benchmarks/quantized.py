"""Bytes and accuracy of the demos: unpruned and half of the bytes pruned, in fp32, fp16 and int8.

    python benchmarks/quantized.py [--data cifar10-jpeg:DIR] [--quick] [--json]

Each file is written, opened again and measured on test images, paired with the unpruned network.
Its ONNX file is compared with it on eight random images. With ``--data``, the CIFAR-10 demo is also
followed step by step to its int8 ONNX file, with latencies relative to the unpruned network.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch

from benchmarks._quantized_chain import chain, ends
from benchmarks._quantized_page import NEXT, section
from benchmarks._report import options, replace_section, report, stored
from psvit_core.export import export_onnx
from psvit_core.planners import make_plan
from psvit_core.records import Measurement, RecoverySettings, Subject, SweepSettings
from psvit_core.storage.shipped import DemoStore
from psvit_core.surgery import apply_plan
from psvit_core.tasks.evaluate import evaluate
from psvit_core.tasks.prune import write_pruned
from psvit_core.tasks.quantize import empty_plan, measure_quantized, write_quantized
from psvit_core.tasks.recover import measure_file
from psvit_core.tasks.session import Session
from psvit_core.tasks.sweep import run_sweep
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.pruned import save_pruned

MODELS, CIFAR10 = ("sdt_v1_digits", "e_spikeformer_digits"), "sdt_v1_cifar10"
SAVING, POLICY = 0.5, "optimal"
N_CIFAR10 = 2500  # test pictures, stratified
KINDS = {"fp16": "float16", "int8": "int8"}


def main() -> None:
    """Measure all rows; print them, and write the section of a full run."""
    chosen = options(__doc__ or "", add_data)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = DemoStore(Path(folder) / "store")
        data = dict.fromkeys(MODELS[:1] if chosen.quick else MODELS, "digits")
        if chosen.data and not chosen.quick:
            data[CIFAR10] = chosen.data
        for name, images in data.items():
            limit = N_CIFAR10 if name == CIFAR10 else None
            test = Session(Subject(model=name, data=images, split="test", limit=limit), store)
            files: dict[str, tuple[Path, Measurement]] = {}
            for row in rows_of(test, files, Path(folder), onnx=not chosen.quick):
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
            if name == CIFAR10:
                steps = list(chain(test, files, Path(folder)))
        store.close()
    settings = {"memory saving": SAVING, "policy": POLICY, "steps": steps}
    report("quantized", rows, settings, chosen)
    if not chosen.quick:
        page = Path(__file__).resolve().parents[1] / "docs" / "quantize.md"
        replace_section(page, section(stored("quantized")), NEXT)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--data``."""
    parser.add_argument("--data", help="pictures of the CIFAR-10 demo, cifar10-jpeg:DIR")


def rows_of(
    test: Session, files: dict[str, tuple[Path, Measurement]], folder: Path, *, onnx: bool
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a model: unpruned, then pruned and recovered.

    Args:
        test: The model on test images.
        files: Gets the files with their measurements, as ``unpruned fp32`` and so on.
        folder: For the files.
        onnx: Write ONNX files too.
    """
    name, first = test.subject.model, None
    for network in ("unpruned", "pruned, recovered"):
        file = folder / f"{name}_{network[:6]}.safetensors"
        if network == "unpruned":
            write_whole(test, file)
            session, found = test, evaluate(test)
        else:
            found = write_recovered(test, file)
            session = Session(dataclasses.replace(test.subject, model=str(file)), test.store)
        first = first or file.stat().st_size
        rows: list[tuple[str, Path, Measurement, Measurement | None]] = [
            ("fp32", file, found, None)
        ]
        for short, kind in KINDS.items():
            out = file.with_name(f"{file.stem}_{short}.safetensors")
            write_quantized(session, kind, out)
            both = measure_quantized(session, out)
            rows.append((short, out, both.measured, both.alone))
        for short, out, measured, alone in rows:
            files[f"{network} {short}"] = (out, measured)
            yield {
                "model": name,
                "network": network,
                "weights": short,
                **numbers(measured, alone),
                **sizes(out, first, onnx=onnx),
            }


def write_whole(session: Session, path: Path) -> None:
    """Write an unpruned network to a file."""
    save_pruned(apply_plan(session.model, empty_plan(session.model)), path)


def write_recovered(test: Session, path: Path) -> Measurement:
    """Prune a network by a plan made on validation images, recover it, and write it.

    Returns:
        The measurement of the file on the session's test images.
    """
    val = Session(dataclasses.replace(test.subject, split="val", limit=None), test.store)
    table = run_sweep(val.with_recovery("auto"), SweepSettings())
    plan = make_plan(table, POLICY, memory_saving=SAVING)
    write_pruned(val, plan, path, RecoverySettings(method="auto"))
    return measure_file(test, plan, path)


def numbers(measured: Measurement, alone: Measurement | None) -> dict[str, Any]:
    """Return the columns of a measurement: numbers with their intervals."""
    return {
        "images": measured.conditions.n_images,
        "accuracy (%)": ends(measured.accuracy, 100),
        "drop (points)": ends(measured.drop) if measured.drop else None,
        "against fp32": ends(alone.drop) if alone and alone.drop else None,
    }


def sizes(file: Path, first: int, *, onnx: bool) -> dict[str, Any]:
    """Return the columns of bytes on disk.

    Args:
        file: The file.
        first: Bytes of the unpruned network's file in float32.
        onnx: Write an ONNX file too.
    """
    n_bytes = file.stat().st_size
    done = export_onnx(load_model(file), file.with_suffix(".onnx")) if onnx else None
    return {
        "file (bytes)": n_bytes,
        "ratio": round(n_bytes / first, 4),
        "ONNX (bytes)": done.bytes if done else None,
    }


if __name__ == "__main__":
    main()
