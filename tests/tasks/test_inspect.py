"""Inspecting files and images before anything is measured."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psvit_core.errors import CheckpointError, UnknownNameError
from psvit_core.records import DataReport, FileReport, Subject
from psvit_core.storage.store import Store
from psvit_core.tasks.inspect import N_CHECKED, check_data, inspect_entries, inspect_file
from psvit_core.tasks.session import Session
from psvit_core.zoo.cards import WEIGHTS

SHIPPED = WEIGHTS / "sdt_v1_digits.safetensors"


def test_a_file_is_recognised(tmp_path: Path) -> None:
    found = inspect_file(str(SHIPPED))
    assert (found.fits, found.nearest, found.pruned_from) == (("sdt_v1_digits",), None, "")
    assert (found.bytes, found.n_tensors) == (SHIPPED.stat().st_size, 272)
    assert FileReport.from_dict(found.to_dict()) == found
    tensors = load_file(SHIPPED)
    tensors["head.weight"] = tensors["head.weight"][:7]  # a different head is the same architecture
    tensors["head.bias"] = tensors["head.bias"][:7]
    save_file(tensors, tmp_path / "seven.safetensors")
    assert inspect_file(str(tmp_path / "seven.safetensors")).fits == ("sdt_v1_digits",)


def test_a_foreign_file_has_a_nearest_model(tmp_path: Path) -> None:
    tensors = load_file(SHIPPED)
    gone = next(iter(sorted(tensors)))
    del tensors[gone]
    tensors["new.weight"] = torch.zeros(2)
    tensors["head.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "x.safetensors")
    found = inspect_file(str(tmp_path / "x.safetensors"))
    assert found.fits == ()
    assert found.nearest is not None
    near = found.nearest
    assert near.model == "sdt_v1_digits"
    assert (near.n_missing, near.n_unexpected, near.n_reshaped) == (1, 1, 1)
    assert near.examples == (f"missing: {gone}", "unexpected: new.weight", "shape: head.bias")


def test_files_that_are_refused(tmp_path: Path) -> None:
    torch.save({"a": PurePosixPath("b"), "args": argparse.Namespace()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"\(pathlib.PurePosixPath\) and would run code"):
        inspect_file(str(tmp_path / "x.pth"))
    with pytest.raises(CheckpointError, match="no model or file"):
        inspect_file(str(tmp_path / "none.pth"))


def check(tmp_path: Path, data: str | None) -> DataReport:
    return check_data(Session(Subject(model="sdt_v1_digits", data=data), Store(tmp_path / "s")))


def test_state_dicts_of_a_file_are_listed(tmp_path: Path) -> None:
    weights = load_file(SHIPPED)
    other = {name: tensor + 1 for name, tensor in weights.items()}
    path = str(tmp_path / "several.pth")
    torch.save({"state_dict": weights, "state_dict_ema": other}, path)
    found = inspect_entries(path)
    assert found.entry == "state_dict"
    assert [(e.name, e.n_tensors, e.is_average) for e in found.entries] == [
        ("state_dict", 272, False),
        ("state_dict_ema", 272, True),
    ]
    assert inspect_entries(path, entry="state_dict_ema").entry == "state_dict_ema"
    assert inspect_file(str(SHIPPED)).entries == ()

    torch.save({"best": weights, "last": other}, path)
    with pytest.raises(CheckpointError, match=r"several state dicts: best .* Choose one with"):
        inspect_file(path)
    unclear = inspect_entries(path)
    assert (unclear.entry, unclear.fits) == ("", ())
    assert [e.name for e in unclear.entries] == ["best", "last"]
    assert inspect_entries(path, entry="last").fits == ("sdt_v1_digits",)

    torch.save({"state_dict_ema": other}, path)
    assert [e.name for e in inspect_entries(path).entries] == ["state_dict_ema"]


def test_images_are_counted_and_some_decoded(tmp_path: Path) -> None:
    report = check(tmp_path, None)
    assert report.problem == ""
    assert (report.spec, report.n_looked, report.shape) == ("digits", N_CHECKED, (1, 32, 32))
    counts = {s.split: (s.n_images, s.n_classes, s.problem) for s in report.splits}
    assert counts["val"] == (750, 10, "")
    assert counts["train"] == (3500, 10, "")
    assert DataReport.from_dict(report.to_dict()) == report


def test_the_first_problem_is_named(tmp_path: Path) -> None:
    labels = np.arange(20) + 3
    np.savez(tmp_path / "d.npz", images=np.zeros((20, 28, 28), np.uint8), labels=labels)
    report = check(tmp_path, f"npz:{tmp_path / 'd.npz'}")
    assert "labels up to 22, but sdt_v1_digits has 10 outputs" in report.problem
    missing = check(tmp_path, f"folder:{tmp_path / 'none'}")
    assert "does not exist" in missing.problem
    assert missing.problem == missing.splits[0].problem
    with pytest.raises(UnknownNameError, match="Unknown data set 'pictures'"):
        check(tmp_path, "pictures")
