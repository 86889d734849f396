"""Round trips: tiny networks of every family through every format of an export.

    python benchmarks/roundtrips.py [--quick] [--json] [--families A,B]

Each network is pruned, recovered, fine-tuned for an epoch or pruned twice, written to a pruned file
and exported from that file. A process in which this project cannot be imported runs the exports.
Their logits and spikes are compared with those of the file as this program runs it, in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import _roundtrips_run
from benchmarks._report import document_of, options, store_result, stored
from benchmarks._roundtrips_networks import (
    KINDS,
    N_IMAGES,
    RECOVERY,
    TIME_STEPS,
    images_of,
    run_model,
    vectors,
    written,
)
from benchmarks._roundtrips_page import FORMATS, QUANTIZED, TRIPS, page, table
from psvit_core.errors import ModelError
from psvit_core.export import export_onnx, export_pt2, export_torch
from psvit_core.export.agreement import ROUNDING
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.quantized import quantize_weights
from psvit_core.zoo.registry import FAMILIES

QUICK = "sdt_v1"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "round-trips.md"
SETTINGS = {
    "images": N_IMAGES,
    "time steps": TIME_STEPS,
    "recovery": RECOVERY,
    "rounding": ROUNDING,
    "families": len(FAMILIES),
}
_SECONDS = 600  # for the runs of one family's exports


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an export compares with the network, on ``N_IMAGES`` images."""

    kind: str  # "bits": logits and spikes are equal; "rounding"; "differs"; "refused"
    predictions: int = 0  # images with another prediction
    logits: int = 0  # images whose logits differ by more than rounding
    difference: float = 0.0  # largest of a logit
    flips: int | None = None  # single outputs of neurons that differ; None: not seen
    outputs: int | None = None  # of neurons that were compared
    reason: str = ""  # of a refusal

    def as_row(self) -> dict[str, Any]:
        """Return what is not the default, as JSON data."""
        row = dataclasses.asdict(self)
        row["difference"] = float(f"{self.difference:.2g}")
        return {
            field.name: row[field.name]
            for field in dataclasses.fields(self)
            if field.name == "kind" or row[field.name] != field.default
        }


@dataclass(frozen=True)
class Reference:
    """What a network computes in this program."""

    logits: Tensor
    spikes: list[Tensor]

    def compared(self, logits: Tensor, spikes: list[Tensor] | None = None) -> Outcome:
        """Return how other logits and spikes compare; None: no spikes are known."""
        distance = (logits - self.logits).abs().amax(1) / self.logits.abs().amax(1)
        n_other = int((distance > ROUNDING).sum())
        flips = outputs = None
        if spikes is not None:
            pairs = list(zip(self.spikes, spikes, strict=True))
            flips = sum(int((one != other).sum()) for one, other in pairs)
            outputs = sum(one.numel() for one, _ in pairs)
        equal = torch.equal(logits, self.logits) and not flips
        predictions = int((logits.argmax(1) != self.logits.argmax(1)).sum())
        differs = n_other or predictions or flips
        return Outcome(
            kind="bits" if equal else "differs" if differs else "rounding",
            predictions=predictions,
            logits=n_other,
            difference=float((logits - self.logits).abs().max()),
            flips=flips,
            outputs=outputs,
        )


def main() -> None:
    """Make all round trips; print the table, and write the page of a full run."""
    chosen = options(__doc__ or "", add_families)
    torch.set_num_threads(1)
    names = vectors()
    families = [QUICK] if chosen.quick else list(names)
    if chosen.families:
        families = [name for name in chosen.families.split(",") if name]
        if unknown := [name for name in families if name not in names]:
            sys.exit(f"No such families: {', '.join(unknown)}. There are {', '.join(names)}.")
    rows: list[dict[str, Any]] = []
    for family in families:
        for row in rows_of(family, names[family]):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    document = document_of("roundtrips", rows, SETTINGS)
    if not chosen.quick:
        store_result(with_stored(document, list(names)))
        PAGE.write_text(page(stored("roundtrips")), encoding="utf-8")
    print(json.dumps(document) if chosen.json else table(rows))


