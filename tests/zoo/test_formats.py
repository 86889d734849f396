"""Pruned files of every format open, and carry what was measured of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from psvit_core.errors import CheckpointError
from psvit_core.evaluate import measure
from psvit_core.export.origin import origin_comment
from psvit_core.records import Measurement, PrunePlan
from psvit_core.surgery import silenced
from psvit_core.zoo.checkpoint import card_of, load_model, weights_hash
from psvit_core.zoo.header import METADATA_KEY, PRUNED_FORMAT, QUANTIZED_FORMAT, READABLE_FORMATS
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.recorded import record_measurement, recorded_measurements
from tests.tiny import tiny_data, tiny_input, tiny_model
from tests.zoo.test_checkpoint import half, header_of

FILES = Path(__file__).parent / "files"
VECTOR = "sdt_v1_cifar"  # the network of the files, with every second unit of each group removed


def test_there_is_a_file_of_every_format() -> None:
    names = sorted(path.name for path in FILES.iterdir())
    assert names == [f"pruned_format_{number}.safetensors" for number in READABLE_FORMATS]
    assert READABLE_FORMATS[-1] == QUANTIZED_FORMAT
    for number in READABLE_FORMATS:
        path = FILES / f"pruned_format_{number}.safetensors"
        assert header_of(path)["format"] == number
        assert load_model(path).provenance["plans"]


@pytest.mark.parametrize("number", range(1, PRUNED_FORMAT + 1))
def test_files_of_every_format_open(number: int) -> None:
    """Each was written by the version of its time, and is never written again."""
    path = FILES / f"pruned_format_{number}.safetensors"
    assert header_of(path)["format"] == number
    small = load_model(path)
    (record,) = small.provenance["plans"]
    full = tiny_model(VECTOR)
    assert small.provenance["origin_weights_hash"] == weights_hash(full)
    full = full.double()
    plan = dataclasses.replace(PrunePlan.from_dict(record), weights_hash=weights_hash(full))
    removed, x = silenced(full, plan), tiny_input(VECTOR, torch.float64)
    with torch.no_grad():
        assert torch.allclose(small.double()(x), removed(x), rtol=0, atol=1e-9)


def test_the_file_of_the_present_format_has_a_measurement() -> None:
    small = load_model(FILES / f"pruned_format_{PRUNED_FORMAT}.safetensors")
    (found,) = recorded_measurements(small)
    data = tiny_data(VECTOR)
    with torch.no_grad():
        guesses = torch.cat([small(x).argmax(1) for x in data.batches(7)])
    n_right = sum(int(g) == label for g, label in zip(guesses, data.labels, strict=True))
    assert found.accuracy.value == n_right / 7
    assert found.conditions.n_images == 7


def pruned_file(folder: Path) -> tuple[Path, Measurement]:
    """Return a pruned file, and a measurement of it on made images."""
    full = tiny_model(VECTOR)
    small = half(full)
    path = save_pruned(small, folder / "small.safetensors")
    plan = PrunePlan.from_dict(small.provenance["plans"][0])
    return path, measure(full, tiny_data(VECTOR), plan, result=small)


def test_a_file_carries_its_measurement(tmp_path: Path) -> None:
    path, measured = pruned_file(tmp_path)
    before = load_file(path)
    assert header_of(path)["licence"] == card_of(load_model(path)).licence
    record_measurement(path, measured)
    after = load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(before) == len(after)
    small = load_model(path)
    (found,) = recorded_measurements(small)
    assert found.accuracy == measured.accuracy
    assert found.drop == measured.drop
    assert found.conditions == measured.conditions
    assert found.weights_hash == weights_hash(small) != measured.weights_hash
    assert found.plan is None
    assert found.per_class is None
    head = " ".join(origin_comment(small).replace("#", " ").split())
    assert f"Accuracy {measured.accuracy.value:.2%} [95 %:" in head
    assert "measured on 7 images of made" in head


def test_a_measurement_is_not_shown_for_other_weights(tmp_path: Path) -> None:
    path, measured = pruned_file(tmp_path)
    small = load_model(record_measurement(path, measured))
    with torch.no_grad():
        next(small.parameters()).mul_(2)
    assert recorded_measurements(small) == ()
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    tensors[name] *= 2
    text = json.dumps(header_of(path))
    save_file(tensors, tmp_path / "edited.safetensors", {METADATA_KEY: text, "format": "pt"})
    assert recorded_measurements(load_model(tmp_path / "edited.safetensors")) == ()
    again = save_pruned(small, tmp_path / "again.safetensors")
    assert header_of(again)["measurements"] == []


def test_equal_conditions_replace_and_others_add(tmp_path: Path) -> None:
    path, measured = pruned_file(tmp_path)
    full, small = tiny_model(VECTOR), load_model(path)
    fewer = measure(full, tiny_data(VECTOR).limit(3), measured.plan, result=small)
    for one in (measured, fewer, measured):
        record_measurement(path, one)
    found = recorded_measurements(load_model(path))
    assert sorted(m.conditions.n_images for m in found) == [3, 7]


def test_a_file_of_an_older_format_gets_a_measurement(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes((FILES / "pruned_format_1.safetensors").read_bytes())
    small = load_model(path)
    plan = PrunePlan.from_dict(small.provenance["plans"][0])
    record_measurement(path, measure(tiny_model(VECTOR), tiny_data(VECTOR), plan, result=small))
    assert header_of(path)["format"] == PRUNED_FORMAT
    assert header_of(path)["licence"]
    (found,) = recorded_measurements(load_model(path))
    assert found.conditions.n_images == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": PRUNED_FORMAT + 1}, "its weights are|damaged"),
        ({"format": QUANTIZED_FORMAT + 1}, "reads formats up to 3. Update"),
        ({"format": True}, "its format is True"),
        ({"format": 0}, "its format is 0"),
        ({"licence": 3}, "its licence is 3"),
        ({"measurements": [{"accuracy": 1}]}, "damaged|inconsistent"),
        ({"measurements": 7}, "damaged"),
    ],
)
def test_damaged_headers_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, _ = pruned_file(tmp_path)
    text = json.dumps({**header_of(path), **change})
    save_file(load_file(path), tmp_path / "b.safetensors", {METADATA_KEY: text, "format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "b.safetensors")
