"""ImageNet's layouts (wnid folders, flat files with devkit or text file) and class indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import transforms_imagenet_eval

from psvit_core.data import imagenet, load_data
from psvit_core.errors import DataError
from psvit_core.records import Transform

SMALL = Transform(resize=8, crop=8)
# Class indices follow the sorted wnids; the ILSVRC ids of the devkit are different.
INDEX = {"n01440764": 0, "n02012849": 134, "n03126707": 517, "n15075141": 999}
ILSVRC_ID = {"n15075141": 1, "n01440764": 490, "n03126707": 3, "n02012849": 1000}
EACH = 5
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}.JPEG"


def wnid_of(number: int) -> str:
    return list(INDEX)[(number * 7) % 4]


NUMBERS = range(1, 4 * EACH + 1)


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 12), (number * 12,) * 3).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Return a folder with DIR/val/WNID/IMAGE and two training images per class."""
    root = tmp_path / "folders"
    for number in NUMBERS:
        picture(root / "val" / wnid_of(number) / name_of(number), number)
    for wnid in INDEX:
        for i in (0, 1):
            picture(root / "train" / wnid / f"{wnid}_{i}.JPEG", i)
    return root


def flat_images(root: Path) -> Path:
    for number in NUMBERS:
        picture(root / name_of(number), number)
    return root


