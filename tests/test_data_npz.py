"""Arrays in ``.npz`` files: images, frames of event cameras, damaged and hostile archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core.data import load_data
from psvit_core.errors import DataError
from psvit_core.records import DIGITS_TRANSFORM, Transform
from tests.test_data_folder import COLOUR, damaged


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


def test_npz_colour(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "x.npz", images=RGB, labels=LABELS)
    image = load_data(spec, transform=COLOUR).load(2)
    expected = (RGB[2].astype(np.float32) / 255 - COLOUR.mean) / COLOUR.std
    assert np.allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY / 255, "labels": LABELS}, "uint8"),
        ({"images": GREY.astype(np.int64), "labels": LABELS}, "uint8"),
        ({"images": GREY[0], "labels": LABELS}, "uint8"),
        ({"images": GREY, "labels": LABELS[:2]}, "labels"),
        ({"images": GREY, "labels": LABELS[:, None]}, "labels"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, "N > 0"),
        ({"images": GREY[:, :20], "labels": LABELS}, "28 x 28"),
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
        "wrong size",
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


def test_npy_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GREY)
    with pytest.raises(DataError, match=r"x\.npy"):
        load_data(f"npz:{tmp_path / 'x.npy'}")


def test_missing_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz"):
        load_data(f"npz:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("split", ["train", "calib", "test"])
def test_npz_holds_val_only(tmp_path: Path, split: str) -> None:
    spec = write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)
    with pytest.raises(DataError, match=split):
        load_data(spec, split=split)
