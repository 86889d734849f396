"""Class folders: classes, ids, pixels; images and folders that are damaged or hostile."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psvit_core.data import load_data
from psvit_core.errors import DataError
from psvit_core.records import DIGITS_TRANSFORM, Transform

COLOUR = Transform(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))


def save(path: Path, colour: Any, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    save(root / "cat" / "b.png", (255, 0, 51))
    save(root / "cat" / "deep" / "a.jpg", (0, 0, 0))
    save(root / "ant" / "Z.PNG", (0, 255, 0))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "readme.txt").write_text("no class")
    return root


def test_folder_classes_and_order(folder: Path) -> None:
    data = load_data(f"folder:{folder}", transform=COLOUR)
    assert data.classes == ("ant", "cat")
    assert data.labels == (0, 1, 1)
    assert (data.split, data.transform) == ("val", COLOUR.name)
    assert len(set(data.ids)) == 3


def test_folder_colour_is_normalised_per_channel(folder: Path) -> None:
    data = load_data(f"folder:{folder}", transform=COLOUR)
    expected = torch.tensor([(1 - 0.5) / 0.5, (0 - 0.5) / 0.25, (0.2 - 0.5) / 1.0])
    image = data.load(1)
    assert image.shape == (3, 8, 8)
    assert torch.allclose(image, expected.view(3, 1, 1).expand(3, 8, 8), atol=1e-6)


def test_folder_colour_becomes_grey(folder: Path) -> None:
    image = load_data(f"folder:{folder}", transform=DIGITS_TRANSFORM).load(0)
    assert image.shape == (1, 32, 32)
    luma = round(0.587 * 255) / 255  # of pure green, ITU-R 601
    assert float(image[0, 16, 16]) == pytest.approx((luma - 0.1307) / 0.3081, abs=1e-5)
    assert float(image[0, 0, 0]) == pytest.approx((0 - 0.1307) / 0.3081, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("P", 0, (0.0, 0.0, 0.0)),
        ("RGBA", (255, 0, 51, 255), (1.0, 0.0, 0.2)),
        ("LA", (51, 255), (0.2, 0.2, 0.2)),
    ],
)
def test_folder_any_mode_becomes_colour(
    tmp_path: Path, mode: str, colour: Any, expected: tuple[float, ...]
) -> None:
    save(tmp_path / "a" / "x.png", colour, mode)
    image = load_data(f"folder:{tmp_path}", transform=COLOUR).load(0)
    mean, std = torch.tensor(COLOUR.mean), torch.tensor(COLOUR.std)
    assert torch.allclose(image[:, 4, 4] * std + mean, torch.tensor(expected), atol=1e-6)


def test_folder_resizes_the_shorter_side_and_crops_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    image = load_data(f"folder:{tmp_path}", transform=COLOUR).load(0)
    assert image.shape == (3, 8, 8)
    assert float(image[0, :, 2:6].min()) == pytest.approx(1.0, abs=1e-6)


def test_folder_with_splits(tmp_path: Path) -> None:
    save(tmp_path / "val" / "a" / "x.png", (1, 2, 3))
    save(tmp_path / "train" / "a" / "x.png", (4, 5, 6))
    save(tmp_path / "train" / "a" / "y.png", (7, 8, 9))
    spec = f"folder:{tmp_path}"
    assert len(load_data(spec, transform=COLOUR)) == 1
    assert len(load_data(spec, split="train", transform=COLOUR)) == 2
    with pytest.raises(DataError, match="test"):
        load_data(spec, split="test", transform=COLOUR)


@pytest.mark.parametrize("split", ["train", "calib", "test"])
def test_folder_without_splits_is_val(folder: Path, split: str) -> None:
    with pytest.raises(DataError, match=split):
        load_data(f"folder:{folder}", split=split, transform=COLOUR)


def ids(folder: Path) -> tuple[str, ...]:
    return load_data(f"folder:{folder}", transform=COLOUR).ids


def test_folder_ids_follow_place_size_and_time(folder: Path, tmp_path: Path) -> None:
    before, image = ids(folder), folder / "cat" / "b.png"
    assert ids(folder) == before
    assert ids(folder / ".." / folder.name) == before
    facts = image.stat()
    save(image, (255, 0, 52), size=(90, 90))  # another size
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert [a == b for a, b in zip(ids(folder), before, strict=True)] == [True, False, True]
    save(image, (255, 0, 51))
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert ids(folder) == before
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))  # another time
    assert [a == b for a, b in zip(ids(folder), before, strict=True)] == [True, False, True]
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    shutil.copytree(folder, tmp_path / "copy")
    assert not set(ids(tmp_path / "copy")) & set(before)


def test_folder_ids_hold_the_label(folder: Path) -> None:
    # results are kept with their label: a new class before the others moves all labels
    before = ids(folder)
    (folder / "aardvark").mkdir()
    assert not set(ids(folder)) & set(before)


def test_one_image_in_two_classes_is_two(folder: Path) -> None:
    os.link(folder / "cat" / "b.png", folder / "ant" / "b.png")
    assert len(set(ids(folder))) == 4


def test_ids_and_subsets_read_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
    data = load_data(f"folder:{folder}", transform=COLOUR, limit=2)
    assert not [name for name in opened if name.startswith(str(folder))]
    data.load(0)
    assert [name for name in opened if name.startswith(str(folder))]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*none"):
        load_data(f"folder:{tmp_path / 'none'}", transform=COLOUR)


def test_file_instead_of_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_data(f"folder:{folder / 'readme.txt'}", transform=COLOUR)


@pytest.mark.parametrize("inside", [(), ("a",), ("a/notes.txt",), ("x.png",)])
def test_folder_without_images(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        path = tmp_path / name
        if path.suffix == ".png":
            save(path, (0, 0, 0))  # an image, but in no class folder
        elif path.suffix:
            path.parent.mkdir()
            path.write_text("x")
        else:
            path.mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        load_data(f"folder:{tmp_path}", transform=COLOUR)


def damaged(content: bytes, damage: str) -> bytes:
    if damage == "empty":
        return b""
    if damage == "text":
        return b"this is not an image\n" * 10
    if damage == "cut":
        return content[: len(content) // 2]
    middle = len(content) // 2
    return content[:middle] + b"\xff\x00" * 20 + content[middle + 40 :]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "overwritten"])
def test_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (40, 40, 3), np.uint8)
    path = tmp_path / "a" / "broken.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.raises(DataError, match=r"broken\.png"):
        list(load_data(f"folder:{tmp_path}", transform=COLOUR).batches(1))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.ppm", b"P6\n4x 4\n255\n" + b"\0" * 48),
        ("broken.ppm", b"P6\n" + b"9" * 200 + b"\n255\n"),
        ("bomb.ppm", b"P6\n900000 900000\n255\n"),
    ],
    ids=["not a number", "endless number", "larger than memory"],
)
def test_hostile_image_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "a" / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_data(f"folder:{tmp_path}", transform=COLOUR).load(0)


def test_folder_named_like_an_image_is_no_image(folder: Path) -> None:
    (folder / "cat" / "old.png").mkdir()
    save(folder / "cat" / "old.png" / "x.png", (9, 9, 9))
    assert len(load_data(f"folder:{folder}", transform=COLOUR)) == 4