def write_devkit(folder: Path) -> Path:
    """Write the devkit's files: 1,000 classes and 860 inner nodes in meta.mat, ids as text."""
    folder.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    others = [f"n9{i:07}" for i in range(1860)]
    synsets = np.zeros((1860, 1), dtype=kind)
    by_id = {number: wnid for wnid, number in ILSVRC_ID.items()}
    for number in range(1, 1861):
        wnid = by_id.get(number, others[number - 1])
        synsets[number - 1, 0] = (np.uint16(number), wnid, "words")
    savemat(folder / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{ILSVRC_ID[wnid_of(number)]}\n" for number in NUMBERS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    return folder


def load(root: Path, split: str = "val", **options: Any) -> Any:
    return load_data(f"imagenet:{root}", split=split, transform=SMALL, **options)


def labels_of(data: Any) -> dict[int, int]:
    """Return labels by image number, decoded from the brightness."""
    pixels = torch.stack([data.load(i)[1, 4, 4] for i in range(len(data))])
    grey = (pixels * SMALL.std[1] + SMALL.mean[1]) * 255
    return dict(zip((grey / 12).round().int().tolist(), data.labels, strict=True))


EXPECTED = {number: INDEX[wnid_of(number)] for number in NUMBERS}


def test_wnids_agree_with_timm() -> None:
    names = ImageNetInfo().label_names()
    assert all(names[index] == wnid for wnid, index in INDEX.items())


def test_wnid_folders(folders: Path) -> None:
    val, test = load(folders), load(folders, "test")
    assert labels_of(val) | labels_of(test) == EXPECTED
    assert not set(val.ids) & set(test.ids)
    assert [val.labels.count(k) for k in INDEX.values()] == [3] * 4
    assert [test.labels.count(k) for k in INDEX.values()] == [2] * 4
    assert len(val.classes) == len(set(val.classes)) == 1000
    assert val.classes[134] == "crane (n02012849)"
    assert val.classes[517] == "crane (n03126707)"
    assert (val.spec, val.split) == (f"imagenet:{folders}", "val")


def test_files_beside_the_splits_are_no_images_of_them(folders: Path) -> None:
    before = load(folders)
    for name in ("preview.jpg", "README.md", ".DS_Store"):
        (folders / name).write_bytes(b"no image")
    after = load(folders)
    assert (after.ids, after.labels) == (before.ids, before.labels)


@pytest.mark.parametrize("inside", [True, False], ids=["in val", "at the top"])
@pytest.mark.parametrize("labels", ["devkit", "wnids", "numbers"])
def test_flat_files_equal_wnid_folders(
    folders: Path, tmp_path: Path, labels: str, inside: bool
) -> None:
    place = tmp_path / "flat"
    root = flat_images(place / "val" if inside else place)
    if labels == "devkit":
        write_devkit(place / DEVKIT)
    elif labels == "wnids":
        lines = [f"{name_of(n)} {wnid_of(n)}" for n in NUMBERS]
        (root / "val_map.txt").write_text("\n".join(["", *lines]))
    else:
        lines = [f"val/{name_of(n)}\t{INDEX[wnid_of(n)]}" for n in reversed(NUMBERS)]
        (place / "val.txt").write_text("\r\n".join([*lines, "other.JPEG 5", ""]))
    for split in ("val", "test"):
        flat, reference = load(place, split), load(folders, split)
        assert labels_of(flat) == labels_of(reference)
        assert flat.labels == reference.labels  # in the same order
        assert labels_of(load(place, split, limit=5)) == labels_of(load(folders, split, limit=5))


def test_few_classes_keep_their_indices(tmp_path: Path) -> None:
    picture(tmp_path / "val" / "n15075141" / "x.JPEG", 1)
    assert load(tmp_path).labels == (999,)
    with pytest.raises(DataError, match="one validation image per class"):
        load(tmp_path, "test")
    picture(tmp_path / "n03126707" / "x.JPEG", 1)  # DIR is the validation folder
    (tmp_path / "val" / "n15075141" / "x.JPEG").unlink()
    (tmp_path / "val" / "n15075141").rmdir()
    (tmp_path / "val").rmdir()
    assert load(tmp_path).labels == (517,)


def test_train_and_calib(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = load(folders, "train")
    assert train.labels == (0, 0, 134, 134, 517, 517, 999, 999)
    monkeypatch.setattr("psvit_core.data.evalset.N_CALIB", 4)
    calib = load(folders, "calib")
    assert sorted(calib.labels) == [0, 134, 517, 999]
    assert set(calib.ids) < set(train.ids)


def test_wnid_folders_use_class_indices(folders: Path) -> None:
    data = load_data(f"folder:{folders}", transform=SMALL)
    assert set(data.labels) == set(INDEX.values())
    # imagenet: has the same images, so results are reused
    assert set(data.ids) == set(load(folders).ids) | set(load(folders, "test").ids)
    (folders / "train" / "dog").mkdir()
    mixed = load_data(f"folder:{folders}", transform=SMALL)
    assert mixed.classes == ("dog", *INDEX)
    assert set(mixed.labels) == {1, 2, 3, 4}
    (folders / "train" / "dog").rename(folders / "train" / "n00000001")
    assert set(load_data(f"folder:{folders}", transform=SMALL).labels) == {1, 2, 3, 4}


@pytest.mark.parametrize(("resize", "crop"), [(28, 28), (35, 28), (32, 28)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_equal_those_of_timm(
    tmp_path: Path, resize: int, crop: int, interpolation: str
) -> None:
    random = np.random.RandomState(0)
    folder = tmp_path / "val" / "n01440764"
    folder.mkdir(parents=True)
    for i, (mode, sides) in enumerate(
        [("RGB", (60, 90)), ("L", (70, 51)), ("CMYK", (40, 41)), ("RGB", (20, 33))]
    ):
        coarse = Image.fromarray(random.randint(0, 256, (9, 7, 3), np.uint8))
        coarse.resize(sides).convert(mode).save(folder / f"{i}.JPEG", format="JPEG")
    transform = Transform(resize=resize, crop=crop, interpolation=interpolation)
    theirs = transforms_imagenet_eval(crop, crop_pct=crop / resize, interpolation=interpolation)
    assert theirs.transforms[0].size == resize
    spec = f"folder:{tmp_path}"
    data = load_data(spec, transform=transform)
    assert len(data) == 4
    for i in range(4):
        with Image.open(folder / f"{i}.JPEG") as picture:
            assert torch.equal(data.load(i), theirs(picture.convert("RGB")))


# --- images without labels


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="neither wnid folders nor images"):
        load(tmp_path)
    with pytest.raises(DataError, match="no folder 'train'"):
        load(tmp_path, "calib")
    flat_images(tmp_path / "val")
    with pytest.raises(DataError, match=r"without labels.*ILSVRC2012_devkit_t12.*val\.txt"):
        load(tmp_path)


def test_invalid_folders(folders: Path) -> None:
    (folders / "val" / "n00000001").mkdir()
    with pytest.raises(DataError, match="n00000001 is not one of ImageNet's 1,000"):
        load(folders)
    (folders / "val" / "n00000001").rename(folders / "val" / "cat")
    with pytest.raises(DataError, match="cat is not one of ImageNet's 1,000"):
        load(folders)
    (folders / "val" / "cat").rmdir()
    picture(folders / "val" / "stray.JPEG", 1)
    with pytest.raises(DataError, match=r"also images outside them, such as stray\.JPEG"):
        load(folders)
    (folders / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="dog is not one"):
        load(folders, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{name_of(3)} 1000", "line 2: expected.*0 to 999"),
        (f"{name_of(3)} -1", "line 2: expected"),
        (f"{name_of(3)} n00000001", "line 2: expected"),
        (f"{name_of(3)} {'9' * 5000}", "line 2: expected"),
        (f"{name_of(3)}", "line 2: expected"),
        (f"{name_of(1)} 7", "line 2: .*two labels"),
        (f"{name_of(2)} 7", "no label for 18 of 20 images, first .*00000003"),
    ],
)
def test_invalid_label_file(tmp_path: Path, line: str, message: str) -> None:
    flat_images(tmp_path)
    (tmp_path / "val.txt").write_text(f"{name_of(1)} 0\n{line}\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_binary_label_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat_images(tmp_path)
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"Cannot read labels in .*val\.txt"):
        load(tmp_path)
    monkeypatch.setattr(imagenet, "MAX_TEXT_BYTES", 2)
    with pytest.raises(DataError, match=r"val\.txt is too large"):
        load(tmp_path)


def test_names_without_devkit_labels(tmp_path: Path) -> None:
    flat_images(tmp_path)
    write_devkit(tmp_path / DEVKIT)
    picture(tmp_path / name_of(21), 21)
    with pytest.raises(DataError, match=r"has only 20 lines and none for .*00000021"):
        load(tmp_path)
    (tmp_path / name_of(21)).rename(tmp_path / "holiday.jpg")
    with pytest.raises(DataError, match=r"holiday\.jpg does not have a name"):
        load(tmp_path)


def test_damaged_devkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat_images(tmp_path)
    devkit = write_devkit(tmp_path / DEVKIT)
    truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
    for text in ("1861\n", "cat\n", "\n1\n", "0\n"):
        truth.write_text(text * 20)
        with pytest.raises(DataError, match=r"line 1: meta\.mat has none of ImageNet's"):
            load(tmp_path)
    content = (devkit / "meta.mat").read_bytes()
    for damaged in (b"", content[:3000], content[:128] + b"\xff" * 500, b"text" * 100):
        (devkit / "meta.mat").write_bytes(damaged)
        with pytest.raises(DataError, match=r"meta\.mat is not the devkit's class table"):
            load(tmp_path)
    savemat(devkit / "meta.mat", {"other": [1]})
    with pytest.raises(DataError, match=r"meta\.mat is not the devkit's class table"):
        load(tmp_path)
    monkeypatch.setattr(imagenet, "MAX_META_BYTES", 10)
    with pytest.raises(DataError, match=r"meta\.mat is too large"):
        load(tmp_path)
    (devkit / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"meta\.mat is not the devkit's class table"):
        load(tmp_path)
    truth.unlink()
    with pytest.raises(DataError, match="Cannot read labels"):
        load(tmp_path)
