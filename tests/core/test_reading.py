"""Old results are matched only where their images are still read in the same way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from psvit_core.image_folders import READING
from psvit_core.records import Conditions, Subject
from psvit_core.tasks.fingerprints import data_stamp
from psvit_core.tasks.matching import Matcher
from psvit_core.zoo.cards import model_card

MODEL = "sdt_v1_digits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / split / name / "x.png")
    return tmp_path


def matches(folder: Path, images: str, split: str = "val") -> bool:
    spec = f"folder:{folder}"
    matcher = Matcher(Subject(model=MODEL, data=spec, split=split))
    old = Conditions(
        data=spec,
        split=split,
        n_images=2,
        T=4,
        batch=125,
        precision="float32",
        device="cpu",
        transform=model_card(MODEL).transform.name,
        images=images,
    )
    assert not matcher.same_run(dataclasses.replace(old, split="test"), None, 4)
    return matcher.same_run(old, None, 4)


def test_sweeps_and_archives_of_folders_that_are_read_differently(folder: Path) -> None:
    assert matches(folder, "") and matches(folder, "ab12")
    assert not matches(folder, READING + "ab12")
    (folder / "val" / "ant" / "x.png").unlink()
    (folder / "val" / "ant").rmdir()  # "bee" was class 0 and is class 1
    assert not matches(folder, "") and not matches(folder, "ab12")
    assert matches(folder, READING + "ab12")
    assert matches(folder, "ab12", "train")  # which is read as before


def test_jobs_on_folders_that_are_read_differently(folder: Path) -> None:
    spec = f"folder:{folder}"
    times = len(data_stamp(spec))
    assert times == 2 * 7  # the folder, two splits, four classes
    (folder / "val").rename(folder / "test")  # now val is a part of train
    assert len(data_stamp(spec)) == times + 1
