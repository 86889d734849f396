"""``.npz`` files: images, frames of event cameras, damaged and hostile archives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psvit_core.data import load_data
from psvit_core.errors import DataError
from psvit_core.records import Transform
from tests.data.test_folder import COLOUR, damaged


def write_npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


GREY = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
RGB = np.arange(3 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(3, 8, 8, 3)
LABELS = np.array([2, 0, 1])


def test_npz_grey(tmp_path: Path) -> None:
    data = load_data(write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS))
    assert (data.labels, data.classes, data.split) == ((2, 0, 1), ("0", "1", "2"), "val")
    assert len(set(data.ids)) == 3
    image = data.load(1)
    assert image.shape == (1, 32, 32)
    expected = (GREY[1].astype(np.float32) / 255 - 0.1307) / 0.3081
    assert np.allclose(image[0, 2:-2, 2:-2].numpy(), expected, atol=1e-6)
    same = load_data(write_npz(tmp_path / "y.npz", images=GREY[..., None], labels=LABELS))
    assert same.ids == data.ids
    assert torch.equal(same.load(1), image)


def test_repeated_images_have_different_ids(tmp_path: Path) -> None:
    images, labels = GREY[[0, 1, 0, 2, 0]], np.array([2, 0, 2, 1, 2])
    once = load_data(write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS))
    data = load_data(write_npz(tmp_path / "y.npz", images=images, labels=labels))
    first, second, third = once.ids
    assert data.ids == (first, second, f"{first}/2", third, f"{first}/3")
    some = load_data(f"npz:{tmp_path / 'y.npz'}", limit=4)
    assert len(set(some.ids)) == 4 and set(some.ids) <= set(data.ids)


def test_npz_colour(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "x.npz", images=RGB, labels=LABELS)
    image = load_data(spec, transform=COLOUR).load(2)
    expected = (RGB[2].astype(np.float32) / 255 - COLOUR.mean) / COLOUR.std
    assert np.allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_npz_images_of_another_size_are_resized_like_files(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (2, 30, 50, 3), np.uint8)
    (tmp_path / "set" / "a").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "set" / "a" / f"{i}.png")
    transform = replace(COLOUR, resize=12, crop=10)
    files = load_data(f"folder:{tmp_path / 'set'}", transform=transform)
    spec = write_npz(tmp_path / "x.npz", images=images, labels=np.zeros(2, int))
    data = load_data(spec, transform=transform)
    assert data.load(0).shape == (3, 10, 10)
    for workers in (0, 1):
        [x], [y] = data.batches(2, workers=workers), files.batches(2)
        assert torch.equal(x, y)
        assert x.stride() == y.stride() == (300, 100, 10, 1)


def test_npz_id_depends_on_label_and_content(tmp_path: Path) -> None:
    twice = np.stack([GREY[0], GREY[0], GREY[1]])
    ids = load_data(write_npz(tmp_path / "x.npz", images=twice, labels=np.array([1, 2, 2]))).ids
    assert len(set(ids)) == 3  # results are stored with their label
    again = load_data(write_npz(tmp_path / "y.npz", images=twice[::-1], labels=np.array([2, 2, 1])))
    assert again.ids == ids[::-1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY / 255, "labels": LABELS}, "uint8"),
        ({"images": GREY.astype(np.int64), "labels": LABELS}, "uint8"),
        ({"images": GREY[0], "labels": LABELS}, "uint8"),
        ({"images": GREY, "labels": LABELS[:2]}, "labels"),
        ({"images": GREY, "labels": LABELS[:, None]}, "labels"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "N > 0"),
        ({"images": GREY[:, :0], "labels": LABELS}, "uint8"),
        ({"images": GREY, "labels": LABELS + 200_000}, "99,999"),
        ({"images": GREY, "frames": GREY, "labels": LABELS}, "frames, images, labels"),
        ({"images": RGB, "labels": LABELS}, "uint8"),
        ({"images": GREY}, "labels"),
        ({"labels": LABELS}, "images"),
        ({"images": GREY, "labels": np.array([0.5, 1.0, 2.0])}, "labels"),
        ({"images": GREY, "labels": np.array(["a", "b", "c"])}, "labels"),
        ({"images": GREY, "labels": np.array([-1, 0, 1])}, "labels"),
        ({"images": np.array([None] * 3), "labels": LABELS}, "images"),
    ],
    ids=[
        "float images",
        "wide integers",
        "one image",
        "too few labels",
        "labels in a column",
        "no images",
        "images without rows",
        "absurd labels",
        "images and frames",
        "colour for a grey model",
        "no labels array",
        "no images array",
        "float labels",
        "text labels",
        "negative label",
        "pickled objects",
    ],
)
def test_npz_with_wrong_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(write_npz(tmp_path / "x.npz", **arrays))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "overwritten"])
def test_damaged_npz_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.npz"
    np.savez_compressed(path, images=GREY, labels=LABELS)
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.raises(DataError, match=r"broken\.npz"):
        load_data(f"npz:{path}")


def test_npy_is_not_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GREY)
    with pytest.raises(DataError, match=r"x\.npy"):
        load_data(f"npz:{tmp_path / 'x.npy'}")


def test_missing_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz"):
        load_data(f"npz:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("split", ["train", "calib", "test"])
def test_npz_has_only_val(tmp_path: Path, split: str) -> None:
    spec = write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)
    with pytest.raises(DataError, match=split):
        load_data(spec, split=split)


# --- frames of event cameras

EVENTS = Transform(resize=6, crop=6, pad=1, channels=2, mean=(0.5, 0.0), std=(0.5, 2.0))
FRAMES = np.random.RandomState(0).randint(0, 256, (3, 5, 2, 8, 8), np.uint8)


def test_byte_frames_are_normalised_like_pixels(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "x.npz", frames=FRAMES, labels=LABELS)
    data = load_data(spec, transform=EVENTS)
    assert (data.labels, data.time_steps, len(set(data.ids))) == ((2, 0, 1), 5, 3)
    assert data.transform == "frames, normalise 0.5,0,0.5,2"
    image = data.load(2)
    assert (image.shape, image.dtype) == ((5, 2, 8, 8), torch.float32)
    assert np.allclose(image[:, 0].numpy(), (FRAMES[2, :, 0] / 255 - 0.5) / 0.5, atol=1e-6)
    assert np.allclose(image[:, 1].numpy(), FRAMES[2, :, 1] / 255 / 2, atol=1e-6)
    shapes = [tuple(x.shape) for x in data.batches(2, torch.float64, workers=1)]
    assert shapes == [(2, 5, 2, 8, 8), (1, 5, 2, 8, 8)]


def test_float_frames_are_unchanged(tmp_path: Path) -> None:
    counts = FRAMES.astype(np.float32) * 7 - 100
    data = load_data(write_npz(tmp_path / "x.npz", frames=counts, labels=LABELS), transform=EVENTS)
    assert data.transform == "frames"
    assert torch.equal(torch.cat(list(data.batches(2))), torch.from_numpy(counts))
    fortran = np.asfortranarray(counts)
    same = load_data(write_npz(tmp_path / "y.npz", frames=fortran, labels=LABELS), transform=EVENTS)
    assert same.ids == data.ids
    assert torch.equal(same.load(1), data.load(1))


def test_images_have_no_time_steps(tmp_path: Path) -> None:
    assert load_data(write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)).time_steps is None


@pytest.mark.parametrize(
    "frames",
    [
        FRAMES[:, :, :1],
        FRAMES[..., :6],
        FRAMES[..., 1:7, 1:7],
        FRAMES[:, :0],
        FRAMES[:0],
        FRAMES[0],
        FRAMES.astype(np.float64),
        FRAMES.astype(np.int32),
        FRAMES.astype(np.float32).astype(">f4"),
    ],
    ids=["channels", "width", "no pad", "no T", "no N", "4-D", "float64", "int32", "byte order"],
)
def test_frames_of_other_shapes_are_rejected(tmp_path: Path, frames: Any) -> None:
    spec = write_npz(tmp_path / "x.npz", frames=frames, labels=LABELS[: len(frames)])
    with pytest.raises(DataError, match=r"uint8 or float32 \[N, T, 2, 8, 8\]"):
        load_data(spec, transform=EVENTS)


def test_frames_that_are_not_finite_are_unreadable(tmp_path: Path) -> None:
    counts = FRAMES.astype(np.float32)
    counts[1, 4, 1, 7, 7] = np.nan
    spec = write_npz(tmp_path / "x.npz", frames=counts, labels=LABELS)
    with pytest.raises(DataError, match=r"x\.npz, frames\[1\].*1 of 3 images"):
        list(load_data(spec, transform=EVENTS).batches(3))
    data = load_data(spec, transform=EVENTS, on_bad="skip")
    assert data.labels == (2, 1)
    assert data.bad == (f"{tmp_path / 'x.npz'}, frames[1]",)


# --- hostile archives


def header(shape: Iterable[int], kind: str = "|u1") -> bytes:
    """Return an .npy header for an array."""
    file = io.BytesIO()
    facts = {"descr": kind, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def archive(path: Path, way: int = zipfile.ZIP_STORED, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", way) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return f"npz:{path}"


GOOD_LABELS = header((3,)) + bytes(3)


@pytest.mark.parametrize("way", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "images",
    [
        header((10**12, 28, 28)) + bytes(100),
        header((3, 28, 28)) + bytes(100),
        header((3, 28, 28)) + bytes(3 * 28 * 28 + 1),
        header((2**40, 2**40, 2**40)) + bytes(100),
        header((-3, 28, -28)) + bytes(3 * 28 * 28),
        header((3, 28, 28), "|O") + bytes(3 * 28 * 28 * 8),
        b"\x93NUMPY\x07\x00" + bytes(100),
        b"no header",
    ],
    ids=["absurd", "short", "long", "overflowing", "negative", "objects", "version", "none"],
)
def test_wrong_array_header(tmp_path: Path, way: int, images: bytes) -> None:
    spec = archive(tmp_path / "liar.npz", way, images=images, labels=GOOD_LABELS)
    with pytest.raises(DataError, match=r"liar\.npz.*'images' or 'frames' \("):
        load_data(spec)


def test_wrong_size_in_zip_directory(tmp_path: Path) -> None:
    content = header((3_000_000, 28, 28)) + bytes(3 * 28 * 28)
    path = tmp_path / "liar.npz"
    spec = archive(path, images=content, labels=GOOD_LABELS)
    size = len(content).to_bytes(4, "little")
    wrong = (len(content) + (3_000_000 - 3) * 28 * 28).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size * 2, wrong * 2))
    with pytest.raises(DataError, match="cannot contain"):
        load_data(spec)
    path.write_bytes(path.read_bytes().replace(wrong * 2, size + wrong))
    with pytest.raises(DataError, match="cannot contain"):
        load_data(spec)


def test_archive_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)
    memory = type("Memory", (), {"available": 2_000})
    monkeypatch.setattr("psutil.virtual_memory", memory)
    with pytest.raises(DataError, match="2,352 bytes of memory and 2,000 are free"):
        load_data(spec)


def test_unsupported_compression(tmp_path: Path) -> None:
    labels = header((3,)) + bytes(3)
    spec = archive(tmp_path / "x.npz", zipfile.ZIP_LZMA, images=bytes(10), labels=labels)
    with pytest.raises(DataError, match=r"x\.npz"):
        load_data(spec)
