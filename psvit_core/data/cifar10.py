"""CIFAR-10: the published batches in the Python (pickle) or the binary version, and JPEGs of them.

``test`` is the published test pictures. ``val`` is 5,000 of the training pictures, 500 of each
class, chosen by a seed; ``train`` is the others, and ``calib`` 256 of those.

``cifar10-jpeg:DIR`` is for copies whose pixels were compressed again. They are another data set:
their ids are made from the content of the files and differ from those of the original pixels, so
results of the two are never paired.

The unpickler replaces the few numpy names that batches need and rejects all others, so no code in a
pickle runs. Arrays are returned as shape, type and bytes, and validated before numpy reads them.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from psvit_core.data.evalset import Source, calib_positions, split_tenth
from psvit_core.data.files import content_hash, escape, reason_of
from psvit_core.data.folder import class_folders, find_splits
from psvit_core.data.pixels import ArrayImages, Prepare
from psvit_core.errors import DataError
from psvit_core.image_folders import READING, subfolders
from psvit_core.records import Transform

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_BATCH_BYTES = 500_000_000
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_SHAPE = (3, 32, 32)  # layout in the files: colour planes, row by row
_IMAGE_BYTES = 3 * 32 * 32

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Batch = tuple[Pixels, list[int]]  # (N, 3072) and labels


def cifar10_source(place: Path, split: str, transform: Transform) -> Source:
    """Return a split of the published batches."""
    wanted = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    files = _find(place, wanted)
    batches = [(_read_bin if path.suffix == ".bin" else _read_pickle)(path) for path in files]
    names = [
        f"{path.stem}/{row}"
        for path, (_, labels) in zip(files, batches, strict=True)
        for row in range(len(labels))
    ]
    rows = np.concatenate([pixels for pixels, _ in batches])
    labels = tuple(label for _, batch in batches for label in batch)
    images = rows.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    source = Source(
        transform=transform.name,
        labels=labels,
        classes=CLASSES,
        identify=lambda i: content_hash(
            f"cifar10/{names[i]}/{labels[i]}/".encode() + rows[i].tobytes()
        ),
        load=ArrayImages(images, Prepare(transform)),
        reading=READING,  # versions up to 0.2 took val from the test pictures
    )
    return source if split == "test" else _part_of_train(source, labels, names, split)


def cifar10_jpeg_source(place: Path, split: str, transform: Transform) -> Source:
    """Return a split of class folders with JPEGs of the pictures, in ``train`` and ``test``.

    Raises:
        DataError: If the folders are not there, or are not those of the ten classes.
    """
    if not place.is_dir():
        raise DataError(f"Folder {escape(place)} does not exist. Give --data cifar10-jpeg:DIR.")
    root = find_splits(place, "cifar10-jpeg").get("test" if split == "test" else "train")
    found = sorted(subfolders(root)) if root is not None else []
    if root is None or found != sorted(CLASSES):
        raise DataError(
            f"{escape(place)} must contain train/ and test/, each with a folder for each of "
            f"CIFAR-10's classes ({', '.join(CLASSES)}). Use folder:DIR for other images."
        )
    files = class_folders(root, names=CLASSES)
    source = files.source(transform, data_set="cifar10-jpeg")
    names, labels = zip(*files.files, strict=True)
    return source if split == "test" else _part_of_train(source, labels, names, split)


def _part_of_train(
    source: Source, labels: Sequence[int], names: Sequence[str], split: str
) -> Source:
    """Return ``val``, ``train`` or ``calib`` of all training pictures."""
    chosen = split_tenth(labels, names, "val" if split == "val" else "train")
    if not chosen:
        raise DataError("The training pictures have one of each class; all are in val.")
    part = source.take(chosen)
    return part.take(calib_positions(part.labels)) if split == "calib" else part


def _find(place: Path, names: list[str]) -> list[Path]:
    """Return the existing batch files with these names."""
    for folder in (place / name for name in _FOLDERS):
        for suffix in ("", ".bin"):
            files = [folder / f"{name}{suffix}" for name in names]
            if found := [path for path in files if path.is_file()]:
                return found
    archives = sorted(place.glob("cifar-10-*.tar*")) if place.is_dir() else []
    raise DataError(
        f"{escape(place)} contains no CIFAR-10 batches ({names[0]} or {names[0]}.bin). "
        + (
            f"Unpack {escape(archives[0])} there."
            if archives
            else "Give the folder that contains them."
        )
    )


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BATCH_BYTES:
        raise DataError(f"{escape(path)} has {size:,} bytes, more than any CIFAR-10 batch.")


def _checked(path: Path, pixels: Pixels, labels: list[int]) -> Batch:
    if not labels or len(labels) != len(pixels) or not all(0 <= k < 10 for k in labels):
        raise DataError(
            f"{escape(path)}: a batch has one or more images, each with a label from 0 to 9; got "
            f"{len(pixels)} images and {len(labels)} labels. Download it again."
        )
    return pixels, labels


def _read_bin(path: Path) -> Batch:
    """Read records of one label byte and 3,072 pixel bytes."""
    _check_size(path)
    content = np.fromfile(path, np.uint8)
    if content.size % (1 + _IMAGE_BYTES):
        raise DataError(
            f"{escape(path)} is incomplete: its {content.size:,} bytes are not a multiple of the "
            f"{1 + _IMAGE_BYTES} bytes of a CIFAR-10 record. Download it again."
        )
    records = content.reshape(-1, 1 + _IMAGE_BYTES)
    return _checked(path, records[:, 1:], records[:, 0].tolist())


def _read_pickle(path: Path) -> Batch:
    """Read the Python version, a dictionary with ``data`` and ``labels``."""
    _check_size(path)
    try:
        batch = _SafeUnpickler(BytesIO(path.read_bytes())).load()
        content = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        labels = content["labels"]
        labels = labels.values() if isinstance(labels, _PickledArray) else labels
        return _checked(path, content["data"].images(), [int(label) for label in labels])
    except DataError:
        raise
    except Exception as error:  # damaged pickles raise almost any exception
        raise DataError(
            f"{escape(path)} is not a CIFAR-10 batch ({reason_of(error)}). Download it again."
        ) from error


# ---- unpickling without executing code -----------------------------------------------------


class _PickledDtype:
    """A pickled numpy dtype: name and byte order."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1].decode() if isinstance(state[1], bytes) else str(state[1])


