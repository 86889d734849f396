"""Layouts of image folders: names of splits, classes over all splits, leftovers, levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from psvit_core.data import SPLITS, EvalSet, count_images, load_data
from psvit_core.errors import DataError
from psvit_core.image_folders import READING
from psvit_core.records import Transform

SMALL = Transform(resize=8, crop=8)


def fill(folder: Path, n_images: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_images):
        Image.new("L", (2, 2), i % 256).save(folder / f"{i}.png")
    return folder


def load(place: Path, split: str = "val", kind: str = "folder") -> EvalSet:
    return load_data(f"{kind}:{place}", split=split, transform=SMALL)


def files_of(data: EvalSet) -> set[str]:
    """The paths of a split's images, relative to the split's folder."""
    images: Any = data.load
    if hasattr(images, "positions"):
        return {images.load.names[i] for i in images.positions}
    return set(images.names)


# --- classes over all splits


@pytest.mark.parametrize("lacks", ["train", "val", "test"])
def test_classes_are_indexed_over_all_splits(tmp_path: Path, lacks: str) -> None:
    for split in ("train", "val", "test"):
        for name in ("ant", "bee", "cat"):
            if (split, name) != (lacks, "bee"):
                fill(tmp_path / split / name, 2)
    for split in ("train", "val", "test"):
        data = load(tmp_path, split)
        assert data.classes == ("ant", "bee", "cat")
        assert set(data.labels) == ({0, 2} if split == lacks else {0, 1, 2})
    assert count_images(f"folder:{tmp_path}", lacks, SMALL)[0] == [2, 0, 2]


def test_an_empty_class_folder_keeps_its_place_if_train_has_it(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        fill(tmp_path / "train" / name)
        fill(tmp_path / "val" / name, int(name != "bee"))
    for empty in ("aaa", "bbb/deep"):
        (tmp_path / "val" / empty).mkdir(parents=True)
    (tmp_path / "val" / "bbb" / "notes.txt").write_text("no image")
    data = load(tmp_path)
    assert (data.classes, data.labels) == (("ant", "bee", "cat"), (0, 2))


LEFTOVERS = ("__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "__macosx", "$RECYCLE.BIN")


@pytest.mark.parametrize("name", LEFTOVERS)
@pytest.mark.parametrize("within", ["", "train", "val", "val/cat"])
def test_leftovers_of_systems_are_left_out(tmp_path: Path, name: str, within: str) -> None:
    for split in ("train", "val"):
        for own in ("Ant", "cat"):
            fill(tmp_path / split / own)
    before = load(tmp_path), load(tmp_path, "train")
    fill(tmp_path / within / name / "cat")
    fill(tmp_path / within / name)
    for old, split in zip(before, ("val", "train"), strict=True):
        new = load(tmp_path, split)
        assert (new.classes, new.labels, new.ids) == (old.classes, old.labels, old.ids)
    alone = tmp_path / "val"
    assert load(alone).classes == ("Ant", "cat")


# --- names of splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "valid", "TEST"),
        ("images_train", "images_val", "images_test"),
        ("train_images", "val_images", "test_images"),
        ("trainset", "Validation Set", "test-set"),
        ("train", "valid", "test"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_usual_names_of_splits(tmp_path: Path, train: str, val: str, test: str, kind: str) -> None:
    for i, folder in enumerate((train, val, test), start=1):
        for name in ("n01440764", "n02012849"):
            fill(tmp_path / folder / name, 2 * i)
    (tmp_path / "labels_train").mkdir()
    assert len(load(tmp_path, "train", kind)) == 4
    assert len(load(tmp_path, "calib", kind)) == 4
    if kind == "folder":
        assert [len(load(tmp_path, split)) for split in ("val", "test")] == [8, 12]
    else:  # val and test are halves of the validation set
        assert [len(load(tmp_path, split, kind)) for split in ("val", "test")] == [4, 4]


def test_the_exact_name_comes_first(tmp_path: Path) -> None:
    fill(tmp_path / "val" / "ant", 3)
    fill(tmp_path / "validation" / "ant", 5)
    assert len(load(tmp_path)) == 3


def test_two_folders_of_a_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "valid" / "ant")
    fill(tmp_path / "Validation" / "ant")
    with pytest.raises(DataError, match=r"'Validation' and 'valid'\. Keep one"):
        load(tmp_path)


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    for name in ("Bus", "Car", "Train", "test"):
        fill(tmp_path / name)
    data = load(tmp_path)
    assert (data.classes, data.labels) == (("Bus", "Car", "Train", "test"), (0, 1, 2, 3))


# --- one level too high


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
@pytest.mark.parametrize("below", ["pets", "download/pets", "a/b/pets"])
@pytest.mark.parametrize("split", SPLITS)
def test_splits_one_level_below_are_named(
    tmp_path: Path, kind: str, below: str, split: str
) -> None:
    for name in ("train", "Validation"):
        fill(tmp_path / below / name / "n01440764", 2)
        fill(tmp_path / below / name / "n02012849", 2)
    fill(tmp_path / "__MACOSX" / "pets")
    with pytest.raises(DataError, match="is too high") as caught:
        load(tmp_path, split, kind)
    assert f"Give --data {kind}:{tmp_path / below}." in str(caught.value)
    assert load(tmp_path / below, "train", kind).labels


def test_all_data_sets_below_are_named(tmp_path: Path) -> None:
    for name in ("birds", "cars"):
        fill(tmp_path / name / "val" / "one")
        fill(tmp_path / name / "val" / "two")
    with pytest.raises(DataError, match=r"folder:\S+/birds or folder:\S+/cars\."):
        load(tmp_path)


@pytest.mark.parametrize("below", ["pets", "a/pets"])
def test_class_folders_one_level_below_are_named(tmp_path: Path, below: str) -> None:
    for name in ("ant", "bee", "cat"):
        fill(tmp_path / below / name)
    with pytest.raises(DataError, match=rf"is too high.*Give --data folder:\S+/{below}\."):
        load(tmp_path)
    assert len(load(tmp_path / below)) == 3


def test_class_folders_too_low_in_one_split_are_noticed(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        fill(tmp_path / "train" / name)
        fill(tmp_path / "val" / "val" / name)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"val has its class folders .* in \S+/val/val\. Move"):
            load(tmp_path, split)


def test_a_single_class_is_no_level(tmp_path: Path) -> None:
    fill(tmp_path / "cat" / "deep")
    fill(tmp_path / "cat" / "deep" / "deeper")
    assert load(tmp_path).classes == ("cat",)


# --- val from train


def test_val_is_a_tenth_of_train_without_a_folder(tmp_path: Path) -> None:
    sizes = {"ant": 40, "bee": 20, "cat": 3, "dog": 1, "elk": 25}
    for name, n_images in sizes.items():
        fill(tmp_path / "train" / name, n_images)
        fill(tmp_path / "test" / name, 2)
    fill(tmp_path / "train" / "fox", 30)  # test lacks it
    val, train = load(tmp_path), load(tmp_path, "train")
    assert Counter(val.labels) == {0: 4, 1: 2, 2: 1, 3: 1, 4: 3, 5: 3}
    assert len(val) + len(train) == 119
    assert not set(val.ids) & set(train.ids)
    assert not files_of(val) & files_of(train)
    calib = load(tmp_path, "calib")
    assert set(calib.ids) <= set(train.ids)
    assert load(tmp_path).ids == val.ids  # seeded
    assert len(load(tmp_path, "test")) == 10
    assert files_of(val) != {f"{n}/{i}.png" for n, k in sizes.items() for i in range(k // 10)}
    for name in sizes:  # other classes do not change a class's images
        if name != "bee":
            fill(tmp_path / "train" / name, 60)
    again = files_of(load(tmp_path))
    assert {f for f in again if "bee" in f} == {f for f in files_of(val) if "bee" in f}


def test_val_from_train_leaves_an_own_calib_folder(tmp_path: Path) -> None:
    for split in ("Training", "Testing"):
        fill(tmp_path / split / "ant", 10)
        fill(tmp_path / split / "bee", 10)
    fill(tmp_path / "calib" / "bee", 4)
    assert [len(load(tmp_path, split)) for split in SPLITS] == [18, 4, 2, 20]
    assert load(tmp_path, "calib").labels == (1,) * 4


def test_single_training_images_are_all_in_val(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        fill(tmp_path / "train" / name)
        fill(tmp_path / "test" / name)
    assert len(load(tmp_path)) == 2
    with pytest.raises(DataError, match="one image per class: all are in val, none in train"):
        load(tmp_path, "train")


def test_train_alone_is_not_divided(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "ant", 20)
    assert len(load(tmp_path, "train")) == 20
    with pytest.raises(DataError, match="no folder 'val'"):
        load(tmp_path)


# --- what old results hold for


def plain(place: Path) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            fill(place / split / name, 3)
    return place


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda p: p / "notes", ""),
        (lambda p: fill(p / "train" / "cat"), "val"),
        (lambda p: fill(p / "val" / "cat"), "train calib"),
        (lambda p: fill(p / "val" / "__MACOSX"), "val"),
        (lambda p: fill(p / "val" / "ant" / "@eaDir"), "val"),
        (lambda p: (p / "val").rename(p / "valid"), "val"),
        (lambda p: (p / "train").rename(p / "Training"), "train calib"),
        (lambda p: (p / "val").rename(p / "test"), "val train calib"),
    ],
)
def test_only_splits_that_are_read_differently_are_marked(
    tmp_path: Path, change: Callable[[Path], Path], changed: str
) -> None:
    change(plain(tmp_path))
    there = {"train", "calib", "val"} | ({"test"} if (tmp_path / "test").is_dir() else set())
    for split in there:
        assert load(tmp_path, split).reading == (READING if split in changed else ""), split


def test_folders_without_splits_are_read_as_before(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        fill(tmp_path / name)
    assert load(tmp_path).reading == ""
    fill(tmp_path / "__MACOSX")
    assert load(tmp_path).reading == READING
