"""Quantizing a file that was pruned from the session's model, as the app's job does."""

from __future__ import annotations

from pathlib import Path

import pytest

from psvit_core.errors import ModelError
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Subject
from psvit_core.storage.store import Store
from psvit_core.surgery import apply_plan
from psvit_core.tasks.quantize import empty_plan, quantize_file
from psvit_core.tasks.session import Session
from psvit_core.workspace import Workspace
from psvit_core.zoo.cards import shipped_summary
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.pruned import save_pruned
from psvit_core.zoo.quantized import weights_bytes
from psvit_core.zoo.recorded import recorded_measurements

NAME = "sdt_v1_digits"


@pytest.mark.slow
def test_a_pruned_file_is_measured_and_stored(tmp_path: Path) -> None:
    summary, store = shipped_summary(NAME), Store(tmp_path / "store")
    assert summary is not None
    session = Session(Subject(model=NAME, limit=40), store)
    plan = plan_from_ratios(summary, {g.group_id: 0.4 for g in summary.groups}, criterion="l2")
    source = save_pruned(apply_plan(session.model, plan), tmp_path / "pruned.safetensors")
    done = quantize_file(session, source, "float16", tmp_path / "half.safetensors")
    found, alone = done.file_measurement, done.against_float32
    assert found is not None and alone is not None and done.warnings == ()
    half = load_model(done.path)
    assert done.weights_bytes == found.size.bytes == weights_bytes(half)
    assert done.memory_saving == pytest.approx(found.memory_saving)
    assert found.plan is not None and found.plan.kept == plan.kept
    assert found.drop is not None and alone.drop is not None
    whole, pruned = (found.baseline_accuracy, alone.baseline_accuracy)
    assert whole is not None and pruned is not None
    assert found.drop.value == pytest.approx(100 * (whole.value - found.accuracy.value))
    assert alone.drop.value == pytest.approx(100 * (pruned.value - found.accuracy.value))
    assert [m.accuracy for m in recorded_measurements(half)] == [found.accuracy]
    workspace = Workspace(Subject(model=NAME, limit=40), store)
    assert [p.measurement for p in workspace.quantized()] == [found]
    assert workspace.archive() is None  # its bytes are float32
    # The other two networks are stored; the quantized one runs once for both comparisons.
    batches: list[int] = []
    other = tmp_path / "int8.safetensors"
    quantize_file(session, source, "int8", other, lambda: batches.append(1))
    assert len(batches) == 1
    # A file of a pruned network is paired with the first ancestor, too.
    opened = Session(Subject(model=str(source), limit=40), store)
    twice = save_pruned(
        apply_plan(opened.model, empty_plan(opened.model)), tmp_path / "twice.safetensors"
    )
    again = quantize_file(opened, twice, "float16", tmp_path / "half_twice.safetensors")
    assert again.file_measurement is not None
    assert again.file_measurement.baseline_accuracy == whole
    assert again.file_measurement.accuracy == found.accuracy
    with pytest.raises(ModelError, match="are float16 already"):
        quantize_file(session, done.path, "int8", tmp_path / "again.safetensors")


@pytest.mark.slow
def test_without_images_the_file_is_written_and_says_so(tmp_path: Path) -> None:
    session = Session(Subject(model="sdt_v1_cifar10"), Store(tmp_path / "store"))
    whole = apply_plan(session.model, empty_plan(session.model))
    source = save_pruned(whole, tmp_path / "whole.safetensors")
    done = quantize_file(session, source, "int8", tmp_path / "int8.safetensors")
    assert done.file_measurement is None and done.against_float32 is None
    assert len(done.warnings) == 1 and done.warnings[0].startswith("Not measured: ")
    assert weights_bytes(load_model(done.path)) == done.weights_bytes < done.float32_bytes / 3
