"""Files that declare more than they hold are refused before that much memory is asked for."""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from psvit_core.data import count_images, load_data
from psvit_core.errors import CheckpointError, DataError, PsvitError, RecordError
from psvit_core.records import Interval, PrunePlan
from psvit_core.tasks.inspect import inspect_file
from psvit_core.zoo.checkpoint import load_model
from psvit_core.zoo.tensors import read_tensors
from tests.tiny import tiny_model

LONG = "a" * 5000


def with_head(classes: int) -> dict[str, Tensor]:
    """Return a state dict that fits a family, whose head repeats one stored row."""
    tensors = dict(tiny_model("sdt_v1").state_dict())
    width = tensors["head.weight"].shape[1]
    tensors["head.weight"] = torch.zeros(1, width).expand(classes, width)
    tensors["head.bias"] = torch.zeros(1).expand(classes)
    return tensors


@pytest.mark.parametrize("classes", [3_000_000, 10**12])
def test_a_head_that_repeats_one_row(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "repeated.pth"
    torch.save(with_head(classes), path)
    assert path.stat().st_size < 1_000_000
    for read in (read_tensors, load_model, lambda p: inspect_file(str(p))):
        with pytest.raises(CheckpointError, match="its tensors declare"):
            read(path)


@pytest.mark.parametrize(
    "wrap", [lambda t: {"a": [{"b": (t,)}]}, lambda t: argparse.Namespace(x=t)]
)
def test_it_is_found_wherever_it_lies(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "hidden.pth"
    torch.save({"model": {"w": torch.ones(2)}, "more": wrap(torch.ones(1).expand(10**12))}, path)
    with pytest.raises(CheckpointError, match="its tensors declare"):
        read_tensors(path)


def test_views_that_real_files_have_are_read(tmp_path: Path) -> None:
    path = tmp_path / "views.pth"
    whole = torch.arange(1000.0)
    tied = {"a": whole, "b": whole, "c": whole[:10], "d": torch.ones(1).expand(100)}
    torch.save({**tied, "e": whole}, path)
    assert set(read_tensors(path).tensors) == {*tied, "e"}


def squeezed(path: Path, n_bytes: int) -> None:
    """Write an archive like torch's, whose pickle is deflated."""
    torch.save({"w": torch.ones(2)}, path.with_suffix(".plain"))
    with (
        zipfile.ZipFile(path.with_suffix(".plain")) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in plain.namelist():
            if not name.endswith("data.pkl"):
                archive.writestr(name, plain.read(name))
                continue
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(n_bytes >> 20):
                    member.write(b"(" * (1 << 20))


PROGRAM = """
import resource, sys
from psvit_core.errors import CheckpointError
from psvit_core.zoo.checkpoint import load_model
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
try:
    load_model(sys.argv[1])
except CheckpointError as error:
    print(error)
print(used() - before)
"""


def test_a_squeezed_pickle_is_never_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "squeezed.pth"
    squeezed(path, 400 << 20)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=120
    )
    error, kilobytes = done.stdout.splitlines()
    assert "its members declare 419,4" in error
    assert int(kilobytes) < 100_000


# ---- nesting, long names -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [10, 900, 990, 1000, 100_000])
def test_nested_brackets(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "nested.json"
    for before, after in (("", ""), ('{"document":"prune_plan","version":1,"kept":', "}")):
        path.write_text(before + "[" * depth + "]" * depth + after, encoding="utf-8")
        with pytest.raises(RecordError):
            PrunePlan.load(path)


def test_nested_values_of_a_record() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    for data in (value, {"value": value, "low": 0.0, "high": 1.0}):
        with pytest.raises(RecordError):
            Interval.from_dict(data)


@pytest.mark.parametrize("name", [LONG, f"{LONG}.pth", f"/{LONG}/x.pth", "a\0b.pth"])
def test_long_names_of_files(name: str) -> None:
    for read in (load_model, inspect_file, PrunePlan.load):
        with pytest.raises(PsvitError):
            read(name)


@pytest.mark.parametrize("kind", ["folder", "imagenet", "npz", "cifar10", "cifar10-jpeg"])
@pytest.mark.parametrize("place", [f"/{LONG}", f"/{'a/' * 2500}", "/a\0b"])
def test_long_names_of_images(kind: str, place: str) -> None:
    for read in (load_data, count_images):
        with pytest.raises(DataError):
            read(f"{kind}:{place}", split="val")