def add_families(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--families``."""
    parser.add_argument(
        "--families", help="only these; the stored rows of others stay, if versions are the same"
    )


def with_stored(document: dict[str, Any], families: list[str]) -> dict[str, Any]:
    """Return a result with the stored rows of the families that it lacks.

    Those of other versions or settings are left out.
    """
    try:
        before = stored("roundtrips")
    except FileNotFoundError:
        return document
    if any(before[name] != document[name] for name in ("settings", "versions", "python")):
        return document
    new = {row["family"] for row in document["rows"]}
    rows = [row for row in before["rows"] if row["family"] not in new] + document["rows"]
    rows.sort(key=lambda row: (families.index(row["family"]), KINDS.index(row["network"])))
    return {**document, "rows": rows}


def rows_of(
    family: str,
    name: str,
    kinds: tuple[str, ...] = KINDS,
    formats: Callable[[str], tuple[str, ...]] = lambda kind: FORMATS,
) -> Iterator[dict[str, Any]]:
    """Yield one row per kind of network: an outcome for each format.

    Args:
        family: A family.
        name: Its network with reference weights.
        kinds: Some of ``KINDS``.
        formats: Gives the formats of a kind, some of ``FORMATS``.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        trips = [_Trip(name, kind, folder / f"{i}") for i, kind in enumerate(kinds)]
        for trip in trips:
            trip.export(formats(trip.kind))
        found = run_elsewhere(folder, images_of(name), [file for t in trips for file in t.files])
        for trip in trips:
            outcomes = trip.outcomes(found)
            yield {
                "family": family,
                "network": trip.kind,
                "largest logit": trip.largest_logit,
                **{n: outcomes[n].as_row() for n in (*TRIPS, QUANTIZED) if n in outcomes},
            }


def run_elsewhere(folder: Path, images: Tensor, files: list[Path]) -> dict[str, Any]:
    """Run exported files without this project.

    Returns:
        File's name -> (logits, spikes of each call of a neuron or None).
    """
    save_file({"images": images}, folder / "images.safetensors")
    names = [str(file.relative_to(folder)) for file in files]
    (folder / "todo.json").write_text(json.dumps(names), encoding="utf-8")
    program = [sys.executable, "-I", _roundtrips_run.__file__, str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f"The exports do not run: {done.stderr[-3000:]}")
    results = load_file(folder / "results.safetensors")
    found: dict[str, Any] = {}
    for file, path in zip(names, files, strict=True):
        calls = [key for key in results if key.startswith(f"{file}/")]
        spikes = [results[f"{file}/{i}"] for i in range(len(calls))]
        found[path.name] = results[file], spikes if path.suffix == ".py" else None
    return found


class _Trip:
    """One network and its exports.

    Args:
        name: The reference network.
        kind: One of ``KINDS``.
        folder: A new folder for its files.
    """

    def __init__(self, name: str, kind: str, folder: Path) -> None:
        folder.mkdir()
        self.kind, self._folder, self._images = kind, folder, images_of(name)
        self._model = written(name, kind, folder)
        self._reference = Reference(*run_model(self._model, self._images))
        self._outcomes: dict[str, Outcome] = {}  # known without a run elsewhere
        self._layers: dict[str, tuple[int, int]] = {}  # file -> flips and outputs, by layer
        self._compared_with: dict[str, tuple[str, Reference]] = {}  # file -> format, what it equals
        self.files: list[Path] = []

    @property
    def largest_logit(self) -> float:
        """Largest magnitude of the network's logits, to three digits."""
        return float(f"{float(self._reference.logits.abs().max()):.3g}")

    def export(self, formats: tuple[str, ...]) -> None:
        """Write all files."""
        graphs: dict[str, Callable[..., Any]] = {"onnx": export_onnx, "pt2": export_pt2}
        for name in formats:
            if name == "torch":
                self._python_file(self._model, name, self._reference)
            elif name in graphs:
                self._graph(name, graphs[name])
        if "int8" in formats:
            self._int8()

    def _python_file(self, model: SpikingModel, format_: str, reference: Reference) -> None:
        stem = f"{self.kind}_{format_}".replace(" ", "_").replace("-", "_")
        code = self._folder.parent / f"{stem}.py"
        export_torch(model, code)
        self._expect(code, format_, reference)

    def _expect(self, file: Path, format_: str, reference: Reference) -> None:
        self.files.append(file)
        self._compared_with[file.name] = format_, reference

    def _graph(self, format_: str, export: Callable[..., Any]) -> None:
        file = self._folder.parent / f"{self._folder.name}.{format_}"
        fixed = format_ == "pt2" and self._model.batch_coupled  # possible for a batch of one size
        more = {"batch": N_IMAGES} if fixed else {}
        try:
            done = export(self._model, file, self._images, timing=False, **more)
        except ModelError as error:
            reason = str(error).removeprefix(f"{self._model.name} ")
            self._outcomes[format_] = Outcome(kind="refused", reason=f"It {reason}")
            return
        if layers := done.agreement.layers:
            self._layers[file.name] = layers.n_flips, layers.n_outputs
        self._expect(file, format_, self._reference)

    def _int8(self) -> None:
        """Quantize the network, write and read it, export it, and compare it with float32."""
        quantized = quantize_weights(self._model, "int8")
        in_memory = Reference(*run_model(quantized, self._images))
        read = load_model(save_pruned(quantized, self._folder / "int8.safetensors"))
        self._outcomes["int8"] = in_memory.compared(*run_model(read, self._images))
        self._outcomes[QUANTIZED] = self._reference.compared(in_memory.logits, in_memory.spikes)
        self._python_file(read, "int8 torch", in_memory)

    def outcomes(self, found: dict[str, Any]) -> dict[str, Outcome]:
        """Return format -> outcome, given what ``run_elsewhere`` returned."""
        outcomes = dict(self._outcomes)
        for file, (format_, reference) in self._compared_with.items():
            outcome = reference.compared(*found[file])
            if file in self._layers:
                flips, outputs = self._layers[file]
                outcome = dataclasses.replace(outcome, flips=flips, outputs=outputs)
            outcomes[format_] = outcome
        return outcomes


if __name__ == "__main__":
    main()
