"""Image folders: classes, ids and pixels; damaged and hostile images and folders."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psvit_core.data import files, load_data
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


def test_calib_is_a_subset_of_train(tmp_path: Path) -> None:
    for i in range(200):
        save(tmp_path / "train" / "a" / f"{i}.ppm", 0, "L", (1, 1))
    for i in range(100):
        save(tmp_path / "train" / "b" / f"{i}.ppm", 0, "L", (1, 1))
    spec = f"folder:{tmp_path}"
    train = load_data(spec, split="train", transform=COLOUR)
    calib = load_data(spec, split="calib", transform=COLOUR)
    assert (len(train), len(calib)) == (300, 256)
    assert calib.labels.count(1) == 100  # as balanced as possible
    assert set(calib.ids) < set(train.ids)
    assert load_data(spec, split="calib", transform=COLOUR).ids == calib.ids
    save(tmp_path / "calib" / "a" / "own.png", 0, "L")
    assert len(load_data(spec, split="calib", transform=COLOUR)) == 1


def test_hidden_files_are_ignored(folder: Path) -> None:
    before = load_data(f"folder:{folder}", transform=COLOUR)
    save(folder / ".thumbnails" / "x.png", 0, "L")
    (folder / "cat" / "._b.png").write_bytes(b"not an image")
    data = load_data(f"folder:{folder}", transform=COLOUR)
    assert (data.classes, data.ids) == (before.classes, before.ids)


def test_folder_for_a_model_of_two_channels(folder: Path) -> None:
    events = Transform(resize=8, crop=8, channels=2, mean=(0, 0), std=(1, 1))
    with pytest.raises(DataError, match=r"takes 2.*frames"):
        load_data(f"folder:{folder}", transform=events)


def test_ids_depend_on_path_size_and_time(folder: Path, tmp_path: Path) -> None:
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


def test_ids_depend_on_the_label(folder: Path) -> None:
    # results are stored with their label, and a new first class changes all labels
    before = ids(folder)
    (folder / "aardvark").mkdir()
    assert not set(ids(folder)) & set(before)


def test_image_in_two_classes_has_two_ids(folder: Path) -> None:
    os.link(folder / "cat" / "b.png", folder / "ant" / "b.png")
    assert len(set(ids(folder))) == 4


def test_ids_and_subsets_do_not_read_images(folder: Path) -> None:
    opened: list[str] = []
    watching = [True]  # audit hooks cannot be removed

    def watch(event: str, arguments: Any) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    data = load_data(f"folder:{folder}", transform=COLOUR, limit=2)
    before, opened[:] = list(opened), []
    data.load(0)
    watching.clear()
    assert not [name for name in before if name.startswith(str(folder))]
    assert len([name for name in opened if name.startswith(str(folder))]) == 1


def test_subset_does_not_access_other_files(folder: Path) -> None:
    link = folder / "cat" / "gone.png"
    link.symlink_to("nowhere")
    data = load_data(f"folder:{folder}", transform=COLOUR, limit=2)  # without the link
    assert len(data) == 2
    with pytest.raises(DataError, match=r"gone\.png"):
        load_data(f"folder:{folder}", transform=COLOUR)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Folder .*none does not exist"):
        load_data(f"folder:{tmp_path / 'none'}", transform=COLOUR)


def test_file_instead_of_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_data(f"folder:{folder / 'readme.txt'}", transform=COLOUR)


@pytest.mark.parametrize("inside", [(), ("a",), ("a/notes.txt",), ("x.png",)])
def test_folder_without_images(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        path = tmp_path / name
        if path.suffix == ".png":
            save(path, (0, 0, 0))  # an image outside class folders
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


def test_folder_named_like_an_image(folder: Path) -> None:
    (folder / "cat" / "old.png").mkdir()
    save(folder / "cat" / "old.png" / "x.png", (9, 9, 9))
    assert len(load_data(f"folder:{folder}", transform=COLOUR)) == 4


def test_load_can_be_pickled(folder: Path, tmp_path: Path) -> None:
    # for workers on systems that spawn processes
    np.savez(tmp_path / "a.npz", images=np.ones((2, 9, 9, 3), np.uint8), labels=np.arange(2))
    for spec in (f"folder:{folder}", f"npz:{tmp_path / 'a.npz'}"):
        load = load_data(spec, transform=COLOUR).take([1, 0]).load
        assert torch.equal(pickle.loads(pickle.dumps(load))(0), load(0))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_ignored_as_in_timm(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (16, 24, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    facts: Any
    for name, facts in (("a", {}), ("b", {"exif": exif})):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png", **facts)
    data = load_data(f"folder:{tmp_path}", transform=COLOUR)
    assert Image.open(tmp_path / "b" / "x.png").getexif()[0x0112] == orientation
    assert torch.equal(data.load(0), data.load(1))


# --- damaged and hostile folders


def broken(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_bytes(b"no image at all")
    return [str(folder / name) for name in names]


def test_unreadable_images_are_skipped(folder: Path) -> None:
    good = load_data(f"folder:{folder}", transform=COLOUR)
    whole = (folder / "cat" / "deep" / "a.jpg").read_bytes()
    (folder / "cat" / "cut.jpg").write_bytes(whole[:-40])
    (folder / "cat" / "gone.png").symlink_to("nowhere")
    names = [*broken(folder, "ant/bad.png"), str(folder / "cat/cut.jpg")]
    names.append(str(folder / "cat/gone.png"))
    data = load_data(f"folder:{folder}", transform=COLOUR, on_bad="skip")
    assert (data.ids, data.labels) == (good.ids, good.labels)
    assert list(data.bad) == names
    assert torch.equal(torch.cat(list(data.batches(2))), torch.cat(list(good.batches(2))))
    assert load_data(f"folder:{folder}", transform=COLOUR, on_bad="skip", limit=6).ids == good.ids


def test_unreadable_image_stops_when_decoded(folder: Path) -> None:
    [name] = broken(folder, "cat/a.png")
    data = load_data(f"folder:{folder}", transform=COLOUR)
    assert len(data) == 4
    for workers in (0, 1):
        batches = data.batches(1, workers=workers)
        next(batches)
        with pytest.raises(DataError, match="1 of 2 images") as caught:
            next(batches)
        assert str(caught.value).startswith(f"{name} is not a readable image")


def test_only_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    broken(tmp_path, "a/x.png", "a/y.png")
    with pytest.raises(DataError, match=r"none of the 2 images.*x\.png"):
        load_data(f"folder:{tmp_path}", transform=COLOUR, on_bad="skip")


def bomb(path: Path, side: int) -> None:
    """Write a small PNG file whose header announces a huge image."""
    save(path, 0, "L", (1, 1))
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def test_decompression_bomb(tmp_path: Path) -> None:
    bomb(tmp_path / "a" / "bomb.png", 60_000)
    with pytest.raises(DataError, match=r"bomb\.png.*exceeds limit"):
        load_data(f"folder:{tmp_path}", transform=COLOUR).load(0)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_only_common_formats_are_decoded(tmp_path: Path, name: str) -> None:
    # PIL detects formats by content and would run another program for PostScript
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / name, format="EPS")
    Image.open(tmp_path / "a" / name).close()  # PIL recognises it
    with pytest.raises(DataError, match=f"{name}.*cannot identify"):
        load_data(f"folder:{tmp_path}", transform=COLOUR).load(0)


def test_16_bit_pixels_are_rejected(tmp_path: Path) -> None:
    save(tmp_path / "a" / "deep.png", 40_000, "I;16")
    with pytest.raises(DataError, match=r"deep\.png.*I;16 pixels"):
        load_data(f"folder:{tmp_path}", transform=COLOUR).load(0)


def test_linked_classes_and_images_are_found(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.png", (1, 2, 3))
    (folder / "bee").symlink_to(tmp_path / "elsewhere")
    (folder / "ant" / "x.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    data = load_data(f"folder:{folder}", transform=COLOUR)
    assert (data.classes, data.labels) == (("ant", "bee", "cat"), (0, 0, 1, 2, 2))
    assert torch.equal(data.load(1), data.load(2))


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("cat/again", "../cat", "cat/again leads to .*/cat,"),
        ("cat/up", "../..", "leads to"),
        ("dog", ".", "dog leads to"),
        ("cat/deep/more", "../../ant/../cat/deep", "leads to"),
        ("dog", "dog", "Cannot read folder.*symbolic links"),
    ],
)
def test_looping_links(folder: Path, link: str, target: str, message: str) -> None:
    (folder / link).symlink_to(target)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{folder}", transform=COLOUR)


def test_exponential_links_are_rejected(tmp_path: Path) -> None:
    # each level links twice to the next: 2^20 paths
    levels = [tmp_path / "set" / "a", *(tmp_path / f"level{i}" for i in range(19))]
    for level, below in zip(levels, [*levels[1:], tmp_path / "end"], strict=True):
        level.mkdir(parents=True)
        for name in ("l", "r"):
            (level / name).symlink_to(below)
    save(tmp_path / "end" / "x.png", 0, "L")
    with pytest.raises(DataError, match="a folder linked twice"):
        load_data(f"folder:{tmp_path / 'set'}", transform=COLOUR)


def test_special_files_are_never_opened(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "pipe.png")  # opening it would block
    (folder / "cat" / "zero.png").symlink_to("/dev/zero")
    assert len(load_data(f"folder:{folder}", transform=COLOUR)) == 3
    data = load_data(f"folder:{folder}", transform=COLOUR)
    (folder / "ant" / "Z.PNG").unlink()
    os.mkfifo(folder / "ant" / "Z.PNG")
    with pytest.raises(DataError, match=r"Z\.PNG.*not a regular file"):
        data.load(0)


def test_huge_folder_of_other_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_OTHERS", 50)
    for i in range(49):
        (folder / "cat" / f"{i}.txt").touch()
    with pytest.raises(DataError, match=r"more than 50 other files.*[0-9]\.txt"):
        load_data(f"folder:{folder}", transform=COLOUR)
    for i in range(100):
        save(folder / "ant" / f"{i}.ppm", 0, "L", (1, 1))
    assert len(load_data(f"folder:{folder}", transform=COLOUR)) == 103


def test_messages_stay_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"new\nline\x1b[31m\xff.png")).write_bytes(b"")
    data = load_data(f"folder:{tmp_path}", transform=COLOUR)
    with pytest.raises(DataError) as caught:
        data.load(0)
    assert "new\\nline\\x1b[31m" in str(caught.value)
    str(caught.value).encode()
    assert str(caught.value).isprintable()