class _PickledArray:
    """A pickled numpy array: its shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (), None, False, b""))

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.is_fortran, self.content = state

    def images(self) -> Pixels:
        """Return the array with one row per image; raise ``ValueError`` if it does not fit."""
        if not isinstance(self.type, _PickledDtype) or self.type.name not in ("u1", "uint8"):
            raise ValueError("its 'data' is not of type uint8")
        if len(self.shape) != 2 or self.shape[1] != _IMAGE_BYTES:
            raise ValueError(f"its 'data' has shape {self.shape}, not (N, {_IMAGE_BYTES})")
        rows = np.frombuffer(self.content, np.uint8)
        return rows.reshape(self.shape, order="F" if self.is_fortran else "C")

    def values(self) -> list[int]:
        """Return an array of integers as a list."""
        if not isinstance(self.type, _PickledDtype) or self.type.name[:1] not in "iu":
            raise ValueError("its 'labels' are not integers")
        order = "<" if self.type.order == "|" else self.type.order
        return np.frombuffer(self.content, np.dtype(order + self.type.name)).tolist()


class _PickledBuffer(_PickledArray):
    """A numpy array pickled with protocol 5."""

    def __init__(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.__setstate__((1, shape, dtype, order == "F", content))


class _PickledBytes(bytes):
    """Bytes pickled by Python 3 for Python 2, as encoded text."""

    def __new__(cls, text: str, encoding: str) -> _PickledBytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError("text in an unsupported encoding")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes cannot have a state")


#: Names that a pickle may contain, and their replacements. All are classes with ``__setstate__``
#: because a pickle could set attributes of anything else.
_REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _PickledBytes,
    **{
        (f"numpy.{core}.{module}", name): replacement
        for core in ("core", "_core")
        for module, name, replacement in (
            ("multiarray", "_reconstruct", _PickledArray),
            ("numeric", "_frombuffer", _PickledBuffer),
        )
    },
}


class _SafeUnpickler(pickle._Unpickler):
    """Python's pure-Python unpickler: its memory only grows with the data in the file."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a known numpy name; reject all other names."""
        if (module, name) not in _REPLACEMENTS:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which an image batch does not need"
            )
        return _REPLACEMENTS[module, name]
