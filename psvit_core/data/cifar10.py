"""``cifar10:DIR``: the published batches, python (pickles) or binary version.

The pickles are read by an unpickler that knows no class and calls no function: arrays come out as
plain facts, which are checked before numpy sees their bytes.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from psvit_core.data.evalset import Source, calib_positions, half
from psvit_core.data.files import digest, reason_of, shown
from psvit_core.data.pixels import ArrayImages, Prepare
from psvit_core.errors import DataError
from psvit_core.records import Transform

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MAX_BATCH_BYTES = 500_000_000
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_SHAPE = (3, 32, 32)  # colour planes of rows, as the files hold an image
_IMAGE_BYTES = 3 * 32 * 32

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Batch = tuple[Pixels, list[int]]  # (N, 3072) and labels


def cifar10_source(place: Path, split: str, transform: Transform) -> Source:
    """A split of CIFAR-10: the test batch is halved into ``val`` and ``test``."""
    training = split in ("train", "calib")
    files = _find(place, [f"data_batch_{i}" for i in range(1, 6)] if training else ["test_batch"])
    batches = [(_read_bin if path.suffix == ".bin" else _read_pickle)(path) for path in files]
    names = [
        f"{path.stem}/{row}"
        for path, (_, labels) in zip(files, batches, strict=True)
        for row in range(len(labels))
    ]
    rows = np.concatenate([pixels for pixels, _ in batches])
    labels = tuple(label for _, batch in batches for label in batch)
    images = rows.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    whole = Source(
        transform=transform.name,
        labels=labels,
        classes=CLASSES,
        identify=lambda i: digest(f"cifar10/{names[i]}/{labels[i]}/".encode() + rows[i].tobytes()),
        load=ArrayImages(images, Prepare(transform)),
    )
    if split == "train":
        return whole
    if split == "calib":
        return whole.take(calib_positions(labels))
    chosen = half(labels, names, split)
    if not chosen:
        raise DataError(f"{shown(files[0])} has one image a class: all are in val, none in test.")
    return whole.take(chosen)


def _find(place: Path, names: list[str]) -> list[Path]:
    """The batch files of these names that are there."""
    for folder in (place / name for name in _FOLDERS):
        for suffix in ("", ".bin"):
            files = [folder / f"{name}{suffix}" for name in names]
            if there := [path for path in files if path.is_file()]:
                return there
    packed = sorted(place.glob("cifar-10-*.tar*")) if place.is_dir() else []
    raise DataError(
        f"{shown(place)} holds no CIFAR-10 batches ({names[0]} or {names[0]}.bin). "
        + (f"Unpack {shown(packed[0])} there." if packed else "Name the folder that holds them.")
    )


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BATCH_BYTES:
        raise DataError(f"{shown(path)} has {size:,} bytes: no CIFAR-10 batch is that large.")


def _checked(path: Path, pixels: Pixels, labels: list[int]) -> Batch:
    if not labels or len(labels) != len(pixels) or not all(0 <= k < 10 for k in labels):
        raise DataError(
            f"{shown(path)}: a batch holds as many labels from 0 to 9 as images, at least one; got "
            f"{len(pixels)} images and {len(labels)} labels. Download it again."
        )
    return pixels, labels


def _read_bin(path: Path) -> Batch:
    """Records of one label byte and 3,072 pixel bytes."""
    _check_size(path)
    content = np.fromfile(path, np.uint8)
    if content.size % (1 + _IMAGE_BYTES):
        raise DataError(
            f"{shown(path)} has {content.size:,} bytes, which is no multiple of the "
            f"{1 + _IMAGE_BYTES} bytes of a CIFAR-10 image: it was cut. Download it again."
        )
    records = content.reshape(-1, 1 + _IMAGE_BYTES)
    return _checked(path, records[:, 1:], records[:, 0].tolist())


def _read_pickle(path: Path) -> Batch:
    """The python version: a dictionary with ``data`` and ``labels``."""
    _check_size(path)
    try:
        batch = _PlainUnpickler(BytesIO(path.read_bytes())).load()
        content = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        labels = content["labels"]
        labels = labels.values() if isinstance(labels, _ArrayFacts) else labels
        return _checked(path, content["data"].images(), [int(label) for label in labels])
    except DataError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(
            f"{shown(path)} is not a CIFAR-10 batch ({reason_of(error)}). Download it again."
        ) from error


# ---- pickles without numpy's or anyone's code ------------------------------------------------


class _TypeFacts:
    """A pickled numpy dtype: its name."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1].decode() if isinstance(state[1], bytes) else str(state[1])


class _ArrayFacts:
    """A pickled numpy array: its shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (), None, False, b""))

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.fortran, self.content = state

    def images(self) -> Pixels:
        """The array as rows of an image each; raises ``ValueError`` if it is none."""
        if not isinstance(self.type, _TypeFacts) or self.type.name not in ("u1", "uint8"):
            raise ValueError("its 'data' are not of type uint8")
        if len(self.shape) != 2 or self.shape[1] != _IMAGE_BYTES:
            raise ValueError(f"its 'data' have shape {self.shape}, not (N, {_IMAGE_BYTES})")
        rows = np.frombuffer(self.content, np.uint8)
        return rows.reshape(self.shape, order="F" if self.fortran else "C")

    def values(self) -> list[int]:
        """A one-dimensional array of integers as a list."""
        if not isinstance(self.type, _TypeFacts) or self.type.name[:1] not in "iu":
            raise ValueError("its 'labels' are no integers")
        order = "<" if self.type.order == "|" else self.type.order
        return np.frombuffer(self.content, np.dtype(order + self.type.name)).tolist()


class _BufferFacts(_ArrayFacts):
    """A numpy array as protocol 5 pickles it."""

    def __init__(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.__setstate__((1, shape, dtype, order == "F", content))


class _Bytes(bytes):
    """Bytes as Python 3 pickles them for Python 2: encoded text."""

    def __new__(cls, text: str, encoding: str) -> _Bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError("text in a foreign encoding")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes have no state")


#: What a pickle may name, and what it gets instead. Classes with ``__setstate__``, all: a pickle
#: could set attributes of anything else.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayFacts,
    ("numpy", "dtype"): _TypeFacts,
    ("_codecs", "encode"): _Bytes,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _ArrayFacts),
            ("numeric", "_frombuffer", _BufferFacts),
        )
    },
}


class _PlainUnpickler(pickle._Unpickler):
    """The unpickler written in Python, whose tables grow only with what is there."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for numpy's own names, else nothing."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no batch of images needs"
            )
        return _STAND_INS[module, name]
