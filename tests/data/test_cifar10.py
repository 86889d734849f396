"""CIFAR-10's published batches, Python and binary; damaged and hostile files."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from psvit_core.data import SPLITS, load_data
from psvit_core.data.cifar10 import CLASSES
from psvit_core.errors import DataError
from psvit_core.files import data_set_name
from psvit_core.image_folders import READING, is_read_anew
from psvit_core.records import DIGITS_TRANSFORM, Conditions, Interval, Transform
from psvit_core.tasks.evaluate import compare_published
from psvit_core.tasks.fingerprints import data_stamp, file_stamp
from psvit_core.zoo.cards import model_card

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
    assert len(python) == {"train": 270, "calib": 256, "val": 30, "test": 40}[split]
    assert python.ids == inside.ids == binary.ids
    assert python.labels == binary.labels
    assert len(set(python.ids)) == len(python)
    x, y = (torch.cat(list(data.batches(50))) for data in (python, binary))
    assert torch.equal(x, y)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    spec = f"cifar10:{write_python(tmp_path, protocol)}"
    assert load_data(spec, split="test", transform=CIFAR).labels == tuple(TEST_LABELS)
    labels = pickle.dumps(batch(TEST, np.array(TEST_LABELS)), protocol)
    (tmp_path / "test_batch").write_bytes(labels)
    assert load_data(spec, split="test", transform=CIFAR).labels == tuple(TEST_LABELS)


def dump_as_python_2(content: Any) -> bytes:
    """Return a pickle with byte strings for text, as in the published files from Python 2."""
    file = io.BytesIO()
    pickler: Any = pickle._Pickler(file, 2)

    def save(self: Any, value: str | bytes) -> None:
        text = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(value)

    pickler.dispatch = {**pickler.dispatch, bytes: save, str: save}
    pickler.dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def test_batches_written_by_python_2(tmp_path: Path) -> None:
    content = dump_as_python_2(batch(TEST, TEST_LABELS))
    assert b"numpy.core.multiarray\n_reconstruct" in content
    assert b"_codecs" not in content
    (tmp_path / "test_batch").write_bytes(content)
    data = load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)
    again = load_data(f"cifar10:{write_python(tmp_path)}", split="test", transform=CIFAR)
    assert data.ids == again.ids


def test_pixels_and_splits(tmp_path: Path) -> None:
    spec = f"cifar10:{write_python(tmp_path)}"
    parts = {split: load_data(spec, split=split, transform=CIFAR) for split in SPLITS}
    assert parts["val"].classes[3] == "cat"
    assert not set(parts["val"].ids) & {*parts["train"].ids, *parts["test"].ids}
    assert set(parts["calib"].ids) < set(parts["train"].ids)
    labels = TRAIN_LABELS[0] + TRAIN_LABELS[1]
    tenth = [max(1, (labels.count(k) + 5) // 10) for k in range(10)]
    assert [parts["val"].labels.count(k) for k in range(10)] == [
        n if k in labels else 0 for k, n in enumerate(tenth)
    ]
    rows = [*TRAIN[0].tolist(), *TRAIN[1].tolist()]
    learned = {tuple(row): label for row, label in zip(rows, labels, strict=True)}
    unseen = {tuple(row): label for row, label in zip(TEST.tolist(), TEST_LABELS, strict=True)}
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    for split, whole in (("train", learned), ("val", learned), ("test", unseen)):
        data = parts[split]
        for x, label in zip(torch.cat(list(data.batches(7))), data.labels, strict=True):
            row = tuple((255 * (x * std + mean)).round().int().flatten().tolist())
            assert whole.pop(row) == label
    assert not learned
    assert not unseen


def test_model_transform_is_applied(tmp_path: Path) -> None:
    spec = f"cifar10:{write_python(tmp_path)}"
    assert load_data(spec, transform=DIGITS_TRANSFORM).load(0).shape == (1, 32, 32)
    large = Transform(resize=64, crop=48)
    assert load_data(spec, transform=large).load(0).shape == (3, 48, 48)


def test_results_on_the_old_validation_split_are_not_matched(tmp_path: Path) -> None:
    """Versions up to 0.2 took val from the test pictures."""
    spec = f"cifar10:{write_python(tmp_path)}"
    assert {load_data(spec, split=split, transform=CIFAR).reading for split in SPLITS} == {READING}
    assert all(is_read_anew(spec, split) for split in SPLITS)
    assert data_stamp(spec)[:-1] == [*file_stamp(str(tmp_path))]


def test_published_accuracies_are_compared_on_test_only() -> None:
    card = model_card("max_former_cifar10_4_384")
    conditions = Conditions(
        data="cifar10:x",
        split="test",
        n_images=10_000,
        T=card.published[0].T,
        batch=32,
        precision="float32",
        device="cpu",
        transform=card.transform.name,
    )
    for split, compared in (("test", True), ("val", False)):
        measured = SimpleNamespace(
            conditions=dataclasses.replace(conditions, split=split),
            accuracy=Interval(value=0.97, low=0.96, high=0.98),
        )
        assert (compare_published(card, measured) is not None) is compared  # type: ignore[arg-type]


# --- JPEGs of the pictures


def write_jpegs(folder: Path, per_class: int = 10) -> Path:
    random = np.random.RandomState(0)
    for split, count in (("train", per_class), ("test", 2)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(random.randint(0, 256, (32, 32, 3), np.uint8))
                image.save(folder / split / name / f"{number:04d}.jpg", quality=95)
    return folder


def test_jpegs_are_known_by_content(tmp_path: Path) -> None:
    first = write_jpegs(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b", copy_function=shutil.copyfile)  # with other times
    for split, count in {"train": 90, "val": 10, "calib": 90, "test": 20}.items():
        one, other = (
            load_data(f"cifar10-jpeg:{tmp_path / name}", split=split, transform=CIFAR)
            for name in "ab"
        )
        assert one.ids == other.ids
        assert one.name == other.name == "cifar10-jpeg"  # of results: they hold for every copy
        assert len(set(one.ids)) == len(one) == count
        assert one.classes == CLASSES
        plain = load_data(f"folder:{first}", split=split, transform=CIFAR)
        assert plain.labels == one.labels  # the same pictures in the same splits
        assert not set(plain.ids) & set(one.ids)
    path = next((tmp_path / "b" / "test" / "cat").iterdir())
    Image.new("RGB", (32, 32)).save(path)
    changed = load_data(f"cifar10-jpeg:{tmp_path / 'b'}", split="test", transform=CIFAR)
    assert sum(x != y for x, y in zip(changed.ids, one.ids, strict=True)) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("digits", "digits:distorted", False),
        ("cifar10-jpeg", "cifar10-jpeg:/a", True),
        ("cifar10-jpeg:/b", "cifar10-jpeg:/a", True),
        ("cifar10-jpeg", "cifar10:/a", False),
        ("cifar10", "cifar10:/a", True),
        ("folder:/a", "folder:/b", False),
        ("imagenet:/a", "imagenet:/b", False),
    ],
)
def test_copies_of_a_data_set_have_one_name(one: str, other: str, same: bool) -> None:
    assert (data_set_name(one) == data_set_name(other)) == same


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not included\. Say where they are: cifar10-jpeg:DIR"):
        load_data("cifar10-jpeg", transform=CIFAR)
    with pytest.raises(DataError, match="does not exist"):
        load_data(f"cifar10-jpeg:{tmp_path / 'none'}", transform=CIFAR)
    with pytest.raises(DataError, match="must contain train/ and test/"):
        load_data(f"cifar10-jpeg:{tmp_path}", transform=CIFAR)
    write_jpegs(tmp_path, 1)
    with pytest.raises(DataError, match="one of each class; all are in val"):
        load_data(f"cifar10-jpeg:{tmp_path}", split="train", transform=CIFAR)
    shutil.rmtree(tmp_path / "train" / "ship")
    with pytest.raises(DataError, match="each of CIFAR-10's classes"):
        load_data(f"cifar10-jpeg:{tmp_path}", split="train", transform=CIFAR)


# --- missing, damaged and hostile files


def test_missing_batches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no CIFAR-10 batches"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)
    with pytest.raises(DataError, match="none contains no CIFAR-10 batches"):
        load_data(f"cifar10:{tmp_path / 'none'}", transform=CIFAR)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError, match=r"Unpack .*cifar-10-python\.tar\.gz"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)


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
    with pytest.raises(DataError, match=r"test_batch.*it refers to"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)
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
        # attributes set on a replacement class
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01s\x86b.",
    ],
)
def test_damaged_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)
    write_python(tmp_path)  # the damaged file has no lasting effect
    assert len(load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)) == 40


@pytest.mark.parametrize("n_bytes", [0, 1, 3072, 3073 * 5 - 1])
def test_cut_binary(tmp_path: Path, n_bytes: int) -> None:
    path = write_binary(tmp_path) / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match=r"test_batch\.bin.*Download it again"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)


def test_one_image_per_class_leaves_no_train_split(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch(TEST[:10], TEST_LABELS[:10])))
    assert len(load_data(f"cifar10:{tmp_path}", transform=CIFAR)) == 10
    with pytest.raises(DataError, match="one of each class"):
        load_data(f"cifar10:{tmp_path}", split="train", transform=CIFAR)
    with pytest.raises(DataError, match="contains no CIFAR-10 batches"):
        load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)


def test_too_large_file_is_not_read(tmp_path: Path) -> None:
    for name in ("test_batch", "test_batch.bin"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10**12)  # sparse, takes no disk space
        with pytest.raises(DataError, match=f"{name} has 1,000,000,000,000 bytes"):
            load_data(f"cifar10:{tmp_path}", split="test", transform=CIFAR)
        (tmp_path / name).unlink()
