"""CIFAR-10's published batches, python and binary; pickles that want more than images."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psvit_core.data import load_data
from psvit_core.errors import DataError
from psvit_core.records import DIGITS_TRANSFORM, Transform

CIFAR = Transform(resize=32, crop=32, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 1.0))
TEST = np.random.RandomState(0).randint(0, 256, (40, 3072), np.uint8)
TEST_LABELS = [i % 10 for i in range(40)]
TRAIN = np.random.RandomState(1).randint(0, 256, (2, 150, 3072), np.uint8)
TRAIN_LABELS = [[(i * i) % 10 for i in range(150)], [i % 7 for i in range(150)]]


def batch(pixels: Any, labels: Any) -> dict[bytes, Any]:
    names = [b"x.png" for _ in labels]
    return {b"batch_label": b"one", b"labels": labels, b"data": pixels, b"filenames": names}


def write_python(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parts = zip(TRAIN, TRAIN_LABELS, strict=True)
    for number, (pixels, labels) in enumerate(parts, start=1):
        content = pickle.dumps(batch(pixels, labels), protocol)
        (folder / f"data_batch_{number}").write_bytes(content)
    (folder / "test_batch").write_bytes(pickle.dumps(batch(TEST, TEST_LABELS), protocol))
    return folder


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parts = zip((*TRAIN, TEST), (*TRAIN_LABELS, TEST_LABELS), strict=True)
    names = ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")
    for name, (pixels, labels) in zip(names, parts, strict=True):
        column = np.array(labels, np.uint8)[:, None]
        np.hstack([column, pixels]).tofile(folder / name)
    return folder


@pytest.mark.parametrize("split", ["train", "calib", "val", "test"])
def test_both_versions_are_the_same(tmp_path: Path, split: str) -> None:
    write_python(tmp_path / "cifar-10-batches-py")
    python = load_data(f"cifar10:{tmp_path}", split=split, transform=CIFAR)
    inside = load_data(f"cifar10:{tmp_path / 'cifar-10-batches-py'}", split=split, transform=CIFAR)
    write_binary(tmp_path / "b" / "cifar-10-batches-bin")
    binary = load_data(f"cifar10:{tmp_path / 'b'}", split=split, transform=CIFAR)
    assert len(python) == {"train": 300, "calib": 256, "val": 20, "test": 20}[split]
    assert python.ids == inside.ids == binary.ids
    assert python.labels == binary.labels
    assert len(set(python.ids)) == len(python)
    x, y = (torch.cat(list(data.batches(50))) for data in (python, binary))
    assert torch.equal(x, y)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    data = load_data(f"cifar10:{write_python(tmp_path, protocol)}", transform=CIFAR)
    assert len(data) == 20
    labels = pickle.dumps(batch(TEST, np.array(TEST_LABELS)), protocol)
    (tmp_path / "test_batch").write_bytes(labels)
    assert load_data(f"cifar10:{tmp_path}", transform=CIFAR).labels == data.labels


def dump_as_python_2(content: Any) -> bytes:
    """A pickle with byte strings for text, as Python 2 wrote the published files."""
    file = io.BytesIO()
    pickler: Any = pickle._Pickler(file, 2)

    def save(self: Any, value: str | bytes) -> None:
        text = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(value)

    pickler.dispatch = {**pickler.dispatch, bytes: save, str: save}
    pickler.dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def test_as_python_2_wrote_it(tmp_path: Path) -> None:
    content = dump_as_python_2(batch(TEST, TEST_LABELS))
    assert b"numpy.core.multiarray\n_reconstruct" in content
    assert b"_codecs" not in content
    (tmp_path / "test_batch").write_bytes(content)
    data = load_data(f"cifar10:{tmp_path}", transform=CIFAR)
    assert data.ids == load_data(f"cifar10:{write_python(tmp_path)}", transform=CIFAR).ids


def test_pixels_and_halves(tmp_path: Path) -> None:
    spec = f"cifar10:{write_python(tmp_path)}"
    val, test = (load_data(spec, split=split, transform=CIFAR) for split in ("val", "test"))
    assert not set(val.ids) & set(test.ids)
    assert [val.labels.count(k) for k in range(10)] == [2] * 10
    assert val.classes[3] == "cat"
    whole = {tuple(row): label for row, label in zip(TEST.tolist(), TEST_LABELS, strict=True)}
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    for data in (val, test):
        for x, label in zip(torch.cat(list(data.batches(7))), data.labels, strict=True):
            row = tuple((255 * (x * std + mean)).round().int().flatten().tolist())
            assert whole.pop(row) == label
    assert not whole


def test_the_transform_is_the_models(tmp_path: Path) -> None:
    spec = f"cifar10:{write_python(tmp_path)}"
    assert load_data(spec, transform=DIGITS_TRANSFORM).load(0).shape == (1, 32, 32)
    large = Transform(resize=64, crop=48)
    assert load_data(spec, transform=large).load(0).shape == (3, 48, 48)


def test_train_takes_no_test_image(tmp_path: Path) -> None:
    spec = f"cifar10:{write_python(tmp_path)}"
    train = load_data(spec, split="train", transform=CIFAR)
    calib = load_data(spec, split="calib", transform=CIFAR)
    assert train.labels == tuple(TRAIN_LABELS[0] + TRAIN_LABELS[1])
    assert set(calib.ids) < set(train.ids)
    assert not set(train.ids) & set(load_data(spec, transform=CIFAR).ids)


# --- what is not there, damaged or hostile


def test_missing_batches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no CIFAR-10 batches"):
        load_data(f"cifar10:{tmp_path}", transform=CIFAR)
    with pytest.raises(DataError, match="none holds no CIFAR-10 batches"):
        load_data(f"cifar10:{tmp_path / 'none'}", transform=CIFAR)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError, match=r"Unpack .*cifar-10-python\.tar\.gz"):
        load_data(f"cifar10:{tmp_path}", transform=CIFAR)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, getattr, __import__, io.open, np.load, np.frombuffer]
)
def test_nothing_is_called(tmp_path: Path, function: Any, protocol: int) -> None:
    witness = tmp_path / "witness"
    bad = Calls(function, f"open({str(witness)!r}, 'w')")
    if function is os.system:
        bad = Calls(function, f"touch {witness}")
    content = {b"labels": [0], b"data": TEST[:1], b"extra": bad}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=r"test_batch.*it asks for"):
        load_data(f"cifar10:{tmp_path}", transform=CIFAR)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2, 3]),
        pickle.dumps({b"labels": [0]}),
        pickle.dumps({b"data": TEST[:1]}),
        pickle.dumps(batch(TEST, TEST_LABELS))[:-5000],
        pickle.dumps(batch(TEST, TEST_LABELS[:-1])),
        pickle.dumps(batch(TEST, [*TEST_LABELS[:-1], 10])),
        pickle.dumps(batch(TEST, [*TEST_LABELS[:-1], -1])),
        pickle.dumps(batch(TEST[:0], [])),
        pickle.dumps(batch(TEST[:, :100], TEST_LABELS)),
        pickle.dumps(batch(TEST.astype(np.int16), TEST_LABELS)),
        pickle.dumps(batch(TEST.tolist(), TEST_LABELS)),
        pickle.dumps(batch(TEST.astype(object), TEST_LABELS)),
        pickle.dumps(batch(TEST, ["cat"] * 40)),
        pickle.dumps(batch(TEST, TEST_LABELS), 2).replace(b"latin1", b"punyco"),
        # a memo index, a length and a shape far beyond the file
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
        pickle.dumps(batch(TEST, TEST_LABELS), 2).replace(
            b"K(M\x00\x0c", b"J\xff\xff\xff\x7fM\x00\x0c"
        ),
        # the state of a stand-in set to foreign things
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01s\x86b.",
    ],
)
def test_damaged_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        load_data(f"cifar10:{tmp_path}", transform=CIFAR)
    write_python(tmp_path)  # and nothing of it stays
    assert len(load_data(f"cifar10:{tmp_path}", transform=CIFAR)) == 20


@pytest.mark.parametrize("n_bytes", [0, 1, 3072, 3073 * 5 - 1])
def test_cut_binary(tmp_path: Path, n_bytes: int) -> None:
    path = write_binary(tmp_path) / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match=r"test_batch\.bin.*Download it again"):
        load_data(f"cifar10:{tmp_path}", transform=CIFAR)


def test_one_image_a_class_has_no_test(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch(TEST[:10], TEST_LABELS[:10])))
    assert len(load_data(f"cifar10:{tmp_path}", transform=CIFAR)) == 10
    with pytest.raises(DataError, match="one image a class"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)


def test_a_file_beyond_any_batch_is_not_read(tmp_path: Path) -> None:
    for name in ("test_batch", "test_batch.bin"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**12)  # takes no room
        with pytest.raises(DataError, match=f"{name} has 1,000,000,000,000 bytes"):
            load_data(f"cifar10:{tmp_path}", transform=CIFAR)
        (tmp_path / name).unlink()
